"""Rows of results: their checks, and the schema of accuracy.json and tries.json.

A row is a plain dictionary. Its schema is a TypedDict. One declaration thus serves the reader, who learns the
keys, the type checker, and pydantic, which checks a row at run time. A key outside the schema is allowed.
Checking changes nothing: the row stays as in the file, to the last digit.
"""

import json
from pathlib import Path
from typing import Annotated, Any, Required, cast

from pydantic import Field, TypeAdapter, ValidationError, with_config
from typing_extensions import TypedDict  # pydantic cannot use typing's own below Python 3.12

from pibench.models.files import parse_json, read_file

Share = Annotated[float, Field(ge=0, le=1)]
"""A share of images, from 0 to 1."""
Amount = Annotated[float, Field(ge=0, lt=1e18)]
"""A measure that is not negative, such as seconds or bits a second."""
Positive = Annotated[float, Field(gt=0, lt=1e18)]
"""A measure that is never zero, such as the seconds of a round."""
Count = Annotated[int, Field(ge=0, lt=2**63)]
"""A whole number that is not negative; tables hold 64 bits."""
Size = Annotated[int, Field(ge=1, lt=2**63)]
"""A whole number that is positive."""
Whole = Annotated[int, Field(ge=-(2**63), lt=2**63)]
"""Any whole number that tables can hold."""

checked = with_config(strict=True, extra="allow", allow_inf_nan=False)
"""Decorates a schema: types are exact (an integer is a float too), numbers finite, further keys welcome."""


class ResultsError(RuntimeError):
    """Raised when a results file or a row cannot be used; one sentence names it and the remedy."""


@checked
class FixedPoint(TypedDict):
    """The result of the test images in fixed point: their number, and the share on which plaintext agrees."""

    images: Size
    agreement: Share


@checked
class Truncations(TypedDict):
    """Wrong truncations: the number expected by the engine's law, and the observed one."""

    expected: Amount | None
    observed: Count | None


@checked
class Private(TypedDict, total=False):
    """The results of real parties on some test images, beside the plaintext network on the same images."""

    images: Required[Size]
    agreement: Required[Share]
    accuracy: Share
    accuracy_plaintext: Share
    max_logit_error: Amount | None
    spread: Amount
    wrong_truncations: Truncations


class Key(TypedDict):
    """The name of a trained network in a file.

    No two rows share it, together with `changes` if there are any.
    """

    variant: str
    width: Size
    seed: Whole


@checked
class AccuracyRow(Key, total=False):
    """A trained network of accuracy.json.

    `phases` maps a phase's name to its epochs. `wall_s` is the training time in seconds. `private` is by
    engine. Values that no training or measurement has given yet are absent.
    """

    epochs: Count
    relus: Count
    macs: Count
    accuracy_heldout: Share
    accuracy_test: Share
    wall_s: Amount
    machine: str
    phases: dict[str, Count]
    plan: str
    epochs_scale: Amount
    precision: str
    start: str
    weights_sha256: str
    accuracy_fixed_point: Share
    fixed_point: FixedPoint
    private: dict[str, Private]
    changes: dict[str, Any]


@checked
class TryRow(Key):
    """A network of tries.json, trained by a plan with `changes`; it never saw the test images."""

    epochs: Count
    accuracy_heldout: Share
    plan: str
    epochs_scale: Amount
    precision: str
    changes: dict[str, Any]


_ACCURACY: TypeAdapter[AccuracyRow] = TypeAdapter(AccuracyRow)
_TRY: TypeAdapter[TryRow] = TypeAdapter(TryRow)
_WANTED = {
    "int_type": "a whole number",
    "float_type": "a finite number",
    "finite_number": "a finite number",
    "bool_type": "true or false",
    "string_type": "text",
    "list_type": "a list",
    "dict_type": "an object",
    "less_than_equal": "a share from 0 to 1, not in percent,",
    "greater_than_equal": "a number from {ge:g} on",
    "greater_than": "a number above {gt:g}",
    "less_than": "a number below {lt:g}",
}


def check(schema: TypeAdapter[Any], row: object) -> None:
    """Raises ResultsError that names the first missing, wrong or contradictory key of `row`."""
    try:
        schema.validate_python(row)
    except ValidationError as error:
        raise ResultsError(_explain(error)) from None


def _explain(error: ValidationError) -> str:
    """Returns one sentence about the first error."""
    found = error.errors(include_url=False)[0]
    place = ""
    for step in found["loc"]:
        place += f"[{step}]" if isinstance(step, int) else f".{step}" if place else step
    place = " ".join(place.split())  # a key of a damaged file may hold line breaks
    kind, value = found["type"], f"{found['input']!r:.60}"
    if kind == "missing":
        return f"the row lacks `{place}`; write null for a measure that is missing."
    if kind == "literal_error":
        known = found["ctx"]["expected"].replace("'", "").replace(" or ", ", ")
        return f"`{place}` is {value}: use one of {known}."
    if kind == "value_error":
        return str(found["ctx"]["error"])
    wanted = _WANTED.get(kind, "another value").format(**found.get("ctx", {}))
    return f"`{place or 'the row'}` is {value} where {wanted} belongs."


def row_key(row: AccuracyRow | TryRow) -> tuple[str, int, int, str]:
    """Returns the values that distinguish a row from all others of its file."""
    return row["variant"], row["width"], row["seed"], json.dumps(row.get("changes", {}), sort_keys=True)


def check_row(row: object) -> None:
    """Raises ResultsError unless `row` may stand in accuracy.json."""
    check(_ACCURACY, row)


def read_rows(path: Path) -> list[AccuracyRow]:
    """Reads the rows of accuracy.json.

    Empty if there is no file. Raises ResultsError for an unusable file.
    """
    return cast(list[AccuracyRow], _read(path, _ACCURACY))


def read_tries(path: Path) -> list[TryRow]:
    """Reads the rows of tries.json; empty if there is no file. Raises ResultsError for an unusable file."""
    return cast(list[TryRow], _read(path, _TRY))


def _read(path: Path, schema: TypeAdapter[Any]) -> list[Any]:
    remedy = "move it away, and training makes its rows again"
    try:
        content = parse_json(read_file(path), finite=False)  # the schema names the key
    except FileNotFoundError:
        return []
    except (OSError, ValueError) as error:
        raise ResultsError(f"{path} cannot be read ({error}): {remedy}.") from error
    if not isinstance(content, list):
        raise ResultsError(f"{path} is no list of rows: {remedy}.")
    known = set()
    for place, row in enumerate(content):
        try:
            check(schema, row)
        except ResultsError as error:
            reason = str(error).rstrip(".")
            raise ResultsError(f"Row {place} of {path} is unusable, {reason}: {remedy}.") from None
        if row_key(row) in known:
            variant, width, seed, _ = row_key(row)
            raise ResultsError(
                f"{path} holds {variant} twice (width {width}, seed {seed}): remove one of the rows."
            )
        known.add(row_key(row))
    return content
