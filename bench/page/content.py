"""The content of the page: verdicts, headline, sections, machines; text and numbers, no markup."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pandas as pd

from pibench.models import catalogue
from pibench.report.cells import (
    format_accuracy,
    format_count,
    format_number,
    format_ratio,
    is_true,
)
from pibench.report.collect import Report
from pibench.report.pairs import judged_widths, pairs_verdict
from pibench.report.reference import findings
from pibench.store.engines import engine_look
from pibench.store.results import ResultsError

CONDITIONS = ["width", "batch", "link", "parties"]
GREY = "#666666"
TABLES = {
    "summary": "one line a case: setting, counts, seconds, speed-ups, answers, machine",
    "layers": "one line a layer of a case, in the order of execution",
    "modelled": "what published cost models say of the same networks; nothing measured",
    "break_even": "how many ReLUs cost as much as one more layer, by published model",
    "accuracy": "one line a trained network",
    "pairs": "SENet and joint reduction side by side",
    "equal_latency": "the most accurate network within a measured latency",
    "iso_accuracy": "how much less joint reduction needs than SENet at an accuracy",
    "tries": "trainings with one setting changed",
    "sensitivity": "accuracy that each ReLU layer is worth",
    "protocols": "the same networks under other protocols, each beside its own baseline",
    "protocol_models": "what published models say of those protocols, beside what was measured",
    "systems": "every reduction under every engine and link, and whether another one beats it",
    "machines": "cases that other machines measured, beside the same here",
}
"""The tables of a report, in the order of the page, and what one line is."""


@dataclass(frozen=True)
class Cell:
    """A cell of a table: its text, the value by which it is sorted, and its drawing.

    `interval` holds the low, middle and high end of a ratio, and the place of 1, as shares of the column's
    width. `colour` is a family's.
    """

    text: str
    value: Any = None
    interval: tuple[float, ...] | None = None
    colour: str | None = None


@dataclass(frozen=True)
class Grid:
    """A table: its caption, its column heads, and lines of cells."""

    caption: str
    heads: tuple[str, ...]
    lines: tuple[tuple[Cell, ...], ...]


def headline(summary: pd.DataFrame) -> Grid | None:
    """Shows the measured cases side by side: those of the headline's setting, or all without a headline."""
    cases = summary[summary["timing"] == "measured"]
    first = cases[cases["role"] == "headline"]
    if not first.empty:
        cases = max((group for _, group in first.groupby(CONDITIONS, sort=False)), key=len)
    if cases.empty:
        return None
    varied = [name for name in CONDITIONS if cases[name].nunique() > 1]
    accurate = "accuracy_test" in cases and cases["accuracy_test"].notna().any()
    heads = [
        "Variant",
        "Engine",
        *(name.capitalize() for name in varied),
        "ReLUs, K",
        "MACs, M",
        "Rounds",
        "MB sent",
        "Offline, s",
        "Online, s",
        "Speed-up online",
        *(["Accuracy, %"] if accurate else []),
    ]
    ratios = {case.name: ratio for _, case in cases.iterrows() if (ratio := _speedup(case))}
    ends = [1.0, *(end for ratio in ratios.values() for end in ratio)]
    lowest, span = min(ends), (max(ends) - min(ends)) or 1.0
    lines = []
    for _, case in cases.iterrows():
        ratio = ratios.get(case.name)
        shares = None if ratio is None else tuple((end - lowest) / span for end in (*ratio, 1.0))
        line = [
            Cell(case["variant"], colour=family_colour(case["variant"])),
            Cell(engine_look(case["engine"]).label),
            *(Cell(str(case[name]), None if name == "link" else case[name]) for name in varied),
            _number(case["relus"], 1e3, 4),
            _number(case["macs"], 1e6, 4),
            Cell(format_count(case["rounds"]), case["rounds"]),
            _number(case["bytes_sent"], 1e6),
            _seconds(case, "offline"),
            _seconds(case, "online"),
            Cell("–" if ratio is None else _ratio(ratio), None if ratio is None else ratio[1], shares),
        ]
        if accurate:
            line.append(Cell(format_accuracy(case["accuracy_test"]), case["accuracy_test"]))
        lines.append(tuple(line))
    shared = {name: cases[name].iloc[0] for name in CONDITIONS if name not in varied}
    caption = ", ".join(_setting(name, value) for name, value in shared.items())
    return Grid(caption, tuple(heads), tuple(lines))


def _setting(name: str, value: Any) -> str:
    return {"link": str(value), "parties": f"{value} parties"}.get(name, f"{name} {value}")


def _number(value: Any, scale: float = 1.0, digits: int = 3) -> Cell:
    return Cell(format_number(value, scale, digits), value)


def _seconds(case: pd.Series, clock: str) -> Cell:
    noisy = "~" if is_true(case[f"{clock}_noisy"]) else ""
    return Cell(noisy + format_number(case[f"{clock}_median_s"]), case[f"{clock}_median_s"])


def _speedup(case: pd.Series) -> tuple[float, float, float] | None:
    """Returns low end, middle and high end of a case's online speed-up over its own engine's reference."""
    middle, low, high = (case[f"online_speedup{end}"] for end in ("", "_low", "_high"))
    if pd.isna(middle) or not case["reference_case"].startswith(f"{case['engine']}/"):
        return None
    return (middle if pd.isna(low) else low), middle, (middle if pd.isna(high) else high)


def _ratio(ratio: tuple[float, float, float]) -> str:
    low, middle, high = ratio
    return format_ratio(middle) if low == high else format_ratio(middle, low, high)


def family_colour(variant: str) -> str:
    """Returns the colour of a variant's family in figures; an unknown family is grey."""
    family = catalogue.families().get(catalogue.family_name(variant))
    return GREY if family is None else family.colour


def facts(cases: pd.DataFrame) -> list[tuple[str, str]]:
    """Returns the number of measured cases and the largest saving of a redesign on each engine.

    Each fact is a pair (number, words).
    """
    found = [
        (format_count(len(cases)), "cases measured or emulated"),
        (format_count(cases["variant"].nunique()), "networks"),
        (format_count(cases["repetitions_succeeded"].sum()), "repetitions, every answer checked"),
    ]
    for engine, best in fastest(cases).items():
        label = engine_look(engine).label
        found.append((format_ratio(best["online_speedup"]), f"{best['variant']}, the fastest on {label}"))
    return found


def fastest(summary: pd.DataFrame) -> dict[str, pd.Series]:
    """Returns for each engine the measured headline case that saves most online."""
    usual = summary[(summary["timing"] == "measured") & (summary["role"] == "headline")]
    usual = usual.loc[[_speedup(case) is not None for _, case in usual.iterrows()]]
    groups = usual.groupby("engine", sort=False)
    return {engine: group.loc[group["online_speedup"].idxmax()] for engine, group in groups}


def verdicts(report: Report) -> list[str]:
    """Judges the claim of joint reduction at every trained width, in Markdown."""
    said = [pairs_verdict(report.pairs, width) for width in judged_widths(report.pairs)]
    return said or ["Not judged: a SENet and a joint network of one budget are not both trained."]


def said_findings(report: Report) -> str:
    """Returns the findings in Markdown; empty unless all their cases are measured."""
    try:
        return findings(report)
    except ResultsError:
        return ""


def machines(summary: pd.DataFrame) -> Grid:
    """Shows place, time, code and packages of the cases: one line for each run."""
    versions = [name for name in summary if name.startswith("version_")]
    lines = []
    for run, group in summary.groupby("run", sort=False, dropna=False):
        first = group.iloc[0]
        commits = [str(commit)[:10] for commit in group["commit"].dropna().unique()]
        dirty = ", with uncommitted changes" if group["dirty"].map(is_true).any() else ""
        named = {"Python": first["python"]}
        named |= {name.removeprefix("version_"): first[name] for name in versions}
        memory = first["machine_memory_bytes"]
        lines.append(
            (
                Cell(_text(run)),
                Cell(str(len(group)), len(group)),
                Cell(_text(group["started"].min())),
                Cell(_text(first["cpu"])),
                Cell(_text(first["cores"]), first["cores"]),
                Cell("–" if pd.isna(memory) else f"{memory / 2**30:.0f} GiB", memory),
                Cell(_text(first["system"])),
                Cell(", ".join(f"{name} {each}" for name, each in named.items() if not pd.isna(each))),
                Cell((", ".join(commits) or "–") + dirty),
            )
        )
    heads = ("Run", "Cases", "Began", "Processor", "Cores", "Memory", "System", "Packages", "Commit")
    return Grid("One line a run", heads, tuple(lines))


def _text(value: Any) -> str:
    return "–" if pd.isna(value) else str(value)


def tables(report: Report) -> list[dict[str, Any]]:
    """Lists the report's tables with the text of their files, for readers who want every number."""
    texts = report.csvs()
    return [
        {
            "name": name,
            "what": what,
            "lines": format_count(len(getattr(report, name))),
            "csv": texts[f"{name}.csv"],
        }
        for name, what in TABLES.items()
    ]
