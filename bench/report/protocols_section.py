"""The page of protocols: the same networks under each, the findings, and models of the literature."""

from __future__ import annotations

import pandas as pd

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
from pibench.report.protocols_findings import findings
from pibench.report.provenance import provenance_lines
from pibench.store.engines import engine_look

ABSENT = (
    "Not measured yet: `make protocols` installs SecretFlow SPU and measures the networks on all engines."
)
FIGURE = "![Seconds and bytes of the same networks under each protocol](plots/protocols.svg)"


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
            *([FIGURE] if "baseline" in set(near["variant"]) else []),
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
            "A convolution is worth, ReLUs": format_rounded(case["relus_per_convolution"]),
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
