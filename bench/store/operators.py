"""The store of rows of single operators: results/operators.json, `{"schema": 1, "rows": [row, ...]}`."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter
from typing_extensions import TypedDict

from pibench.models.files import changing, parse_json, read_file, replace_file, writing
from pibench.models.rows import ResultsError, check, checked

SCHEMA = 1


@checked
class OperatorRow(TypedDict):
    """A measured operator; what else a row holds depends on the operator."""

    name: str
    engine: str


_ROW: TypeAdapter[OperatorRow] = TypeAdapter(OperatorRow)


def read_operators(path: Path) -> list[dict[str, Any]]:
    """Reads the rows of operators.json; empty if there is no file.

    Raises ResultsError for an unusable file.
    """
    remedy = "move it away and run `make operators` again"
    try:
        content = parse_json(read_file(path))
    except FileNotFoundError:
        return []
    except (OSError, ValueError) as error:
        raise ResultsError(f"{path} cannot be read ({error}): {remedy}.") from error
    if not isinstance(content, dict) or not isinstance(content.get("rows"), list):
        raise ResultsError(f"{path} is no file of operators (it lacks `rows`): {remedy}.")
    if content.get("schema") != SCHEMA:
        raise ResultsError(
            f"{path} has schema {content.get('schema')!r:.20}, from another pibench than this one "
            f"(schema {SCHEMA}): {remedy}."
        )
    rows: list[dict[str, Any]] = content["rows"]
    for place, row in enumerate(rows):
        try:
            check(_ROW, row)
        except ResultsError as error:
            reason = str(error).rstrip(".")
            raise ResultsError(f"Row {place} of {path} is unusable, {reason}: {remedy}.") from None
    return rows


def put_operators(path: Path, fresh: Iterable[Mapping[str, Any]]) -> None:
    """Writes rows in the places of those of the same operator and engine; new ones come last.

    Other processes may do the same at the same time. Raises ResultsError when it cannot.
    """
    with writing(path, ResultsError, "make room or allow writing there"), changing(path):
        rows = {_key(row): row for row in read_operators(path)}
        rows |= {_key(row): dict(row) for row in fresh}
        text = json.dumps({"schema": SCHEMA, "rows": list(rows.values())}, indent=1, allow_nan=False)
        replace_file(path, (text + "\n").encode())


def _key(row: Mapping[str, Any]) -> tuple[str, str]:
    return row["name"], row["engine"]
