"""The command that draws figures from the tables in results/."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from pibench.figures.drawing import draw_all, read_tables
from pibench.models.commands import Parser
from pibench.paper.write import write_paper
from pibench.store.results import ResultsError


def main(arguments: Sequence[str] | None = None) -> int:
    """Draws every figure whose data exist and names the others."""
    parser = Parser(prog="python -m pibench.figures", description=__doc__.splitlines()[0])
    parser.add_argument("--results", type=Path, default=Path("results"), help="folder of the tables")
    parser.add_argument("--plots", type=Path, default=Path("plots"), help="folder for the figures")
    parser.add_argument(
        "--weights", type=Path, default=Path("models/trained"), help="folder of the trained networks"
    )
    parser.add_argument(
        "--paper",
        action="store_true",
        help="write PDF of one- and two-column widths and LaTeX tables with captions, into PLOTS/paper",
    )
    options = parser.parse_args(arguments)
    try:
        tables = read_tables(options.results, options.weights)
        if options.paper:
            print(write_paper(tables, options.plots / "paper"))
            return 0
        lines = draw_all(tables, options.plots)
    except ResultsError as error:
        print(error, file=sys.stderr)
        return 1
    skipped = [line for line in lines if not line.endswith(": drawn")]
    print("\n".join([*skipped, f"{options.plots}: {len(lines) - len(skipped)} figures"]))
    return 0
