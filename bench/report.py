"""Tables from measured rows: results/bench.json -> the CSV files beside it and the README's tables.

Every second is the slower party's clock. A speed-up is the median over pairs of reference / case, the two
rounds of a pair having run one after the other, so that a machine which drifts slows both alike. Intervals
are percentile bootstrap intervals of the median, 95 %, from a fixed seed. What is missing stays empty.

Measured, emulated and modelled seconds never share a column: times over a shaped link are `emulated_*`; what
`bench.network` predicts for it from loopback alone, and all that `bench.literature` says, is `modelled_*`.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from scipy.stats import bootstrap

from bench.literature import CHANNELS, break_even_rows, modelled_rows, network_from_dict
from bench.network import Calibration, Link, predict_from_loopback, predict_row
from bench.results import ResultsError, Row, Store, family_of, replace_file

NOISY = 0.10  # of the median: an IQR above it marks the case
CONFIDENCE = 0.95
FEWEST = 6  # values for an interval: with fewer a percentile bootstrap covers far less than it says
CLOCKS = ("offline", "online", "total")
CLASSES = {"convolution": "linear", "linear": "linear", "relu": "relu"}
GOAL = 0.10  # of an emulated time: how far the model of a link may be off
TABLES = ("summary", "layers", "modelled", "break_even")
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
FAMILIES = ("baseline", "senet", "joint", "merged-exact")
ENGINES = ("stock", "lean")
SHOWN = ("baseline", "senet-0.09", "joint-0.052", "merged-exact")  # of the modelled networks, in the README
SHOWN_CHANNELS = ("lan", "wan")
PHASES = ("total_s", "online_s")


# Statistics


def interval_of_median(values: Sequence[float]) -> tuple[float, float]:
    """The bootstrap interval of the median (percentile, 95 %, seeded); NaN for fewer than `FEWEST` values."""
    if len(values) < FEWEST:
        return math.nan, math.nan
    found = bootstrap(
        (np.asarray(values, dtype=float),),
        np.median,
        confidence_level=CONFIDENCE,
        n_resamples=9999,
        method="percentile",
        rng=np.random.default_rng(0),
    ).confidence_interval
    return float(found.low), float(found.high)


def spread(values: Sequence[float]) -> dict[str, Any]:
    """Median, IQR, interval of the median and whether IQR / median exceeds `NOISY`; NaN without values."""
    if not values:
        return {"median_s": math.nan, "iqr_s": math.nan, "low_s": math.nan, "high_s": math.nan, "noisy": None}
    lower, median, upper = (float(value) for value in np.percentile(values, (25, 50, 75)))
    low, high = interval_of_median(values)
    noisy = (upper - lower) > NOISY * median
    return {"median_s": median, "iqr_s": upper - lower, "low_s": low, "high_s": high, "noisy": noisy}


def speedup(reference: Sequence[float | None], values: Sequence[float | None]) -> dict[str, float]:
    """Median of reference / value over the pairs in which both are there, with its interval."""
    ratios = [a / b for a, b in zip(reference, values, strict=True) if a is not None and b]
    low, high = interval_of_median(ratios)
    median = float(np.median(ratios)) if ratios else math.nan
    return {"speedup": median, "speedup_low": low, "speedup_high": high}


# Tables


def summarize(rows: Iterable[Row], accuracy: pd.DataFrame | None = None) -> pd.DataFrame:
    """One line a case, in the order of reports; `accuracy` is what `read_accuracy` returns.

    Times of a row whose `timing` is "emulated" stand in columns of their own, `emulated_online_median_s` and
    so on. Beside them is what the arithmetic model makes of the same case on loopback, `loopback_case`:
    `modelled_online_s`, its parts, and `model_error` = modelled / emulated - 1. A loopback line has the parts
    alone: the model's split of its measured median.
    """
    rows = list(rows)
    frame = _frame([_summarize_row(row) | _model_link(row, rows) for row in rows])
    if frame.empty:
        return frame
    if accuracy is not None and not accuracy.empty:
        seeds = accuracy.groupby(["variant", "width"], as_index=False).agg(
            accuracy_test=("accuracy_test", "mean"), accuracy_seeds=("accuracy_test", "count")
        )
        seeds = seeds.astype({"accuracy_seeds": "Int64"})
        frame = frame.merge(seeds, on=["variant", "width"], how="left", validate="many_to_one")
    order = sorted(frame.index, key=lambda index: _place(frame.loc[index]))
    return frame.loc[order].reset_index(drop=True)


def tabulate_layers(rows: Iterable[Row]) -> pd.DataFrame:
    """One line a layer of a case, in the order of execution, with its class: linear, relu or other."""
    lines = []
    for row in sorted(rows, key=_place):
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


def read_accuracy(path: Path) -> pd.DataFrame | None:
    """Reads accuracy.json, a list of {variant, width, seed, accuracy_test (0 to 1), ...}; None without it."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise ResultsError(f"{path} cannot be read ({error}): train again or remove it.") from error
    needed = ["variant", "width", "accuracy_test"]
    frame = pd.DataFrame(content) if isinstance(content, list) else pd.DataFrame()
    if content and not set(needed) <= set(frame.columns):
        raise ResultsError(
            f"{path} is no list of objects with {', '.join(needed)}: train again or remove it."
        )
    if content and not frame["accuracy_test"].dropna().between(0, 1).all():
        raise ResultsError(f"{path} has an `accuracy_test` outside 0 to 1: write fractions, not percent.")
    return frame


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
    for clock in CLOCKS:
        found = spread(row["times"][f"{clock}_s"])
        line |= {f"{prefix}{clock}_{name}": value for name, value in found.items()}
    for clock in ("online", "total"):
        median = line[f"{prefix}{clock}_median_s"]
        line[f"{prefix}{clock}_images_per_s"] = row["batch"] / median if median else math.nan
    reference = row["reference"]
    line["reference_case"] = reference["case"] if reference else None
    for clock in CLOCKS:
        found = speedup(reference[f"{clock}_s"], row["times"][f"{clock}_s"]) if reference else speedup([], [])
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


def _model_link(row: Row, rows: Sequence[Row]) -> dict[str, Any]:
    """What the arithmetic model says of a row: from its loopback partner, or on loopback from itself."""
    emulated = row["timing"] == "emulated"
    loopback = _loopback_partner(row, rows) if emulated else row
    error = whole = math.nan
    if loopback is None or row["traffic"]["hops"] is None or row["traffic"]["bytes_sent"] is None:
        found = None
    elif emulated:
        found, error = predict_row(loopback, row) if row["times"]["online_s"] else (None, math.nan)
        whole = math.nan if found is None else found.online_s
    else:
        found = _split(row)
    parts = ("compute_s", "hops_s", "bytes_s")
    return {
        "loopback_case": loopback["case"] if emulated and found is not None else None,
        "modelled_online_s": whole,
        **{f"modelled_{part}": math.nan if found is None else getattr(found, part) for part in parts},
        "model_error": error,
    }


def _calibrated(row: Row) -> bool:
    check = row["link_check"] or {}
    known = all(check.get(name) is not None for name in ("hop_overhead_s", "measured_bandwidth_bits_s"))
    return known and bool(row["times"]["online_s"])


def _split(row: Row) -> Any:
    """The model's parts of a loopback row's own median; None without what they need."""
    if row["link"] != "loopback" or not _calibrated(row):
        return None
    check = row["link_check"]
    found = Calibration(check["hop_overhead_s"], check["measured_bandwidth_bits_s"])
    same = Link("as measured", 0.0, found.bandwidth_bits_s)
    online_s = float(np.median(row["times"]["online_s"]))
    return predict_from_loopback(online_s, row["traffic"]["hops"], row["traffic"]["bytes_sent"], same, found)


def _loopback_partner(row: Row, rows: Sequence[Row]) -> Row | None:
    """The first row, in the order of reports, of the same network, engine and setting on loopback."""
    same = ("variant", "width", "engine", "provider", "batch", "parties")
    found = [
        other
        for other in rows
        if other["link"] == "loopback"
        and other["timing"] == "measured"
        and _calibrated(other)
        and all(other[name] == row[name] for name in same)
    ]
    return min(found, key=_place, default=None)


# What the literature's models say


def tabulate_models(rows: Iterable[Row]) -> dict[str, pd.DataFrame]:
    """The tables `modelled` and `break_even` for the networks of the headline rows.

    Networks are those of the width that most headline rows have, each from the newest row of its variant.
    """
    headline = [row for row in rows if row["role"] == "headline" and row["network"] is not None]
    widths = [row["width"] for row in headline]
    width = max(widths, key=widths.count, default=None)
    known = sorted((row for row in headline if row["width"] == width), key=lambda row: row["started"])
    newest = {row["variant"]: row for row in known}
    networks = [
        network_from_dict(row["network"])
        for row in sorted(newest.values(), key=lambda row: _variant_place(row["variant"]))
    ]
    modelled = modelled_rows(networks)
    if modelled.empty:
        columns = ["label", "model", "channel", "network", "width"]
        return {name: pd.DataFrame(columns=columns) for name in ("modelled", "break_even")}
    # A network without a ReLU or a convolution to spare has no price of either.
    priced = [each for each in networks if each.relus and any(math.prod(x.kernel) > 1 for x in each.linear)]
    priced = [each for each in priced if len(each.linear) > 1]
    frames = [break_even_rows(priced, phase=phase) for phase in PHASES]
    even = pd.concat([frame for frame in frames if not frame.empty] or frames)
    names = {name: f"modelled_{name}" for name in ("relu_s", "relu_layer_s", "layer_s")}
    even = even.rename(columns=names)
    if not even.empty:
        even = even.merge(
            modelled[["model", "verified"]].drop_duplicates(), on="model", validate="many_to_one"
        )
    return {"modelled": _labelled(modelled, width), "break_even": _labelled(even, width)}


def _labelled(frame: pd.DataFrame, width: int) -> pd.DataFrame:
    """The label first, then model, channel, network and width, then what the channel is."""
    channel = {
        f"channel_{name}": [getattr(CHANNELS[each], name) for each in frame.get("channel", ())]
        for name in ("rtt_s", "up_bit_per_s", "down_bit_per_s")
    }
    first = ["label", "model", "channel", "network", "width", *channel]
    frame = frame.assign(width=width, **channel)
    return frame.reindex(columns=[*first, *(name for name in frame.columns if name not in first)])


def _frame(lines: list[dict[str, Any]]) -> pd.DataFrame:
    """A table in which whole numbers and flags stay what they are beside missing values."""
    frame = pd.DataFrame(lines)
    for name in frame.columns:
        kinds = {type(line[name]) for line in lines if name in line and not pd.isna(line[name])}
        if kinds in ({int}, {bool}):
            frame[name] = frame[name].astype("Int64" if kinds == {int} else "boolean")
    return frame


def _largest(values: list[int | None]) -> float:
    return max((value for value in values if value is not None), default=math.nan)


def _place(row: Any) -> tuple:
    """The place of a row in reports: headline first, then by engine, family and falling ReLUs kept."""
    family = family_of(row["variant"])
    fraction = row["variant"][len(family) + 1 :]
    return (
        ("headline", "link", "batch", "extra").index(row["role"]),
        -row["width"],
        row["link"] != "loopback",
        row["link"],
        row["parties"],
        _rank(row["engine"], ENGINES),
        _rank(family, FAMILIES),
        -float(fraction) if fraction else 0.0,
        row["batch"],
        row["case"],
    )


def _rank(name: str, known: Sequence[str]) -> tuple[int, str]:
    return (known.index(name) if name in known else len(known), name)


# The README


def headline_section(rows: Sequence[Row], summary: pd.DataFrame, accuracy: pd.DataFrame | None = None) -> str:
    """The variants side by side on every engine, the spread of their times, and where they were measured."""
    if summary.empty:
        return "No case has been measured yet: run `make bench`."
    headline = summary[(summary["role"] == "headline") & (summary["timing"] == "measured")]
    if headline.empty:
        return "No headline case has been measured yet: run `make bench`."
    conditions = ["width", "batch", "link", "parties"]
    groups = list(headline.groupby(conditions, sort=False))
    parts = []
    for values, group in groups:
        parts.append(_conditions(dict(zip(conditions, values, strict=True))))
        parts.append(_markdown(_variants_table(group, accuracy)))
    parts.append(
        "Seconds are medians. Speed-up is online, against the same engine's baseline: the median of paired "
        "repetitions with its 95 % bootstrap interval. MB are 10^6 bytes sent by one party, online. *noisy*: "
        f"the interquartile range exceeds {100 * NOISY:.0f} % of the median."
    )
    spreads = _markdown(_spread_table(headline))
    parts.append(f"<details><summary>Spread of the repetitions</summary>\n\n{spreads}\n\n</details>")
    parts.append(_conventions(rows))
    parts += _provenance(headline)
    return "\n\n".join(part for part in parts if part)


def engines_section(summary: pd.DataFrame) -> str:
    """The baseline on the stock and on the lean engine, with the lean engine's gain."""
    absent = "The two engines have not been measured side by side yet: run `make bench`."
    if summary.empty:
        return absent
    measured = summary[(summary["variant"] == "baseline") & (summary["timing"] == "measured")]
    singles = measured[measured["role"] == "headline"]
    pair = _pair(singles)
    if pair is None:
        return absent
    stock, lean = pair
    lines = [
        _compare("Online, s", stock, lean, "online_median_s", paired="online"),
        _compare("Offline + online, s", stock, lean, "total_median_s", paired="total"),
        _compare("Offline, s", stock, lean, "offline_median_s", paired="offline"),
    ]
    used = [stock, lean]
    batches = measured[(measured["batch"] > stock["batch"]) & (measured["role"] != "extra")]
    for batch, group in batches.groupby("batch"):
        larger = _pair(group)
        if larger is not None:
            used += larger
            label = f"Images per second online, batch {batch}"
            lines.append(_compare(label, *larger, "online_images_per_s", paired="online", rate=True))
    lines += [
        _compare("Sent by one party online, MB", stock, lean, "bytes_sent", scale=1e6),
        _compare("Rounds online", stock, lean, "rounds"),
        _compare(
            "Correlated randomness an inference, MB", stock, lean, "offline_correlated_bytes", scale=1e6
        ),
        _compare("Peak memory of a party, MB", stock, lean, "peak_memory_bytes", scale=1e6),
        _compare("Set-up, once a model, s", stock, lean, "setup_s"),
        _compare("Set-up, sent by one party, MB", stock, lean, "setup_bytes_sent", scale=1e6),
    ]
    conditions = {name: stock[name] for name in ("width", "batch", "link", "parties")}
    parts = [
        _conditions(conditions, "baseline network"),
        _markdown(pd.DataFrame(lines)),
        "Gain is stock / lean (for images per second lean / stock). With an interval it is the median of "
        "paired repetitions, which need not equal the quotient of the medians beside it; without one it is "
        "that quotient.",
        *_provenance(pd.DataFrame(used)),
    ]
    return "\n\n".join(parts)


def links_section(summary: pd.DataFrame) -> str:
    """The same cases on loopback and over shaped links, what the model of a link predicts, and speed-ups."""
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
        parts.append(_conditions(setting))
        parts.append(_markdown(_links_table(group, loopback)))
        parts.append(_model_verdict(group))
        parts.append(_markdown(_links_speedups(group, loopback)))
    parts.append(
        "All are medians of online seconds. *Measured*: loopback. *Emulated*: real parties whose bytes a "
        "shaper delays. *Modelled*: compute + hops (RTT / 2 + h0) + bytes / bandwidth, from the loopback "
        "case alone; a hop is a one-way trip that the next step waits for, h0 the software's part of it. "
        "Error is modelled / emulated - 1. Speed-ups are over the same engine's baseline on the same link: "
        "on loopback of paired repetitions, on the others quotients of medians of few."
    )
    parts += _links_described(emulated)
    return "\n\n".join([*parts, *_provenance(pd.concat(used), "Run")])


def models_section(modelled: pd.DataFrame, break_even: pd.DataFrame) -> str:
    """What the literature's cost models say of some variants, and the ReLUs that one layer is worth there."""
    absent = "No row holds a network that the literature's models could price yet: run `make bench`."
    shown = modelled[modelled["network"].isin(SHOWN)] if not modelled.empty else modelled
    if shown.empty:
        return absent
    variants = [name for name in SHOWN if name in set(shown["network"])]
    worth = {}
    if not break_even.empty:
        of_baseline = break_even[break_even["network"] == "baseline"]
        worth = of_baseline.set_index(["model", "channel", "phase"])["relus_per_layer"].to_dict()
    lines = []
    for model, of_model in shown.groupby("model", sort=False):
        # A column of a table knows no link: it says the same on all.
        linkless = of_model["modelled_rounds"].isna().all()
        for channel in SHOWN_CHANNELS[:1] if linkless else SHOWN_CHANNELS:
            group = of_model[of_model["channel"] == channel].set_index("network")
            if group.empty:
                continue
            ranks = group["modelled_total_s"].rank(method="min").astype(int)
            mark = "" if group["verified"].astype(bool).all() else " *unverified*"
            line = {"Model": f"`{model}`{mark}", "Channel": "–" if linkless else channel}
            for variant in variants:
                line[f"`{variant}`"] = "–"
                if variant in group.index:
                    case = group.loc[variant]
                    seconds = [_number(case[f"modelled_{phase}"]) for phase in PHASES]
                    line[f"`{variant}`"] = f"{' / '.join(seconds)} (**{ranks[variant]}**)"
            found = [worth.get((model, channel, phase)) for phase in PHASES]
            line["A layer is worth, ReLUs"] = " / ".join(_rounded(value) for value in found)
            lines.append(line)
    table = pd.DataFrame(lines)
    known = [CHANNELS[channel] for channel in SHOWN_CHANNELS if channel in set(table["Channel"])]
    channels = "".join(
        f"{each.name}: {_number(each.up_bit_per_s, 1e6)} Mbit/s, RTT {_number(each.rtt_s, 1e-3)} ms. "
        for each in known
    )
    return "\n\n".join(
        [
            f"**modelled, width {shown['width'].iloc[0]}, one image**",
            _markdown(table),
            "Nothing here is measured by us. Seconds are offline + online / online; in brackets the rank of "
            "the sum among these networks. Seconds of different models do not compare. The last column: so "
            "many ReLUs of the baseline cost as much as its median convolution beyond 1x1. A network that "
            "has fewer saves more by dropping one more layer than by dropping all its ReLUs. *unverified*: "
            f"the constants could not be read at their source. {channels}All channels and networks: "
            "`results/modelled.csv`, `results/break_even.csv`; sources and limits: "
            "[docs/literature.md](docs/literature.md).",
        ]
    )


def replace_section(text: str, section: str, content: str) -> str:
    """Puts `content` between the markers `<!-- section:begin -->` and `<!-- section:end -->`."""
    begin, end = f"<!-- {section}:begin -->", f"<!-- {section}:end -->"
    if text.count(begin) != 1 or text.count(end) != 1 or text.index(begin) > text.index(end):
        raise ResultsError(
            f"The README needs the line {begin} and after it the line {end}, once each: "
            f"put them where the table of {section} belongs."
        )
    head, _, rest = text.partition(begin)
    _, _, tail = rest.partition(end)
    return f"{head}{begin}\n\n{content}\n\n{end}{tail}"


def _loopback_of(emulated: pd.DataFrame, summary: pd.DataFrame) -> pd.DataFrame:
    """The loopback cases of emulated ones: those the model started from, else the same engine and variant."""
    same = ["variant", "width", "engine", "batch", "parties"]
    measured = summary[(summary["timing"] == "measured") & (summary["link"] == "loopback")]
    regular = measured[measured["role"] != "extra"]
    keys = emulated[same].drop_duplicates()
    found = regular.merge(keys, on=same).drop_duplicates(same)
    named = measured[measured["case"].isin(emulated["loopback_case"].dropna())]
    return pd.concat([named, found]).drop_duplicates(same)


def _link_names(emulated: pd.DataFrame) -> list[str]:
    """Links, the fastest first."""
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
    return sorted(pairs, key=lambda pair: (_rank(pair[0], ENGINES), _variant_place(pair[1])))


def _links_table(emulated: pd.DataFrame, loopback: pd.DataFrame) -> pd.DataFrame:
    """One line an engine and variant: loopback measured, and on each link emulated, modelled, error."""
    lines = []
    for engine, variant in _engines_and_variants(emulated):
        measured = _cell_of(loopback, engine, variant)
        first = emulated[(emulated["engine"] == engine) & (emulated["variant"] == variant)].iloc[0]
        line = {
            "Case": f"{engine} `{variant}`",
            "Hops": _count(first["hops"]),
            "MB sent": _number(first["bytes_sent"], 1e6),
            "loopback, measured, s": "–" if measured is None else _seconds(measured, "online"),
        }
        for link in _link_names(emulated):
            case = _cell_of(emulated, engine, variant, link)
            flag = " *flagged*" if case is not None and _is_true(case["link_flagged"]) else ""
            line |= {
                f"{link}, emulated, s": "–" if case is None else _seconds(case, "online", "emulated_") + flag,
                f"{link}, modelled, s": "–" if case is None else _number(case["modelled_online_s"]),
                f"{link}, error": "–" if case is None else _percent(case["model_error"]),
            }
        lines.append(line)
    return pd.DataFrame(lines)


def _links_speedups(emulated: pd.DataFrame, loopback: pd.DataFrame) -> pd.DataFrame:
    """One line a variant: the speed-up over the engine's own baseline on every link."""
    links = _link_names(emulated)
    engines = sorted(emulated["engine"].unique(), key=lambda name: _rank(name, ENGINES))

    def medians(engine: str, variant: str, link: str) -> float:
        case = _cell_of(emulated, engine, variant, link)
        return math.nan if case is None else case["emulated_online_median_s"]

    lines = []
    for variant in sorted(emulated["variant"].unique(), key=_variant_place):
        line = {"Speed-up": f"`{variant}`"}
        for engine in engines:
            case = _cell_of(loopback, engine, variant)
            paired = math.nan if case is None else 1.0 if variant == "baseline" else case["online_speedup"]
            line[f"{engine}, loopback"] = _gain(paired, variant)
            for link in links:
                gain = medians(engine, "baseline", link) / medians(engine, variant, link)
                line[f"{engine}, {link}"] = _gain(gain, variant)
        lines.append(line)
    return pd.DataFrame(lines)


def _gain(value: float, variant: str) -> str:
    return "1" if variant == "baseline" and not pd.isna(value) else _ratio(value)


def _model_verdict(emulated: pd.DataFrame) -> str:
    """The largest error of the model against the goal, and the cases without a prediction."""
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
            f"Largest error of the model: {_percent(worst['model_error'])} ({worst['engine']} "
            f"`{worst['variant']}` over {worst['link']}); {goal}."
        )
        if not lost.empty:
            names = ", ".join(f"`{case}`" for case in lost["case"])
            text += f" Without a prediction, for want of a case on loopback or of repetitions: {names}."
    return text


def _links_described(emulated: pd.DataFrame) -> list[str]:
    """What each link was asked to be, what it was, and by whom it was shaped; then the flagged cases."""
    texts = []
    for link in _link_names(emulated):
        cases = emulated[emulated["link"] == link]
        shapers = " and ".join(sorted(cases["shaper"].dropna().unique())) or "unknown"
        rtt = f"RTT {_number(cases['asked_rtt_s'].iloc[0], 1e-3)} ms"
        rtt += f" (measured {_range(cases['measured_rtt_s'], 1e-3)})"
        if pd.isna(cases["asked_bandwidth_bits_s"].iloc[0]):
            rate = "no limit of bandwidth"
        else:
            rate = f"{_number(cases['asked_bandwidth_bits_s'].iloc[0], 1e6)} Mbit/s each way"
        rate += f" (measured {_range(cases['measured_bandwidth_bits_s'], 1e6)})"
        texts.append(f"{link}: {rtt}, {rate}, shaped by {shapers}")
    lines = [f"Links: {'; '.join(texts)}."]
    flagged = emulated[emulated["link_flagged"].map(_is_true)]
    if not flagged.empty:
        names = "; ".join(f"`{case['case']}`: {case['link_complaint']}" for _, case in flagged.iterrows())
        lines.append(f"**Note:** *flagged* links were not what was asked for: {names}.")
    return lines


def _range(values: pd.Series, scale: float) -> str:
    """The values' span, in units of `scale`; one number where it does not show."""
    if values.isna().all():
        return "–"
    ends = [_number(end, scale) for end in (values.min(), values.max())]
    return ends[0] if ends[0] == ends[1] else " to ".join(ends)


def _percent(fraction: float) -> str:
    return "–" if pd.isna(fraction) else f"{100 * fraction:+.1f} %"


def _variants_table(group: pd.DataFrame, accuracy: pd.DataFrame | None) -> pd.DataFrame:
    """One line a variant: counts, then every engine's figures side by side."""
    engines = sorted(group["engine"].unique(), key=lambda name: _rank(name, ENGINES))
    both = " / ".join(engines)
    lines = []
    for variant in sorted(group["variant"].unique(), key=_variant_place):
        found = _by_engine(group[group["variant"] == variant])
        cases = [found.loc[engine] if engine in found.index else None for engine in engines]
        known = next(case for case in cases if case is not None)
        line = {
            "Variant": f"`{variant}`",
            "ReLUs, K": _number(known["relus"], 1e3, 4),
            "MACs, M": _number(known["macs"], 1e6, 4),
            "Parameters, M": _number(known["parameters"], 1e6),
            f"Rounds, {both}": _join(cases, lambda case: _count(case["rounds"])),
            f"MB sent, {both}": _join(cases, lambda case: _number(case["bytes_sent"], 1e6)),
        }
        for clock in CLOCKS:
            line[f"{clock.capitalize()}, s, {both}"] = _join(
                cases, lambda case, clock=clock: _seconds(case, clock)
            )
        for engine, case in zip(engines, cases, strict=True):
            line[f"Speed-up, {engine}"] = _speedup_cell(case)
        for width in [] if accuracy is None or accuracy.empty else sorted(accuracy["width"].unique()):
            at_width = accuracy[(accuracy["variant"] == variant) & (accuracy["width"] == width)]
            line[f"Accuracy at width {width}, %"] = _number(100 * at_width["accuracy_test"].mean())
        lines.append(line)
    return pd.DataFrame(lines)


def _variant_place(variant: str) -> tuple:
    family = family_of(variant)
    fraction = variant[len(family) + 1 :]
    return _rank(family, FAMILIES), -float(fraction) if fraction else 0.0


def _spread_table(headline: pd.DataFrame) -> pd.DataFrame:
    lines = []
    for _, case in headline.iterrows():
        line = {"Case": f"`{case['case']}`", "Repetitions": _repetitions(case)}
        for clock in CLOCKS:
            line[f"{clock.capitalize()}: median, s"] = _seconds(case, clock)
            line["IQR, s" + " " * CLOCKS.index(clock)] = _number(case[f"{clock}_iqr_s"], digits=2)
            interval = _interval(case[f"{clock}_low_s"], case[f"{clock}_high_s"])
            line["95 % interval" + " " * CLOCKS.index(clock)] = interval
        expected, observed = case["truncations_expected"], case["truncations_observed"]
        line["Wrong truncations: expected / observed"] = f"{_number(expected, digits=2)} / {_count(observed)}"
        lines.append(line)
    return pd.DataFrame(lines)


def _by_engine(cases: pd.DataFrame) -> pd.DataFrame:
    twice = cases[cases["engine"].duplicated(keep=False)]
    if not twice.empty:
        raise ResultsError(
            f"The cases {' and '.join(twice['case'])} claim one place in the table: "
            "give one the role `extra`."
        )
    return cases.set_index("engine", drop=False)


def _pair(cases: pd.DataFrame) -> tuple[pd.Series, pd.Series] | None:
    """The first stock and lean case under the same conditions."""
    for _, group in cases.groupby(["width", "batch", "link", "parties"], sort=False):
        found = _by_engine(group)
        if set(ENGINES) <= set(found.index):
            return found.loc["stock"], found.loc["lean"]
    return None


def _compare(
    label: str,
    stock: pd.Series,
    lean: pd.Series,
    column: str,
    scale: float = 1.0,
    paired: str | None = None,
    rate: bool = False,
) -> dict[str, str]:
    noisy = f"{paired}_noisy" if paired else None
    cells = [
        (_count(case[column]) if column == "rounds" else _number(case[column], scale))
        + (" *noisy*" if noisy and _is_true(case[noisy]) else "")
        for case in (stock, lean)
    ]
    if paired and lean["reference_case"] == stock["case"] and not pd.isna(lean[f"{paired}_speedup"]):
        gain = _ratio(*(lean[f"{paired}_{name}"] for name in ("speedup", "speedup_low", "speedup_high")))
    else:
        above, below = (lean[column], stock[column]) if rate else (stock[column], lean[column])
        gain = "–" if pd.isna(above) or pd.isna(below) or not below else _ratio(above / below)
    return {"": label, "stock": cells[0], "lean": cells[1], "Gain": gain}


def _speedup_cell(case: pd.Series | None) -> str:
    if case is None:
        return "–"
    if case["variant"] == "baseline":
        return "1"
    return _ratio(case["online_speedup"], case["online_speedup_low"], case["online_speedup_high"])


def _ratio(value: float, low: float = math.nan, high: float = math.nan) -> str:
    if pd.isna(value):
        return "–"
    interval = "" if pd.isna(low) else f" [{_number(low)}, {_number(high)}]"
    return f"{_number(value)}×{interval}"


def _seconds(case: pd.Series, clock: str, prefix: str = "") -> str:
    noisy = " *noisy*" if _is_true(case[f"{prefix}{clock}_noisy"]) else ""
    return _number(case[f"{prefix}{clock}_median_s"]) + noisy


def _interval(low: float, high: float) -> str:
    return "–" if pd.isna(low) else f"{_number(low)} to {_number(high)}"


def _repetitions(case: pd.Series) -> str:
    attempted, succeeded = case["repetitions_attempted"], case["repetitions_succeeded"]
    return str(succeeded) if attempted == succeeded else f"{succeeded} of {attempted}"


def _join(cases: Sequence[pd.Series | None], text: Any) -> str:
    return " / ".join("–" if case is None else text(case) for case in cases)


def _number(value: Any, scale: float = 1.0, digits: int = 3) -> str:
    """`value / scale` to so many significant digits, without exponent; a dash when it is missing."""
    if pd.isna(value):
        return "–"
    value = float(value) / scale
    if value == 0:
        return "0"
    decimals = max(0, digits - 1 - math.floor(math.log10(abs(float(f"{value:.{digits - 1}e}")))))
    return f"{value:,.{decimals}f}"


def _rounded(value: Any) -> str:
    """Three significant digits of a number in the thousands, too."""
    return "–" if pd.isna(value) else _number(float(f"{float(value):.2e}"))


def _count(value: Any) -> str:
    return "–" if pd.isna(value) else f"{int(value):,}"


def _is_true(value: Any) -> bool:
    return not pd.isna(value) and bool(value)


def _conditions(values: dict[str, Any], what: str = "") -> str:
    words = [what] if what else []
    words += [f"width {values['width']}", f"batch {values['batch']}"]
    words += [values["link"]] if "link" in values else []
    words.append(f"{values['parties']} parties")
    return "**" + ", ".join(words) + "**"


def _markdown(frame: pd.DataFrame) -> str:
    """A table in Markdown, text to the left and figures to the right."""
    head = [str(name).rstrip() for name in frame.columns]
    rule = [":--", *["--:"] * (len(head) - 1)]
    lines = [head, rule, *frame.astype(str).values.tolist()]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)


def _conventions(rows: Sequence[Row]) -> str:
    texts: dict[str, list[str]] = {}
    for row in rows:
        for name, text in row["conventions"].items():
            if text not in texts.setdefault(name, []):
                texts[name].append(text)
    return "\n".join(f"- *{name}*: {' / '.join(found)}" for name, found in texts.items())


def _provenance(cases: pd.DataFrame, verb: str = "Measured") -> list[str]:
    """Where the cases were measured, and what a reader must know before comparing them."""
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
            f"`{case['case']}` ({_repetitions(case)} repetitions)" for _, case in lost.iterrows()
        )
        lines.append(f"**Note:** repetitions failed and are in no median: {names}.")
    ruined = cases[cases["truncations_observed"].fillna(0) > 0]
    if not ruined.empty:
        names = ", ".join(
            f"`{case['case']}` ({_count(case['truncations_observed'])} observed, "
            f"{_number(case['truncations_expected'])} expected)"
            for _, case in ruined.iterrows()
        )
        lines.append(f"**Note:** wrong truncations ruined repetitions of {names}.")
    flagged = cases[(cases["timing"] == "measured") & cases["link_flagged"].map(_is_true)]
    if not flagged.empty:
        names = "; ".join(f"`{case['case']}`: {case['link_complaint']}" for _, case in flagged.iterrows())
        lines.append(f"**Note:** the link was slower than it should be, the machine perhaps busy: {names}.")
    return lines


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
    return f"{case['commit'][:10]}{' with uncommitted changes' if _is_true(case['dirty']) else ''}"


# The command


@dataclass(frozen=True)
class Report:
    """Rows and the tables that follow from them."""

    rows: list[Row]
    accuracy: pd.DataFrame | None
    summary: pd.DataFrame
    layers: pd.DataFrame
    modelled: pd.DataFrame
    break_even: pd.DataFrame

    def csvs(self) -> dict[str, str]:
        """The text of each file in results/."""
        return {f"{name}.csv": _csv(getattr(self, name)) for name in TABLES}

    def readme(self, path: Path) -> str:
        """The README at `path` with its sections made anew."""
        try:
            text = path.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise ResultsError(f"{path} cannot be read ({error}): name the file with --readme.") from error
        sections = {
            "headline": headline_section(self.rows, self.summary, self.accuracy),
            "engines": engines_section(self.summary),
            "links": links_section(self.summary),
            "models": models_section(self.modelled, self.break_even),
        }
        for section, content in sections.items():
            text = replace_section(text, section, content)
        return text


def read_report(results: Path) -> Report:
    """Makes every table from the rows in the folder `results`; writes nothing."""
    rows = Store(results / "bench.json").rows()
    if not rows:
        raise ResultsError(f"{results / 'bench.json'} has no rows: run `make bench` first.")
    accuracy = read_accuracy(results / "accuracy.json")
    summary = summarize(rows, accuracy)
    return Report(rows, accuracy, summary, tabulate_layers(rows), **tabulate_models(rows))


def _csv(frame: pd.DataFrame) -> str:
    return frame.to_csv(index=False, float_format="%.9g", lineterminator="\n")


def main(arguments: Sequence[str] | None = None) -> int:
    """Writes the tables, or with --check says which of them are stale."""
    parser = argparse.ArgumentParser(prog="python -m bench.report", description=__doc__.splitlines()[0])
    parser.add_argument("--results", type=Path, default=Path("results"), help="folder of bench.json")
    parser.add_argument(
        "--readme", type=Path, default=Path("README.md"), help="file with the tables' markers"
    )
    parser.add_argument("--check", action="store_true", help="write nothing; exit 1 when a table is stale")
    options = parser.parse_args(arguments)
    try:
        report = read_report(options.results)
    except ResultsError as error:
        print(error, file=sys.stderr)
        return 1
    made = {options.results / name: text for name, text in report.csvs().items()}
    failed = _settle(made, options.check)
    try:
        made = {options.readme: report.readme(options.readme)}
    except ResultsError as error:  # the tables are written all the same: figures are drawn from them
        print(error, file=sys.stderr)
        return 1
    return int(_settle(made, options.check) or failed)


def _settle(made: dict[Path, str], check: bool) -> bool:
    """Writes what is stale, or with `check` names it and returns whether there is any."""
    stale = [path for path, text in made.items() if not path.exists() or path.read_bytes() != text.encode()]
    for path, text in made.items():
        if check and path in stale:
            print(f"{path} is stale: run `make report`.", file=sys.stderr)
        elif not check:
            if path in stale:
                replace_file(path, text.encode())
            print(f"{path}: {'written' if path in stale else 'up to date'}")
    return check and bool(stale)


if __name__ == "__main__":
    sys.exit(main())
