"""All tables that follow from a folder of results."""

from __future__ import annotations

from dataclasses import dataclass, fields
from pathlib import Path

import pandas as pd

from pibench.report.accuracy import read_accuracy, tabulate_accuracy
from pibench.report.equal_latency import tabulate_equal_latency
from pibench.report.iso_accuracy import tabulate_iso_accuracy
from pibench.report.machines import ELSEWHERE, tabulate_machines
from pibench.report.models import tabulate_models
from pibench.report.pairs import tabulate_pairs
from pibench.report.protocols import tabulate_protocol_models, tabulate_protocols
from pibench.report.sensitivity import read_sensitivity
from pibench.report.systems import tabulate_systems
from pibench.report.tables import summarize, tabulate_layers
from pibench.report.tries import tabulate_tries
from pibench.store.results import ResultsError, Row, Store, key_of, machine_name, one_machine, read_rows

ONE_NETWORK = ["variant", "width", "seed"]
ONE_TRY = [*ONE_NETWORK, "changes", "beside"]
ONE_LAYER = ["width", "seed", "position"]


@dataclass(frozen=True)
class Report:
    """Measured rows, their folder `source`, and the tables that follow.

    `others` names the machines whose other rows are in bench.json; it is None if there are none. `machines`
    compares the rows with those, with the ones in elsewhere.json, and with the reference's of the same cases.
    """

    source: Path
    others: str | None
    rows: list[Row]
    summary: pd.DataFrame
    layers: pd.DataFrame
    modelled: pd.DataFrame
    break_even: pd.DataFrame
    accuracy: pd.DataFrame
    pairs: pd.DataFrame
    equal_latency: pd.DataFrame
    iso_accuracy: pd.DataFrame
    tries: pd.DataFrame
    sensitivity: pd.DataFrame
    protocols: pd.DataFrame
    protocol_models: pd.DataFrame
    systems: pd.DataFrame
    machines: pd.DataFrame

    def csvs(self) -> dict[str, str]:
        """Returns the text of each table's file, by the name of the file."""
        return {f"{name}.csv": csv_text(getattr(self, name)) for name in TABLES}


TABLES = tuple(each.name for each in fields(Report) if each.name not in ("source", "others", "rows"))


def read_report(results: Path, reference: Path | None = None, machine: str | None = None) -> Report:
    """Makes all tables from the folder `results`, and from `reference` if it has nothing; writes nothing.

    Measured rows come from one folder. `reference` gives them only if `results` has none, because seconds of
    two machines share no table. If a folder has rows of several machines, those of `machine` are taken
    (`pibench.store.results.one_machine`). Trained networks come from both folders, because an accuracy does
    not depend on the machine. A row in `results` replaces the reference's row of the same network.
    """
    folders = [results] if reference is None else [results, reference]
    for source in folders:
        every = Store(source / "bench.json").rows()
        rows, others = one_machine(every, machine)
        if rows:
            break
    else:
        raise ResultsError(f"{results / 'bench.json'} has no rows: run `make bench` first.")
    trained = _joined([read_accuracy(folder / "accuracy.json") for folder in folders], ONE_NETWORK)
    accuracy = tabulate_accuracy(trained)
    tries = [tabulate_tries(folder / "tries.json", accuracy) for folder in folders]
    sensitivity = [read_sensitivity(folder / "training", accuracy) for folder in folders]
    summary, layers = summarize(rows, trained), tabulate_layers(rows)
    protocols = tabulate_protocols(summary, layers, rows)
    machines = tabulate_machines(rows, _of_others(rows, every, source, reference))
    return Report(
        source,
        others,
        rows,
        summary,
        layers,
        **tabulate_models(rows),
        accuracy=accuracy,
        pairs=tabulate_pairs(accuracy, rows),
        equal_latency=tabulate_equal_latency(accuracy, rows),
        iso_accuracy=tabulate_iso_accuracy(accuracy, rows),
        tries=_joined(tries, ONE_TRY),
        sensitivity=_joined(sensitivity, ONE_LAYER),
        protocols=protocols,
        protocol_models=tabulate_protocol_models(rows, protocols),
        systems=tabulate_systems(summary, accuracy, machines),
        machines=machines,
    )


def _of_others(rows: list[Row], every: list[Row], source: Path, reference: Path | None) -> list[Row]:
    """Returns what other machines measured: the folder's rows, and those of the reference for its cases."""
    known = {row["case"] for row in rows}
    found = [*every, *read_rows(source / ELSEWHERE)]
    if reference is not None and reference != source:
        beside = [*read_rows(reference / "bench.json"), *read_rows(reference / ELSEWHERE)]
        found += [row for row in beside if row["case"] in known]
    others = {key_of(row): row for row in found if machine_name(row) != machine_name(rows[0])}
    return list(others.values())


def csv_text(frame: pd.DataFrame) -> str:
    """Returns a table as the text of its file."""
    return frame.to_csv(index=False, float_format="%.9g", lineterminator="\n")


def _joined(frames: list[pd.DataFrame | None], key: list[str]) -> pd.DataFrame | None:
    """Returns one table: the lines of the first, then those of the others whose `key` is new."""
    there = [frame for frame in frames if frame is not None and not frame.empty]
    if len(there) < 2:
        return next(iter(there), frames[0])
    return pd.concat(there, ignore_index=True).drop_duplicates(key, ignore_index=True)
