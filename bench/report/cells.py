"""Writes numbers, times, ratios and tables for the README."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import pandas as pd

UNTRAINED = "not trained yet"


def format_number(value: Any, scale: float = 1.0, digits: int = 3) -> str:
    """Writes `value / scale` with significant digits, without exponent; a dash stands for no finite number.

    >>> format_number(557_056, 1e3, 4), format_number(0.05518), format_number(math.nan)
    ('557.1', '0.0552', '–')
    """
    if pd.isna(value) or math.isinf(value):
        return "–"
    value = float(value) / scale
    if value == 0:
        return "0"
    decimals = max(0, digits - 1 - math.floor(math.log10(abs(float(f"{value:.{digits - 1}e}")))))
    return f"{value:,.{decimals}f}"


def format_rounded(value: Any) -> str:
    """Writes three significant digits of a number, one in the thousands too."""
    return "–" if pd.isna(value) else format_number(float(f"{float(value):.2e}"))


def format_count(value: Any) -> str:
    """Writes a whole number with separators; a missing value is a dash."""
    return "–" if pd.isna(value) else f"{int(value):,}"


def format_percent(fraction: float) -> str:
    """Writes a fraction in percent with its sign; a missing value is a dash."""
    return "–" if pd.isna(fraction) else f"{100 * fraction:+.1f} %"


def format_ratio(value: float, low: float = math.nan, high: float = math.nan) -> str:
    """Writes a factor with its interval, if it has one; a missing value is a dash.

    >>> format_ratio(1.764, 1.58, 1.844)
    '1.76× [1.58, 1.84]'
    """
    if pd.isna(value):
        return "–"
    interval = "" if pd.isna(low) else f" [{format_number(low)}, {format_number(high)}]"
    return f"{format_number(value)}×{interval}"


def format_interval(low: float, high: float) -> str:
    """Writes the ends of an interval; a missing value is a dash."""
    return "–" if pd.isna(low) else f"{format_number(low)} to {format_number(high)}"


def format_range(values: pd.Series, scale: float) -> str:
    """Writes the span of values in units of `scale`; one number if both ends look the same."""
    if values.isna().all():
        return "–"
    ends = [format_number(end, scale) for end in (values.min(), values.max())]
    return ends[0] if ends[0] == ends[1] else " to ".join(ends)


def format_seconds(case: pd.Series, clock: str, prefix: str = "") -> str:
    """Writes the median of a clock (offline, online, total), with a mark when it is noisy."""
    noisy = " *noisy*" if is_true(case[f"{prefix}{clock}_noisy"]) else ""
    return format_number(case[f"{prefix}{clock}_median_s"]) + noisy


def format_repetitions(case: pd.Series) -> str:
    """Writes the number of successful repetitions, and of all if some failed."""
    attempted, succeeded = case["repetitions_attempted"], case["repetitions_succeeded"]
    return str(succeeded) if attempted == succeeded else f"{succeeded} of {attempted}"


def is_true(value: Any) -> bool:
    """Returns whether a flag is present and set."""
    return not pd.isna(value) and bool(value)


def join_cells(cases: Sequence[pd.Series | None], text: Any) -> str:
    """Joins the `text` of each case, side by side; a missing case is a dash."""
    return " / ".join("–" if case is None else text(case) for case in cases)


def conditions_line(values: dict[str, Any], what: str = "") -> str:
    """Writes the width, batch, link and number of parties in bold, for the line above a table."""
    words = [what] if what else []
    words += [f"width {values['width']}", f"batch {values['batch']}"]
    words += [values["link"]] if "link" in values else []
    words.append(f"{values['parties']} parties")
    return "**" + ", ".join(words) + "**"


def markdown_table(frame: pd.DataFrame) -> str:
    """Writes a table in Markdown, with text to the left and figures to the right."""
    head = [str(name).rstrip() for name in frame.columns]
    rule = [":--", *["--:"] * (len(head) - 1)]
    lines = [head, rule, *frame.astype(str).values.tolist()]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)


def listed(texts: Iterable[str]) -> str:
    """Joins texts with commas, the last with "and"."""
    *most, last = texts
    return f"{', '.join(most)} and {last}" if most else last


def format_accuracy(value: float) -> str:
    """Writes a share in percent with two decimals; a missing value is a dash."""
    return "–" if pd.isna(value) else f"{100 * value:.2f}"


def format_points(value: float) -> str:
    """Writes a difference of shares in points, signed; a missing value is a dash."""
    return "–" if pd.isna(value) else f"{100 * value:+.2f}"


def format_over_seeds(text: str, values: pd.Series, form: Callable[[float], str]) -> str:
    """Writes the lowest and highest of several seeds after their mean."""
    several = values.dropna()
    return text if len(several) < 2 else f"{text} [{form(several.min())}, {form(several.max())}]"
