"""The store of measured rows: results/bench.json, the only truth about time.

The file is `{"schema": 1, "rows": [row, ...]}`, one row a case and machine. A row is a plain dictionary that
`pibench.store.schema` checks; a missing measure is null, never 0 and never NaN. A case is written as soon as
it is measured, by replacing the whole file at once, so an interrupted run keeps every case that it finished.
Two runs that write into one file change it one after the other, so neither loses a row.
"""

from __future__ import annotations

import json
import math
import os
from collections import Counter
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

from pibench.models.files import changing, demand_room, parse_json, read_file, replace_file, writing
from pibench.models.rows import ResultsError
from pibench.store.schema import Row, validate

__all__ = [
    "SCHEMA",
    "ResultsError",
    "Row",
    "Store",
    "key_of",
    "machine_name",
    "one_machine",
    "plans_of",
    "read_rows",
    "validate",
]

SCHEMA = 1


class Store:
    """A results file: `rows` reads it, `add` replaces or appends the row of one case and machine.

    The file is read when the store is made, so that an unusable file is found before anything is measured.
    Every `add` reads it again, so that rows of another run in the meantime are kept.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        self.rows()

    def rows(self) -> list[Row]:
        """Returns the rows in the order in which their cases were first added; empty without a file."""
        return read_rows(self.path)

    def add(self, row: Mapping[str, Any]) -> None:
        """Writes `row` at once; it replaces the row of the same case and machine, or comes last."""
        fresh = _plain(row, "row")
        validate(fresh)
        self._change(lambda rows: _put(rows, [fresh], key_of))

    def merge(self, rows: Iterable[Row]) -> None:
        """Adds rows of other files; of two rows of one case and machine the one that began later stays."""
        given = list(rows)

        def change(own: list[Row]) -> list[Row]:
            return _put(own, sorted([*own, *given], key=lambda row: row["started"]), key_of)

        self._change(change)

    def renew(self, rows: Iterable[Row]) -> None:
        """Writes rows in the places of the rows of the same cases, whichever machines those are of."""
        fresh = list(rows)
        self._change(lambda own: _put(own, fresh, lambda row: row["case"]))

    def drop(self, gone: Callable[[Row], bool]) -> int:
        """Removes the rows of which `gone` is true; returns their number.

        A file that has none of them stays untouched.
        """
        found = sum(map(gone, self.rows()))
        if found:
            self._change(lambda rows: [row for row in rows if not gone(row)])
        return found

    def _change(self, change: Callable[[list[Row]], list[Row]]) -> None:
        """Replaces the rows by what `change` makes of them, while no other process does so."""
        with self._writing(), changing(self.path):
            replace_file(self.path, _render(change(self.rows())).encode())

    def demand_room(self) -> None:
        """Raises ResultsError unless rows can be written now: called before anything is measured."""
        with self._writing():
            demand_room(self.path)

    def _writing(self) -> AbstractContextManager[None]:
        remedy = "make room or allow writing there, or choose another folder with --results."
        return writing(self.path, ResultsError, remedy)


def machine_name(row: Row) -> str:
    """Names the kind of machine that measured a row: two of one kind compare, hosts of one kind are one."""
    return f"{row['machine']['cpu']}, {row['machine']['cores']} cores"


def key_of(row: Row) -> tuple[str, str]:
    """Returns what tells a row from all others of its file: its case and machine."""
    return row["case"], machine_name(row)


def one_machine(rows: Sequence[Row], machine: str | None = None) -> tuple[list[Row], str | None]:
    """Returns the rows of one machine, since seconds of two share no table, and a sentence on the others.

    `machine` is a name or a part of one; without it the machine of the newest row is taken. The sentence is
    None if there are no others. Raises ResultsError for a part of no name, or of several.
    """
    if not rows:
        return [], None
    names = list(dict.fromkeys(map(machine_name, rows)))
    if machine is None:
        chosen = machine_name(max(rows, key=lambda row: row["started"]))
    else:
        fitting = [name for name in names if machine.lower() in name.lower()]
        exact = [name for name in names if machine.lower() == name.lower()]
        if len(exact or fitting) != 1:
            raise ResultsError(
                f"{len(fitting)} machines are called {machine!r}: choose one of {'; '.join(names)}."
            )
        chosen = (exact or fitting)[0]
    others = [name for name in names if name != chosen]
    said = f"shown is {chosen}; --machine shows {'; '.join(others)}" if others else None
    return [row for row in rows if machine_name(row) == chosen], said


def _put(rows: Iterable[Row], fresh: Iterable[Row], key: Callable[[Row], Hashable]) -> list[Row]:
    """Returns `rows` with the fresh ones in the places of those of the same key, others after them."""
    placed: dict[Hashable, list[Row]] = {}
    for row in rows:
        placed.setdefault(key(row), []).append(row)
    placed |= {key(row): [row] for row in fresh}
    return [row for group in placed.values() for row in group]


def plans_of(rows: Iterable[Mapping[str, Any]]) -> list[tuple[str, str, list[str]]]:
    """Returns plan, precision and variants of trained rows; the plan of most of them comes first.

    Rows that do not name both are left out.
    """
    found: dict[tuple[str, str], list[str]] = {}
    for row in rows:
        if isinstance(row["plan"], str) and isinstance(row["precision"], str):
            found.setdefault((row["plan"], row["precision"]), []).append(row["variant"])
    ranked = sorted(found.items(), key=lambda group: -len(group[1]))
    return [(*settings, list(dict.fromkeys(names))) for settings, names in ranked]


def read_rows(path: Path) -> list[Row]:
    """Reads and checks the rows of a results file; empty if there is no file."""
    remedy = "move it away and run `make bench` again (nothing was overwritten)"
    try:
        text = read_file(path).decode()
    except FileNotFoundError:
        return []
    except (OSError, UnicodeDecodeError) as error:
        raise ResultsError(f"{path} cannot be read ({error}): {remedy}.") from error
    try:
        content = parse_json(text)
    except ValueError as error:
        raise ResultsError(f"{path} is not valid JSON ({error}): {remedy}.") from error
    if not isinstance(content, dict) or "schema" not in content or not isinstance(content.get("rows"), list):
        raise ResultsError(f"{path} is no results file (it lacks `schema` or `rows`): {remedy}.")
    schema = content["schema"]
    if schema != SCHEMA:
        age = "a newer" if isinstance(schema, int) and schema > SCHEMA else "an older"
        raise ResultsError(
            f"{path} has schema {schema!r}, from {age} pibench than this one (schema {SCHEMA}): {remedy}."
        )
    rows: list[Row] = content["rows"]
    for place, row in enumerate(rows):
        try:
            validate(row)
        except ResultsError as error:
            raise ResultsError(
                f"Row {place} of {path} is unusable, {str(error).rstrip('.')}: {remedy}."
            ) from error
    twice = next((key for key, count in Counter(map(key_of, rows)).items() if count > 1), None)
    if twice is not None:
        raise ResultsError(f"{path} holds the case {twice[0]!r} twice: {remedy}.")
    return rows


def _plain(value: Any, place: str) -> Any:
    """Copies a value to JSON types: tuples to lists, numpy scalars to numbers, NaN to null."""
    if isinstance(value, Mapping):
        return {str(name): _plain(item, f"{place}.{name}") for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item, f"{place}[{index}]") for index, item in enumerate(value)]
    if hasattr(value, "item") and not isinstance(value, str | bytes):
        value = value.item()
    if isinstance(value, float) and not math.isfinite(value):
        if math.isnan(value):
            return None
        raise ResultsError(f"`{place}` is infinite: a measure is a finite number or null.")
    if value is None or isinstance(value, str | bool | int | float):
        return value
    raise ResultsError(
        f"`{place}` is a {type(value).__name__}: a row holds text, numbers, lists and objects."
    )


def _render(rows: Iterable[Row]) -> str:
    """Writes JSON with one key, and one layer, on each line: small files with readable differences."""

    def dump(value: Any) -> str:
        return json.dumps(value, allow_nan=False, ensure_ascii=False)

    def render_row(row: Row) -> str:
        lines = []
        for name, value in row.items():
            text = dump(value)
            if name == "layers" and row["layers"]:
                text = "[\n" + ",\n".join(f"   {dump(layer)}" for layer in row["layers"]) + "\n  ]"
            lines.append(f"  {dump(name)}: {text}")
        return " {\n" + ",\n".join(lines) + "\n }"

    body = ",\n".join(render_row(row) for row in rows)
    return f'{{"schema": {SCHEMA}, "rows": [\n{body}\n]}}\n'
