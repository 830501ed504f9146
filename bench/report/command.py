"""Tables and pages from a user's own run, or from the reference if there is none: `make report`."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from pibench.models.commands import Parser
from pibench.report.collect import read_report
from pibench.report.comparison import conclusion
from pibench.report.pages import make_pages
from pibench.report.writing import REFERENCE, write_report, write_stale
from pibench.store.results import ResultsError


def main(arguments: Sequence[str] | None = None) -> int:
    """Writes tables and pages beside the run's rows, and prints the short table."""
    parser = Parser(prog="python -m pibench.report", description=__doc__.splitlines()[0])
    parser.add_argument("--results", type=Path, default=Path("results"), help="folder of bench.json")
    parser.add_argument("--plots", type=Path, default=Path("plots"), help="where pages look for figures")
    parser.add_argument("--docs", type=Path, default=Path("docs"), help="where pages look for explanations")
    parser.add_argument("--machine", help="of several whose rows are merged: a part of its name")
    parser.add_argument("--quiet", action="store_true", help="write the files and print no table")
    parser.add_argument(
        "--html",
        nargs="?",
        const="",
        metavar="FILE",
        help="also write one self-contained page with everything (default: report.html in the results)",
    )
    parser.add_argument(
        "--weights", type=Path, default=Path("models/trained"), help="the networks whose masks it shows"
    )
    options = parser.parse_args(arguments)
    results, reference = options.results, options.results / REFERENCE
    try:
        report = read_report(results, reference, options.machine)
        made = {results / name: text for name, text in report.csvs().items()}
        made |= make_pages(report, results / "report", results, options.plots, options.docs)
        said = "" if options.quiet else conclusion(report.rows, reference)
        write_stale(made)
        shown = []
        if options.html is not None:
            from pibench.figures.drawing import read_tables  # the page alone draws figures
            from pibench.page.build import make_page

            page = Path(options.html) if options.html else results / "report.html"
            text = make_page(report, read_tables(results, options.weights))
            write_report(page, text)
            size = len(text.encode()) / 1e6
            shown = [f"{page}: everything on one page, {size:.1f} MB, to open in any browser"]
    except ResultsError as error:
        print(error, file=sys.stderr)
        return 1
    if said:
        print(f"{said}\n")
    why = "" if report.source == results else " (the reference: there is no run of your own yet)"
    written = f"{results}: {len(made)} tables and pages of {report.source / 'bench.json'}{why}"
    print("\n".join([written, *shown]))
    if report.others:
        print(report.others)
    return 0
