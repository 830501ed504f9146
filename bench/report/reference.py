"""Renews the committed results from a user's own run: `make reference`.

The run's rows replace the reference's rows of the same cases, networks, tries and operators. The other rows
of the reference stay. Tables, pages in docs/results/ and the README's sections follow from them.
"""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pibench.models import rows as trained_rows
from pibench.models.catalogue import variant_names
from pibench.models.commands import Parser
from pibench.models.files import replace_file
from pibench.report.collect import Report, read_report
from pibench.report.findings import findings, short_headline
from pibench.report.pages import make_pages
from pibench.report.writing import REFERENCE, find_stale, write_stale
from pibench.store.results import ResultsError, Store, read_rows

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
    except ResultsError as error:
        print(error, file=sys.stderr)
        return 1
    for text in taken:
        print(text)
    if options.check:
        stale = find_stale(made)
        for path in stale:
            print(f"{path} is stale: run `make reference`.", file=sys.stderr)
        return int(bool(stale))
    for path in write_stale(made):
        print(f"{path}: written")
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
        text = path.read_text(encoding="utf-8")
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
    measured = read_rows(own / "bench.json")
    trained = {
        path: (read(path), read(reference / path.name))
        for path, read in (
            (own / "accuracy.json", trained_rows.read_rows),
            (own / "tries.json", trained_rows.read_tries),
        )
    }
    operators, manifest = _read_json(own / "operators.json"), _read_json(own / "weights" / "manifest.json")
    known_operators, known_manifest = (
        _read_json(reference / "operators.json") or operators,
        _read_json(project.weights / "manifest.json") or {},
    )
    said = []
    if measured:
        for row in measured:
            row.pop("host", None)  # a computer's name says nothing to others
        Store(reference / "bench.json").renew(measured)
        said.append(f"{len(measured)} cases of {own / 'bench.json'}")
    for path, (fresh, old) in trained.items():
        if fresh:
            merged = sorted(_merged(old, fresh, trained_rows.row_key), key=_place)
            replace_file(reference / path.name, (json.dumps(merged, indent=1) + "\n").encode())
            said.append(f"{len(fresh)} networks of {path}")
    if operators:
        rows = _merged(known_operators["rows"], operators["rows"], _operator)
        text = json.dumps(known_operators | {"rows": rows}, indent=1) + "\n"
        replace_file(reference / "operators.json", text.encode())
        said.append(f"{len(operators['rows'])} rows of {own / 'operators.json'}")
    if (own / "training").exists():
        shutil.copytree(own / "training", reference / "training", dirs_exist_ok=True)
    if manifest:
        for name in manifest:
            replace_file(project.weights / name, (own / "weights" / name).read_bytes())
        text = json.dumps(known_manifest | manifest, indent=2, sort_keys=True) + "\n"
        replace_file(project.weights / "manifest.json", text.encode())
        said.append(f"weights of {len(manifest)} networks of {own / 'weights'}")
    return said


def _merged(old: Sequence[dict], fresh: Sequence[dict], key: Any) -> list[dict]:
    """Returns the old rows, replaced by the fresh ones with the same key; new ones come last."""
    rows = {key(row): row for row in old}
    return list((rows | {key(row): row for row in fresh}).values())


def _operator(row: Mapping[str, Any]) -> tuple:
    return row["name"], row["engine"]


def _place(row: Mapping[str, Any]) -> tuple:
    """Returns the place of a trained network's row in its file: by width, catalogue, then seed."""
    names = variant_names()
    place = names.index(row["variant"]) if row["variant"] in names else len(names)
    return row["width"], place, *trained_rows.row_key(row)[2:]


def _read_json(path: Path) -> Any:
    """Reads a JSON file; returns None if there is none. Raises ResultsError when it is not JSON."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise ResultsError(f"{path} cannot be read ({error}): move it away, nothing was renewed.") from error


if __name__ == "__main__":
    sys.exit(main())
