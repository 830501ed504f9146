"""The README's headline: the variants side by side on every engine."""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd

from pibench.report.cells import (
    conditions_line,
    format_count,
    format_interval,
    format_number,
    format_ratio,
    format_repetitions,
    format_seconds,
    join_cells,
    markdown_table,
)
from pibench.report.engines import by_engine
from pibench.report.order import variant_place
from pibench.report.provenance import conventions_list, provenance_lines
from pibench.report.statistics import NOISY
from pibench.report.tables import CLOCKS
from pibench.store.engines import engine_place
from pibench.store.results import Row


def headline_section(rows: Sequence[Row], summary: pd.DataFrame) -> str:
    """Shows the variants side by side on every engine, the spread of their times, and their provenance."""
    if summary.empty:
        return "No case has been measured yet: run `make bench`."
    headline = summary[(summary["role"] == "headline") & (summary["timing"] == "measured")]
    if headline.empty:
        return "No headline case has been measured yet: run `make bench`."
    conditions = ["width", "batch", "link", "parties"]
    groups = list(headline.groupby(conditions, sort=False))
    parts = []
    for values, group in groups:
        parts.append(conditions_line(dict(zip(conditions, values, strict=True))))
        parts.append(markdown_table(_variants_table(group)))
    parts.append(
        "Seconds are medians. Speed-up is online, against the same engine's baseline: the median of paired "
        "repetitions with its 95 % bootstrap interval. MB are 10^6 bytes sent by one party, online. *noisy*: "
        f"the interquartile range exceeds {100 * NOISY:.0f} % of the median."
    )
    spreads = markdown_table(_spread_table(headline))
    parts.append(f"<details><summary>Spread of the repetitions</summary>\n\n{spreads}\n\n</details>")
    parts.append(conventions_list([row for row in rows if row["role"] != "protocol"]))
    parts += provenance_lines(headline)
    return "\n\n".join(part for part in parts if part)


def _variants_table(group: pd.DataFrame) -> pd.DataFrame:
    """Makes one line for each variant: counts, then the figures of all engines side by side."""
    engines = sorted(group["engine"].unique(), key=engine_place)
    both = " / ".join(engines)
    lines = []
    for variant in sorted(group["variant"].unique(), key=variant_place):
        found = by_engine(group[group["variant"] == variant])
        cases = [found.loc[engine] if engine in found.index else None for engine in engines]
        known = next(case for case in cases if case is not None)
        line = {
            "Variant": f"`{variant}`",
            "ReLUs, K": format_number(known["relus"], 1e3, 4),
            "MACs, M": format_number(known["macs"], 1e6, 4),
            "Parameters, M": format_number(known["parameters"], 1e6),
            f"Rounds, {both}": join_cells(cases, lambda case: format_count(case["rounds"])),
            f"MB sent, {both}": join_cells(cases, lambda case: format_number(case["bytes_sent"], 1e6)),
        }
        for clock in CLOCKS:
            line[f"{clock.capitalize()}, s, {both}"] = join_cells(
                cases, lambda case, clock=clock: format_seconds(case, clock)
            )
        for engine, case in zip(engines, cases, strict=True):
            line[f"Speed-up, {engine}"] = _speedup_cell(case)
        lines.append(line)
    return pd.DataFrame(lines)


def _spread_table(headline: pd.DataFrame) -> pd.DataFrame:
    lines = []
    for _, case in headline.iterrows():
        line = {"Case": f"`{case['case']}`", "Repetitions": format_repetitions(case)}
        for clock in CLOCKS:
            line[f"{clock.capitalize()}: median, s"] = format_seconds(case, clock)
            line["IQR, s" + " " * CLOCKS.index(clock)] = format_number(case[f"{clock}_iqr_s"], digits=2)
            interval = format_interval(case[f"{clock}_low_s"], case[f"{clock}_high_s"])
            line["95 % interval" + " " * CLOCKS.index(clock)] = interval
        expected, observed = case["truncations_expected"], case["truncations_observed"]
        line["Wrong truncations: expected / observed"] = (
            f"{format_number(expected, digits=2)} / {format_count(observed)}"
        )
        lines.append(line)
    return pd.DataFrame(lines)


def _speedup_cell(case: pd.Series | None) -> str:
    if case is None:
        return "–"
    if case["variant"] == "baseline":
        return "1"
    return format_ratio(case["online_speedup"], case["online_speedup_low"], case["online_speedup_high"])
