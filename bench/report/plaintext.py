"""The price of privacy: the parties' seconds beside those of the network itself."""

from __future__ import annotations

import pandas as pd

from pibench.report.cells import (
    conditions_line,
    format_count,
    format_number,
    format_ratio,
    format_seconds,
    markdown_table,
)
from pibench.report.engines import by_engine
from pibench.report.order import variant_place
from pibench.store.engines import engine_place


def plaintext_section(summary: pd.DataFrame) -> str:
    """Compares every engine with torch's float32 on one thread, network by network; empty without rows."""
    if summary.empty or "plaintext_median_s" not in summary:
        return ""
    measured = summary[
        (summary["role"] == "headline")
        & (summary["timing"] == "measured")
        & summary["plaintext_median_s"].notna()
    ]
    parts = []
    conditions = ["width", "batch", "link", "parties"]
    for values, group in measured.groupby(conditions, sort=False):
        what = "private and plaintext seconds"
        parts.append(conditions_line(dict(zip(conditions, values, strict=True)), what))
        parts.append(markdown_table(pd.DataFrame(_lines(group))))
    if not parts:
        return ""
    parts.append(
        "Plaintext is the same network in float32 on one thread, right before each repetition, with warm "
        "caches. A ratio is that of the medians. *Online* has the work of the two parties after the image is "
        "there; offline work is the correlated randomness of one inference. Headroom is how many bits of the "
        "ring stay free above the largest value, where values are calibrated."
    )
    return "\n\n".join(parts)


def _lines(group: pd.DataFrame) -> list[dict[str, str]]:
    lines = []
    for variant in sorted(group["variant"].unique(), key=variant_place):
        cases = by_engine(group[group["variant"] == variant])
        for engine in sorted(cases.index, key=engine_place):
            case = cases.loc[engine]
            lines.append(
                {
                    "Variant": f"`{variant}`",
                    "Engine": engine,
                    "Plaintext, ms": format_number(case["plaintext_median_s"], 1e-3),
                    "Online, s": format_seconds(case, "online"),
                    "× plaintext": format_ratio(case["online_over_plaintext"]),
                    "Offline + online, s": format_seconds(case, "total"),
                    "× plaintext ": format_ratio(case["total_over_plaintext"]),
                    "MB sent": format_number(case["bytes_sent"], 1e6),
                    "Rounds": format_count(case["rounds"]),
                    "Peak memory, MB": format_number(case["peak_memory_bytes"], 1e6),
                    "Headroom, bits": format_number(case["headroom_bits"], digits=2),
                }
            )
    return lines
