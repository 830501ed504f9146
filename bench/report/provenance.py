"""The origin of the cases: machine, versions and commit, and the warnings of their notes."""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd

from pibench.report.cells import format_count, format_number, format_repetitions, is_true
from pibench.store.results import Row


def provenance_lines(cases: pd.DataFrame, verb: str = "Measured") -> list[str]:
    """Writes the provenance of the cases, and the warnings that a reader needs before comparing them."""
    machines = _counted(cases.apply(_machine, axis=1))
    versions = _counted(cases.apply(_versions, axis=1))
    commits = _counted(cases.apply(_commit, axis=1))
    counts = sorted(set(cases["repetitions_succeeded"]))
    rounds = f"{counts[0]} to {counts[-1]}" if len(counts) > 1 else f"{counts[0]}"
    weights = " and ".join(sorted(cases["weights"].dropna().unique()))
    images = "; ".join(sorted(cases["images"].dropna().unique()))
    lines = [
        f"{verb} on {_listed(machines)}; {_listed(versions)}; commit {_listed(commits)}; "
        f"{rounds} repetitions a case; {weights or 'unknown'} weights; images: {images or 'unknown'}."
    ]
    several = [
        f"{len(found)} {name}"
        for name, found in (
            ("runs", _counted(cases["run"])),
            ("commits", commits),
            ("machines", machines),
            ("sets of versions", versions),
        )
        if len(found) > 1
    ]
    if several:
        lines.append(f"**Note:** these cases come from {', '.join(several)}; compare across them with care.")
    lost = cases[cases["repetitions_succeeded"] < cases["repetitions_attempted"]]
    if not lost.empty:
        names = ", ".join(
            f"`{case['case']}` ({format_repetitions(case)} repetitions)" for _, case in lost.iterrows()
        )
        lines.append(f"**Note:** repetitions failed and are in no median: {names}.")
    ruined = cases[cases["truncations_observed"].fillna(0) > 0]
    if not ruined.empty:
        names = ", ".join(
            f"`{case['case']}` ({format_count(case['truncations_observed'])} observed, "
            f"{format_number(case['truncations_expected'])} expected)"
            for _, case in ruined.iterrows()
        )
        lines.append(f"**Note:** wrong truncations ruined repetitions of {names}.")
    flagged = cases[(cases["timing"] == "measured") & cases["link_flagged"].map(is_true)]
    if not flagged.empty:
        names = "; ".join(f"`{case['case']}`: {case['link_complaint']}" for _, case in flagged.iterrows())
        lines.append(f"**Note:** the link was slower than it should be, the machine perhaps busy: {names}.")
    return lines


def conventions_list(rows: Sequence[Row]) -> str:
    """Writes the meaning of each count and clock, in the rows' own words, one line each."""
    texts: dict[str, list[str]] = {}
    for row in rows:
        for name, text in row["conventions"].items():
            if text not in texts.setdefault(name, []):
                texts[name].append(text)
    return "\n".join(f"- *{name}*: {' / '.join(found)}" for name, found in texts.items())


def _counted(texts: pd.Series) -> dict[str, int]:
    return texts.value_counts(sort=False).to_dict()


def _listed(counts: dict[str, int]) -> str:
    if len(counts) == 1:
        return next(iter(counts))
    return ", ".join(f"{text} ({count} case{'s' * (count > 1)})" for text, count in counts.items())


def _machine(case: pd.Series) -> str:
    memory = (
        "" if pd.isna(case["machine_memory_bytes"]) else f", {case['machine_memory_bytes'] / 2**30:.0f} GiB"
    )
    cores = "unknown" if pd.isna(case["cores"]) else case["cores"]
    system = "" if pd.isna(case["system"]) else f", {case['system']}"
    return f"{'unknown CPU' if pd.isna(case['cpu']) else case['cpu']}, {cores} cores{memory}{system}"


def _versions(case: pd.Series) -> str:
    named = {"Python": case["python"]}
    named |= {name.removeprefix("version_"): case[name] for name in case.index if name.startswith("version_")}
    return ", ".join(f"{name} {version}" for name, version in named.items() if not pd.isna(version))


def _commit(case: pd.Series) -> str:
    if pd.isna(case["commit"]):
        return "unknown"
    return f"{case['commit'][:10]}{' with uncommitted changes' if is_true(case['dirty']) else ''}"
