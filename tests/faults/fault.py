"""A fault as data, what was observed when it was carried out, and the words of a verdict."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

ID = re.compile(r"[a-z]+/[a-z0-9.+-]+/[a-z0-9-]+")
NO_ENGINE = "none"


@dataclass(frozen=True)
class Fault:
    """A fault: what is done (`act`, a function of a family's module, with plain `arguments`) and to whom.

    `kind`, `name` and `engine` are its id. A clear error holds a match of one of the expressions `names`. The
    act has `seconds`. Faults that follow each other with the same `together` share a process, and so the
    parties in it.
    """

    kind: str
    name: str
    act: str
    arguments: Mapping[str, Any]
    names: tuple[str, ...]
    engine: str = NO_ENGINE
    seconds: float = 20.0
    together: str = ""

    @property
    def id(self) -> str:
        """The name by which one fault is carried out again."""
        return f"{self.kind}/{self.name}/{self.engine}"


class Verdict(StrEnum):
    """The verdict on one fault; the first two are survived."""

    RIGHT = "right answer"
    CLEAR = "clear error"
    WRONG = "silently wrong"
    HANG = "hang"
    LEFT = "left behind"
    LOST = "lost"
    OBSCURE = "obscure error"
    BROKEN = "broken fault"

    @property
    def survived(self) -> bool:
        """True if the suite did what it should."""
        return self in (Verdict.RIGHT, Verdict.CLEAR)


@dataclass(frozen=True)
class Observed:
    """What a fault led to.

    `answered` is true if the suite gave a result, and `right` if that is the true one. `message` is what it
    said instead: the text of an exception of the class `raised`, or the standard error of a command (`raised`
    is empty). `deliberate` is true for an exception that the suite raises itself or that names a file. `lost`
    lists rows and files that should be there, `left` processes and files that should be gone. `hung` and
    `died` (how the interpreter ended) are filled in by the lane, `broken` if the act itself failed. `said`
    is what the process printed.
    """

    answered: bool = False
    right: bool = False
    message: str = ""
    raised: str = ""
    deliberate: bool = False
    lost: tuple[str, ...] = ()
    left: tuple[str, ...] = ()
    hung: bool = False
    died: str = ""
    broken: str = ""
    said: str = ""


@dataclass(frozen=True)
class Outcome:
    """A fault that was carried out: what was observed, the verdict, and the seconds that it took."""

    fault: Fault
    observed: Observed
    verdict: Verdict
    seconds: float

    @property
    def reason(self) -> str:
        """One line that tells why the fault was not survived."""
        seen = self.observed
        text = {
            Verdict.WRONG: "an answer that is not the true one, without a word",
            Verdict.HANG: f"no end within {self.fault.seconds:g} s",
            Verdict.LEFT: ", ".join(seen.left),
            Verdict.LOST: ", ".join(seen.lost),
            Verdict.OBSCURE: seen.died or f"{seen.raised}: {seen.message}".strip(": "),
            Verdict.BROKEN: seen.broken,
        }.get(self.verdict, "")
        lines = [line for line in text.splitlines() if line.strip()]
        many = "Traceback" in text or self.verdict is Verdict.BROKEN
        chosen = [*lines[:1], *lines[-1:]] if many else lines[:1]
        return " ... ".join(dict.fromkeys(chosen))[:300]
