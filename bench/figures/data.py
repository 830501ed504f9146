"""What figures read, and the selections that several of them make."""

from __future__ import annotations

from dataclasses import dataclass

import pandas as pd

from bench.figures.style import CLASSES, ENGINES


@dataclass(frozen=True)
class Tables:
    """What figures read: the files of the same names in results/."""

    summary: pd.DataFrame
    layers: pd.DataFrame
    modelled: pd.DataFrame
    break_even: pd.DataFrame


class Missing(Exception):  # noqa: N818 (a state of the data, not a failure)
    """Raised by a figure whose data have not been measured; says which."""


def measured_cases(summary: pd.DataFrame) -> pd.DataFrame:
    """The cases whose seconds were measured, not emulated; Missing if there are none."""
    if summary.empty or "online_median_s" not in summary:
        raise Missing("summary.csv has no measured case")
    return summary[summary["timing"] == "measured"].dropna(subset=["online_median_s"])


def headline_cases(summary: pd.DataFrame) -> pd.DataFrame:
    """The headline cases of the setting (width, batch, link, parties) that most of them share."""
    cases = measured_cases(summary)
    cases = cases[cases["role"] == "headline"]
    if cases.empty:
        raise Missing("summary.csv has no measured case in the role headline")
    groups = [group for _, group in cases.groupby(["width", "batch", "link", "parties"], sort=False)]
    return max(groups, key=len)


def cases_like(cases: pd.DataFrame, headline: pd.DataFrame) -> pd.DataFrame:
    """The cases of the headline's width, link and number of parties."""
    first = headline.iloc[0]
    return cases[(cases[["width", "link", "parties"]] == first[["width", "link", "parties"]]).all(axis=1)]


def engines_of(cases: pd.DataFrame) -> list[str]:
    """The engines of some cases, in the order of figures."""
    return sorted(cases["engine"].unique(), key=[*ENGINES, *sorted(set(cases["engine"]))].index)


def class_seconds(cases: pd.DataFrame, layers: pd.DataFrame) -> pd.DataFrame:
    """Seconds of each class [case, class]; a case without a profile has no line."""
    found = layers[layers["case"].isin(cases["case"])] if not layers.empty else layers
    if found.empty or "seconds" not in found or found["seconds"].isna().all():
        raise Missing("layers.csv has no profile of these cases")
    table = found.pivot_table(index="case", columns="class", values="seconds", aggfunc="sum")
    return table.reindex(columns=list(CLASSES), fill_value=0.0).fillna(0.0)


def whole_percents(values: pd.Series) -> list[int]:
    """Whole percents that sum to 100 (largest remainders get the rest)."""
    exact = 100 * values / values.sum()
    whole = exact.astype(int)
    for name in (exact - whole).sort_values(ascending=False).index[: 100 - whole.sum()]:
        whole[name] += 1
    return whole.tolist()
