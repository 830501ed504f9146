"""The table of every variant at the width of the accuracy figures, and its caption."""

from __future__ import annotations

import math

import pandas as pd

from pibench.models import catalogue
from pibench.report.accuracy import difference
from pibench.report.cells import (
    UNTRAINED,
    format_accuracy,
    format_count,
    format_number,
    format_over_seeds,
    format_points,
)
from pibench.report.measured import counts_of
from pibench.store.results import plans_of
from pibench.store.settings import TRAINED_WIDTH

TEST_IMAGES = 10_000


def variants_table(narrow: pd.DataFrame, measured: dict) -> pd.DataFrame:
    """Makes one line for each variant of the catalogue or the table; empty columns are left out."""
    known = catalogue.variant_names()
    names = [*known, *(name for name in narrow["variant"].unique() if name not in known)]
    fixed = narrow["accuracy_fixed_point"].notna().any()
    engines = [name for name in _judging(narrow) if narrow[f"private_{name}_agreement"].notna().any()]
    lines = []
    for name in names:
        found = narrow[narrow["variant"] == name]
        counts = counts_of(name, TRAINED_WIDTH, narrow, measured)
        test = format_accuracy(found["accuracy_test"].mean())
        to_baseline = difference(narrow, TRAINED_WIDTH, name, "baseline")
        line = {
            "Variant": f"`{name}`",
            "ReLUs, K": format_number(counts["relus"], 1e3, 4),
            "MACs, M": format_number(counts["macs"], 1e6, 4),
            "Epochs": _span(found["epochs"]),
            "ReLUs by": relus_by_text(found),
            "Held out, %": format_accuracy(found["accuracy_heldout"].mean()),
            "Test, %": UNTRAINED
            if found.empty
            else format_over_seeds(test, found["accuracy_test"], format_accuracy),
            "To the baseline, points": "0" if name == "baseline" else format_points(to_baseline.mean),
        }
        if found.empty:
            line["To the baseline, points"] = "–"
        line["Seeds"] = str(len(found)) if len(found) else "–"
        if fixed:
            line["Fixed point, %"] = format_accuracy(_first(found["accuracy_fixed_point"]))
        for engine in engines:
            line[f"Agreement, {engine}"] = _agreement(found, engine)
        lines.append(line)
    return pd.DataFrame(lines)


def variants_caption(narrow: pd.DataFrame) -> list[str]:
    """Writes the meaning of the columns, and the plans, seeds and data of the training."""
    if narrow.empty:
        return [f"No network of width {TRAINED_WIDTH} has been trained yet: run `make data train`."]
    typical = narrow["accuracy_test"].mean()
    error = math.sqrt(typical * (1 - typical) / TEST_IMAGES)
    text = (
        f"*Test*: {TEST_IMAGES:,} images, read once for each row, by the network that is stored and deployed "
        f"(one accuracy has a standard error of {100 * error:.1f} points); *held out*: 5,000 training images "
        "that alone chose anything. *Epochs* count all phases, the baseline's included. *ReLUs by*: what "
        "gives each layer its share of the budget, SENet's sensitivity or SNL's lasso."
    )
    if narrow["seed"].nunique() > 1:
        text += (
            " Over several seeds: the mean and in brackets the lowest and the highest; differences to the "
            "baseline are over the seeds that both have."
        )
    if narrow["accuracy_fixed_point"].notna().any():
        text += " *Fixed point*: the same test images with 16 fractional bits, weights of seed 0."
    private = [narrow[f"private_{name}_agreement"] for name in _judging(narrow)]
    if any(column.notna().any() for column in private):
        text += (
            " *Agreement*: test images on which real parties and the plaintext network name the same class."
        )
    machines = ", ".join(str(each) for each in narrow["machine"].dropna().unique())
    seeds = ", ".join(str(seed) for seed in sorted(narrow["seed"].unique()))
    seed_text = f"seed{'s' * (narrow['seed'].nunique() > 1)} {seeds}"
    return [text, f"Trained by plan {plans_text(narrow)}, {seed_text}, on {machines or 'unknown'}."]


def plans_text(narrow: pd.DataFrame) -> str:
    """Names the plan of most rows, then the other plans with their rows; "unknown" if no row has one."""
    named = "; ".join(
        (f"{', '.join(f'`{name}`' for name in names)} by " if index else "") + f"`{plan}` in {precision}"
        for index, (plan, precision, names) in enumerate(plans_of(narrow.to_dict("records")))
    )
    return named or "unknown"


def relus_by_text(found: pd.DataFrame) -> str:
    """Names the phases that gave each layer its share of the ReLUs in some rows; a dash for none."""
    return ", ".join(filter(None, found["relus_by"].unique())) or "–"


def _span(values: pd.Series) -> str:
    if values.dropna().empty:
        return "–"
    low, high = format_count(values.min()), format_count(values.max())
    return low if low == high else f"{low} to {high}"


def _first(values: pd.Series) -> float:
    return next(iter(values.dropna()), math.nan)


def _judging(table: pd.DataFrame) -> list[str]:
    """Returns the engines for which the table has columns."""
    private = [name for name in table if name.startswith("private_") and name.endswith("_agreement")]
    return [name.removeprefix("private_").removesuffix("_agreement") for name in private]


def _agreement(found: pd.DataFrame, engine: str) -> str:
    """Writes on how many of their images real parties and the plaintext network agree on the class."""
    known = found.dropna(subset=[f"private_{engine}_agreement"])
    if known.empty:
        return "–"
    images = int(known[f"private_{engine}_images"].iloc[0])
    return f"{round(known[f'private_{engine}_agreement'].iloc[0] * images)} of {images}"
