"""The store of measured rows: results/bench.json, the only truth about time.

The file is `{"schema": 1, "rows": [row, ...]}`, one row a case. A row is a plain dictionary that
`pibench.store.schema` checks; a missing measure is null, never 0 and never NaN. A case is written as soon as
it is measured, by replacing the whole file at once, so an interrupted run keeps every case that it finished.
Two runs that write into one file change it one after the other, so neither loses a row.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from pibench.models.files import changing, demand_room, replace_file, target_of
from pibench.models.rows import ResultsError
from pibench.store.schema import Row, validate

__all__ = ["SCHEMA", "ResultsError", "Row", "Store", "plans_of", "read_rows", "validate"]

SCHEMA = 1


class Store:
    """A results file: `rows` reads it, `add` replaces or appends the row of one case.

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
        """Writes `row` at once; it replaces the row of the same case, or comes after the others."""
        fresh = _plain(row, "row")
        validate(fresh)
        with self._writing(), changing(self.path):
            rows = self.rows()
            places = {old["case"]: place for place, old in enumerate(rows)}
            if fresh["case"] in places:
                rows[places[fresh["case"]]] = fresh
            else:
                rows.append(fresh)
            replace_file(self.path, _render(rows).encode())

    def demand_room(self) -> None:
        """Raises ResultsError unless rows can be written now: called before anything is measured."""
        with self._writing():
            demand_room(self.path)

    @contextmanager
    def _writing(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise ResultsError(
                f"{self.path} cannot be written ({error.strerror or error}): make room or allow writing "
                "there, or choose another folder with --results."
            ) from error


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
        target_of(path)  # reading a pipe would wait for ever
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        return []
    except (OSError, UnicodeDecodeError) as error:
        raise ResultsError(f"{path} cannot be read ({error}): {remedy}.") from error
    try:
        content = json.loads(text, parse_constant=_refuse_constant)
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
    cases = [row["case"] for row in rows]
    twice = sorted({case for case in cases if cases.count(case) > 1})
    if twice:
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


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is not a number")
