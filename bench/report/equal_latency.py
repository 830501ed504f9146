"""The worth of joint reduction at equal measured latency: the best of the networks that are no slower.

Budgets divided by 1.73 show the loss of joint reduction beside SENet. This table shows its gain when both may
take the same time. Only networks that were trained and timed with their own weights are compared.
"""

from __future__ import annotations

from collections.abc import Iterable

import pandas as pd

from pibench.models.catalogue import family_name
from pibench.models.pairs import JOINT_FAMILIES, PAIRS
from pibench.report.accuracy import SEED_AND_PLAN, difference
from pibench.report.cells import format_accuracy, format_points, format_ratio, markdown_table
from pibench.report.measured import latency_rows, online_ratio
from pibench.store.engines import shown_engines
from pibench.store.results import Row

RATIOS = ("online_ratio", "online_ratio_low", "online_ratio_high")
EQUAL_LATENCY = (
    "senet",
    "width",
    "engine",
    "joint",
    "seeds",
    "accuracy_senet",
    "accuracy_joint",
    "accuracy_difference",
    *RATIOS,
)


def tabulate_equal_latency(table: pd.DataFrame, rows: Iterable[Row]) -> pd.DataFrame:
    """Makes one line for each SENet variant, width and engine, with the best joint network that is no slower.

    The best one is the most accurate on the held-out images, because no choice uses the test set. A network
    is no slower if the interval of its `online_ratio` (SENet's online seconds over joint's) begins at 1 or
    above. Networks of another plan than SENet's are left out. `joint` is empty if there is none. `table` is
    the result of `tabulate_accuracy`. `accuracy_difference` is joint - SENet on the test set, over the seeds
    that both have by one plan.
    """
    measured = {key: row for key, row in latency_rows(rows).items() if row["weights"] == "trained"}
    engines = shown_engines(key[2] for key in measured)
    lines = []
    for width in sorted(set(table["width"])):
        means = (
            table[table["width"] == width].groupby("variant")[["accuracy_heldout", "accuracy_test"]].mean()
        )
        best_first = means.sort_values("accuracy_heldout", ascending=False, kind="stable").index
        ranked = [name for name in best_first if family_name(name) in JOINT_FAMILIES]
        mean = means["accuracy_test"]
        for senet, _ in PAIRS:
            for engine in engines:
                slower = measured.get((senet, width, engine))
                if slower is None or senet not in mean:
                    continue
                line = dict.fromkeys(EQUAL_LATENCY) | {"senet": senet, "width": width, "engine": engine}
                line["accuracy_senet"] = mean[senet]
                for joint in ranked:
                    found = difference(table, width, joint, senet, SEED_AND_PLAN)
                    faster = measured.get((joint, width, engine)) if found.seeds else None
                    ratio = online_ratio(slower, faster)
                    if ratio[1] >= 1:
                        line |= {"joint": joint, "seeds": found.seeds, "accuracy_joint": mean[joint]}
                        line |= {"accuracy_difference": found.mean, **dict(zip(RATIOS, ratio, strict=True))}
                        break
                lines.append(line)
    return pd.DataFrame(lines, columns=list(EQUAL_LATENCY)).astype({"seeds": "Int64"})


def equal_latency_parts(lines: pd.DataFrame) -> list[str]:
    """Shows the most accurate joint network that is no slower than each SENet network, if there is one."""
    found = lines.dropna(subset=["joint"])
    if found.empty:
        return []
    ahead = found[found["accuracy_difference"] > 0]
    best = f", by up to **{format_points(ahead['accuracy_difference'].max())}** points" if len(ahead) else ""
    made = []
    for (senet, width), group in lines.groupby(["senet", "width"], sort=False):
        line = {
            "SENet": f"`{senet}`",
            "Width": str(width),
            "Accuracy, %": format_accuracy(group["accuracy_senet"].iloc[0]),
        }
        by_engine = group.set_index("engine")
        for engine in shown_engines(lines["engine"]):
            match = by_engine.loc[engine] if engine in by_engine.index else None
            there = match is not None and not pd.isna(match["joint"])
            ratio = [match[name] for name in RATIOS] if there else ()
            line |= {
                f"Best joint, {engine}": f"`{match['joint']}`" if there else "none is no slower",
                f"Points, {engine}": _with_seeds(match) if there else "–",
                f"Faster online, {engine}": format_ratio(*ratio) if there else "–",
            }
        made.append(line)
    return [
        "**At equal measured latency** joint reduction is ahead of SENet in "
        f"**{len(ahead)} of {len(lines)}** cases{best}. Of the joint networks of the same plan that are no "
        "slower than a SENet network (interval of SENet / joint from 1 on) this is the most accurate on "
        "held-out images; accuracy is the mean over all seeds, points are over the n seeds that both have:",
        markdown_table(pd.DataFrame(made)),
    ]


def _with_seeds(match: pd.Series) -> str:
    return f"{format_points(match['accuracy_difference'])} (n = {match['seeds']})"
