"""The store of measured rows: results/bench.json, the only truth about time.

The file is `{"schema": 1, "rows": [row, ...]}`, one row a case. A row is a plain dictionary of the shape
`SHAPE`; a missing measure is null, never 0 and never NaN. A case is written as soon as it is measured, by
replacing the whole file at once, so an interrupted run keeps every case that it finished.
"""

from __future__ import annotations

import json
import math
import os
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

SCHEMA = 1

Row = dict[str, Any]


class ResultsError(RuntimeError):
    """Raised when a results file or a row cannot be used; one sentence that names it and the remedy."""


class _Optional:
    """Marks a part of SHAPE that may be null."""

    def __init__(self, kind: Any) -> None:
        self.kind = kind


_FLOAT = _Optional(float)
_INT = _Optional(int)
_TEXT = _Optional(str)

# A type: a value of it; `_Optional(type)`: that or null; [x]: a list of x; {str: x}: any names with x.
# Further keys are welcome. A reference's rounds stand at the places of the rounds they are paired with, null
# where a partner is lost.
# `traffic.hops` are one-way trips in sequence of one online phase; `link_check` is
# `pibench.links.LinkCheck.as_dict()` of the parties that were measured, null where none was made;
# `network` is `pibench.costs.literature.Network.as_dict()`, null for a network that its models do not price.
LINK_CHECK = {
    "shaper": str,
    "asked_rtt_s": float,
    "measured_rtt_s": _FLOAT,
    "asked_bandwidth_bits_s": _FLOAT,
    "measured_bandwidth_bits_s": _FLOAT,
    "round_s": _FLOAT,
    "round_hops": _INT,
    "hop_overhead_s": _FLOAT,
    "ok": bool,
    "complaint": _TEXT,
}
NETWORK = {
    "name": str,
    "relus": int,
    "relu_layers": int,
    "linear": [
        {
            "name": str,
            "kind": str,
            "inputs": int,
            "outputs": int,
            "kernel": [int],
            "in_map": [int],
            "out_map": [int],
            "groups": int,
        }
    ],
}
SHAPE: dict[str, Any] = {
    "case": str,
    "variant": str,
    "width": int,
    "engine": str,
    "provider": _TEXT,
    "batch": int,
    "link": str,
    "timing": str,
    "link_check": _Optional(LINK_CHECK),
    "parties": int,
    "role": str,
    "weights": _TEXT,
    "images": _TEXT,
    "cost": dict.fromkeys(
        ("relus", "comparisons", "relu_layers", "linear_layers", "macs", "parameters"), _INT
    ),
    "traffic": {
        "rounds": _INT,
        "hops": _INT,
        "bytes_sent": _INT,
        "bytes_sent_by_party": [_INT],
        "bytes_total": _INT,
    },
    "setup": {"seconds": _FLOAT, "rounds": _INT, "bytes_sent_by_party": [_INT]},
    "offline": {"correlated_bytes_by_party": [_INT], "dealt_bytes": _INT},
    "times": {"offline_s": [float], "online_s": [float], "total_s": [float]},
    "peak_memory_bytes_by_party": [_INT],
    "truncation": {"expected_per_inference": _FLOAT, "expected": _FLOAT, "observed": _INT},
    "answer": {"max_error": _FLOAT, "spread": _FLOAT, "relative_error": _FLOAT, "tolerance": _FLOAT},
    "rounds": {"attempted": int, "succeeded": int},
    "layers": [
        {
            "name": str,
            "kind": str,
            "seconds": _FLOAT,
            "rounds": _INT,
            "bytes_sent": _INT,
            "relus": _INT,
            "macs": _INT,
            "parameters": _INT,
        }
    ],
    "network": _Optional(NETWORK),
    "conventions": {str: str},
    "machine": {"cpu": _TEXT, "cores": _INT, "memory_bytes": _INT, "system": _TEXT, "python": _TEXT},
    "versions": {str: _TEXT},
    "commit": _TEXT,
    "dirty": _Optional(bool),
    "run": str,
    "started": str,
}
REFERENCE = {"case": str, "offline_s": [_FLOAT], "online_s": [_FLOAT], "total_s": [_FLOAT]}
CLOCKS = ("offline_s", "online_s", "total_s")
ROLES = ("headline", "link", "batch", "sweep", "extra")
TIMINGS = ("measured", "emulated")  # emulated: real parties, whose bytes a shaper delays


class Store:
    """A results file: `rows` reads it, `add` replaces or appends the row of one case.

    The file is read when the store is made, so that a file that cannot be used is found before anything is
    measured, and again by every `add`, so that rows which another run wrote meanwhile are kept.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        self.rows()

    def rows(self) -> list[Row]:
        """The rows in the order in which their cases were first added; none when there is no file yet."""
        return read_rows(self.path)

    def add(self, row: Mapping[str, Any]) -> None:
        """Writes `row` at once in the place of the row of the same case, or after the others."""
        fresh = _plain(row, "row")
        validate(fresh)
        rows = self.rows()
        places = {old["case"]: place for place, old in enumerate(rows)}
        if fresh["case"] in places:
            rows[places[fresh["case"]]] = fresh
        else:
            rows.append(fresh)
        replace_file(self.path, _render(rows).encode())


def family_of(variant: str) -> str:
    """The variant's name without the fraction at its end: `senet-0.09` -> `senet`."""
    return re.sub(r"-\d+(\.\d+)?$", "", variant)


def plans_of(rows: Iterable[Mapping[str, Any]]) -> list[tuple[str, str, list[str]]]:
    """Plan, precision and variants of trained rows (see `pibench.models.training`), first the plan of most of
    them.

    Rows that do not name both are left out.
    """
    found: dict[tuple[str, str], list[str]] = {}
    for row in rows:
        if isinstance(row["plan"], str) and isinstance(row["precision"], str):
            found.setdefault((row["plan"], row["precision"]), []).append(row["variant"])
    ranked = sorted(found.items(), key=lambda group: -len(group[1]))
    return [(*settings, list(dict.fromkeys(names))) for settings, names in ranked]


def read_rows(path: Path) -> list[Row]:
    """Reads and checks the rows of a results file; a file that is not there has none."""
    remedy = "move it away and run `make bench` again (nothing was overwritten)"
    try:
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
    for place, row in enumerate(content["rows"]):
        try:
            validate(row)
        except ResultsError as error:
            raise ResultsError(
                f"Row {place} of {path} is unusable, {str(error).rstrip('.')}: {remedy}."
            ) from error
    cases = [row["case"] for row in content["rows"]]
    twice = sorted({case for case in cases if cases.count(case) > 1})
    if twice:
        raise ResultsError(f"{path} holds the case {twice[0]!r} twice: {remedy}.")
    return content["rows"]


def validate(row: Any) -> None:
    """Raises ResultsError naming the first key of `row` that is missing, of a wrong type or contradictory."""
    _check(row, SHAPE, "")
    name = f"the row {row['case']!r}"
    if row["role"] not in ROLES:
        raise ResultsError(f"In {name} `role` is {row['role']!r}: use one of {', '.join(ROLES)}.")
    _check_link(row, name)
    for clock, seconds in row["times"].items():
        if len(seconds) != row["rounds"]["succeeded"]:
            raise ResultsError(
                f"In {name} `times.{clock}` has {len(seconds)} rounds, "
                f"`rounds.succeeded` {row['rounds']['succeeded']}: keep one time a successful round."
            )
    if "reference" not in row:
        raise ResultsError(f"In {name} `reference` is missing: set it to null when there is none.")
    if row["reference"] is None:
        return
    _check(row["reference"], REFERENCE, "reference")
    if row["reference"].get("link_check") is not None:  # not in rows of older runs
        _check(row["reference"]["link_check"], LINK_CHECK, "reference.link_check")
    for clock in CLOCKS:
        if len(row["reference"][clock]) != len(row["times"][clock]):
            raise ResultsError(
                f"In {name} `reference.{clock}` does not pair with `times.{clock}` "
                f"({len(row['reference'][clock])} rounds, {len(row['times'][clock])}): "
                "write null where a round lost its partner."
            )


def _check_link(row: Row, name: str) -> None:
    """Raises ResultsError unless `timing`, the link and its check say the same."""
    timing, check = row["timing"], row["link_check"]
    if timing not in TIMINGS:
        raise ResultsError(f"In {name} `timing` is {timing!r}: use one of {', '.join(TIMINGS)}.")
    if check is None:
        if timing == "emulated":
            raise ResultsError(
                f"In {name} `link_check` is null: an emulated link is checked before it is used."
            )
        return
    shaped = check["asked_rtt_s"] > 0 or check["asked_bandwidth_bits_s"] is not None
    if shaped != (timing == "emulated"):
        what = "an RTT or a bandwidth was asked for" if shaped else "no RTT and no bandwidth was asked for"
        rule = "times over a shaped link are emulated, others measured"
        raise ResultsError(f"In {name} `timing` is {timing!r} though {what}: {rule}.")
    if check["ok"] != (check["complaint"] is None):
        raise ResultsError(
            f"In {name} `link_check.ok` is {check['ok']} and `link_check.complaint` {check['complaint']!r}: "
            "give a complaint exactly when the link is not what was asked for."
        )


def replace_file(path: Path, data: bytes) -> None:
    """Puts `data` into `path` in one step: readers see the old file or the new one, never a part."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with open(temporary, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def _check(value: Any, shape: Any, place: str) -> None:
    if isinstance(shape, _Optional):
        if value is None:
            return
        shape = shape.kind
    if isinstance(shape, dict):
        _require(isinstance(value, dict), value, "an object", place)
        names = value if str in shape else shape
        for name in names:
            below = f"{place}.{name}" if place else name
            if name not in value:
                raise ResultsError(f"the row lacks `{below}`; write null for a measure that is missing.")
            _check(value[name], shape.get(name, shape.get(str)), below)
    elif isinstance(shape, list):
        _require(isinstance(value, list), value, "a list", place)
        for index, item in enumerate(value):
            _check(item, shape[0], f"{place}[{index}]")
    elif shape is float:
        number = isinstance(value, int | float) and not isinstance(value, bool)
        _require(number and math.isfinite(value), value, "a finite number", place)
    elif shape is int:
        _require(isinstance(value, int) and not isinstance(value, bool), value, "a whole number", place)
    else:
        _require(isinstance(value, shape), value, {str: "text", bool: "true or false"}[shape], place)


def _require(holds: bool, value: Any, wanted: str, place: str) -> None:
    if not holds:
        raise ResultsError(f"`{place or 'the row'}` is {value!r:.60} where {wanted} belongs.")


def _plain(value: Any, place: str) -> Any:
    """Copies to what JSON knows: tuples to lists, numpy scalars to numbers, NaN to null."""
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
    """JSON with one key, and one layer, a line: small, and its differences can be read."""

    def dump(value: Any) -> str:
        return json.dumps(value, allow_nan=False, ensure_ascii=False)

    def render_row(row: Row) -> str:
        lines = []
        for name, value in row.items():
            text = dump(value)
            if name == "layers" and value:
                text = "[\n" + ",\n".join(f"   {dump(layer)}" for layer in value) + "\n  ]"
            lines.append(f"  {dump(name)}: {text}")
        return " {\n" + ",\n".join(lines) + "\n }"

    body = ",\n".join(render_row(row) for row in rows)
    return f'{{"schema": {SCHEMA}, "rows": [\n{body}\n]}}\n'


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is not a number")
