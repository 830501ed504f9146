"""The page of protocols: the same networks under each, the findings, and models of the literature."""

from __future__ import annotations

from collections.abc import Iterable

import pandas as pd

from pibench.models.pairs import PAIRS
from pibench.report.cells import (
    format_count,
    format_number,
    format_percent,
    format_ratio,
    format_rounded,
    is_true,
    markdown_table,
)
from pibench.report.protocols import FASTER
from pibench.report.provenance import provenance_lines
from pibench.store.engines import engine_look

ABSENT = (
    "Not measured yet: `make protocols` installs SecretFlow SPU and measures the networks on all engines."
)
FIGURE = "![Seconds and bytes of the same networks under each protocol](plots/protocols.svg)"
HE = "spu-cheetah"
WORTH = "relus_per_convolution"
PAYS = 1.05
"""The speed-up from which a reduction is said to pay."""


def protocols_section(protocols: pd.DataFrame, models: pd.DataFrame, summary: pd.DataFrame) -> str:
    """Shows the same networks under each protocol: findings, table, links, and the models.

    `protocols` and `models` are the results of `tabulate_protocols` and `tabulate_protocol_models`.
    """
    if protocols.empty:
        return ABSENT
    near, far = (protocols[protocols["timing"] == timing] for timing in ("measured", "emulated"))
    parts = []
    if not near.empty:
        parts += [
            findings(near),
            _conditions(near, "loopback"),
            markdown_table(_table(near)),
            "Seconds are medians of all phases together: of `stock` and `lean` the offline and the online "
            "phase of the same round, of the others the inference, in which they do everything. *noisy*: "
            "the interquartile range exceeds 10 % of the median. A speed-up is over the same protocol's "
            "baseline: the median of paired repetitions or, for CHEETAH's long ones, the quotient of the "
            "medians, with its 95 % bootstrap interval where they are six or more. MB are those of all "
            "processes, a dealer's too; where party 0 deals under `stock`, CrypTen sends nothing for it. "
            "Rounds: collective calls of `stock` and `lean` online; under SPU, messages of one party.",
            FIGURE,
        ]
        prices = _prices(near)
        if not prices.empty:
            parts += [
                markdown_table(prices),
                "From profiled inferences of the baseline: all phases, of `stock` and `lean` the online "
                "phase. A convolution is the median one.",
            ]
    if not far.empty:
        parts += [
            _conditions(far, "shaped links"),
            markdown_table(_links(far)),
            "Emulated seconds of all phases; in brackets the speed-up over the same protocol's baseline on "
            "the same link.",
        ]
    if not models.empty:
        parts += [
            "**Models of the literature beside a measurement of the same protocol**",
            models_verdict(models),
            markdown_table(_models(models)),
            "*Modelled* MB are of both directions and all phases, modelled seconds are communication alone, "
            "over the link of the case. Error: modelled / found - 1. The models of Cheetah and CrypTFlow2 "
            "count rings of 32 bits, SPU computes in 64. No engine runs CrypTFlow2: its model stands beside "
            "Cheetah, which has its comparison with other oblivious transfers. Rounds have no error, for SPU "
            "counts messages. Sources: [docs/literature.md](docs/literature.md).",
        ]
    cases = summary[summary["case"].isin(protocols["case"])]
    return "\n\n".join([*parts, *provenance_lines(cases, "Run")])


def findings(near: pd.DataFrame) -> str:
    """Writes which protocol and reduction is fastest, which parts cost most, and whether HE gains."""
    said = [_said_of_protocols(near), _said_of_reductions(near), _said_of_prices(near), _said_of_he(near)]
    return " ".join(filter(None, said))


def _said_of_protocols(near: pd.DataFrame) -> str:
    baseline = near[near["variant"] == "baseline"].sort_values("whole_median_s")
    if len(baseline) < 2:
        return ""
    seconds = _listed(
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
    return _listed(f"{_label(case)} ({format_ratio(case['whole_speedup'])})" for _, case in cases.iterrows())


def _said_of_prices(near: pd.DataFrame) -> str:
    """Writes where ReLUs take more than half of the baseline's time, and how many ReLUs a layer costs."""
    priced = near[near["variant"] == "baseline"].dropna(subset=["relu_share"])
    sentences = []
    for what, group in (
        ("ReLUs are dearer than layers", priced[priced["relu_share"] > 0.5]),
        ("Layers are dearer than ReLUs", priced[priced["relu_share"] <= 0.5]),
    ):
        if not group.empty:
            where = _listed(
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


def models_verdict(models: pd.DataFrame) -> str:
    """Writes the errors of each model in bytes and seconds, over all its cases."""
    sentences = []
    for (model, engine), group in models.groupby(["model", "engine"], sort=False):
        said = [
            f"{what} by {' to '.join(dict.fromkeys(map(format_percent, (errors.min(), errors.max()))))}"
            for what, errors in (
                ("bytes", group["bytes_error"].dropna()),
                ("seconds", group["seconds_error"].dropna()),
            )
            if not errors.empty
        ]
        look = engine_look(engine).label
        sentences.append(f"The model `{model}` is off from {look} in {' and in '.join(said)}.")
    return " ".join(sentences)


def _conditions(cases: pd.DataFrame, where: str) -> str:
    first, protocols = cases.iloc[0], cases["engine"].nunique()
    what = f"The same networks under {protocols} protocol{'s' * (protocols > 1)}"
    return f"**{what}, width {first['width']}, batch {first['batch']}, {where}**"


def _table(near: pd.DataFrame) -> pd.DataFrame:
    """Makes one line a protocol and network."""
    lines = []
    for _, group in near.groupby(["engine", "parties"], sort=False):
        for place, (_, case) in enumerate(group.iterrows()):
            noisy = " *noisy*" if is_true(case["whole_noisy"]) else ""
            line = {
                "Variant": f"`{case['variant']}`",
                "Seconds": format_number(case["whole_median_s"]) + noisy,
                "Speed-up": "1" if case["variant"] == "baseline" else format_ratio(*case[list(FASTER)]),
                "MB": format_number(case["bytes_all"], 1e6),
                "Rounds": format_count(case["rounds"]),
            }
            lines.append(_named(case, place) | line)
    return pd.DataFrame(lines)


def _prices(near: pd.DataFrame) -> pd.DataFrame:
    priced = near[near["variant"] == "baseline"].dropna(subset=["relu_share"])
    return pd.DataFrame(
        {
            "Protocol": _label(case),
            "Time of ReLUs": f"{100 * case['relu_share']:.0f} %",
            "A ReLU, µs": format_number(case["relu_s"], 1e-6),
            "A convolution, ms": format_number(case["convolution_s"], 1e-3),
            "A convolution is worth, ReLUs": format_rounded(case[WORTH]),
        }
        for _, case in priced.iterrows()
    )


def _links(far: pd.DataFrame) -> pd.DataFrame:
    """Makes one line a protocol and network, with a column for each link."""
    lines, links = [], list(far["link"].unique())
    for _, of_engine in far.groupby("engine", sort=False):
        for place, (variant, group) in enumerate(of_engine.groupby("variant", sort=False)):
            by_link = group.set_index("link")
            line = _named(group.iloc[0], place) | {"Variant": f"`{variant}`"}
            for link in links:
                line[f"{link}, emulated, s"] = "–"
                if link in by_link.index:
                    case = by_link.loc[link]
                    faster = "1" if variant == "baseline" else format_ratio(case["emulated_whole_speedup"])
                    seconds = format_number(case["emulated_whole_median_s"])
                    line[f"{link}, emulated, s"] = f"{seconds} ({faster})"
            lines.append(line)
    return pd.DataFrame(lines)


def _named(case: pd.Series, place: int) -> dict[str, str]:
    """Names the protocol and its trust in the first line, and nothing in the others."""
    return {"Protocol": "", "Trust": ""} if place else {"Protocol": _label(case), "Trust": case["trust"]}


def _models(models: pd.DataFrame) -> pd.DataFrame:
    """Makes one line a model and network: bytes, then seconds and speed-up over each link."""
    lines, links = [], list(models.loc[models["modelled_total_s"].notna(), "link"].unique())
    for (model, engine, variant), group in models.groupby(["model", "engine", "variant"], sort=False):
        first, by_link = group.iloc[0], group.set_index("link")
        line = {
            "Model": f"`{model}`",
            "Beside": engine_look(engine).label,
            "Variant": f"`{variant}`",
            "MB": format_number(first["bytes_all"], 1e6),
            "MB, modelled": format_number(first["modelled_bytes"], 1e6),
            "MB, error": format_percent(first["bytes_error"]),
            "Messages": format_count(first["rounds"]),
            "Rounds, modelled": format_count(first["modelled_rounds"]),
        }
        for link in links:
            case = by_link.loc[link] if link in by_link.index else None
            for name, form, column in (
                ("emulated, s", format_number, "emulated_whole_median_s"),
                ("modelled, s", format_number, "modelled_total_s"),
                ("error", format_percent, "seconds_error"),
                ("speed-up, emulated", format_ratio, "emulated_whole_speedup"),
                ("speed-up, modelled", format_ratio, "modelled_speedup"),
            ):
                line[f"{link}, {name}"] = "–" if case is None else form(case[column])
        lines.append(line)
    return pd.DataFrame(lines)


def _label(case: pd.Series) -> str:
    return engine_look(case["engine"]).label


def _listed(texts: Iterable[str]) -> str:
    """Joins texts with commas, the last with "and"."""
    *most, last = texts
    return f"{', '.join(most)} and {last}" if most else last
