"""SENet and joint reduction side by side: the cost and gain of merging layers in addition to masks."""

from __future__ import annotations

import math
from collections.abc import Iterable

import pandas as pd

from pibench.models.pairs import EQUAL, MERGED, PAIRS, UNMASKED
from pibench.models.published import JOINT_REDUCTION
from pibench.report.accuracy import SEED_AND_PLAN, compared_rows, difference
from pibench.report.cells import (
    UNTRAINED,
    format_accuracy,
    format_points,
    format_ratio,
)
from pibench.report.measured import counts_of, latency_rows, online_ratio
from pibench.store.engines import shown_engines
from pibench.store.results import Row
from pibench.store.settings import TRAINED_WIDTH
from pibench.store.settings import WIDTH as FULL_WIDTH

PAIR = (
    "senet",
    "joint",
    "width",
    "seeds",
    "epochs_senet",
    "epochs_joint",
    "accuracy_senet",
    "accuracy_joint",
)
MARGIN = 0.01  # of accuracy: how far joint may be below SENet to count as equal


def tabulate_pairs(table: pd.DataFrame, rows: Iterable[Row]) -> pd.DataFrame:
    """Makes one line for each pair of SENet and joint variants and each width, all of it at that width.

    `accuracy_difference` is joint - SENet, over the seeds that both have by one plan; `epochs_*` are of
    those. `relus_ratio`, `macs_ratio` and `ENGINE_online_ratio` are SENet / joint: above 1 joint has, or
    needs, less.
    """
    rows = latency_rows(rows)
    engines = shown_engines(key[2] for key in rows)
    ratios = [f"{engine}_online_ratio{end}" for engine in engines for end in ("", "_low", "_high")]
    differences = [f"accuracy_difference{end}" for end in ("", "_low", "_high")]
    widths = sorted({*table["width"], *(key[1] for key in rows)})
    lines = []
    for senet, joint in (*PAIRS, EQUAL, *MERGED):
        for width in widths:
            counts = [counts_of(name, width, table, rows) for name in (senet, joint)]
            at_width = table[table["width"] == width].groupby("variant")["accuracy_test"].mean()
            between = difference(table, width, joint, senet, SEED_AND_PLAN)
            compared = compared_rows(table, width, joint, senet, SEED_AND_PLAN)
            line = {
                "senet": senet,
                "joint": joint,
                "width": width,
                "seeds": between.seeds,
                "epochs_senet": compared["epochs_other"].max(),
                "epochs_joint": compared["epochs"].max(),
                "accuracy_senet": at_width.get(senet, math.nan),
                "accuracy_joint": at_width.get(joint, math.nan),
                **dict(zip(differences, (between.mean, between.low, between.high), strict=True)),
            }
            for name in ("relus", "macs"):
                line[f"{name}_ratio"] = counts[0][name] / (counts[1][name] or math.nan)
            for engine in engines:
                found = online_ratio(*(rows.get((name, width, engine)) for name in (senet, joint)))
                line |= dict(
                    zip([f"{engine}_online_ratio{end}" for end in ("", "_low", "_high")], found, strict=True)
                )
            lines.append(line)
    made = pd.DataFrame(lines, columns=[*PAIR, *differences, "relus_ratio", "macs_ratio", *ratios])
    return made.astype({"epochs_senet": "Int64", "epochs_joint": "Int64"})


def judged_widths(pairs: pd.DataFrame) -> list[int]:
    """Returns the width of the accuracy figures, and the full one if a pair of it is trained."""
    full = pairs.loc[pairs["width"] == FULL_WIDTH, "accuracy_difference"].notna().any()
    return [TRAINED_WIDTH, *([FULL_WIDTH] if full else [])]


def pairs_verdict(pairs: pd.DataFrame, width: int) -> str:
    """Writes for each pair whether joint is within a point of SENet, or above it."""
    within, beyond, absent = [], [], []
    for pair in PAIRS:
        line = _of_pair(pairs, pair, width)
        if line is None or pd.isna(line["accuracy_difference"]):
            absent.append(f"`{pair[1]}`")
            continue
        mean = line["accuracy_difference"]
        said = f"`{pair[1]}` ({format_points(mean)}"
        seeds_differ = (line["accuracy_difference_low"] < -MARGIN) != (
            line["accuracy_difference_high"] < -MARGIN
        )
        said += f"; seeds differ, n = {line['seeds']})" if seeds_differ else ")"
        (beyond if mean < -MARGIN else within).append(said)
    known = len(within) + len(beyond)
    margin = f"{100 * MARGIN:.0f} point"
    if not known:
        return f"Whether joint reduction stays within {margin} of SENet is open: no pair is trained yet."
    text = (
        f"At width {width} joint reduction with 1.73 times fewer ReLUs stays within {margin} of SENet, or "
        f"above it, in **{len(within)} of {known}** pairs"
    )
    text += f": {', '.join(within)}" if within else ""
    text += f"; it falls further below in {', '.join(beyond)}" if beyond else ""
    text += f"; {UNTRAINED}: {', '.join(absent)}" if absent else ""
    equal = _of_pair(pairs, EQUAL, width)
    if equal is None or pd.isna(equal["accuracy_difference"]):
        return text + "."
    return (
        f"{text}. With as many ReLUs as `{EQUAL[0]}`, `{EQUAL[1]}` is at "
        f"**{format_points(equal['accuracy_difference'])}** points (n = {equal['seeds']}; "
        f"{equal['epochs_joint']} epochs against {equal['epochs_senet']}), with "
        f"{format_ratio(equal['macs_ratio'])} fewer MACs."
    )


def merging_alone(table: pd.DataFrame, measured: dict, width: int) -> str:
    """Writes the cost of shallow blocks that keep all other ReLUs; "" if that is not trained."""
    lost = difference(table, width, UNMASKED, "baseline")
    if not lost.seeds:
        return ""
    counts = [counts_of(name, width, table, measured) for name in ("baseline", UNMASKED)]
    by_one_plan = difference(table, width, UNMASKED, "baseline", SEED_AND_PLAN).seeds == lost.seeds
    fewer = {
        name: format_ratio(counts[0][name] / (counts[1][name] or math.nan)) for name in ("relus", "macs")
    }
    other = "" if by_one_plan else "; of another plan"
    return (
        f"Merging alone, all other ReLUs kept (`{UNMASKED}`): **{format_points(lost.mean)}** points to the "
        f"baseline at width {width} (n = {lost.seeds}{other}), with {fewer['relus']} fewer ReLUs and "
        f"{fewer['macs']} fewer MACs."
    )


def pairs_table(pairs: pd.DataFrame) -> pd.DataFrame:
    """Makes the section's table: accuracy, ReLUs, MACs and latency of both sides of each pair."""
    ratios = [name for name in pairs if name.endswith("_online_ratio")]
    narrow = pairs.loc[pairs["width"] == TRAINED_WIDTH, ratios]
    widths = [FULL_WIDTH, *([TRAINED_WIDTH] if narrow.notna().any(axis=None) else [])]
    lines = []
    for pair in (*PAIRS, EQUAL, *MERGED):
        full = _of_pair(pairs, pair, FULL_WIDTH)
        line = {"SENet, joint": f"`{pair[0]}`, `{pair[1]}`"}
        for width in judged_widths(pairs):
            judged = _of_pair(pairs, pair, width)
            line[f"Accuracy, width {width}, %"] = _both(judged)
            line[f"joint - SENet, points, width {width}"] = _difference(judged)
        line |= {
            f"Fewer ReLUs, width {FULL_WIDTH}": "–" if full is None else format_ratio(full["relus_ratio"]),
            f"Fewer MACs, width {FULL_WIDTH}": "–" if full is None else format_ratio(full["macs_ratio"]),
        }
        for width in widths:
            at_width = _of_pair(pairs, pair, width)
            for name in ratios:
                ends = () if at_width is None else (name, f"{name}_low", f"{name}_high")
                cell = format_ratio(*(at_width[end] for end in ends)) if ends else "–"
                line[f"Faster online, {name.removesuffix('_online_ratio')}, width {width}"] = cell
        lines.append(line)
    return pd.DataFrame(lines)


def pairs_caption(pairs: pd.DataFrame) -> str:
    """Writes the meaning of the columns of the pairs' table, and the claim of joint reduction's authors."""
    text = (
        "Each joint variant has a budget 1.73 times smaller than its SENet partner, in the last lines the "
        "same. Ratios are SENet / joint. *Faster online*: measured on loopback at batch 1, each against the "
        "baseline's interleaved repetitions, with a bootstrap 95 % interval; at width "
        f"{FULL_WIDTH} of networks with the same numbers of ReLUs and MACs but seeded weights and masks by "
        "SENet's published sensitivity. "
    )
    if (pairs["seeds"] > 1).any():
        text += (
            "Accuracies are means over each variant's seeds, differences are taken seed by seed (n seeds): "
            "the mean and in brackets the lowest and the highest. "
        )
    return text + (
        f"Joint reduction's authors claim up to {JOINT_REDUCTION['relus']} times fewer ReLUs and "
        f"{JOINT_REDUCTION['linear_operations']} times fewer linear operations without a significant drop "
        f"({JOINT_REDUCTION['source']}); their tables are not public."
    )


def _of_pair(pairs: pd.DataFrame, pair: tuple[str, str], width: int) -> pd.Series | None:
    found = pairs[(pairs["senet"] == pair[0]) & (pairs["joint"] == pair[1]) & (pairs["width"] == width)]
    return None if found.empty else found.iloc[0]


def _both(line: pd.Series | None) -> str:
    values = [math.nan] * 2 if line is None else [line["accuracy_senet"], line["accuracy_joint"]]
    if all(pd.isna(value) for value in values):
        return UNTRAINED
    return ", ".join(UNTRAINED if pd.isna(value) else format_accuracy(value) for value in values)


def _difference(line: pd.Series | None) -> str:
    if line is None or pd.isna(line["accuracy_difference"]):
        return "–"
    text = format_points(line["accuracy_difference"])
    if line["seeds"] < 2:
        return f"{text} (n = 1)"
    ends = [format_points(line[f"accuracy_difference_{end}"]) for end in ("low", "high")]
    return f"{text} [{', '.join(ends)}] (n = {line['seeds']})"
