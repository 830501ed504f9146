"""The tables of measured rows: one line for each case, one line for each layer."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import pandas as pd

from pibench.report.link_model import model_link
from pibench.report.order import place_of
from pibench.report.statistics import speedup, spread
from pibench.store.results import Row

CLOCKS = ("offline", "online", "total")
CLASSES = {"convolution": "linear", "linear": "linear", "relu": "relu"}
SETTING = ("case", "variant", "width", "engine", "batch", "link", "parties")
LAYER = (
    "position",
    "layer",
    "kind",
    "class",
    "seconds",
    "rounds",
    "bytes_sent",
    "relus",
    "macs",
    "parameters",
)


def paired_with_baseline(case: pd.Series) -> bool:
    """Tells whether a case's rounds alternated with those of the baseline in the same setting."""
    engine, _, *setting = case["case"].split("/")
    return case["reference_case"] == "/".join([engine, "baseline", *setting])


def summarize(rows: Iterable[Row], accuracy: pd.DataFrame | None = None) -> pd.DataFrame:
    """Makes one line a case, in the order of reports; `accuracy` is what `read_accuracy` returns.

    Times of a row whose `timing` is "emulated" stand in columns of their own, `emulated_online_median_s` and
    so on. Beside them is what the arithmetic model makes of the same case on loopback, `loopback_case`:
    `modelled_online_s`, its parts, and `model_error` = modelled / emulated - 1. A loopback line has the parts
    alone: the model's split of its measured median. A row of one clock has its times in columns
    `all_phases_median_s` and so on, and no value in those of the phases. `plaintext_median_s` is the network
    itself in float32 on one thread, and `online_over_plaintext` how many times longer the parties take.
    """
    rows = list(rows)
    frame = _frame([_summarize_row(row) | model_link(row, rows) for row in rows])
    if frame.empty:
        return frame
    if accuracy is not None and not accuracy.empty:
        seeds = accuracy.groupby(["variant", "width"], as_index=False).agg(
            accuracy_test=("accuracy_test", "mean"), accuracy_seeds=("accuracy_test", "count")
        )
        seeds = seeds.astype({"accuracy_seeds": "Int64"})
        frame = frame.merge(seeds, on=["variant", "width"], how="left", validate="many_to_one")
    order = sorted(frame.index, key=lambda index: place_of(frame.loc[index]))
    return frame.loc[order].reset_index(drop=True)


def in_one_place(summary: pd.DataFrame) -> pd.DataFrame:
    """Returns the lines with what was measured over an emulated link in the columns of measured cases."""
    cases = summary.copy()
    emulated = cases["timing"] == "emulated"
    for column in [name for name in cases if name.startswith("emulated_")]:
        name = column.removeprefix("emulated_")
        cases[name] = cases[column].where(emulated, cases.get(name, math.nan))
    return cases


def tabulate_layers(rows: Iterable[Row]) -> pd.DataFrame:
    """Makes one line for each layer of a case, in running order, with its class: linear, relu or other."""
    lines = []
    for row in sorted(rows, key=place_of):
        setting = {name: row[name] for name in SETTING}
        timing = row["timing"]
        seconds = "seconds" if timing == "measured" else f"{timing}_seconds"
        for position, layer in enumerate(row["layers"]):
            lines.append(
                setting
                | {
                    "position": position,
                    "layer": layer["name"],
                    "kind": layer["kind"],
                    "class": CLASSES.get(layer["kind"], "other"),
                    seconds: layer["seconds"],
                    "rounds": layer["rounds"],
                    "bytes_sent": layer["bytes_sent"],
                    "relus": layer["relus"],
                    "macs": layer["macs"],
                    "parameters": layer["parameters"],
                }
            )
    return _frame(lines) if lines else pd.DataFrame(columns=[*SETTING, *LAYER])


def _summarize_row(row: Row) -> dict[str, Any]:
    line: dict[str, Any] = {
        name: row[name]
        for name in ("case", "variant", "width", "engine", "provider", "batch", "link", "parties", "role")
    }
    line["timing"] = timing = row["timing"]
    line |= {"weights": row["weights"], "images": row["images"]}
    line |= row["cost"]
    traffic, setup, offline = row["traffic"], row["setup"], row["offline"]
    line |= {name: traffic[name] for name in ("rounds", "hops", "bytes_sent", "bytes_total")}
    line |= {f"bytes_sent_party_{party}": sent for party, sent in enumerate(traffic["bytes_sent_by_party"])}
    prefix = "" if timing == "measured" else f"{timing}_"
    line |= {
        f"{prefix}setup_s": setup["seconds"],
        "setup_rounds": setup["rounds"],
        "setup_bytes_sent": _largest(setup["bytes_sent_by_party"]),
        "offline_correlated_bytes": _largest(offline["correlated_bytes_by_party"]),
        "offline_dealt_bytes": offline["dealt_bytes"],
    }
    one_clock = ("all_phases",) if "all_phases_s" in row["times"] else ()
    clocks = (*CLOCKS, *one_clock)
    for clock in clocks:
        found = spread(row["times"].get(f"{clock}_s", []))
        line |= {f"{prefix}{clock}_{name}": value for name, value in found.items()}
    for clock in ("online", "total", *one_clock):
        median = line[f"{prefix}{clock}_median_s"]
        line[f"{prefix}{clock}_images_per_s"] = row["batch"] / median if median else math.nan
    found = spread(row.get("plaintext_s", []))
    line["plaintext_median_s"] = plain = found["median_s"]
    for clock in ("online", "total", *one_clock):
        median = line[f"{prefix}{clock}_median_s"]
        line[f"{prefix}{clock}_over_plaintext"] = median / plain if plain else math.nan
    line["headroom_bits"] = row.get("headroom_bits", math.nan)
    reference = row["reference"]
    line["reference_case"] = reference["case"] if reference else None
    for clock in clocks:
        pairs = [part.get(f"{clock}_s", []) for part in (reference or {}, row["times"])]
        found = speedup(*pairs) if reference else speedup([], [])
        line |= {f"{prefix}{clock}_{name}": value for name, value in found.items()}
    line |= {
        "peak_memory_bytes": _largest(row["peak_memory_bytes_by_party"]),
        "truncations_expected_per_inference": row["truncation"]["expected_per_inference"],
        "truncations_expected": row["truncation"]["expected"],
        "truncations_observed": row["truncation"]["observed"],
        "answer_max_error": row["answer"]["max_error"],
        "answer_spread": row["answer"]["spread"],
        "answer_relative_error": row["answer"]["relative_error"],
        "answer_tolerance": row["answer"]["tolerance"],
        "repetitions_attempted": row["rounds"]["attempted"],
        "repetitions_succeeded": row["rounds"]["succeeded"],
    }
    line |= {f"option_{name}": value for name, value in row.get("options", {}).items()}
    line |= _summarize_check(row["link_check"])
    machine = row["machine"]
    line |= {
        "cpu": machine["cpu"],
        "cores": machine["cores"],
        "machine_memory_bytes": machine["memory_bytes"],
        "system": machine["system"],
        "python": machine["python"],
    }
    line |= {f"version_{name}": version for name, version in row["versions"].items()}
    line |= {name: row[name] for name in ("commit", "dirty", "run", "started")}
    return line


def _summarize_check(check: dict[str, Any] | None) -> dict[str, Any]:
    known = check or {}
    names = ("asked_rtt_s", "measured_rtt_s", "asked_bandwidth_bits_s", "measured_bandwidth_bits_s")
    return {
        "shaper": known.get("shaper"),
        **{name: known.get(name) for name in (*names, "hop_overhead_s")},
        "link_flagged": None if check is None else not check["ok"],
        "link_complaint": known.get("complaint"),
    }


def _frame(lines: list[dict[str, Any]]) -> pd.DataFrame:
    """Makes a table in which whole numbers and flags keep their type beside missing values."""
    frame = pd.DataFrame(lines)
    for name in frame.columns:
        kinds = {type(line[name]) for line in lines if name in line and not pd.isna(line[name])}
        if kinds in ({int}, {bool}):
            frame[name] = frame[name].astype("Int64" if kinds == {int} else "boolean")
    return frame


def _largest(values: list[int | None]) -> float:
    return max((value for value in values if value is not None), default=math.nan)
