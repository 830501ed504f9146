"""The README's comparison of the two engines."""

from __future__ import annotations

import pandas as pd

from pibench.report.cells import (
    conditions_line,
    format_count,
    format_number,
    format_ratio,
    is_true,
    markdown_table,
)
from pibench.report.provenance import provenance_lines
from pibench.store.results import ResultsError
from pibench.store.settings import ENGINES


def engines_section(summary: pd.DataFrame) -> str:
    """Compares the two engines of every run, on the baseline, with the gain of the second."""
    absent = "The two engines have not been measured side by side yet: run `make bench`."
    if summary.empty:
        return absent
    measured = summary[(summary["variant"] == "baseline") & (summary["timing"] == "measured")]
    singles = measured[measured["role"] == "headline"]
    pair = _pair(singles)
    if pair is None:
        return absent
    first, second = pair
    lines = [
        _compare("Online, s", first, second, "online_median_s", paired="online"),
        _compare("Offline + online, s", first, second, "total_median_s", paired="total"),
        _compare("Offline, s", first, second, "offline_median_s", paired="offline"),
    ]
    used = [first, second]
    batches = measured[(measured["batch"] > first["batch"]) & (measured["role"] != "extra")]
    for batch, group in batches.groupby("batch"):
        larger = _pair(group)
        if larger is not None:
            used += larger
            label = f"Images per second online, batch {batch}"
            lines.append(_compare(label, *larger, "online_images_per_s", paired="online", rate=True))
    lines += [
        _compare("Sent by one party online, MB", first, second, "bytes_sent", scale=1e6),
        _compare("Rounds online", first, second, "rounds"),
        _compare(
            "Correlated randomness an inference, MB", first, second, "offline_correlated_bytes", scale=1e6
        ),
        _compare("Peak memory of a party, MB", first, second, "peak_memory_bytes", scale=1e6),
        _compare("Set-up, once a model, s", first, second, "setup_s"),
        _compare("Set-up, sent by one party, MB", first, second, "setup_bytes_sent", scale=1e6),
    ]
    conditions = {name: first[name] for name in ("width", "batch", "link", "parties")}
    a, b = ENGINES
    parts = [
        conditions_line(conditions, "baseline network"),
        markdown_table(pd.DataFrame(lines)),
        f"Gain is {a} / {b} (for images per second {b} / {a}). With an interval it is the median of "
        "paired repetitions, which need not equal the quotient of the medians beside it; without one it is "
        "that quotient.",
        *provenance_lines(pd.DataFrame(used)),
    ]
    return "\n\n".join(parts)


def _pair(cases: pd.DataFrame) -> tuple[pd.Series, pd.Series] | None:
    """Returns the first cases of the ordinary and of the other engine under the same conditions."""
    for _, group in cases.groupby(["width", "batch", "link", "parties"], sort=False):
        found = by_engine(group)
        if set(ENGINES) <= set(found.index):
            return found.loc[ENGINES[0]], found.loc[ENGINES[1]]
    return None


def _compare(
    label: str,
    first: pd.Series,
    second: pd.Series,
    column: str,
    scale: float = 1.0,
    paired: str | None = None,
    rate: bool = False,
) -> dict[str, str]:
    noisy = f"{paired}_noisy" if paired else None
    cells = [
        (format_count(case[column]) if column == "rounds" else format_number(case[column], scale))
        + (" *noisy*" if noisy and is_true(case[noisy]) else "")
        for case in (first, second)
    ]
    if paired and second["reference_case"] == first["case"] and not pd.isna(second[f"{paired}_speedup"]):
        gain = format_ratio(
            *(second[f"{paired}_{name}"] for name in ("speedup", "speedup_low", "speedup_high"))
        )
    else:
        above, below = (second[column], first[column]) if rate else (first[column], second[column])
        gain = "–" if pd.isna(above) or pd.isna(below) or not below else format_ratio(above / below)
    return {"": label, first["engine"]: cells[0], second["engine"]: cells[1], "Gain": gain}


def by_engine(cases: pd.DataFrame) -> pd.DataFrame:
    """Returns the cases by engine; raises ResultsError when two of one engine have one place."""
    twice = cases[cases["engine"].duplicated(keep=False)]
    if not twice.empty:
        raise ResultsError(
            f"The cases {' and '.join(twice['case'])} claim one place in the table: "
            "give one the role `extra`."
        )
    return cases.set_index("engine", drop=False)
