"""The README's section on links: measured, emulated and modelled."""

from __future__ import annotations

import math

import pandas as pd

from pibench.report.cells import (
    conditions_line,
    format_count,
    format_number,
    format_percent,
    format_range,
    format_ratio,
    format_seconds,
    is_true,
    markdown_table,
)
from pibench.report.order import variant_place
from pibench.report.provenance import provenance_lines
from pibench.report.tables import paired_with_baseline
from pibench.store.engines import engine_place
from pibench.store.results import ResultsError
from pibench.store.settings import GOAL, LINKED

MOST = 5  # variants that a table shows at once, of more those that every run measures


def links_section(summary: pd.DataFrame) -> str:
    """Shows the same cases on loopback and over shaped links, the model's prediction, and speed-ups."""
    absent = "No case has been measured over a shaped link yet: run `make bench`."
    if summary.empty:
        return absent
    emulated = summary[(summary["role"] == "link") & (summary["timing"] == "emulated")]
    if emulated.empty:
        return absent
    parts, used = [], [emulated]
    for values, group in emulated.groupby(["width", "batch", "parties"], sort=False):
        setting = dict(zip(("width", "batch", "parties"), values, strict=True))
        loopback = _loopback_of(group, summary)
        used.append(loopback)
        parts.append(conditions_line(setting))
        first = group[group["variant"].isin(LINKED)] if len(group["variant"].unique()) > MOST else group
        parts.append(markdown_table(_links_table(first, loopback)))
        parts.append(_model_verdict(group))
        parts.append(markdown_table(_links_speedups(first, loopback)))
        if len(first) < len(group):
            parts.append("<details><summary>All variants that were measured here over a link</summary>")
            parts.append(markdown_table(_links_table(group, loopback)))
            parts.append(markdown_table(_links_speedups(group, loopback)))
            parts.append("</details>")
    parts.append(
        "All are medians of online seconds. *Measured*: loopback. *Emulated*: real parties whose bytes a "
        "shaper delays. *Modelled*: compute + hops (RTT / 2 + h0) + bytes / bandwidth, compute from the "
        "loopback case; a hop is a one-way trip that the next step waits for, h0 the software's part of it, "
        "calibrated on the link with the smallest rounds. "
        "Error is modelled / emulated - 1. Speed-ups are over the same engine's baseline on the same link: "
        "of paired repetitions where the baseline was measured in turn with the network, as on loopback, "
        "else quotients of medians of few."
    )
    parts += _links_described(emulated)
    return "\n\n".join([*parts, *provenance_lines(pd.concat(used), "Run")])


def _links_table(emulated: pd.DataFrame, loopback: pd.DataFrame) -> pd.DataFrame:
    """Makes one line for each engine and variant: loopback measured, each link emulated, modelled, error."""
    lines = []
    for engine, variant in _engines_and_variants(emulated):
        measured = _cell_of(loopback, engine, variant)
        first = emulated[(emulated["engine"] == engine) & (emulated["variant"] == variant)].iloc[0]
        line = {
            "Case": f"{engine} `{variant}`",
            "Hops": format_count(first["hops"]),
            "MB sent": format_number(first["bytes_sent"], 1e6),
            "loopback, measured, s": "–" if measured is None else format_seconds(measured, "online"),
        }
        for link in _link_names(emulated):
            case = _cell_of(emulated, engine, variant, link)
            flag = " *flagged*" if case is not None and is_true(case["link_flagged"]) else ""
            line |= {
                f"{link}, emulated, s": "–"
                if case is None
                else format_seconds(case, "online", "emulated_") + flag,
                f"{link}, modelled, s": "–" if case is None else format_number(case["modelled_online_s"]),
                f"{link}, error": "–" if case is None else format_percent(case["model_error"]),
            }
        lines.append(line)
    return pd.DataFrame(lines)


def _links_speedups(emulated: pd.DataFrame, loopback: pd.DataFrame) -> pd.DataFrame:
    """Makes one line for each variant: the speed-up over the engine's own baseline on every link."""
    links = _link_names(emulated)
    engines = sorted(emulated["engine"].unique(), key=engine_place)

    def gain(engine: str, variant: str, link: str) -> float:
        case, first = (_cell_of(emulated, engine, name, link) for name in (variant, "baseline"))
        if case is None or first is None:
            return math.nan
        if paired_with_baseline(case):
            return case["emulated_online_speedup"]
        return first["emulated_online_median_s"] / case["emulated_online_median_s"]

    lines = []
    for variant in sorted(emulated["variant"].unique(), key=variant_place):
        line = {"Speed-up": f"`{variant}`"}
        for engine in engines:
            case = _cell_of(loopback, engine, variant)
            paired = math.nan if case is None else 1.0 if variant == "baseline" else case["online_speedup"]
            line[f"{engine}, loopback"] = _gain(paired, variant)
            for link in links:
                line[f"{engine}, {link}"] = _gain(gain(engine, variant, link), variant)
        lines.append(line)
    return pd.DataFrame(lines)


def _gain(value: float, variant: str) -> str:
    return "1" if variant == "baseline" and not pd.isna(value) else format_ratio(value)


def _model_verdict(emulated: pd.DataFrame) -> str:
    """Writes the model's largest error against the goal, and names the cases without a prediction.

    It is not judged by a case that was measured in turn with the baseline: its own seconds on loopback are of
    another time.
    """
    emulated = emulated[~emulated.apply(paired_with_baseline, axis=1)]
    predicted = emulated.dropna(subset=["model_error"])
    lost = emulated[emulated["model_error"].isna()]
    text = "The model predicts none of these: their cases on loopback are missing."
    if not predicted.empty:
        worst = predicted.loc[predicted["model_error"].abs().idxmax()]
        missed = int((predicted["model_error"].abs() > GOAL).sum())
        goal = f"the goal of {100 * GOAL:.0f} % is " + (
            f"missed by {missed} of {len(predicted)} cases"
            if missed
            else f"met by all {len(predicted)} cases"
        )
        text = (
            f"Largest error of the model: {format_percent(worst['model_error'])} ({worst['engine']} "
            f"`{worst['variant']}` over {worst['link']}); {goal}."
        )
        if not lost.empty:
            names = ", ".join(f"`{case}`" for case in lost["case"])
            text += f" Without a prediction, for want of a case on loopback or of repetitions: {names}."
    return text


def _links_described(emulated: pd.DataFrame) -> list[str]:
    """Writes the request for each link, its measured values and its shaper, then the flagged cases."""
    texts = []
    for link in _link_names(emulated):
        cases = emulated[emulated["link"] == link]
        shapers = " and ".join(sorted(cases["shaper"].dropna().unique())) or "unknown"
        rtt = f"RTT {format_number(cases['asked_rtt_s'].iloc[0], 1e-3)} ms"
        rtt += f" (measured {format_range(cases['measured_rtt_s'], 1e-3)})"
        if pd.isna(cases["asked_bandwidth_bits_s"].iloc[0]):
            rate = "no limit of bandwidth"
        else:
            rate = f"{format_number(cases['asked_bandwidth_bits_s'].iloc[0], 1e6)} Mbit/s each way"
        rate += f" (measured {format_range(cases['measured_bandwidth_bits_s'], 1e6)})"
        texts.append(f"{link}: {rtt}, {rate}, shaped by {shapers}")
    lines = [f"Links: {'; '.join(texts)}."]
    flagged = emulated[emulated["link_flagged"].map(is_true)]
    if not flagged.empty:
        names = "; ".join(f"`{case['case']}`: {case['link_complaint']}" for _, case in flagged.iterrows())
        lines.append(f"**Note:** *flagged* links were not what was asked for: {names}.")
    return lines


def _loopback_of(emulated: pd.DataFrame, summary: pd.DataFrame) -> pd.DataFrame:
    """Returns the loopback cases from which the model started, else those of the same engine and variant."""
    same = ["variant", "width", "engine", "batch", "parties"]
    measured = summary[(summary["timing"] == "measured") & (summary["link"] == "loopback")]
    regular = measured[measured["role"] != "extra"]
    keys = emulated[same].drop_duplicates()
    found = regular.merge(keys, on=same).drop_duplicates(same)
    named = measured[measured["case"].isin(emulated["loopback_case"].dropna())]
    return pd.concat([named, found]).drop_duplicates(same)


def _link_names(emulated: pd.DataFrame) -> list[str]:
    """Returns the links, the fastest first."""
    return list(emulated.sort_values(["asked_rtt_s", "link"])["link"].unique())


def _cell_of(cases: pd.DataFrame, engine: str, variant: str, link: str | None = None) -> pd.Series | None:
    found = cases[(cases["engine"] == engine) & (cases["variant"] == variant)]
    if link is not None:
        found = found[found["link"] == link]
    if len(found) > 1:
        raise ResultsError(
            f"The cases {' and '.join(found['case'])} claim one place in the table of links: "
            "give one the role `extra`."
        )
    return None if found.empty else found.iloc[0]


def _engines_and_variants(cases: pd.DataFrame) -> list[tuple[str, str]]:
    pairs = cases[["engine", "variant"]].drop_duplicates().itertuples(index=False, name=None)
    return sorted(pairs, key=lambda pair: (engine_place(pair[0]), variant_place(pair[1])))
