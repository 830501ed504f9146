"""The tables of protocols: the same networks under each of them, with all needs of an inference.

An engine with one clock does all its work in the inference. For the other engines the table shows the sum of
both phases, round by round. Bytes are those of all processes together, including a dealer's.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import pandas as pd

from pibench.costs.literature import CHANNELS, LABEL, Channel, modelled, network_from_dict
from pibench.report.order import place_of
from pibench.report.statistics import quotient_of_medians
from pibench.report.tables import paired_with_baseline
from pibench.store.engines import clocks_of, has_one_clock, trust_of
from pibench.store.results import Row
from pibench.store.schema import whole_clock

MODELS_OF = {"spu-aby3": ("aby3",), "spu-cheetah": ("cheetah", "cryptflow2")}
"""The literature's models that stand beside a measured protocol: its own, and of Cheetah its forerunner's,
whose comparisons Cheetah has too, with other oblivious transfers."""

SETTING = ("width", "batch")
OWN = ("case", "engine", "variant", "width", "batch", "link", "timing", "parties", "relus", "macs", "rounds")
SECONDS = ("whole_median_s", "whole_low_s", "whole_high_s", "whole_noisy")
FASTER = ("whole_speedup", "whole_speedup_low", "whole_speedup_high")
PRICES = ("profiled", "relu_share", "relu_s", "convolution_s", "relus_per_convolution")
PROTOCOLS = (
    *OWN,
    "trust",
    "bytes_all",
    *SECONDS,
    *FASTER,
    *(f"emulated_{name}" for name in (*SECONDS, *FASTER)),
    *PRICES,
)
MODELLED = (
    "label",
    "model",
    "engine",
    "variant",
    "link",
    "case",
    "bytes_all",
    "modelled_bytes",
    "bytes_error",
    "rounds",
    "modelled_rounds",
    "emulated_whole_median_s",
    "modelled_total_s",
    "seconds_error",
    "emulated_whole_speedup",
    "modelled_speedup",
)


def tabulate_protocols(summary: pd.DataFrame, layers: pd.DataFrame, rows: Iterable[Row]) -> pd.DataFrame:
    """Makes one line for each case of the networks that an engine with one clock has run; empty without any.

    The width and batch are those of most such cases. The other engines' cases of the same networks come from
    the headline and over links. `whole_*` are seconds of all phases (`emulated_whole_*` over a shaped link).
    `whole_speedup` is over the same engine's baseline on the same link: of paired rounds, or the quotient of
    the medians, with an interval if there are enough rounds. `relu_share` to `relus_per_convolution` come
    from a profiled inference, whose phase is `profiled`: seconds of a ReLU, the median of a convolution, and
    their quotient.
    """
    found = _cases(summary)
    seconds = {row["case"]: row["times"][whole_clock(row)] for row in rows}
    lines = []
    for _, case in found.iterrows():
        whole, prefix = _whole(case)
        line = {name: case[name] for name in OWN} | {"trust": trust_of(case["engine"])}
        dealt = case["offline_dealt_bytes"]
        line["bytes_all"] = case["bytes_total"] + (0 if pd.isna(dealt) else dealt)
        for end in ("median_s", "low_s", "high_s", "noisy"):
            line[f"{prefix}whole_{end}"] = case[f"{prefix}{whole}_{end}"]
        faster = _speedup(case, found, seconds)
        line |= {f"{prefix}{name}": value for name, value in zip(FASTER, faster, strict=True)}
        lines.append(line | _prices(case, layers))
    table = pd.DataFrame(lines, columns=list(PROTOCOLS))
    whole_numbers = ("width", "batch", "parties", "relus", "macs", "rounds", "bytes_all")
    return table.astype(dict.fromkeys(whole_numbers, "Int64"))


def _cases(summary: pd.DataFrame) -> pd.DataFrame:
    """Returns the cases of the table, in the order of reports."""
    if summary.empty:
        return summary
    regular = summary[~summary["role"].isin(["extra", "sweep"])]
    one = regular[regular["engine"].map(has_one_clock)]
    if one.empty:
        return one
    width, batch = one[list(SETTING)].value_counts().index[0]
    here = regular[(regular["width"] == width) & (regular["batch"] == batch)]
    shown = set(one.loc[(one["width"] == width) & (one["batch"] == batch), "variant"])
    here = here[here["variant"].isin(shown)]
    order = sorted(here.index, key=lambda index: _place(here.loc[index]))
    return here.loc[order]


def _place(case: pd.Series) -> tuple:
    """Returns the place of reports, without regard to the role and the number of parties."""
    return place_of({**case, "role": "headline", "parties": 0})


def _whole(case: pd.Series) -> tuple[str, str]:
    """Returns the clock that holds all phases, and the prefix of its columns."""
    clock = "all_phases" if has_one_clock(case["engine"]) else "total"
    return clock, "" if case["timing"] == "measured" else f"{case['timing']}_"


def _speedup(
    case: pd.Series, cases: pd.DataFrame, seconds: Mapping[str, Sequence[float]]
) -> tuple[float, float, float]:
    """Returns the speed-up over the same engine's baseline on the same link, with its interval.

    `seconds` are those of all phases, by case.
    """
    whole, prefix = _whole(case)
    same = cases[(cases["engine"] == case["engine"]) & (cases["variant"] == "baseline")]
    same = same[(same["link"] == case["link"]) & (same["parties"] == case["parties"])]
    if case["variant"] == "baseline":
        return 1.0, math.nan, math.nan
    if same.empty:
        return math.nan, math.nan, math.nan
    baseline = same.iloc[0]
    if paired_with_baseline(case):
        return tuple(case[f"{prefix}{whole}_speedup{end}"] for end in ("", "_low", "_high"))
    return quotient_of_medians(seconds[baseline["case"]], seconds[case["case"]])


def _prices(case: pd.Series, layers: pd.DataFrame) -> dict[str, Any]:
    """Returns the prices of a ReLU and a convolution in the profile of a case; empty without a profile."""
    profile = layers[layers["case"] == case["case"]]
    if profile.empty or "seconds" not in profile or not profile["seconds"].sum() > 0:
        return {}
    relus = profile.loc[profile["class"] == "relu", "seconds"].sum()
    convolution_s = profile.loc[profile["kind"] == "convolution", "seconds"].median()
    known = not pd.isna(case["relus"]) and case["relus"] > 0
    relu_s = relus / (case["batch"] * case["relus"]) if known else math.nan
    return {
        "profiled": clocks_of(case["engine"])[-1],
        "relu_share": relus / profile["seconds"].sum(),
        "relu_s": relu_s,
        "convolution_s": convolution_s / case["batch"],
        "relus_per_convolution": convolution_s / case["batch"] / relu_s if relu_s else math.nan,
    }


def tabulate_protocol_models(rows: Sequence[Row], protocols: pd.DataFrame) -> pd.DataFrame:
    """Compares the literature's models of a network with the measured cost of the same protocol.

    Bytes are of all parties and both phases, and an error is modelled / found - 1. These models know only
    communication, so seconds are compared only over shaped links. There the model uses the link of the case.
    `rounds` are messages that a party sends; `modelled_rounds` are the model's.
    """
    by_case = {row["case"]: row for row in rows}
    lines = []
    for _, case in protocols.iterrows():
        row = by_case[case["case"]]
        for model in MODELS_OF.get(case["engine"], ()) if row["network"] is not None else ():
            channel = _channel(row)
            made = modelled(model, network_from_dict(row["network"]), channel or CHANNELS["lan"])
            sent = made.online_bytes + made.offline_bytes
            line = {name: case[name] for name in ("engine", "variant", "link", "case", "bytes_all", "rounds")}
            line |= {
                "label": LABEL,
                "model": model,
                "modelled_bytes": sent,
                "bytes_error": sent / (case["bytes_all"] / case["batch"]) - 1,
                "modelled_rounds": made.rounds,
            }
            if channel is not None:
                seconds = case["emulated_whole_median_s"]
                line |= {
                    "emulated_whole_median_s": seconds,
                    "modelled_total_s": made.total_s,
                    "seconds_error": made.total_s / (seconds / case["batch"]) - 1,
                    "emulated_whole_speedup": case["emulated_whole_speedup"],
                }
            lines.append(line)
    table = pd.DataFrame(lines, columns=list(MODELLED))
    if table.empty:
        return table
    key = ["model", "engine", "link"]
    baseline = table[table["variant"] == "baseline"].set_index(key)["modelled_total_s"]
    whole = [baseline.get(place, math.nan) for place in table[key].itertuples(index=False, name=None)]
    table["modelled_speedup"] = pd.Series(whole, table.index) / table["modelled_total_s"]
    order = {model: place for place, model in enumerate(sum(MODELS_OF.values(), ()))}
    return table.sort_values("model", key=lambda names: names.map(order), kind="stable", ignore_index=True)


def _channel(row: Row) -> Channel | None:
    """Returns the shaped link of a row as a channel of the models; None on loopback."""
    check = row["link_check"]
    if row["timing"] != "emulated" or check is None:
        return None
    rate = check["asked_bandwidth_bits_s"]
    return Channel(row["link"], check["asked_rtt_s"], *(2 * [1e15 if rate is None else rate]))
