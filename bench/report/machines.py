"""The same cases on several machines: which speed-ups another processor gives, beside this report's own.

Seconds of two machines share no table, and their counts must be equal. A speed-up is a ratio on one machine.
What a second machine says of it tells how far it depends on the processor.
"""

from __future__ import annotations

from collections.abc import Sequence
from operator import itemgetter
from typing import Any

import numpy as np
import pandas as pd

from pibench.report.cells import format_count, format_number, format_ratio, listed, markdown_table
from pibench.report.order import place_of
from pibench.report.tables import in_one_place, paired_with_baseline, summarize
from pibench.store.engines import clocks_of, engine_look, steady_traffic
from pibench.store.results import Row, machine_name

ELSEWHERE = "elsewhere.json"
"""The file of the rows that other machines than the reference's measured, beside its bench.json."""
SETTING = ("engine", "link", "width", "batch", "parties")
COUNTS = ("relus", "macs", "parameters", "rounds", "bytes_sent")
SPEEDUP = ("speedup", "speedup_low", "speedup_high")
OFFLINE = "offline_speedup"
COLUMNS = (
    "machine",
    "own",
    "case",
    "variant",
    *SETTING,
    *COUNTS,
    "median_s",
    *SPEEDUP,
    "gain",
    "gain_low",
    "gain_high",
    "gain_over",
    OFFLINE,
    "stands_in",
    "commit",
)


def tabulate_machines(rows: Sequence[Row], others: Sequence[Row]) -> pd.DataFrame:
    """Makes one line for each machine and case of `others`, and for the same cases in `rows`.

    `own` is true for `rows`, which are of one machine. `median_s` is the median of the phase that the engine
    is judged by: online, or all phases of an engine with one clock. `speedup` is how many times faster the
    case is there than the baseline on the same machine, engine and link: over paired repetitions where there
    are some, else the quotient of the medians, without an interval. It is missing without a baseline.
    `offline_speedup` is the same of the offline phase, missing for an engine with one clock. `gain` is the
    paired speed-up over the same network on another engine, `gain_over`. `stands_in` is true where the
    speed-up of another machine, the first that has one, may stand for a case that `rows` lack.
    """
    by_machine: dict[str, list[Row]] = {}
    for row in others:
        by_machine.setdefault(machine_name(row), []).append(row)
    cases = {row["case"] for row in others}
    lines = [line for found in by_machine.values() for line in _lines(found) if line["case"] in cases]
    needed = [row for row in rows if row["case"] in cases or (cases and row["variant"] == "baseline")]
    lines += [line | {"own": True} for line in _lines(needed) if line["case"] in cases]
    places = {row["case"]: place_of(row)[1:] for row in others}  # whatever their roles
    lines.sort(key=lambda line: (places[line["case"]], not line["own"]))
    setting = itemgetter("variant", *SETTING)
    known = {setting(row) for row in rows if row["role"] != "extra"}
    for line in lines:
        usable = line["role"] != "extra" and np.isfinite(line.get("speedup", np.nan))
        line["stands_in"] = bool(usable) and setting(line) not in known
        if line["stands_in"]:
            known.add(setting(line))
    return pd.DataFrame(lines, columns=list(COLUMNS))


def _lines(rows: Sequence[Row]) -> list[dict[str, Any]]:
    """Returns the lines of one machine."""
    if not rows:
        return []
    cases = in_one_place(summarize(rows))
    cases["median_s"] = [case[f"{clocks_of(case['engine'])[-1]}_median_s"] for _, case in cases.iterrows()]
    usual = cases[(cases["variant"] == "baseline") & (cases["role"] != "extra")]
    baselines = usual.drop_duplicates(list(SETTING)).set_index(list(SETTING))
    return [
        {
            "machine": machine_name(rows[0]),
            "own": False,
            **{
                name: case[name]
                for name in ("case", "role", "variant", *SETTING, *COUNTS, "median_s", "commit")
            },
            **_speedups(case, baselines),
        }
        for _, case in cases.iterrows()
    ]


def _speedups(case: pd.Series, baselines: pd.DataFrame) -> dict[str, Any]:
    """Returns the speed-ups over the baseline, or that over another engine where rounds were paired so."""
    clock = clocks_of(case["engine"])[-1]
    reference = case["reference_case"]
    engine, name = reference.split("/")[:2] if isinstance(reference, str) else ("", "")
    if name == case["variant"] and engine != case["engine"]:
        gains = [case.get(f"{clock}_{end}", np.nan) for end in SPEEDUP]
        return dict(zip(("gain", "gain_low", "gain_high"), gains, strict=True)) | {"gain_over": engine}
    if case["variant"] == "baseline":
        return {}
    paired = paired_with_baseline(case)
    setting = tuple(case[list(SETTING)])

    def found(clock: str) -> list[float]:
        values = [case.get(f"{clock}_{end}", np.nan) if paired else np.nan for end in SPEEDUP]
        if pd.isna(values[0]) and setting in baselines.index:
            seconds = f"{clock}_median_s"
            values[0] = baselines.loc[setting].get(seconds, np.nan) / case.get(seconds, np.nan)
        return values

    return dict(zip(SPEEDUP, found(clock), strict=True)) | {OFFLINE: found("offline")[0]}


def machines_section(machines: pd.DataFrame) -> str:
    """Writes the speed-ups of every machine beside each other, and whether the counts are equal."""
    if machines.empty:
        return "No other machine has measured these cases yet."
    names = list(dict.fromkeys(machines.sort_values("own", ascending=False)["machine"]))
    parts = [_agreement(machines)]
    gains = machines.dropna(subset=["gain"])
    if len(gains):
        parts += ["## One engine over another", _beside(gains, names, "gain", _gained)]
    speedups = machines.dropna(subset=["speedup"])
    if len(speedups):
        parts += ["## Each variant over the baseline", _beside(speedups, names, "speedup", _of_variant)]
    parts.append(
        "Speed-ups of the online phase (of all phases where an engine has one clock), each on one machine. "
        "With an interval it is the median of paired repetitions (bootstrap, 95 %), without one the quotient "
        "of two medians. A dash: not measured there, or no baseline. `results/machines.csv` has the seconds "
        "and the counts."
    )
    return "\n\n".join(parts)


def _gained(line: pd.Series) -> dict[str, str]:
    engines = f"{engine_look(line['engine']).label} over {engine_look(line['gain_over']).label}"
    return {"Network": f"`{line['variant']}`", "Engines": engines, "Setting": _setting(line)}


def _of_variant(line: pd.Series) -> dict[str, str]:
    engine = engine_look(line["engine"]).label
    return {"Variant": f"`{line['variant']}`", "Engine": engine, "Setting": _setting(line)}


def _setting(line: pd.Series) -> str:
    batch = f", batch {line['batch']}" if line["batch"] > 1 else ""
    return f"{line['link']}, width {line['width']}{batch}"


def _beside(lines: pd.DataFrame, names: Sequence[str], column: str, head: Any) -> str:
    """Writes one line a case, with one column a machine."""
    made = []
    for _, group in lines.groupby("case", sort=False):
        there = {line["machine"]: line for _, line in group.iterrows()}
        cells = {
            name: format_ratio(*(there[name][f"{column}{end}"] for end in ("", "_low", "_high")))
            if name in there
            else "–"
            for name in names
        }
        made.append(head(group.iloc[0]) | cells)
    return markdown_table(pd.DataFrame(made))


def _agreement(machines: pd.DataFrame) -> str:
    """Writes how many cases several machines share, whether they counted alike, and how speed-ups differ."""
    own = machines[machines["own"]].drop_duplicates("case").set_index("case")
    others = machines[~machines["own"]]
    shared = others[others["case"].isin(own.index)]
    text = (
        f"{len(others)} cases were measured on {listed(dict.fromkeys(others['machine']))}; "
        f"{len(shared)} of them also on this report's machine"
    )
    text += f" ({own['machine'].iloc[0]}). " if len(own) else ". "
    if shared.empty:
        return text.rstrip()
    differing = [
        f"{line['case']} ({name} {format_count(line[name])}, not {format_count(own.loc[line['case'], name])})"
        for _, line in shared.iterrows()
        for name in COUNTS
        if line[name] != own.loc[line["case"], name]
        and (steady_traffic(line["engine"]) or name not in ("rounds", "bytes_sent"))
    ]
    text += (
        "ReLUs, MACs, parameters, rounds and bytes are equal in all of these."
        if not differing
        else f"Counts differ: {'; '.join(differing)}."
    )
    pairs = shared.dropna(subset=["speedup"])
    quotients = pairs["speedup"].to_numpy(float) / own.loc[pairs["case"], "speedup"].to_numpy(float)
    known = np.isfinite(quotients)
    if known.any():
        low, middle, high = np.quantile(quotients[known], (0, 0.5, 1))
        text += (
            f" The other machines' speed-up over the baseline is {format_number(middle)} times this one's in "
            f"the median of {known.sum()} cases ({format_number(low)} to {format_number(high)} times)."
        )
    return text
