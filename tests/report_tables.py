"""Tables of trained networks and the README's section of them, for the tests of the report."""

import json
from contextlib import contextmanager
from pathlib import Path

import pandas as pd
import pytest
from results_factory import make_row, remember

from pibench import report
from pibench.models.pairs import PAIRS
from pibench.report import measured, statistics
from pibench.report.statistics import quotient_of_medians


def make_pair_rows():
    """The measured rows of the baseline and of all pairs on both engines."""
    variants = ("baseline", *(name for pair in PAIRS for name in pair))
    return [make_row(variant, engine) for engine in ("stock", "lean") for variant in variants]


@contextmanager
def remembered_statistics():
    """Computes the interval of the same values once."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(statistics, "interval_of_median", remember(statistics.interval_of_median))
        patch.setattr(measured, "quotient_of_medians", remember_two(quotient_of_medians))
        yield


def remember_two(statistic):
    """The same for a function of two lists."""
    known = {}

    def remembered(first, second):
        key = (tuple(first), tuple(second))
        if key not in known:
            known[key] = statistic(first, second)
        return known[key]

    return remembered


def table(content):
    """The table of rows, after accuracy.json and CSV."""
    frame = pd.DataFrame(json.loads(json.dumps(content)))
    return report.tabulate_accuracy(frame)


def section(content, rows, tries=Path("none")):
    made = table(content) if content else report.tabulate_accuracy(None)
    pairs, equal = report.tabulate_pairs(made, rows), report.tabulate_equal_latency(made, rows)
    iso = report.tabulate_iso_accuracy(made, rows)
    return report.accuracy_section(made, pairs, equal, iso, report.tabulate_tries(tries, made), rows)


def tables_of(text):
    """Every table of a section, as lists of {head: cell}."""
    found, lines = [], text.splitlines()
    for place, line in enumerate(lines):
        if line.startswith("| ") and not lines[place - 1].startswith("|"):
            head = cells(line)
            end = next(i for i in range(place, len(lines) + 1) if i == len(lines) or lines[i][:1] != "|")
            found.append([dict(zip(head, cells(each), strict=True)) for each in lines[place + 2 : end]])
    return found


def usual_tables(text):
    """The tables that a section always has: pairs, variants, full width."""
    return [found for found in tables_of(text) if "The claim" not in found[0]]


def cells(line):
    return [cell.strip() for cell in line.strip("|").split(" | ")]
