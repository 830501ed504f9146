"""Engines as reports and figures know them: their order and look, from what each engine says of itself.

This is the one place where reports and figures meet `pibench.engines`. No engine is imported by it.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from pibench.engines import ENGINES
from pibench.store import settings


@dataclass(frozen=True)
class Look:
    """An engine's look in figures: its name there, line style, and whether its markers are filled."""

    label: str
    line: str
    filled: bool


def engine_look(engine: str) -> Look:
    """Returns the look of an engine: its own name and a dotted line for one that is not known."""
    found = ENGINES.get(engine)
    return Look(engine, ":", False) if found is None else Look(found.label, found.line, found.filled)


def engine_place(engine: str) -> tuple[int, str]:
    """Returns an engine's place in reports; unknown ones come last, by name."""
    known = tuple(ENGINES)
    return known.index(engine) if engine in known else len(known), engine


def clocks_of(engine: str) -> tuple[str, ...]:
    """Returns the clocks of an engine: the phases of one that is not known."""
    found = ENGINES.get(engine)
    return ("offline", "online") if found is None else found.clocks


def has_one_clock(engine: str) -> bool:
    """Tells whether an engine does everything in the inference, without an offline phase."""
    return len(clocks_of(engine)) == 1


def trust_of(engine: str) -> str:
    """Returns whom the parties of an engine must trust, in one line; nothing for one that is not known."""
    found = ENGINES.get(engine)
    return "" if found is None else found.trust


def steady_traffic(engine: str) -> bool:
    """Tells whether two inferences of one network always send the same."""
    found = ENGINES.get(engine)
    return found is None or found.steady_traffic


def shown_engines(found: Iterable[str] = ()) -> list[str]:
    """Returns the engines that a table has columns for: what every run measures, and those that are found."""
    return sorted({*settings.ENGINES, *found}, key=engine_place)
