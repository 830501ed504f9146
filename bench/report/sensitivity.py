"""The sensitivity of each ReLU layer, measured and published: results/training/*/sensitivity.json."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pandas as pd
from pydantic import TypeAdapter, ValidationError
from typing_extensions import TypedDict

from pibench.models.files import parse_json, read_file
from pibench.models.published import SENET_SENSITIVITY
from pibench.models.rows import Share, checked
from pibench.store.results import ResultsError

SENSITIVITY = ("run", "width", "seed", "position", "layer", "measured_sensitivity", "published_sensitivity")


@checked
class Measured(TypedDict):
    """The content of a file that the report reads: each ReLU's sensitivity, 1 - density."""

    sensitivity: dict[str, Share]


_MEASURED: TypeAdapter[Measured] = TypeAdapter(Measured)
# not scaled, not in another precision, not a try
_RUN = re.compile(r"w(?P<width>\d+)-s(?P<seed>\d+)-(?P<plan>[a-z]+)")


def read_sensitivity(folder: Path, accuracy: pd.DataFrame) -> pd.DataFrame:
    """Makes one line for each run and ReLU layer of FOLDER/RUN/sensitivity.json, beside SENet's value.

    There is one run for each width and seed. It has the plan by which its rows of `accuracy` (from
    `tabulate_accuracy`) got their ReLUs, or is the first by name if no row has any.
    """
    by_sensitivity = accuracy[accuracy["relus_by"] == "sensitivity"]
    plans = {(row["width"], row["seed"]): row["plan"] for _, row in by_sensitivity.iterrows()}
    found: dict[tuple[int, int], Path] = {}
    for path in sorted(folder.glob("*/sensitivity.json")):
        name = _RUN.fullmatch(path.parent.name)
        if name is not None:
            key = int(name["width"]), int(name["seed"])
            if key not in found or plans.get(key) == name["plan"]:
                found[key] = path
    lines: list[dict[str, Any]] = []
    for (width, seed), path in sorted(found.items()):
        try:
            measured = _MEASURED.validate_python(parse_json(read_file(path)))["sensitivity"]
            pairs = list(zip(measured.items(), SENET_SENSITIVITY, strict=True))
        except ValidationError as error:
            wrong = ".".join(map(str, error.errors(include_url=False)[0]["loc"])) or "its content"
            raise ResultsError(
                f"{path} cannot be read (`{' '.join(wrong.split())}` is missing or wrong): train again or "
                "remove it."
            ) from error
        except (OSError, ValueError) as error:
            raise ResultsError(f"{path} cannot be read ({error}): train again or remove it.") from error
        for position, ((layer, value), published) in enumerate(pairs):
            setting = (path.parent.name, width, seed, position, layer, value, published)
            lines.append(dict(zip(SENSITIVITY, setting, strict=True)))
    return pd.DataFrame(lines, columns=list(SENSITIVITY))
