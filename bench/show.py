"""Tables of the command line: for a terminal by rich, and as JSON, CSV, Markdown or LaTeX."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Mapping
from typing import Any

import pandas as pd
from rich.console import Console
from rich.table import Table

from pibench.report.cells import format_count, format_number, format_ratio, is_true, markdown_table
from pibench.report.collect import csv_text
from pibench.store.engines import clocks_of, trust_of

WIDE = 1000
"""Columns of a file or a pipe, where no line is folded."""


def show(frame: pd.DataFrame, form: str, tables: Mapping[str, pd.DataFrame] | None = None) -> None:
    """Prints `frame` in a form; `tables` are what people read of it, by title (None: the frame itself).

    JSON and CSV hold the frame with all its columns; the others the tables.
    """
    if form == "json":
        print(frame.to_json(orient="records", indent=2))
        return
    if form == "csv":
        sys.stdout.write(csv_text(frame))
        return
    for title, table in ({"": frame} if tables is None else tables).items():
        text = table.map(_text)
        if form == "table":
            _print(title, text)
        elif form == "markdown":
            print(f"**{title}**\n\n{markdown_table(text)}\n" if title else markdown_table(text))
        else:
            print(text.to_latex(index=False, escape=True, caption=title or None))


def show_several(tables: Mapping[str, pd.DataFrame], form: str) -> None:
    """Prints tables one after the other; as JSON they are one object, as CSV blocks under their titles."""
    if form == "json":
        whole = {title: json.loads(table.to_json(orient="records")) for title, table in tables.items()}
        print(json.dumps(whole, indent=2, ensure_ascii=False))
        return
    for title, table in tables.items():
        if form == "csv":
            print(f"# {title}")
        show(table, form, {title: table})


def _text(value: Any) -> str:
    if isinstance(value, str):
        return value
    if value is None or pd.isna(value):
        return "–"
    if isinstance(value, bool):
        return "yes" if value else "no"
    return format_count(value) if float(value).is_integer() else format_number(value)


def _print(title: str, text: pd.DataFrame) -> None:
    table = Table(title=title or None, title_justify="left", header_style="bold")
    for name in text.columns:
        words = any(any(c.isalpha() for c in cell) for cell in text[name])
        table.add_column(name, justify="left" if words else "right", overflow="fold")
    for line in text.itertuples(index=False):
        table.add_row(*line)
    console = Console()
    if not console.is_terminal:
        console = Console(width=WIDE)
    console.print(table, markup=False)


def cost_tables(frame: pd.DataFrame) -> dict[str, pd.DataFrame]:
    """Returns the readable tables of `pibench.cost`: the counts, every engine, every literature model."""
    first = frame.iloc[0]
    counts = pd.DataFrame(
        {
            "ReLUs": [first["relus"]],
            "ReLU layers": [first["relu_layers"]],
            "MACs, M": [first["macs"] / 1e6],
            "parameters": [first["parameters"]],
            "comparisons": [first["comparisons"]],
        }
    )
    tables = {f"{first['network']}, one image": counts}
    engines = frame[frame["kind"] == "engine"]
    lines = []
    for name, group in engines.groupby("name", sort=False):
        line = {
            "engine": name,
            "rounds": group["rounds"].iloc[0],
            "hops": group["hops"].iloc[0],
            "MB sent": group["bytes_sent"].iloc[0] / 1e6,
            "traffic": group["traffic"].iloc[0],
            "computing, s": group["modelled_compute_s"].iloc[0],
        }
        line |= {
            f"{each['link']}, s": each[["modelled_compute_s", "modelled_link_s"]].sum()  # without NaN
            for _, each in group.iterrows()
            if each["modelled_link_s"] > 0
        }
        lines.append(line)
    batch = int(engines["batch"].iloc[0]) if len(engines) else 1
    priced = engines[engines["modelled_compute_s"].notna()]
    noted = (priced if len(priced) else engines)["note"].dropna().unique()
    title = f"Engines, batch {batch}: traffic; modelled seconds, online or of all phases"
    tables[title + (f" ({noted[0]})" if len(noted) == 1 else "")] = pd.DataFrame(lines)
    papers = frame[frame["kind"] == "literature"]
    if len(papers):
        wide = papers.pivot(index="name", columns="link", values="modelled_total_s").reset_index()
        wide.columns = ["model", *(f"{name}, s" for name in wide.columns[1:])]
        tables["Literature: modelled seconds, offline and online together where a paper says both"] = wide
    return tables


def run_tables(summary: pd.DataFrame) -> dict[str, pd.DataFrame]:
    """Returns the readable tables of measured networks: counts, median seconds, speed-ups."""
    lines = []
    clocks = clocks_of(summary["engine"].iloc[0])
    for _, case in summary.iterrows():
        emulated = "" if case["timing"] == "measured" else "emulated_"
        speed = [case.get(f"{emulated}{clocks[-1]}_{name}", math.nan) for name in _SPEEDUP]
        lines.append(
            {
                "network": case["variant"],
                "ReLUs, K": format_number(case["relus"], 1e3, 4),
                "MACs, M": format_number(case["macs"], 1e6, 4),
                "rounds": case["rounds"],
                "MB sent": format_number(case["bytes_sent"], 1e6),
                **{
                    f"{clock.replace('_', ' ')}, s": (
                        "~" if clock == clocks[-1] and is_true(case.get(f"{emulated}{clock}_noisy")) else ""
                    )
                    + format_number(case[f"{emulated}{clock}_median_s"])
                    for clock in clocks
                },
                "speed-up": format_ratio(*speed),
            }
        )
    first = summary.iloc[0]
    title = (
        f"{first['engine']}, {first['link']}, batch {first['batch']}, {first['timing']}; medians, ~: noisy"
    )
    if len(clocks) == 1:
        title += f"; {trust_of(first['engine'])}"
    return {title: pd.DataFrame(lines)}


_SPEEDUP = ("speedup", "speedup_low", "speedup_high")


def compare_table(frame: pd.DataFrame) -> pd.DataFrame:
    """Returns the readable table of a comparison, with machines if there are several."""
    several = frame["machine"].nunique() > 1
    return pd.DataFrame(
        {
            "case": line["case"],
            **({"machine": line["machine"]} if several else {}),
            "counts": "equal" if line["counts_equal"] else "DIFFER",
            **{
                f"{clock.replace('_', ' ')}, after / before": format_ratio(
                    *(line[f"{clock}_ratio{end}"] for end in ("", "_low", "_high"))
                )
                for clock in ("online", "offline", "all_phases")
                if f"{clock}_ratio" in frame
            },
            "verdict": "SLOWER" if line["slower"] else "",
        }
        for _, line in frame.iterrows()
    )
