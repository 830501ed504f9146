"""The effects of changed plans, on the held-out images: results/tries.json -> tries.csv and its details."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import pandas as pd

from pibench.models.rows import read_tries
from pibench.report.accuracy import SETTINGS
from pibench.report.cells import format_accuracy, format_count, format_points, markdown_table

TRY = ("variant", "width", "seed", "changes", "beside", "epochs", "accuracy_heldout", "difference")


def tabulate_tries(path: Path, accuracy: pd.DataFrame) -> pd.DataFrame:
    """Makes one line for each try of tries.json and each change by which it can be compared.

    `difference` is its held-out accuracy minus that of the same training without `changes`: another try, or a
    row of `tabulate_accuracy`, that is equal in `beside`. A try of several changes has one line for each
    change without which it was tried too. If there is none, all its changes of phases are compared with its
    unchanged plan. Another plan, scale or precision alone is compared with the row. NaN means that there is
    nothing to compare with.
    """
    key, columns = ["variant", "width", "seed"], ["epochs", "accuracy_heldout"]
    tries = [
        ({name: row[name] for name in (*key, *SETTINGS, *columns)}, row["changes"])
        for row in read_tries(path)
    ]
    rows = [row for _, row in accuracy.iterrows()]
    plain = {_values(row, key): row["accuracy_heldout"] for row in rows}
    exact = [*key, *SETTINGS]
    known = {
        (_values(row, exact), _changes(_of_phases(changes))): row["accuracy_heldout"]
        for row, changes in (*tries, *((row, {}) for row in rows))
    }
    lines = []
    for row, changes in tries:
        phases, same = _of_phases(changes), _values(row, exact)
        before = {}
        for name in phases:
            left = {other: value for other, value in phases.items() if other != name}
            if (same, _changes(left)) in known:
                before[name,] = known[same, _changes(left)]
        if not phases:
            before = {tuple(changes): plain.get(_values(row, key), math.nan)}
        elif not before:
            before = {tuple(phases): known.get((same, ""), math.nan)}
        for names, accuracy_before in before.items():
            line = {name: row[name] for name in (*key, *columns)}
            line["changes"] = _changes({name: changes[name] for name in names})
            line["beside"] = _changes({name: changes[name] for name in changes if name not in names})
            lines.append(line | {"difference": row["accuracy_heldout"] - accuracy_before})
    table = pd.DataFrame(lines, columns=list(TRY))
    return table.sort_values(["width", "beside", "changes", "variant"], ignore_index=True)


def _values(row: Mapping[str, Any] | pd.Series, names: Iterable[str]) -> tuple:
    return tuple(row[name] for name in names)


def _of_phases(changes: dict[str, Any]) -> dict[str, Any]:
    """Returns the changes that do not concern the plan as a whole."""
    return {name: value for name, value in changes.items() if name not in SETTINGS}


def _changes(changes: dict[str, Any]) -> str:
    """Returns changes of a plan as on the command line, first those of the plan as a whole."""
    ranked = sorted(changes.items(), key=lambda change: (change[0] not in SETTINGS, change[0]))
    return " ".join(
        f"{key}={value if isinstance(value, str) else json.dumps(value)}" for key, value in ranked
    )


def tries_details(tries: pd.DataFrame, width: int) -> list[str]:
    """Shows the effects of changed plans; empty if nothing was tried at this width."""
    tries = tries[tries["width"] == width]
    if tries.empty:
        return []
    lines = [
        {
            "Change of the plan": f"`{line['changes']}`",
            "Beside": f"`{line['beside']}`" if line["beside"] else "",
            "Variant": f"`{line['variant']}`",
            "Epochs": format_count(line["epochs"]),
            "Held out, %": format_accuracy(line["accuracy_heldout"]),
            "To the same without it, points": format_points(line["difference"]),
        }
        for _, line in tries.iterrows()
    ]
    return [
        f"<details><summary>What else was tried, width {width}</summary>",
        markdown_table(pd.DataFrame(lines)),
        "Held-out images only: no try saw the test set. `--set` and `--plan` of the training "
        "command make such changes. A try of several has a line for each without which it was tried too, "
        "*beside* the others.",
        "</details>",
    ]
