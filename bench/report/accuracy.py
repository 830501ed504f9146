"""The table of trained networks: results/accuracy.json -> accuracy.csv.

An accuracy is a share of CIFAR-100's test images (0 to 1). It belongs to a width. The accuracy figures have
`pibench.store.settings.TRAINED_WIDTH`, the latency headline has `pibench.store.settings.WIDTH`, and no column
holds both. Seeds are compared one by one, because the networks of one seed and plan share their baseline.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from pibench.models import catalogue
from pibench.models.rows import read_rows
from pibench.store.engines import shown_engines

SETTINGS = ("plan", "epochs_scale", "precision")
RANDOM = "random"
"""The start of a network that was trained from random weights on."""
SEED_AND_PLAN = ("seed", *SETTINGS, "start")
"""What rows have in common whose networks share a baseline."""
ROW = ("variant", "width", "seed", *SETTINGS, "start", "epochs", "relus", "macs")
JUDGED = ("accuracy_heldout", "accuracy_test", "accuracy_fixed_point")
PRIVATE = ("images", "agreement", "accuracy", "accuracy_plaintext", "max_logit_error")


@dataclass(frozen=True)
class Difference:
    """Mean, lowest and highest of accuracy - other over common seeds, and their number; NaN without any."""

    mean: float
    low: float
    high: float
    seeds: int


def read_accuracy(path: Path) -> pd.DataFrame | None:
    """Reads accuracy.json, one line a row; returns None without a file or rows. Raises ResultsError."""
    rows = read_rows(path)
    return pd.DataFrame(rows) if rows else None


def tabulate_accuracy(accuracy: pd.DataFrame | None) -> pd.DataFrame:
    """Makes one line for each variant, width and seed; `private_ENGINE_*` are of the private inferences.

    `start` is "random", or "published" for a network that was trained from the project's own baseline.
    `relus_by` is the phase that gave each layer its share of the ReLUs: SENet's "sensitivity", SNL's "lasso".
    """
    judged = [] if accuracy is None else [_part(row, "private") for _, row in accuracy.iterrows()]
    by_engine = shown_engines(engine for engines in judged for engine in engines)
    private = [f"private_{engine}_{name}" for engine in by_engine for name in PRIVATE]
    columns = [
        *ROW,
        "relus_by",
        *JUDGED,
        "fixed_point_images",
        "fixed_point_agreement",
        *private,
        "wall_s",
        "machine",
    ]
    if accuracy is None or accuracy.empty:
        return pd.DataFrame(columns=columns)
    lines = []
    for _, row in accuracy.iterrows():
        fixed, engines = _part(row, "fixed_point"), _part(row, "private")
        line = {name: row.get(name, math.nan) for name in (*ROW, *JUDGED, "wall_s", "machine")}
        line["start"] = line["start"] if isinstance(line["start"], str) else RANDOM
        line["relus_by"] = _relus_by(row)
        line |= {f"fixed_point_{name}": fixed.get(name, math.nan) for name in ("images", "agreement")}
        for engine in by_engine:
            found = engines.get(engine) or {}
            line |= {f"private_{engine}_{name}": found.get(name, math.nan) for name in PRIVATE}
        lines.append(line)
    table = pd.DataFrame(lines, columns=columns)
    whole = [name for name in columns if name in ("epochs", "relus", "macs") or name.endswith("_images")]
    table = table.astype(dict.fromkeys(whole, "Int64"))
    order = sorted(table.index, key=lambda index: _accuracy_place(table.loc[index]))
    return table.loc[order].reset_index(drop=True)


def _part(row: pd.Series, name: str) -> dict[str, Any]:
    return row[name] if isinstance(row.get(name), dict) else {}


def _relus_by(row: pd.Series) -> str:
    """Returns the phase of a row that gave each layer its share of the ReLUs; "" if none did."""
    phases = _part(row, "phases")
    if f"{row['variant']}-lasso" in phases:
        return "lasso"
    return "sensitivity" if "sensitivity" in phases else ""


def _accuracy_place(line: pd.Series) -> tuple:
    known = catalogue.variant_names()
    place = known.index(line["variant"]) if line["variant"] in known else len(known)
    return line["width"], place, line["variant"], line["seed"]


def compared_rows(
    table: pd.DataFrame, width: int, variant: str, other: str, by: Sequence[str] = ("seed",)
) -> pd.DataFrame:
    """Joins the rows of `variant` at a width with those of `other` (`*_other`) that are equal in `by`."""
    at_width = table[table["width"] == width]
    own, others = (at_width[at_width["variant"] == name] for name in (variant, other))
    return own.merge(others, on=list(by), suffixes=("", "_other"))


def difference(
    table: pd.DataFrame, width: int, variant: str, other: str, by: Sequence[str] = ("seed",)
) -> Difference:
    """Returns by how much `variant` is more accurate than `other`, over rows at this width equal in `by`."""
    rows = compared_rows(table, width, variant, other, by)
    found = (rows["accuracy_test"] - rows["accuracy_test_other"]).dropna()
    return Difference(found.mean(), found.min(), found.max(), len(found))
