"""Tables from measured rows: results/bench.json -> the CSV files beside it and the README's tables."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path

import pandas as pd

from pibench.models.files import replace_file
from pibench.report.accuracy import read_accuracy, tabulate_accuracy
from pibench.report.accuracy_section import accuracy_section
from pibench.report.engines import engines_section
from pibench.report.equal_latency import tabulate_equal_latency
from pibench.report.headline import headline_section
from pibench.report.links import links_section
from pibench.report.models import models_section, tabulate_models
from pibench.report.pairs import tabulate_pairs
from pibench.report.sensitivity import read_sensitivity
from pibench.report.tables import summarize, tabulate_layers
from pibench.report.tries import tabulate_tries
from pibench.store.results import ResultsError, Row, Store


@dataclass(frozen=True)
class Report:
    """Rows and the tables that follow from them."""

    rows: list[Row]
    summary: pd.DataFrame
    layers: pd.DataFrame
    modelled: pd.DataFrame
    break_even: pd.DataFrame
    accuracy: pd.DataFrame
    pairs: pd.DataFrame
    equal_latency: pd.DataFrame
    tries: pd.DataFrame
    sensitivity: pd.DataFrame

    def csvs(self) -> dict[str, str]:
        """Returns the text of each table's file, by its name."""
        return {f"{name}.csv": csv_text(getattr(self, name)) for name in TABLES}

    def readme(self, path: Path) -> str:
        """The README at `path` with its sections made anew."""
        try:
            text = path.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise ResultsError(f"{path} cannot be read ({error}): name the file with --readme.") from error
        sections = {
            "headline": headline_section(self.rows, self.summary),
            "accuracy": accuracy_section(
                self.accuracy, self.pairs, self.equal_latency, self.tries, self.rows
            ),
            "engines": engines_section(self.summary),
            "links": links_section(self.summary),
            "models": models_section(self.modelled, self.break_even),
        }
        for section, content in sections.items():
            text = replace_section(text, section, content)
        return text


TABLES = tuple(each.name for each in fields(Report) if each.name != "rows")


def read_report(results: Path) -> Report:
    """Makes every table from the rows in the folder `results`; writes nothing."""
    rows = Store(results / "bench.json").rows()
    if not rows:
        raise ResultsError(f"{results / 'bench.json'} has no rows: run `make bench` first.")
    trained = read_accuracy(results / "accuracy.json")
    accuracy = tabulate_accuracy(trained)
    return Report(
        rows,
        summarize(rows, trained),
        tabulate_layers(rows),
        **tabulate_models(rows),
        accuracy=accuracy,
        pairs=tabulate_pairs(accuracy, rows),
        equal_latency=tabulate_equal_latency(accuracy, rows),
        tries=tabulate_tries(results / "tries.json", accuracy),
        sensitivity=read_sensitivity(results / "training", accuracy),
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


def csv_text(frame: pd.DataFrame) -> str:
    """Returns a table as the text of its file."""
    return frame.to_csv(index=False, float_format="%.9g", lineterminator="\n")


def main(arguments: Sequence[str] | None = None) -> int:
    """Writes the tables, or with --check says which of them are stale."""
    parser = argparse.ArgumentParser(prog="python -m pibench.report", description=__doc__.splitlines()[0])
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
