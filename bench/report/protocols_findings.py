"""The findings of the table of protocols: one paragraph in plain words, computed from its lines."""

from __future__ import annotations

import pandas as pd

from pibench.models.pairs import PAIRS
from pibench.report.cells import format_number, format_ratio, format_rounded, listed
from pibench.report.protocols import FASTER
from pibench.store.engines import engine_look

HE = "spu-cheetah"
WORTH = "relus_per_convolution"
PAYS = 1.05
"""The speed-up from which a reduction is said to pay."""


def findings(near: pd.DataFrame) -> str:
    """Writes which protocol and reduction is fastest, which parts cost most, and whether HE gains."""
    said = [_said_of_protocols(near), _said_of_reductions(near), _said_of_prices(near), _said_of_he(near)]
    return " ".join(filter(None, said))


def _said_of_protocols(near: pd.DataFrame) -> str:
    baseline = near[near["variant"] == "baseline"].sort_values("whole_median_s")
    if len(baseline) < 2:
        return ""
    seconds = listed(
        f"{format_number(case['whole_median_s'])} s under {_label(case)}" for _, case in baseline.iterrows()
    )
    ratio = baseline["whole_median_s"].iloc[-1] / baseline["whole_median_s"].iloc[0]
    return f"One inference of the baseline takes {seconds}: {format_ratio(ratio)} from first to last."


def _said_of_reductions(near: pd.DataFrame) -> str:
    """Names the fastest networks, the extra gain of fewer layers, and the gain of merging alone."""
    reduced = near[near["variant"] != "baseline"].dropna(subset=["whole_speedup"])
    if reduced.empty:
        return ""
    best = reduced.loc[reduced.groupby("engine", sort=False)["whole_speedup"].idxmax()]
    sentences = [
        f"`{variant}` gains most under {_with_speedups(group)}."
        for variant, group in best.groupby("variant", sort=False)
    ]
    speedups = reduced.pivot_table(index="engine", columns="variant", values="whole_speedup")
    for senet, joint in PAIRS:
        if {senet, joint} <= set(speedups):
            more = (speedups[joint] / speedups[senet]).dropna()
            span = " to ".join(dict.fromkeys(format_ratio(end) for end in (more.min(), more.max())))
            sentences.append(f"Fewer layers beside fewer ReLUs, `{joint}` over `{senet}`, are worth {span}.")
    merged = reduced[reduced["variant"] == "merged-exact"]
    for verb, group in (
        ("faster", merged[merged["whole_speedup"] > 1]),
        ("slower", merged[merged["whole_speedup"] <= 1]),
    ):
        if not group.empty:
            sentences.append(f"Exact merging alone is {verb} under {_with_speedups(group)}.")
    return " ".join(sentences)


def _with_speedups(cases: pd.DataFrame) -> str:
    return listed(f"{_label(case)} ({format_ratio(case['whole_speedup'])})" for _, case in cases.iterrows())


def _said_of_prices(near: pd.DataFrame) -> str:
    """Writes where ReLUs take more than half of the baseline's time, and how many ReLUs a layer costs."""
    priced = near[near["variant"] == "baseline"].dropna(subset=["relu_share"])
    sentences = []
    for what, group in (
        ("ReLUs are dearer than layers", priced[priced["relu_share"] > 0.5]),
        ("Layers are dearer than ReLUs", priced[priced["relu_share"] <= 0.5]),
    ):
        if not group.empty:
            where = listed(
                f"{_label(case)} ({100 * case['relu_share']:.0f} %)" for _, case in group.iterrows()
            )
            sentences.append(f"{what} under {where}.")
    if not sentences:
        return ""
    counts = [format_rounded(end) for end in (priced[WORTH].min(), priced[WORTH].max())]
    return (
        f"{' '.join(sentences)} In brackets: the ReLUs' share of the baseline's time. One convolution costs "
        f"as much as {' to '.join(dict.fromkeys(counts))} ReLUs."
    )


def _said_of_he(near: pd.DataFrame) -> str:
    """Writes whether fewer ReLUs alone pay off under HE, by the SENet with fewest of them."""
    found = near[(near["engine"] == HE) & near["variant"].isin([senet for senet, _ in PAIRS])]
    found = found.dropna(subset=["whole_speedup"]).sort_values("relus")
    if found.empty:
        return ""
    case = found.iloc[0]
    alone = pd.isna(case["whole_speedup_low"])
    low = case["whole_speedup"] if alone else case["whole_speedup_low"]
    verdict = "pays" if low > PAYS else "hardly pays" if low > 1 else "does not pay"
    return (
        f"Under homomorphic encryption, dropping ReLUs alone {verdict}: on {_label(case)} "
        f"`{case['variant']}` is faster by {format_ratio(*case[list(FASTER)])}"
        + (", of too few pairs for an interval." if alone else ".")
    )


def _label(case: pd.Series) -> str:
    return engine_look(case["engine"]).label
