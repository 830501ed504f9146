"""What joint reduction is worth at equal measured latency: of the networks that are no slower, the best.

Budgets divided by 1.73 ask what joint reduction loses beside SENet; this asks what it gains when both may
take the same time. Only networks that were trained and timed with their own weights are compared.
"""

from __future__ import annotations

from collections.abc import Iterable

import pandas as pd

from pibench.report.accuracy import PAIRS, SEED_AND_PLAN, difference, latency_rows, online_ratio
from pibench.report.order import ENGINES
from pibench.store.results import Row, family_of

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
    """One line a SENet variant, width and engine: the most accurate joint network that is no slower.

    Most accurate: on the held-out images, since no choice uses the test set. No slower: `online_ratio`,
    SENet's online seconds over joint's, has an interval that begins at 1 or above. Networks of another plan
    than SENet's are left out. Where there is none, `joint` is empty. `table` is what `tabulate_accuracy`
    returns, `accuracy_difference` is joint - SENet on the test set, over the seeds that both have by one
    plan.
    """
    measured = {key: row for key, row in latency_rows(rows).items() if row["weights"] == "trained"}
    lines = []
    for width in sorted(set(table["width"])):
        means = (
            table[table["width"] == width].groupby("variant")[["accuracy_heldout", "accuracy_test"]].mean()
        )
        best_first = means.sort_values("accuracy_heldout", ascending=False, kind="stable").index
        ranked = [name for name in best_first if family_of(name).startswith("joint")]
        mean = means["accuracy_test"]
        for senet, _ in PAIRS:
            for engine in ENGINES:
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
