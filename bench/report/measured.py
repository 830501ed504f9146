"""The measured values of a variant: its counts, and its online seconds beside another's."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from statistics import median

import pandas as pd

from pibench.models import catalogue
from pibench.report.order import place_of
from pibench.report.statistics import quotient_of_medians
from pibench.store.results import Row


def latency_rows(rows: Iterable[Row]) -> dict[tuple[str, int, str], Row]:
    """Returns measured rows of one image and two parties on loopback, by variant, width and engine."""
    found: dict[tuple[str, int, str], Row] = {}
    for row in sorted(rows, key=place_of):
        usual = row["batch"] == 1 and row["parties"] == 2 and row["link"] == "loopback"
        if usual and row["timing"] == "measured" and row["times"].get("online_s"):
            found.setdefault((row["variant"], row["width"], row["engine"]), row)
    return found


def counts_of(
    variant: str, width: int, table: pd.DataFrame, rows: dict[tuple[str, int, str], Row]
) -> dict[str, float]:
    """Returns ReLUs and MACs of a variant, from its training or a measured row; NaN without either.

    ReLUs are proportional to the width. If they are unknown at this width, those of another width are scaled.
    Without any row the share that the variant declares, if any, is applied to the baseline's ReLUs.
    """
    counts = {
        each: row["cost"]
        for (name, each, _), row in rows.items()
        if name == variant and each and row["cost"]["relus"] and row["cost"]["macs"]
    }
    for _, line in table[table["variant"] == variant].dropna(subset=["relus", "macs"]).iterrows():
        counts[line["width"]] = line
    if width in counts:
        return {"relus": float(counts[width]["relus"]), "macs": float(counts[width]["macs"])}
    scaled = next((round(cost["relus"] * width / each) for each, cost in counts.items()), math.nan)
    declared = catalogue.variants().get(variant)
    if not counts and declared is not None and declared.fraction is not None:
        scaled = round(declared.fraction * counts_of("baseline", width, table, rows)["relus"], 0)
    return {"relus": float(scaled), "macs": math.nan}


def online_shares(measured: Mapping[tuple[str, int, str], Row], width: int, engine: str) -> dict[str, float]:
    """Returns the online time of each variant of a width as a share of the same engine's baseline.

    It is the median over the pairs of interleaved rounds; the baseline's own is 1. Variants without such
    pairs are left out.
    """
    baseline = measured.get(("baseline", width, engine))
    shares = {} if baseline is None else {"baseline": 1.0}
    for (variant, each, by), row in measured.items():
        reference = row["reference"]
        if (each, by) != (width, engine) or not reference or baseline is None:
            continue
        if reference["case"] == baseline["case"]:
            pairs = zip(row["times"]["online_s"], reference["online_s"], strict=True)
            if ratios := [own / other for own, other in pairs if other]:
                shares[variant] = median(ratios)
    return shares


def online_ratio(senet: Row | None, joint: Row | None) -> tuple[float, float, float]:
    """Returns SENet's online seconds over joint's with their interval.

    Each is taken against the baseline's interleaved rounds; without a common baseline it is the quotient of
    the medians.
    """
    if senet is None or joint is None:
        return math.nan, math.nan, math.nan
    references = [row["reference"] for row in (senet, joint)]
    if all(references) and references[0]["case"] == references[1]["case"]:
        ratios = [
            [a / b for a, b in zip(row["reference"]["online_s"], row["times"]["online_s"], strict=True) if a]
            for row in (joint, senet)
        ]
        if all(ratios):
            return quotient_of_medians(*ratios)
    return quotient_of_medians(senet["times"]["online_s"], joint["times"]["online_s"])
