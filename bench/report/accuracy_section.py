"""The README's section on accuracy: every trainable variant, the pairs, and the full width."""

from __future__ import annotations

import math
from collections.abc import Iterable

import pandas as pd

from pibench.measure.cases import TRAINED_WIDTH
from pibench.measure.cases import WIDTH as FULL_WIDTH
from pibench.models.published import ALL_RELU_ACCURACY, JOINT_REDUCTION
from pibench.report.accuracy import (
    EQUAL,
    PAIRS,
    SEED_AND_PLAN,
    TEST_IMAGES,
    TRAINABLE,
    UNMASKED,
    counts_of,
    difference,
    latency_rows,
    published_near,
)
from pibench.report.cells import format_count, format_number, format_ratio, markdown_table
from pibench.report.equal_latency import RATIOS
from pibench.report.order import ENGINES
from pibench.store.results import Row, family_of, plans_of

UNTRAINED = "not trained yet"
MARGIN = 0.01  # of accuracy: how far joint may be below SENet to count as equal
FULL_WIDTH_COMMAND = f'make train TRAIN="--width {FULL_WIDTH}"'
FIGURES = {
    "accuracy_vs_relus": "Accuracy against the number of ReLUs, with published points at full width",
    "accuracy_full_width": "The same at width 64, beside what others published",
    "accuracy_vs_macs": "Accuracy against multiply-accumulates: five merged blocks save a third of them",
    "accuracy_vs_latency": "Accuracy against measured online latency, on both engines",
}


def accuracy_section(
    table: pd.DataFrame,
    pairs: pd.DataFrame,
    equal_latency: pd.DataFrame,
    tries: pd.DataFrame,
    rows: Iterable[Row],
) -> str:
    """What each variant gets right, what joint reduction loses and gains against SENet, and the full width.

    `table`, `pairs`, `equal_latency` and `tries` are what `tabulate_accuracy`, `tabulate_pairs`,
    `tabulate_equal_latency` and `tabulate_tries` return.
    """
    measured = latency_rows(rows)
    narrow = table[table["width"] == TRAINED_WIDTH]
    trained = set(narrow["variant"])
    timed = {name for name, width, _ in measured if width == TRAINED_WIDTH and name in trained}
    wide = table.loc[table["width"] == FULL_WIDTH, "variant"].nunique()
    figures = ["accuracy_vs_relus"] * (len(trained) > 1) + ["accuracy_full_width"] * (wide > 1)
    figures += ["accuracy_vs_macs"] * (len(trained) > 1)
    figures += ["accuracy_vs_latency"] * (len(timed) > 1)
    parts = [
        *(_verdict(pairs, width) for width in _judged_widths(pairs)),
        *(_merging_alone(table, measured, width) for width in _judged_widths(pairs)),
        markdown_table(_pairs_table(pairs)),
        _pairs_caption(pairs),
        *_equal_latency(equal_latency),
        *(f"![{FIGURES[name]}](plots/{name}.svg)" for name in figures),
        f"**CIFAR-100, width {TRAINED_WIDTH}** (the headline's latency is that of width {FULL_WIDTH})",
        markdown_table(_variants_table(narrow, measured)),
        *_variants_caption(narrow),
        *_tries(tries, TRAINED_WIDTH),
        _full_width(table, measured),
        *_tries(tries, FULL_WIDTH),
    ]
    return "\n\n".join(filter(None, parts))


def format_accuracy(value: float) -> str:
    """A share in percent with two digits behind the point; a dash when it is missing."""
    return "–" if pd.isna(value) else f"{100 * value:.2f}"


def format_points(value: float) -> str:
    """A difference of shares in points, signed; a dash when it is missing."""
    return "–" if pd.isna(value) else f"{100 * value:+.2f}"


def _spread(text: str, values: pd.Series, form) -> str:
    """A mean with the lowest and highest of several seeds behind it."""
    several = values.dropna()
    return text if len(several) < 2 else f"{text} [{form(several.min())}, {form(several.max())}]"


def _variants_table(narrow: pd.DataFrame, measured: dict) -> pd.DataFrame:
    """One line a trainable variant; columns that no row fills are left out."""
    names = [*TRAINABLE, *(name for name in narrow["variant"].unique() if name not in TRAINABLE)]
    fixed = narrow["accuracy_fixed_point"].notna().any()
    engines = [name for name in ENGINES if narrow[f"private_{name}_agreement"].notna().any()]
    lines = []
    for name in names:
        found = narrow[narrow["variant"] == name]
        counts = counts_of(name, TRAINED_WIDTH, narrow, measured)
        test = format_accuracy(found["accuracy_test"].mean())
        to_baseline = difference(narrow, TRAINED_WIDTH, name, "baseline")
        line = {
            "Variant": f"`{name}`",
            "ReLUs, K": format_number(counts["relus"], 1e3, 4),
            "MACs, M": format_number(counts["macs"], 1e6, 4),
            "Epochs": _span(found["epochs"]),
            "ReLUs by": _relus_by(found),
            "Held out, %": format_accuracy(found["accuracy_heldout"].mean()),
            "Test, %": UNTRAINED if found.empty else _spread(test, found["accuracy_test"], format_accuracy),
            "To the baseline, points": "0" if name == "baseline" else format_points(to_baseline.mean),
        }
        if found.empty:
            line["To the baseline, points"] = "–"
        line["Seeds"] = str(len(found)) if len(found) else "–"
        if fixed:
            line["Fixed point, %"] = format_accuracy(_first(found["accuracy_fixed_point"]))
        for engine in engines:
            line[f"Agreement, {engine}"] = _agreement(found, engine)
        lines.append(line)
    return pd.DataFrame(lines)


def _span(values: pd.Series) -> str:
    if values.dropna().empty:
        return "–"
    low, high = format_count(values.min()), format_count(values.max())
    return low if low == high else f"{low} to {high}"


def _relus_by(found: pd.DataFrame) -> str:
    return ", ".join(filter(None, found["relus_by"].unique())) or "–"


def _first(values: pd.Series) -> float:
    return next(iter(values.dropna()), math.nan)


def _agreement(found: pd.DataFrame, engine: str) -> str:
    """On how many of the images that real parties answered their class is the plaintext network's."""
    known = found.dropna(subset=[f"private_{engine}_agreement"])
    if known.empty:
        return "–"
    images = int(known[f"private_{engine}_images"].iloc[0])
    return f"{round(known[f'private_{engine}_agreement'].iloc[0] * images)} of {images}"


def _variants_caption(narrow: pd.DataFrame) -> list[str]:
    if narrow.empty:
        return [f"No network of width {TRAINED_WIDTH} has been trained yet: run `make data train`."]
    typical = narrow["accuracy_test"].mean()
    error = math.sqrt(typical * (1 - typical) / TEST_IMAGES)
    text = (
        f"*Test*: {TEST_IMAGES:,} images, read once for each row, by the network that is stored and deployed "
        f"(one accuracy has a standard error of {100 * error:.1f} points); *held out*: 5,000 training images "
        "that alone chose anything. *Epochs* count all phases, the baseline's included. *ReLUs by*: what "
        "gives each layer its share of the budget, SENet's sensitivity or SNL's lasso."
    )
    if narrow["seed"].nunique() > 1:
        text += (
            " Over several seeds: the mean and in brackets the lowest and the highest; differences to the "
            "baseline are over the seeds that both have."
        )
    if narrow["accuracy_fixed_point"].notna().any():
        text += " *Fixed point*: the same test images with 16 fractional bits, weights of seed 0."
    private = [narrow[f"private_{name}_agreement"] for name in ENGINES]
    if any(column.notna().any() for column in private):
        text += (
            " *Agreement*: test images on which real parties and the plaintext network name the same class."
        )
    machines = ", ".join(str(each) for each in narrow["machine"].dropna().unique())
    seeds = ", ".join(str(seed) for seed in sorted(narrow["seed"].unique()))
    seed_text = f"seed{'s' * (narrow['seed'].nunique() > 1)} {seeds}"
    return [text, f"Trained by plan {_plans(narrow)}, {seed_text}, on {machines or 'unknown'}."]


def _plans(narrow: pd.DataFrame) -> str:
    """Names the plan of most rows, then those of other rows with these rows; "unknown" if none has one."""
    named = "; ".join(
        (f"{', '.join(f'`{name}`' for name in names)} by " if index else "") + f"`{plan}` in {precision}"
        for index, (plan, precision, names) in enumerate(plans_of(narrow.to_dict("records")))
    )
    return named or "unknown"


def _of_pair(pairs: pd.DataFrame, pair: tuple[str, str], width: int) -> pd.Series | None:
    found = pairs[(pairs["senet"] == pair[0]) & (pairs["joint"] == pair[1]) & (pairs["width"] == width)]
    return None if found.empty else found.iloc[0]


def _judged_widths(pairs: pd.DataFrame) -> list[int]:
    """The width of the accuracy figure, and the full one where a pair of it is trained."""
    full = pairs.loc[pairs["width"] == FULL_WIDTH, "accuracy_difference"].notna().any()
    return [TRAINED_WIDTH, *([FULL_WIDTH] if full else [])]


def _pairs_table(pairs: pd.DataFrame) -> pd.DataFrame:
    widths = [FULL_WIDTH]
    if (
        pairs.loc[pairs["width"] == TRAINED_WIDTH, [f"{e}_online_ratio" for e in ENGINES]]
        .notna()
        .any(axis=None)
    ):
        widths.append(TRAINED_WIDTH)
    lines = []
    for pair in (*PAIRS, EQUAL):
        full = _of_pair(pairs, pair, FULL_WIDTH)
        line = {"SENet, joint": f"`{pair[0]}`, `{pair[1]}`"}
        for width in _judged_widths(pairs):
            judged = _of_pair(pairs, pair, width)
            line[f"Accuracy, width {width}, %"] = _both(judged)
            line[f"joint - SENet, points, width {width}"] = _difference(judged)
        line |= {
            f"Fewer ReLUs, width {FULL_WIDTH}": "–" if full is None else format_ratio(full["relus_ratio"]),
            f"Fewer MACs, width {FULL_WIDTH}": "–" if full is None else format_ratio(full["macs_ratio"]),
        }
        for width in widths:
            at_width = _of_pair(pairs, pair, width)
            for engine in ENGINES:
                name = f"{engine}_online_ratio"
                ends = () if at_width is None else (name, f"{name}_low", f"{name}_high")
                cell = format_ratio(*(at_width[end] for end in ends)) if ends else "–"
                line[f"Faster online, {engine}, width {width}"] = cell
        lines.append(line)
    return pd.DataFrame(lines)


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


def _verdict(pairs: pd.DataFrame, width: int) -> str:
    """Says for each pair whether joint is within a point of SENet, or above it."""
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


def _merging_alone(table: pd.DataFrame, measured: dict, width: int) -> str:
    """Says what shallow blocks cost that keep all other ReLUs; "" where that is not trained."""
    lost = difference(table, width, UNMASKED, "baseline")
    if not lost.seeds:
        return ""
    counts = [counts_of(name, width, table, measured) for name in ("baseline", UNMASKED)]
    by_one_plan = difference(table, width, UNMASKED, "baseline", SEED_AND_PLAN).seeds == lost.seeds
    fewer = {name: format_ratio(counts[0][name] / counts[1][name]) for name in ("relus", "macs")}
    other = "" if by_one_plan else "; of another plan"
    return (
        f"Merging alone, all other ReLUs kept (`{UNMASKED}`): **{format_points(lost.mean)}** points to the "
        f"baseline at width {width} (n = {lost.seeds}{other}), with {fewer['relus']} fewer ReLUs and "
        f"{fewer['macs']} fewer MACs."
    )


def _tries(tries: pd.DataFrame, width: int) -> list[str]:
    """What changes of the plan gave, on the held-out images; nothing if nothing was tried at this width."""
    tries = tries[tries["width"] == width]
    if tries.empty:
        return []
    lines = [
        {
            "Change of the plan": f"`{line['changes']}`",
            "Beside": f"`{line['beside']}`" if line["beside"] else "",
            "Variant": f"`{line['variant']}`",
            "Epochs": format_count(line["epochs"]),
            "Held out, %": format_accuracy(line["accuracy_heldout"]),
            "To the same without it, points": format_points(line["difference"]),
        }
        for _, line in tries.iterrows()
    ]
    return [
        f"<details><summary>What else was tried, width {width}</summary>",
        markdown_table(pd.DataFrame(lines)),
        "Held-out images only: no try saw the test set. `--set` and `--plan` of the training "
        "command make such changes. A try of several has a line for each without which it was tried too, "
        "*beside* the others.",
        "</details>",
    ]


def _with_seeds(match: pd.Series) -> str:
    return f"{format_points(match['accuracy_difference'])} (n = {match['seeds']})"


def _equal_latency(lines: pd.DataFrame) -> list[str]:
    """The most accurate joint network that is no slower than each SENet network; nothing if there is none."""
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
        for engine in ENGINES:
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


def _pairs_caption(pairs: pd.DataFrame) -> str:
    text = (
        "Each joint variant has a budget 1.73 times smaller than its SENet partner, in the last line the "
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


def _full_width(table: pd.DataFrame, measured: dict) -> str:
    """The same variants at full width, beside what was published at about as many ReLUs."""
    wide = table[table["width"] == FULL_WIDTH]
    lines = []
    for name in TRAINABLE:
        found = wide[wide["variant"] == name]
        relus = counts_of(name, FULL_WIDTH, table, measured)["relus"]
        value, by = _published(name, relus)
        mean = format_accuracy(found["accuracy_test"].mean())
        lines.append(
            {
                "Variant": f"`{name}`",
                "ReLUs, K": format_number(relus, 1e3, 4),
                "ReLUs by": _relus_by(found),
                "Ours, test, %": UNTRAINED
                if found.empty
                else _spread(mean, found["accuracy_test"], format_accuracy),
                "Published, %": value,
                "Published by, at": by,
            }
        )
    trained = wide["variant"].nunique()
    state = f"{trained} of {len(TRAINABLE)} variants are trained" if trained else "no variant is trained yet"
    head = (
        f"**Full width ({FULL_WIDTH}): {state}.** It wants a CUDA device and one command, which resumes: "
        f"`{FULL_WIDTH_COMMAND}`. Beside each variant stands what its method's authors "
        "published at a number of ReLUs within 10 %; their schedules and networks differ in detail."
        + (f" Trained by plan {_plans(wide)}." if trained else "")
    )
    summary = f"<summary>Width {FULL_WIDTH}, ours and published</summary>"
    return f"{head}\n\n<details>{summary}\n\n{markdown_table(pd.DataFrame(lines))}\n\n</details>"


def _published(name: str, relus: float) -> tuple[str, str]:
    if name == "baseline":
        low, high = (f"{100 * value:.1f}" for value in ALL_RELU_ACCURACY)
        return f"{low} to {high}", "all papers, all ReLUs"
    near = published_near(name, relus)
    if near is not None:
        return format_accuracy(near.accuracy), f"{near.method}, {near.source}: {near.relus / 1e3:.1f} K"
    if family_of(name).startswith("joint"):
        return "–", f"no public table ({JOINT_REDUCTION['source']})"
    return "–", "–" if pd.isna(relus) else "none near"
