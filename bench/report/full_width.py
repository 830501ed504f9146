"""The variants at full width, beside the authors' published values at about the same number of ReLUs."""

from __future__ import annotations

import pandas as pd

from pibench.models import catalogue
from pibench.models.pairs import JOINT_FAMILIES
from pibench.models.published import ALL_RELU_ACCURACY, JOINT_REDUCTION, PUBLISHED, PublishedAccuracy
from pibench.report.cells import (
    UNTRAINED,
    format_accuracy,
    format_number,
    format_over_seeds,
    markdown_table,
)
from pibench.report.measured import counts_of
from pibench.report.variants import plans_text, relus_by_text
from pibench.store.settings import WIDTH

COMMAND = f'make train TRAIN="--width {WIDTH}"'
NEAR = 0.1  # largest relative distance in ReLUs of a published value beside ours


def full_width(table: pd.DataFrame, measured: dict) -> str:
    """Shows the variants at full width beside published values, folded away, and how to train them."""
    wide = table[table["width"] == WIDTH]
    names, lines = catalogue.variant_names(), []
    for name in names:
        found = wide[wide["variant"] == name]
        relus = counts_of(name, WIDTH, table, measured)["relus"]
        value, by = _published_cells(name, relus)
        mean = format_accuracy(found["accuracy_test"].mean())
        lines.append(
            {
                "Variant": f"`{name}`",
                "ReLUs, K": format_number(relus, 1e3, 4),
                "ReLUs by": relus_by_text(found),
                "Ours, test, %": UNTRAINED
                if found.empty
                else format_over_seeds(mean, found["accuracy_test"], format_accuracy),
                "Published, %": value,
                "Published by, at": by,
            }
        )
    trained = wide["variant"].nunique()
    state = f"{trained} of {len(names)} variants are trained" if trained else "no variant is trained yet"
    head = (
        f"**Full width ({WIDTH}): {state}.** It wants a CUDA device and one command, which resumes: "
        f"`{COMMAND}`. Beside each variant stands what its method's authors "
        "published at a number of ReLUs within 10 %; their schedules and networks differ in detail."
        + (f" Trained by plan {plans_text(wide)}." if trained else "")
    )
    summary = f"<summary>Width {WIDTH}, ours and published</summary>"
    return f"{head}\n\n<details>{summary}\n\n{markdown_table(pd.DataFrame(lines))}\n\n</details>"


def published_near(variant: str, relus: float) -> PublishedAccuracy | None:
    """Returns the method's published value at the nearest number of ReLUs, or None if none is near."""
    family = catalogue.family_name(variant)
    known = [each for each in PUBLISHED if each.family == family and abs(each.relus - relus) <= NEAR * relus]
    return min(known, key=lambda each: abs(each.relus - relus), default=None)


def _published_cells(name: str, relus: float) -> tuple[str, str]:
    if name == "baseline":
        low, high = (f"{100 * value:.1f}" for value in ALL_RELU_ACCURACY)
        return f"{low} to {high}", "all papers, all ReLUs"
    near = published_near(name, relus)
    if near is not None:
        return format_accuracy(near.accuracy), f"{near.method}, {near.source}: {near.relus / 1e3:.1f} K"
    if catalogue.family_name(name) in JOINT_FAMILIES:
        return "–", f"no public table ({JOINT_REDUCTION['source']})"
    return "–", "–" if pd.isna(relus) else "none near"
