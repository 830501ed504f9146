"""The saving of joint reduction at equal accuracy in words, held against the claim of its authors."""

from __future__ import annotations

import pandas as pd

from pibench.models.published import JOINT_REDUCTION
from pibench.report.cells import (
    format_number,
    format_points,
    format_range,
    format_ratio,
    listed,
    markdown_table,
)
from pibench.report.iso_accuracy import ENDS
from pibench.report.pairs import MARGIN
from pibench.store.engines import shown_engines

CLAIM = {"relus": JOINT_REDUCTION["relus"], "macs": JOINT_REDUCTION["linear_operations"]}
CLAIMED = (
    f"{CLAIM['relus']} times fewer ReLUs and {CLAIM['macs']} times fewer linear operations than SENet "
    "without a significant drop"
)
HOLDS, OPEN, FAILS = "holds", "open", "does not hold"
TITLES = {
    "all": "At equal accuracy joint reduction saves what its authors claim.",
    "some": "At equal accuracy joint reduction saves what its authors claim in a part of the range.",
    "none": f"At equal accuracy joint reduction saves layers and time, not {CLAIM['relus']} times the ReLUs.",
}


def claim_states(lines: pd.DataFrame) -> pd.Series:
    """Returns for each line whether the claim holds there, does not hold, or is open.

    A factor holds if the whole interval of the measured ratio reaches it, and does not hold if the interval
    ends below. The claim holds if both factors do.
    """
    low = pd.DataFrame({name: lines[f"{name}_ratio_low"] >= factor for name, factor in CLAIM.items()})
    high = pd.DataFrame({name: lines[f"{name}_ratio_high"] < factor for name, factor in CLAIM.items()})
    states = pd.Series(OPEN, index=lines.index)
    states[low.all(axis=1)] = HOLDS
    states[high.any(axis=1)] = FAILS
    return states


def iso_accuracy_title(lines: pd.DataFrame) -> str:
    """Returns the heading that the lines deserve."""
    holds = claim_states(lines) == HOLDS
    return TITLES["all" if holds.all() else "some" if holds.any() else "none"]


def iso_accuracy_sentences(lines: pd.DataFrame) -> str:
    """Writes how much less joint needs than SENet at equal accuracy, and where the claim holds."""
    states = claim_states(lines)
    times = [
        f"{_factors(lines, f'{engine}_online_ratio')} less time online on {engine}"
        for engine in engines_of(lines)
        if lines[f"{engine}_online_ratio"].notna().any()
    ]
    needs = [
        f"{_factors(lines, 'relus_ratio')} fewer ReLUs",
        f"{_factors(lines, 'macs_ratio')} fewer MACs",
        *times,
    ]
    counts = {state: lines[states == state] for state in (HOLDS, OPEN, FAILS)}
    where = [
        f"{'is ' * (state == OPEN)}{state} at {len(found)} of {len(lines)}"
        + (f" ({_places(found)})" if len(found) else "")
        for state, found in counts.items()
    ]
    fewer = int((lines["macs_ratio"] >= CLAIM["macs"]).sum())
    nearest = lines["to_baseline"].max()
    if pd.isna(nearest):
        drop = ""
    elif nearest >= -MARGIN:
        drop = f" Within a point of the baseline: {int((lines['to_baseline'] >= -MARGIN).sum())} of them."
    else:
        drop = f" The nearest to the baseline that both reach is {format_points(nearest)} points from it."
    return (
        f"At the {len(lines)} accuracies (whole percents) that both methods reach, joint needs "
        f"{listed(needs)}. The claim {listed(where)}. Its {CLAIM['macs']} times fewer linear operations "
        f"alone hold at {fewer} of {len(lines)}.{drop}"
    )


def iso_accuracy_parts(lines: pd.DataFrame) -> list[str]:
    """Shows the saving at equal accuracy: a verdict for each width, and all lines folded away."""
    if lines.empty:
        return []
    engines = engines_of(lines)
    shown = pd.DataFrame(
        {
            "Width": lines["width"].astype(str),
            "Accuracy, %": [f"{100 * level:.0f}" for level in lines["accuracy"]],
            "To the baseline, points": lines["to_baseline"].map(format_points),
            "Fewer ReLUs": _ratios(lines, "relus_ratio"),
            "Fewer MACs": _ratios(lines, "macs_ratio"),
            **{f"Faster online, {engine}": _ratios(lines, f"{engine}_online_ratio") for engine in engines},
            "The claim": claim_states(lines),
        }
    )
    verdicts = [
        f"**At equal accuracy, width {width}.** {iso_accuracy_sentences(group)}"
        for width, group in lines.groupby("width")
    ]
    summary = f"<summary>Every accuracy that both reach, {len(lines)} lines</summary>"
    return [
        f"Joint reduction's authors claim {CLAIMED} ({JOINT_REDUCTION['source']}).",
        *verdicts,
        f"<details>{summary}\n\n{markdown_table(shown)}\n\n</details>",
        "Ratios are SENet / joint, read off a monotone curve through the networks of each method (isotonic "
        "regression, linear in the logarithm of the cost between two networks). In brackets: 95 % of the "
        "curves whose points are drawn anew with the standard error of each accuracy, that of the test "
        "images and of the seeds. Seconds have no error here; each is a share of the baseline's interleaved "
        "repetitions. The claim *holds* where both intervals reach it, *does not hold* where one ends below, "
        "and is *open* between.",
    ]


def engines_of(lines: pd.DataFrame) -> list[str]:
    """Returns the engines with columns in the table."""
    found = {name.removesuffix("_online_ratio") for name in lines if name.endswith("_online_ratio")}
    return [engine for engine in shown_engines(found) if engine in found]


def _ratios(lines: pd.DataFrame, name: str) -> list[str]:
    return [format_ratio(*ends) for ends in lines[[f"{name}{end}" for end in ENDS]].to_numpy()]


def _factors(lines: pd.DataFrame, name: str) -> str:
    """Writes the span of ratios, and in brackets the ends of all their intervals if these are wider."""
    low, high = lines[f"{name}_low"].min(), lines[f"{name}_high"].max()
    certain = pd.isna(low) or (low == lines[name].min() and high == lines[name].max())
    interval = "" if certain else f" [{format_number(low)}, {format_number(high)}]"
    return f"{format_range(lines[name], 1.0)}×{interval}"


def _places(lines: pd.DataFrame) -> str:
    """Writes the accuracies of some lines by width: "50 to 53 and 57 % at width 16"."""
    said = []
    for width, group in lines.groupby("width"):
        percents = (100 * group["accuracy"]).round().astype(int)
        runs = percents.groupby(percents.diff().ne(1).cumsum())
        ends = [f"{run.min()} to {run.max()}" if len(run) > 1 else str(run.min()) for _, run in runs]
        said.append(f"{listed(ends)} % at width {width}")
    return "; ".join(said)
