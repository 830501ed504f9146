"""The saving of joint reduction against SENet at the same accuracy, and the accuracy from which it saves.

Each method's networks of one width and plan are points (cost, accuracy) by rising ReLUs. SENet's last point
is the baseline, which keeps all of them. A monotone curve goes through the points: isotonic regression of the
accuracy, linear in log(cost) between the points. A cost (ReLUs, MACs, online seconds) at an accuracy is read
off the curve. `*_ratio` is SENet's cost over joint's: above 1 joint needs less.

The interval (95 %) comes from `DRAWS` curves. Their points are drawn from a normal distribution with the
standard error of each accuracy. This error is the binomial one of the test images and, between seeds, the
pooled standard deviation of the variants of this width with several seeds. Seconds have no error here. An
accuracy that a curve does not reach in most draws has no interval.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from pibench.models.catalogue import family_name
from pibench.report.accuracy import SETTINGS
from pibench.report.measured import latency_rows, online_shares
from pibench.report.variants import TEST_IMAGES
from pibench.store.engines import shown_engines
from pibench.store.results import Row

DRAWS = 2000
LEVELS = np.arange(1, 100) / 100
"""The accuracies that are reported, those of them that both methods reach."""
INTERVAL = (2.5, 97.5)
ENDS = ("", "_low", "_high")
METHODS = {"senet": ("baseline", "senet"), "joint": ("joint",)}
"""The families whose networks form one curve."""
COUNTS = ("relus", "macs")
GROUP = ["width", *SETTINGS]
"""What the networks of one curve have in common."""


@dataclass(frozen=True)
class Curve:
    """The networks of one method: costs by name, each by rising ReLUs, and accuracies with their errors."""

    costs: Mapping[str, np.ndarray]
    accuracy: np.ndarray
    error: np.ndarray


def tabulate_iso_accuracy(table: pd.DataFrame, rows: Iterable[Row]) -> pd.DataFrame:
    """Makes one line for each width, plan and accuracy of `LEVELS` that both methods reach.

    `table` is the result of `tabulate_accuracy`. `to_baseline` is the accuracy minus the baseline's.
    `ENGINE_online_ratio` is of the networks that were timed at this width on loopback. It is missing for an
    engine on which a method has fewer than two of them.
    """
    measured = latency_rows(rows)
    engines = shown_engines(key[2] for key in measured)
    names = [*(f"{name}_ratio" for name in COUNTS), *(f"{engine}_online_ratio" for engine in engines)]
    columns = [*GROUP, "accuracy", "to_baseline", *(f"{name}{end}" for name in names for end in ENDS)]
    found = []
    for values, group in table.groupby(GROUP, dropna=False):
        made = _ratios(group, COUNTS)
        if made.empty:
            continue
        for engine in engines:
            shares = group["variant"].map(online_shares(measured, values[0], engine)).astype(float)
            timed = _ratios(group.assign(**{f"{engine}_online": shares}), ("relus", f"{engine}_online"))
            made = made.merge(timed[["accuracy", *timed.columns.difference(made.columns)]], "left")
        baseline = group.loc[group["variant"] == "baseline", "accuracy_test"].mean()
        made["to_baseline"] = made["accuracy"] - baseline
        found.append(made.assign(**dict(zip(GROUP, values, strict=True))))
    if not found:
        return pd.DataFrame(columns=columns)
    return pd.concat(found, ignore_index=True).reindex(columns=columns)


def _ratios(group: pd.DataFrame, costs: Sequence[str]) -> pd.DataFrame:
    """Compares the curves of both methods in a table of one width and plan; empty without two curves."""
    families = group["variant"].map(family_name)
    senet, joint = (
        curve(group, group["variant"][families.isin(members)], costs, TEST_IMAGES)
        for members in METHODS.values()
    )
    return iso_accuracy(senet, joint, LEVELS if min(map(len, (senet.error, joint.error))) > 1 else ())


def seed_deviation(table: pd.DataFrame) -> float:
    """Returns the pooled standard deviation of `accuracy_test` between seeds; 0 without several seeds."""
    groups = [group.dropna() for _, group in table.groupby(["variant", "plan"])["accuracy_test"]]
    several = [group for group in groups if len(group) > 1]
    freedom = sum(len(group) - 1 for group in several)
    return math.sqrt(sum(group.var() * (len(group) - 1) for group in several) / freedom) if freedom else 0.0


def curve(table: pd.DataFrame, names: Iterable[str], costs: Sequence[str], images: int) -> Curve:
    """Builds the curve of the variants `names` from rows with `variant`, `accuracy_test` and the costs.

    Seeds of a variant are averaged. Rows without an accuracy or one of the costs are left out.
    """
    known = table[table["variant"].isin(set(names))].dropna(subset=["accuracy_test", *costs])
    grouped = known.groupby("variant")
    mean = grouped[["accuracy_test", *costs]].mean().astype(float).sort_values("relus")
    count = grouped.size().reindex(mean.index)
    accuracy = mean["accuracy_test"].to_numpy()
    deviation = seed_deviation(table)
    error = np.sqrt(accuracy * (1 - accuracy) / images + deviation**2 / count.to_numpy())
    return Curve({name: mean[name].to_numpy() for name in costs}, accuracy, error)


def monotone(accuracy: np.ndarray) -> np.ndarray:
    """Returns the isotonic regression along the last axis, of many curves at once.

    The value at i is the largest, over starts j <= i, of the smallest mean of j ... k over ends k >= i
    (Barlow et al., Statistical Inference under Order Restrictions, 1972). scipy fits one curve a call, which
    takes seconds for thousands of draws.
    """
    place = np.arange(accuracy.shape[-1])
    sums = np.insert(accuracy.cumsum(-1), 0, 0.0, axis=-1)
    length = np.maximum(place - place[:, None] + 1, 1)  # of j ... k; pairs with k < j are not read
    means = (sums[..., None, 1:] - sums[..., :-1, None]) / length
    smallest = np.minimum.accumulate(means[..., ::-1], axis=-1)[..., ::-1]
    return np.where(place[:, None] <= place, smallest, -np.inf).max(-2)


def cost_at(accuracy: np.ndarray, cost: np.ndarray, levels: np.ndarray) -> np.ndarray:
    """Reads a cost at each accuracy of `levels` from the monotone curve: [..., levels]; NaN outside of it.

    `accuracy` [..., points] and `cost` [points] are by rising ReLUs. Where the curve is flat the smaller cost
    counts.
    """
    fitted = monotone(accuracy)
    # The first point that reaches the level, and the one before it.
    above = (fitted[..., None, :] < levels[:, None]).sum(-1).clip(max=len(cost) - 1)
    below = (above - 1).clip(min=0)
    low, high = (np.take_along_axis(fitted, each, -1) for each in (below, above))
    share = np.divide(levels - low, high - low, out=np.zeros(low.shape), where=high > low)
    inside = (levels >= fitted[..., :1]) & (levels <= fitted[..., -1:])
    place = np.where(inside, below + share, np.nan)
    return np.exp(np.interp(place, np.arange(len(cost)), np.log(cost)))


def iso_accuracy(senet: Curve, joint: Curve, levels: Iterable[float], draws: int = DRAWS) -> pd.DataFrame:
    """Returns one line for each accuracy that both curves reach: `COST_ratio`, `_low` and `_high` by cost."""
    wanted = np.asarray(list(levels), dtype=float)
    generator = np.random.default_rng(0)
    drawn = [
        each.accuracy + generator.standard_normal((draws, len(each.accuracy))) * each.error
        for each in (senet, joint)
    ]
    lines: dict[str, np.ndarray] = {"accuracy": wanted}
    for name in senet.costs if len(wanted) else ():
        costs = [cost_at(each.accuracy, each.costs[name], wanted) for each in (senet, joint)]
        lines[f"{name}_ratio"] = costs[0] / costs[1]
        noisy = [
            cost_at(accuracy, each.costs[name], wanted)
            for each, accuracy in zip((senet, joint), drawn, strict=True)
        ]
        ratios = noisy[0] / noisy[1]
        reached = np.isfinite(ratios).mean(axis=0) > 0.5
        ends = np.full((2, len(wanted)), np.nan)
        if reached.any():
            ends[:, reached] = np.nanpercentile(ratios[:, reached], INTERVAL, axis=0)
        lines |= {f"{name}_ratio_low": ends[0], f"{name}_ratio_high": ends[1]}
    made = pd.DataFrame(lines)
    return made[made.filter(regex="_ratio$").notna().any(axis=1)].reset_index(drop=True)
