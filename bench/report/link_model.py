"""The arithmetic model of a link, applied to a row."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from pibench.links import Calibration, Link, predict_from_loopback, predict_row
from pibench.report.order import place_of
from pibench.store.results import Row


def model_link(row: Row, rows: Sequence[Row]) -> dict[str, Any]:
    """Returns the model's values for a row, from its loopback partner, or on loopback from itself.

    A row of one clock has no online phase, so it has no model.
    """
    emulated = row["timing"] == "emulated"
    loopback = _loopback_partner(row, rows) if emulated else row
    error = whole = math.nan
    if loopback is None or row["traffic"]["hops"] is None or row["traffic"]["bytes_sent"] is None:
        found = None
    elif emulated:
        found, error = predict_row(loopback, row) if row["times"].get("online_s") else (None, math.nan)
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
    return known and bool(row["times"].get("online_s"))


def _split(row: Row) -> Any:
    """Returns the model's parts of a loopback row's own median, or None if values are missing."""
    if row["link"] != "loopback" or not _calibrated(row):
        return None
    check = row["link_check"]
    found = Calibration(check["hop_overhead_s"], check["measured_bandwidth_bits_s"])
    same = Link("as measured", 0.0, found.bandwidth_bits_s)
    online_s = float(np.median(row["times"]["online_s"]))
    return predict_from_loopback(online_s, row["traffic"]["hops"], row["traffic"]["bytes_sent"], same, found)


def _loopback_partner(row: Row, rows: Sequence[Row]) -> Row | None:
    """Returns what was measured on loopback: in turn with the row itself, or else by a row of its own.

    That is the first, in the order of reports, of the same network, engine and setting.
    """
    own = row["reference"] or {}
    if (own.get("link_check") or {}).get("shaper") == "none":
        seconds = [value for value in own.get("online_s", []) if value is not None]
        found = {"case": own["case"], "link_check": own["link_check"], "times": {"online_s": seconds}}
        if _calibrated(found):
            return found
    same = ("variant", "width", "engine", "provider", "batch", "parties")
    found = [
        other
        for other in rows
        if other["link"] == "loopback"
        and other["timing"] == "measured"
        and _calibrated(other)
        and all(other[name] == row[name] for name in same)
    ]
    return min(found, key=place_of, default=None)
