"""The section on accuracy: every variant, pairs, equal latency, equal accuracy, tries, and the full width."""

from __future__ import annotations

from collections.abc import Iterable

import pandas as pd

from pibench.report.cells import markdown_table
from pibench.report.equal_latency import equal_latency_parts
from pibench.report.full_width import full_width
from pibench.report.iso_accuracy_section import iso_accuracy_parts
from pibench.report.measured import latency_rows
from pibench.report.pairs import judged_widths, merging_alone, pairs_caption, pairs_table, pairs_verdict
from pibench.report.tries import tries_details
from pibench.report.variants import variants_caption, variants_table
from pibench.store.results import Row
from pibench.store.settings import TRAINED_WIDTH
from pibench.store.settings import WIDTH as FULL_WIDTH

FIGURES = {
    "accuracy_vs_relus": "Accuracy against the number of ReLUs, with published points at full width",
    "accuracy_full_width": "The same at width 64, beside what others published",
    "accuracy_vs_macs": "Accuracy against multiply-accumulates: five merged blocks save a third of them",
    "accuracy_vs_latency": "Accuracy against measured online latency, on both engines",
    "iso_accuracy": "SENet's cost over joint reduction's at equal accuracy, and the claim of its authors",
}


def accuracy_section(
    table: pd.DataFrame,
    pairs: pd.DataFrame,
    equal_latency: pd.DataFrame,
    iso_accuracy: pd.DataFrame,
    tries: pd.DataFrame,
    rows: Iterable[Row],
) -> str:
    """Writes the accuracy of each variant, the loss and gain of joint reduction beside SENet, and full width.

    `table`, `pairs`, `equal_latency`, `iso_accuracy` and `tries` are the results of `tabulate_accuracy`,
    `tabulate_pairs`, `tabulate_equal_latency`, `tabulate_iso_accuracy` and `tabulate_tries`.
    """
    measured = latency_rows(rows)
    narrow = table[table["width"] == TRAINED_WIDTH]
    trained = set(narrow["variant"])
    timed = {name for name, width, _ in measured if width == TRAINED_WIDTH and name in trained}
    wide = table.loc[table["width"] == FULL_WIDTH, "variant"].nunique()
    figures = ["accuracy_vs_relus"] * (len(trained) > 1) + ["accuracy_full_width"] * (wide > 1)
    figures += ["accuracy_vs_macs"] * (len(trained) > 1)
    figures += ["accuracy_vs_latency"] * (len(timed) > 1)
    figures += ["iso_accuracy"] * (len(iso_accuracy) > 0)
    parts = [
        *(pairs_verdict(pairs, width) for width in judged_widths(pairs)),
        *(merging_alone(table, measured, width) for width in judged_widths(pairs)),
        markdown_table(pairs_table(pairs)),
        pairs_caption(pairs),
        *equal_latency_parts(equal_latency),
        *iso_accuracy_parts(iso_accuracy),
        *(f"![{FIGURES[name]}](plots/{name}.svg)" for name in figures),
        f"**CIFAR-100, width {TRAINED_WIDTH}** (the headline's latency is that of width {FULL_WIDTH})",
        markdown_table(variants_table(narrow, measured)),
        *variants_caption(narrow),
        *tries_details(tries, TRAINED_WIDTH),
        full_width(table, measured),
        *tries_details(tries, FULL_WIDTH),
    ]
    return "\n\n".join(filter(None, parts))
