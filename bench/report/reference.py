"""Renews the committed results from a user's own run: `make reference`.

The run's rows replace the reference's rows of the same cases, networks, tries and operators. The other rows
of the reference stay. Tables, pages in docs/results/ and the README's sections follow from them.

Seconds of two machines share no table. Cases of another machine than the reference's therefore stand beside
it, in elsewhere.json, until those of that machine, of one run or of several, are all cases of the reference.
Then they take its place. A case of another machine leaves when the reference has the same case anew and its
network then has other counts.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pibench.models import rows as trained_rows
from pibench.models.catalogue import variant_names
from pibench.models.commands import Parser
from pibench.models.files import changing, read_file, replace_file, writing
from pibench.models.manifest import WeightsError, read_listed, read_manifest, replace_listed
from pibench.report.collect import Report, read_report
from pibench.report.findings import findings, short_headline
from pibench.report.machines import ELSEWHERE
from pibench.report.pages import make_pages
from pibench.report.writing import REFERENCE, REMEDY, find_stale, write_stale
from pibench.store.operators import put_operators, read_operators
from pibench.store.results import ResultsError, Row, Store, machine_name, read_rows

SECTIONS = {"headline": short_headline, "findings": findings}
"""The README's sections by the name of their markers."""


@dataclass(frozen=True)
class Project:
    """The folder of a checkout, and its committed results."""

    top: Path

    @property
    def results(self) -> Path:
        """The folder of the user's own run."""
        return self.top / "results"

    @property
    def reference(self) -> Path:
        """The folder of the committed rows."""
        return self.results / REFERENCE

    @property
    def weights(self) -> Path:
        """The folder of the committed weights."""
        return self.top / "models" / "trained"

    @property
    def readme(self) -> Path:
        """The README, with the markers of its sections."""
        return self.top / "README.md"


def main(arguments: Sequence[str] | None = None) -> int:
    """Takes the run's rows and writes all that follows; with --check lists the stale files."""
    parser = Parser(prog="python -m pibench.report.reference", description=__doc__.splitlines()[0])
    parser.add_argument("--top", type=Path, default=Path(), help="folder of the checkout (default: this one)")
    parser.add_argument("--check", action="store_true", help="write nothing; exit 1 when a file is stale")
    options = parser.parse_args(arguments)
    project = Project(options.top)
    try:
        taken = [] if options.check else take_over(project)
        made = make_reference(project)
        stale = find_stale(made) if options.check else write_stale(made)
    except ResultsError as error:
        print(error, file=sys.stderr)
        return 1
    if options.check:
        for path in stale:
            print(f"{path} is stale: run `make reference`.", file=sys.stderr)
        return int(bool(stale))
    for text in (*taken, *(f"{path}: written" for path in stale)):
        print(text)
    return 0


def make_reference(project: Project) -> dict[Path, str]:
    """Returns the text of every committed file that follows from the reference's rows, by its path."""
    report = read_report(project.reference)
    made = {project.reference / name: text for name, text in report.csvs().items()}
    docs = project.top / "docs"
    plots = project.top / "plots" / REFERENCE
    made |= make_pages(report, docs / "results", Path("results") / REFERENCE, plots, docs)
    made[project.readme] = renew_readme(project.readme, report)
    return made


def renew_readme(path: Path, report: Report) -> str:
    """Returns the README at `path` with new sections.

    Raises ResultsError when it is unreadable or unmarked.
    """
    try:
        text = read_file(path).decode()
    except (OSError, UnicodeDecodeError) as error:
        raise ResultsError(f"{path} cannot be read ({error}): restore it from git.") from error
    for section, make in SECTIONS.items():
        text = replace_section(text, section, make(report))
    return text


def replace_section(text: str, section: str, content: str) -> str:
    """Puts `content` between the markers `<!-- section:begin -->` and `<!-- section:end -->`."""
    begin, end = f"<!-- {section}:begin -->", f"<!-- {section}:end -->"
    if text.count(begin) != 1 or text.count(end) != 1 or text.index(begin) > text.index(end):
        raise ResultsError(
            f"The README needs the line {begin} and after it the line {end}, once each: "
            f"put them where the section `{section}` belongs."
        )
    head, _, rest = text.partition(begin)
    _, _, tail = rest.partition(end)
    return f"{head}{begin}\n\n{content}\n\n{end}{tail}"


def take_over(project: Project) -> list[str]:
    """Puts the run's rows, training logs and weights into the reference; returns lines that list them.

    Everything is read before anything is written, so that an unreadable file changes nothing.
    """
    own, reference = project.results, project.reference
    readers = {"accuracy.json": trained_rows.read_rows, "tries.json": trained_rows.read_tries}
    try:
        measured, operators = read_rows(own / "bench.json"), read_operators(own / "operators.json")
        read_operators(reference / "operators.json")
        old = read_rows(reference / "bench.json")
        read_rows(reference / ELSEWHERE)
        trained = {name: read(own / name) for name, read in readers.items()}
        for name, read in readers.items():
            read(reference / name)
        listed = read_manifest(own / "weights")
        weights = {name: read_listed(own / "weights" / name) for name in listed}
        read_manifest(project.weights)
    except (ResultsError, WeightsError) as error:
        raise ResultsError(f"{str(error).rstrip('.')}; nothing was renewed.") from error
    said = []
    if measured:
        for row in measured:
            row.pop("host", None)  # a computer's name says nothing to others
        said += _take_cases(reference, old, measured)
    for name, fresh in trained.items():
        if fresh:
            _renew_trained(reference / name, readers[name], fresh)
            said.append(f"{len(fresh)} networks of {own / name}")
    if operators:
        put_operators(reference / "operators.json", operators)
        said.append(f"{len(operators)} rows of {own / 'operators.json'}")
    for path in sorted((own / "training").rglob("*")):
        if path.is_file():
            with writing(reference, ResultsError, REMEDY):
                replace_file(reference / path.relative_to(own), read_file(path))
    for name, content in weights.items():
        with writing(project.weights / name, ResultsError, REMEDY):
            replace_listed(
                project.weights / name, content, listed[name]["classes"], listed[name]["image_size"]
            )
    if weights:
        said.append(f"weights of {len(weights)} networks of {own / 'weights'}")
    return said


def _take_cases(reference: Path, old: Sequence[Row], measured: Sequence[Row]) -> list[str]:
    """Puts cases into the reference, or beside it where they are of another machine; returns what it did."""
    by_machine: dict[str, list[Row]] = {}
    for row in measured:
        by_machine.setdefault(machine_name(row), []).append(row)
    cases, said = {row["case"] for row in old}, []
    known = {machine_name(row) for row in old}
    bench, beside = Store(reference / "bench.json"), Store(reference / ELSEWHERE)
    for machine, rows in by_machine.items():
        earlier = [row for row in beside.rows() if machine_name(row) == machine]
        every = {row["case"]: row for row in (*earlier, *rows)}
        if machine in known or cases <= set(every):
            bench.renew(every.values())
            beside.drop(lambda row, gone=machine: machine_name(row) == gone)
            said.append(f"{len(every)} cases of {machine}")
            now = {row["case"]: row["cost"] for row in every.values()}
            former = beside.drop(lambda row, now=now: row["cost"] != now.get(row["case"], row["cost"]))
            if former:
                said.append(f"{former} cases of other machines leave: their networks had other counts")
        else:
            beside.merge(rows)
            said.append(
                f"{len(rows)} cases of {machine}, which stand beside the reference's "
                f"({', '.join(sorted(known))}): together with earlier ones {len(cases & set(every))} of its "
                f"{len(cases)}"
            )
    return said


def _renew_trained(path: Path, read: Callable[[Path], list[Any]], fresh: Sequence[Any]) -> None:
    """Puts rows of networks or tries into a file of the reference."""
    with writing(path, ResultsError, REMEDY), changing(path):
        merged = sorted(_merged(read(path), fresh, trained_rows.row_key), key=_place)
        replace_file(path, (json.dumps(merged, indent=1) + "\n").encode())


def _merged(old: Sequence[dict], fresh: Sequence[dict], key: Any) -> list[dict]:
    """Returns the old rows, replaced by the fresh ones with the same key; new ones come last."""
    rows = {key(row): row for row in old}
    return list((rows | {key(row): row for row in fresh}).values())


def _place(row: Mapping[str, Any]) -> tuple:
    """Returns the place of a trained network's row in its file: by width, catalogue, then seed."""
    names = variant_names()
    place = names.index(row["variant"]) if row["variant"] in names else len(names)
    return row["width"], place, *trained_rows.row_key(row)[2:]


if __name__ == "__main__":
    sys.exit(main())
