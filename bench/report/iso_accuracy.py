"""The saving of joint reduction against SENet at the same accuracy, and the accuracy from which it saves.

Each method's networks of one width and plan are points (cost, accuracy) by falling ReLUs. A monotone curve
goes through them: isotonic regression of the accuracy on log(ReLUs), linear between the points. A cost
(ReLUs, MACs, online seconds) at an accuracy is read off the curve, in log(cost) between the two nearest
points. `*_ratio` is SENet's cost over joint's: above 1 joint needs less.

The interval (95 %) comes from `DRAWS` curves. Their points are drawn from a normal distribution with the
standard error of each accuracy. This error is the binomial one of the test images and, between seeds, the
pooled standard deviation of the variants of this width with several seeds. Seconds have no error here. An
accuracy that a curve does not reach in every draw has no ratio.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
import scipy

DRAWS = 2000
STEP = 0.01
"""Distance of the accuracy levels that are reported."""
INTERVAL = (2.5, 97.5)


@dataclass(frozen=True)
class Curve:
    """The networks of one method: costs by name, each by rising ReLUs, and accuracies with their errors."""

    costs: Mapping[str, np.ndarray]
    accuracy: np.ndarray
    error: np.ndarray


def seed_deviation(table: pd.DataFrame) -> float:
    """Returns the pooled standard deviation of `accuracy_test` between seeds; 0 without several seeds."""
    groups = [group.dropna() for _, group in table.groupby(["variant", "plan"])["accuracy_test"]]
    several = [group for group in groups if len(group) > 1]
    freedom = sum(len(group) - 1 for group in several)
    return math.sqrt(sum(group.var() * (len(group) - 1) for group in several) / freedom) if freedom else 0.0


def curve(table: pd.DataFrame, names: Sequence[str], costs: Sequence[str], images: int) -> Curve:
    """Builds the curve of the variants `names` from rows with `variant`, `accuracy_test` and the costs.

    Seeds of a variant are averaged. Rows without an accuracy or one of the costs are left out.
    """
    known = table[table["variant"].isin(names)].dropna(subset=["accuracy_test", *costs])
    grouped = known.groupby("variant")
    mean = grouped[["accuracy_test", *costs]].mean().astype(float).sort_values("relus")
    count = grouped.size().reindex(mean.index)
    accuracy = mean["accuracy_test"].to_numpy()
    deviation = seed_deviation(table)
    error = np.sqrt(accuracy * (1 - accuracy) / images + deviation**2 / count.to_numpy())
    return Curve({name: mean[name].to_numpy() for name in costs}, accuracy, error)


def cost_at(relus: np.ndarray, accuracy: np.ndarray, cost: np.ndarray, levels: np.ndarray) -> np.ndarray:
    """Reads a cost at each accuracy of `levels` from the monotone curve; NaN outside of it.

    `relus`, `accuracy` and `cost` [points] are by rising ReLUs. Where the curve is flat the smaller cost
    counts.
    """
    fitted = scipy.optimize.isotonic_regression(accuracy).x
    place = np.full(len(levels), np.nan)
    inside = (levels >= fitted[0]) & (levels <= fitted[-1])
    # The first place that reaches the level: np.interp needs rising values, a flat part has several places.
    for index in np.flatnonzero(inside):
        above = int(np.searchsorted(fitted, levels[index], side="left"))
        if above == 0 or fitted[above] == levels[index]:
            place[index] = above
        else:
            below = above - 1
            share = (levels[index] - fitted[below]) / (fitted[above] - fitted[below])
            logs = np.log(relus[[below, above]])
            at = logs[0] + share * (logs[1] - logs[0])
            place[index] = below + (at - logs[0]) / (logs[1] - logs[0])
    return np.exp(np.interp(place, np.arange(len(cost)), np.log(cost)))


def iso_accuracy(senet: Curve, joint: Curve, levels: Iterable[float], draws: int = DRAWS) -> pd.DataFrame:
    """Returns one line for each accuracy that both curves reach: `COST_ratio`, `_low` and `_high` by cost."""
    wanted = np.asarray(list(levels), dtype=float)
    generator = np.random.default_rng(0)
    found: dict[str, list[np.ndarray]] = {name: [] for name in senet.costs}
    for draw in range(draws + 1):
        # The first draw is the measured curve itself.
        noise = [generator.standard_normal(len(each.accuracy)) if draw else 0.0 for each in (senet, joint)]
        for name in senet.costs:
            costs = [
                cost_at(each.costs["relus"], each.accuracy + part * each.error, each.costs[name], wanted)
                for each, part in zip((senet, joint), noise, strict=True)
            ]
            found[name].append(costs[0] / costs[1])
    lines: dict[str, np.ndarray] = {"accuracy": wanted}
    for name, ratios in found.items():
        drawn = np.array(ratios[1:])
        reached = np.isfinite(drawn).mean(axis=0) > 0.5
        low, high = np.full(len(wanted), np.nan), np.full(len(wanted), np.nan)
        if reached.any():
            low[reached], high[reached] = np.nanpercentile(drawn[:, reached], INTERVAL, axis=0)
        lines |= {f"{name}_ratio": ratios[0], f"{name}_ratio_low": low, f"{name}_ratio_high": high}
    made = pd.DataFrame(lines)
    return made[made.filter(like="_ratio").notna().any(axis=1)].reset_index(drop=True)
