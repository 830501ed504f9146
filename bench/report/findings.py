"""The README's text on the reference: six variants side by side, and the findings with their numbers."""

from __future__ import annotations

import pandas as pd

from pibench.models.pairs import EQUAL, MERGED, PAIRS, TYPICAL
from pibench.models.published import JOINT_REDUCTION
from pibench.report.cells import (
    conditions_line,
    format_accuracy,
    format_count,
    format_number,
    format_points,
    format_ratio,
    format_seconds,
    join_cells,
    markdown_table,
)
from pibench.report.collect import Report
from pibench.report.iso_accuracy_section import CLAIMED, iso_accuracy_sentences, iso_accuracy_title
from pibench.report.pairs import MARGIN
from pibench.report.provenance import provenance_lines
from pibench.store.results import ResultsError
from pibench.store.settings import ENGINES, TRAINED_WIDTH, WIDTH

SIX = ("baseline", "senet-0.36", "senet-0.09", "joint-0.208", "joint-0.052", "merged-exact")
SETTING = {"width": WIDTH, "batch": 1, "parties": 2}


def short_headline(report: Report) -> str:
    """Returns six variants on both engines, with their accuracy at the same width, and their provenance."""
    lines, used = [], []
    known = report.accuracy[report.accuracy["width"] == WIDTH].groupby("variant")["accuracy_test"].mean()
    both = " / ".join(ENGINES)
    for variant in SIX:
        cases = [_case(report, variant, engine) for engine in ENGINES]
        used += cases
        line = {
            "Variant": f"`{variant}`",
            "ReLUs, K": format_number(cases[0]["relus"], 1e3, 4),
            "MACs, M": format_number(cases[0]["macs"], 1e6, 4),
            f"Rounds, {both}": join_cells(cases, lambda case: format_count(case["rounds"])),
            f"MB sent, {both}": join_cells(cases, lambda case: format_number(case["bytes_sent"], 1e6)),
            f"Online, s, {both}": join_cells(cases, lambda case: format_seconds(case, "online")),
        }
        for case in cases:
            line[f"Speed-up, {case['engine']}"] = "1" if variant == "baseline" else _faster(case)
        line["Accuracy, %"] = format_accuracy(known.get(variant, float("nan")))
        lines.append(line)
    return "\n\n".join(
        [
            conditions_line(SETTING | {"link": "loopback"}, "ResNet-18 for CIFAR-100"),
            markdown_table(pd.DataFrame(lines)),
            "Seconds are medians. A speed-up is over the same engine's baseline: the median of paired "
            "repetitions, with its 95 % bootstrap interval. *noisy*: the interquartile range exceeds 10 % of "
            "the median. Accuracy is that of trained networks with as many ReLUs and MACs at this width.",
            *provenance_lines(pd.DataFrame(used)),
        ]
    )


def findings(report: Report) -> str:
    """Returns four findings in plain words; every number in them is computed from the rows.

    Raises ResultsError when a case that a finding needs has not been measured.
    """
    senet, joint = EQUAL
    baseline = [_case(report, "baseline", engine) for engine in ENGINES]
    masked = [_case(report, senet, engine) for engine in ENGINES]
    shallow = [_case(report, TYPICAL[1], engine) for engine in ENGINES]
    merged = [_case(report, "merged-exact", engine) for engine in ENGINES]
    equal = _pair(report, EQUAL, WIDTH)
    budgets, curves = _trained_budgets(report), report.iso_accuracy
    if curves.empty:
        raise ResultsError("No accuracy is reached by both SENet and joint reduction: run `make train`.")
    losses = budgets["accuracy_difference"]
    within = int((losses >= -MARGIN).sum())
    compared = report.equal_latency
    ahead = compared[compared["accuracy_difference"] > 0]
    lean = baseline[1]
    return "\n\n".join(
        [
            f"1. **Fewer ReLUs alone save little time.** `{senet}` keeps "
            f"{100 * masked[0]['relus'] / baseline[0]['relus']:.0f} % of the ReLUs. Online it is "
            f"{_faster(masked[0])} faster on the stock engine and {_faster(masked[1])} on lean; over the "
            f"emulated WAN {_over_wan(report, senet, 'stock')} and {_over_wan(report, senet, 'lean')}. All "
            f"convolutions and all {format_count(masked[0]['rounds'])} rounds (lean "
            f"{format_count(masked[1]['rounds'])}) are still there.",
            f"2. **Fewer layers save more.** `{joint}` has as many ReLUs as `{senet}` and five layers fewer. "
            f"It needs {format_ratio(equal['macs_ratio'])} fewer MACs and "
            f"{format_count(shallow[0]['rounds'])} rounds (lean {format_count(shallow[1]['rounds'])}), and "
            f"is {_ratio(equal, 'stock')} faster than `{senet}` on stock and {_ratio(equal, 'lean')} on "
            f"lean. Trained at this width it is {format_points(equal['accuracy_difference'])} points from "
            f"it (one seed; {equal['epochs_joint']} epochs against {equal['epochs_senet']})."
            f"{_merged(report)}",
            f"3. **{iso_accuracy_title(curves)}** Its authors claim {CLAIMED}. "
            f"{iso_accuracy_sentences(curves)} With a budget {JOINT_REDUCTION['relus']} times smaller joint "
            f"reduction stays within one point of SENet in {within} of {len(budgets)} pairs "
            f"({budgets['senet'].nunique()} budgets, widths {TRAINED_WIDTH} and {WIDTH}); the differences "
            f"are {format_points(losses.min())} to {format_points(losses.max())} points. At equal *measured* "
            f"latency a joint network is more accurate in {len(ahead)} of {len(compared)} comparisons at "
            f"width {TRAINED_WIDTH}, by up to {format_points(ahead['accuracy_difference'].max())} points.",
            "4. **What a reduction is worth depends on the engine and on the link.** The same baseline is "
            f"{_faster(lean)} faster online on lean than on stock, with "
            f"{format_ratio(baseline[0]['bytes_sent'] / lean['bytes_sent'])} fewer bytes. `merged-exact` "
            "merges five blocks exactly into kernels of 5x5 and 7x7, which have more MACs: on "
            f"loopback its speed-up is {_faster(merged[0])} on stock and {_faster(merged[1])} on lean, "
            f"where `{TYPICAL[1]}` has {_faster(shallow[1])}; over the WAN, where rounds decide, it is "
            f"{_over_wan(report, 'merged-exact', 'lean')} on lean. A cost model that counts ReLUs alone "
            f"sees none of this.{_price(report)}",
        ]
    )


def _merged(report: Report) -> str:
    """Returns what merging linear stretches adds, as further sentences; empty if it was not measured."""
    lines = report.pairs.set_index(["senet", "joint", "width"])
    (senet, joint), (both, _) = MERGED[:2]
    if not {(senet, joint, WIDTH), (both, joint, WIDTH), (senet, joint, TRAINED_WIDTH)} <= set(lines.index):
        return ""
    wide, fair = lines.loc[(senet, joint, WIDTH)], lines.loc[(both, joint, WIDTH)]
    points, seeds = lines.loc[(senet, joint, TRAINED_WIDTH), ["accuracy_difference", "seeds"]]
    known = [line[f"{engine}_online_ratio"] for line in (wide, fair) for engine in ENGINES]
    if pd.isna([wide["macs_ratio"], points, *known]).any():
        return ""
    return (
        f" Layers in a row that keep no ReLU can be merged into one convolution, as in `{joint}`: "
        f"{format_ratio(wide['macs_ratio'])} fewer MACs than `{senet}` at equal ReLUs, "
        f"{_ratio(wide, 'stock')} faster on stock and {_ratio(wide, 'lean')} on lean, and "
        f"{format_points(points)} points from it in accuracy (width {TRAINED_WIDTH}, n = {seeds}). Against "
        f"`{both}`, which is merged too, it is {_ratio(fair, 'stock')} and {_ratio(fair, 'lean')} faster."
    )


def _price(report: Report) -> str:
    """Returns what privacy costs in words of 32 bits, as a further sentence; empty if it was not measured."""
    try:
        case = _case(report, "baseline", "lean32")
    except ResultsError:
        return ""
    return (
        " In words of 32 bits (`lean32`) the baseline takes "
        f"{format_ratio(case['online_over_plaintext'])} as long online as in plaintext (float32, one thread) "
        f"and {format_ratio(case['total_over_plaintext'])} with the offline phase."
    )


def _case(report: Report, variant: str, engine: str, link: str = "loopback") -> pd.Series:
    """Returns the summary's line of a case at full width, for one image between two parties."""
    wanted = SETTING | {"variant": variant, "engine": engine, "link": link}
    found = report.summary
    for name, value in wanted.items():
        found = found[found[name] == value]
    found = found[found["role"] != "extra"]
    if found.empty:
        raise ResultsError(
            f"{report.source / 'bench.json'} lacks {variant} on {engine} over {link} at width {WIDTH}: "
            "run `make bench` and `make sweep`."
        )
    return found.iloc[0]


def _pair(report: Report, pair: tuple[str, str], width: int) -> pd.Series:
    """Returns the line of the pairs' table; raises ResultsError unless both are trained at this width."""
    pairs = report.pairs
    found = pairs[(pairs["senet"] == pair[0]) & (pairs["joint"] == pair[1]) & (pairs["width"] == width)]
    if found.empty or pd.isna(found["accuracy_difference"].iloc[0]):
        raise ResultsError(f"{' and '.join(pair)} are not both trained at width {width}: run `make train`.")
    return found.iloc[0]


def _trained_budgets(report: Report) -> pd.DataFrame:
    """Returns the lines of the pairs' table whose budgets differ by 1.73 and whose networks are trained."""
    pairs = report.pairs
    budgets = pairs[
        pd.MultiIndex.from_frame(pairs[["senet", "joint"]]).isin(PAIRS)
        & pairs["width"].isin((TRAINED_WIDTH, WIDTH))
        & pairs["accuracy_difference"].notna()
    ]
    if budgets.empty:
        raise ResultsError("No pair of SENet and joint reduction is trained: run `make train`.")
    return budgets


def _faster(case: pd.Series) -> str:
    return format_ratio(case["online_speedup"], case["online_speedup_low"], case["online_speedup_high"])


def _ratio(pair: pd.Series, engine: str) -> str:
    return format_ratio(*(pair[f"{engine}_online_ratio{end}"] for end in ("", "_low", "_high")))


def _over_wan(report: Report, variant: str, engine: str) -> str:
    """Returns the speed-up over the emulated WAN: the quotient of medians."""
    seconds = [
        _case(report, name, engine, "wan")["emulated_online_median_s"] for name in ("baseline", variant)
    ]
    return format_ratio(seconds[0] / seconds[1])
