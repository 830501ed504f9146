"""The short result of a run: a table for each engine, and a comparison with the reference."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from pibench.report.cells import format_count, format_number, format_ratio, is_true
from pibench.report.tables import paired_with_baseline, summarize
from pibench.store.engines import clocks_of, has_one_clock, steady_traffic, trust_of
from pibench.store.results import Row, read_rows

GROUP = ["engine", "timing", "width", "batch", "link", "parties"]
HEAD = ("", "ReLUs, K", "MACs, M", "rounds", "MB sent")
COUNTS = {
    "relus": "ReLUs",
    "comparisons": "comparisons",
    "macs": "MACs",
    "parameters": "parameters",
    "rounds": "rounds",
    "hops": "hops",
    "bytes_sent": "bytes sent",
    "setup_bytes_sent": "bytes of set-up",
    "offline_correlated_bytes": "bytes of correlated randomness",
}
"""What is deterministic: columns of `summarize` and what they are called."""
VARYING = ("rounds", "hops", "bytes_sent", "setup_bytes_sent")  # of an engine whose traffic is not steady
MOST = 5  # cases that are named; of more the number is given


def conclusion(rows: Sequence[Row], reference: Path) -> str:
    """Returns the short table of measured rows and their comparison with the folder `reference`.

    Raises ResultsError when the reference cannot be read.
    """
    summary = summarize(rows)
    cases = {row["case"] for row in rows}
    known = [row for row in read_rows(reference / "bench.json") if row["case"] in cases]
    tables = short_tables(summary)
    if known == list(rows):
        return f"{tables}\n\nThese are the reference's own rows."
    return f"{tables}\n\n{compare(summary, summarize(known))}"


def short_tables(summary: pd.DataFrame) -> str:
    """Returns one table for each engine and setting: counts, seconds and speed-ups of each variant.

    Only the cases of the headline and of other protocols are shown if there are any. `summary` is the result
    of `summarize`.
    """
    if summary.empty:
        return "No case has been measured."
    headline = summary[summary["role"].isin(["headline", "protocol"])]
    shown = summary if headline.empty else headline
    beside = any(map(has_one_clock, shown["engine"]))
    parts = [_table(group, beside) for _, group in shown.groupby(GROUP, sort=False)]
    parts += [
        f"{case['engine']} over {case['reference_case'].partition('/')[0]}, {case['variant']}, online: "
        f"{_speedup(case)}"
        for _, case in shown.dropna(subset=["reference_case"]).iterrows()
        if case["reference_case"].partition("/")[0] != case["engine"]
    ]
    parts.append(
        "Seconds are medians; ~: noisy, the interquartile range exceeds 10 % of the median. A speed-up is\n"
        "over the same engine's baseline: the median of paired repetitions, with a bootstrap 95 % interval\n"
        "where they are six or more, else the quotient of two medians."
    )
    others = len(summary) - len(shown)
    if others:
        parts.append(f"Not shown: {others} cases of other links, batches and settings.")
    return "\n\n".join(parts)


def _table(group: pd.DataFrame, beside: bool) -> str:
    """Returns the cases of one engine and setting, one line a variant, under lines that name the setting.

    With `beside` it shows an engine with one clock too, whose seconds compare with both phases together.
    """
    first = group.iloc[0]
    prefix = "" if first["timing"] == "measured" else f"{first['timing']}_"
    clocks = clocks_of(first["engine"])
    judged = clocks[-1]
    if beside and len(clocks) > 1:
        clocks = (*clocks, "total")
    baseline = group.loc[group["variant"] == "baseline", f"{prefix}{judged}_median_s"]
    lines = []
    for _, case in group.iterrows():
        seconds = [_seconds(case, f"{prefix}{clock}") for clock in clocks]
        # On the LAN the headline is paired with itself on loopback, on the WAN a case runs alone.
        alone = prefix and not paired_with_baseline(case)
        faster = "–" if alone else _speedup(case, f"{prefix}{judged}")
        if case["variant"] == "baseline":
            faster = "1"
        elif faster == "–" and len(baseline):
            faster = format_ratio(baseline.iloc[0] / case[f"{prefix}{judged}_median_s"])
        lines.append(
            (
                case["variant"],
                format_number(case["relus"], 1e3, 4),
                format_number(case["macs"], 1e6, 4),
                format_count(case["rounds"]),
                format_number(case["bytes_sent"], 1e6),
                *seconds,
                faster,
            )
        )
    title = (
        f"{first['engine']}: width {first['width']}, batch {first['batch']}, {first['link']}"
        f"{', emulated' if prefix else ''}, {first['parties']} parties, "
        f"{_repetitions(group['repetitions_succeeded'])}"
    )
    if has_one_clock(first["engine"]):
        title += f"\n{trust_of(first['engine'])}"
    names = [clock.replace("_", " ") for clock in clocks]
    head = (*HEAD, *(f"{name}, s" for name in names), f"speed-up, {judged.replace('_', ' ')}")
    return f"{title}\n{_aligned([head, *lines])}"


def _aligned(lines: Sequence[Sequence[str]]) -> str:
    """Lines of cells in columns: the first and the last to the left, figures to the right."""
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    last = len(widths) - 1
    rows = (
        "  ".join(
            cell.ljust(width) if place in (0, last) else cell.rjust(width)
            for place, (cell, width) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in lines
    )
    return "\n".join(rows)


def _repetitions(counts: pd.Series) -> str:
    low, high = int(counts.min()), int(counts.max())
    return f"{low} repetition{'s' * (low != 1)}" if low == high else f"{low} to {high} repetitions"


def _seconds(case: pd.Series, clock: str) -> str:
    return ("~" if is_true(case[f"{clock}_noisy"]) else "") + format_number(case[f"{clock}_median_s"])


def _speedup(case: pd.Series, clock: str = "online") -> str:
    names = (f"{clock}_speedup", f"{clock}_speedup_low", f"{clock}_speedup_high")
    return format_ratio(*(case.get(name, math.nan) for name in names))


def compare(own: pd.DataFrame, reference: pd.DataFrame) -> str:
    """Compares a run with the reference: counts exactly, speed-ups by intervals, seconds by ratios.

    Both come from `summarize`; cases are matched by name.
    """
    columns = list(own.columns)
    both = own.merge(reference.reindex(columns=columns), on="case", suffixes=("", "_reference"))
    if both.empty:
        return "The reference (results/reference) has none of these cases: there is nothing to compare."
    lines = [
        f"Against the reference (results/reference), {len(both)} of {len(own)} cases:",
        *_compare_counts(both),
        *_compare_speedups(both),
        *_compare_seconds(both),
        *_compare_machines(both),
    ]
    return "\n".join(lines)


def _compare_counts(both: pd.DataFrame) -> list[str]:
    """Lists the counts that differ; counts are deterministic, so none should."""
    found = []
    for _, case in both.iterrows():
        fixed = steady_traffic(case["engine"])
        for column, name in COUNTS.items():
            if not fixed and column in VARYING:
                continue
            here, there = case[column], case[f"{column}_reference"]
            if pd.isna(here) != pd.isna(there) or (not pd.isna(here) and here != there):
                found.append(f"{case['case']}: {name} {format_count(here)}, not {format_count(there)}")
    if not found:
        return ["- counts (ReLUs, MACs, rounds, bytes): equal, exactly"]
    return [f"- counts: {len(found)} DIFFER", *_named(found)]


def _compare_speedups(both: pd.DataFrame) -> list[str]:
    """Counts the cases whose speed-up interval meets the reference's, and lists the others."""
    judged, apart = 0, []
    for _, case in both.iterrows():
        clock = clocks_of(case["engine"])[-1]
        if case["timing"] != "measured":
            if not paired_with_baseline(case):
                continue
            clock = f"{case['timing']}_{clock}"
        value, there = case.get(f"{clock}_speedup"), case.get(f"{clock}_speedup_low_reference")
        if pd.isna(value) or pd.isna(there) or case["reference_case"] != case["reference_case_reference"]:
            continue
        judged += 1
        low, high = case[f"{clock}_speedup_low"], case[f"{clock}_speedup_high"]
        low, high = (value, value) if pd.isna(low) else (low, high)
        if high < there or low > case[f"{clock}_speedup_high_reference"]:
            known = [case[f"{clock}_speedup{end}_reference"] for end in ("", "_low", "_high")]
            apart.append(f"{case['case']}: {_speedup(case, clock)}, not {format_ratio(*known)}")
    if not judged:
        return []
    return [
        f"- speed-ups: {judged - len(apart)} of {judged} agree within their intervals",
        *_named(apart),
    ]


def _compare_seconds(both: pd.DataFrame) -> list[str]:
    """Compares the machine's speed: the baseline's seconds here and there, by engine."""
    usual = both[(both["variant"] == "baseline") & (both["batch"] == 1) & (both["timing"] == "measured")]
    lines = []
    for _, case in usual.iterrows():
        clock = clocks_of(case["engine"])[-1]
        here, there = (format_number(case[f"{clock}_median_s{end}"]) for end in ("", "_reference"))
        lines.append(f"- {case['engine']} baseline {clock.replace('_', ' ')}: {here} s, reference {there} s")
    return lines


def _compare_machines(both: pd.DataFrame) -> list[str]:
    """Lists differences of machine, versions and images.

    Seconds of two machines do not compare, counts do. The images calibrate the ring of 32 bits: a bound that
    lies at a power of two may change the bytes of its correlated randomness.
    """
    names = ["cpu", "cores", "system", "python", "images"]
    names += [name for name in both if name.startswith("version_") and not name.endswith("_reference")]
    differing = []
    for name in names:
        here, there = (_values(both, column) for column in (name, f"{name}_reference"))
        if here != there:
            label = name.removeprefix("version_")
            differing.append(f"{label} {here}, not {there}")
    if not differing:
        return ["- machine, versions and images: as the reference's"]
    return [f"- machine, versions or images differ: {'; '.join(differing)}"]


def _values(both: pd.DataFrame, column: str) -> str:
    return " and ".join(sorted({"unknown" if pd.isna(value) else str(value) for value in both[column]}))


def _named(found: Sequence[str]) -> list[str]:
    """Returns the first few complaints, one line each, and the number of the others."""
    more = [f"  and {len(found) - MOST} more"] if len(found) > MOST else []
    return [f"  {text}" for text in found[:MOST]] + more
