"""Writes a paper's figures and tables into one folder."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import matplotlib as mpl

from pibench.figures import drawing
from pibench.figures.data import Missing, Tables
from pibench.figures.drawing import FIGURES, REMEDY, remove, write
from pibench.figures.style import STYLE, WIDTH, Sheet, drawn_on
from pibench.models.files import replace_file, writing
from pibench.paper.tables import escape, latex_tables
from pibench.report.accuracy_section import FIGURES as ACCURACY_FIGURES
from pibench.report.pages import PAGES
from pibench.store.results import ResultsError

SHEETS = {"": Sheet(WIDTH, says_conditions=False), "-column": Sheet(3.3, says_conditions=False)}
"""What a file's name ends with, and the sheet: two columns and one column of a paper."""
IN_A_COLUMN = (
    "latency_vs_relus",
    "linear_vs_relu",
    "offline_online",
    "batch",
    "accuracy_vs_relus",
    "accuracy_full_width",
    "accuracy_vs_macs",
    "accuracy_vs_latency",
    "iso_accuracy",
)
"""The figures that can be read in one column; the others have too many panels."""


def write_paper(tables: Tables, folder: Path) -> str:
    """Writes figures as PDF, `figures.tex` with their captions, and a file a table; says what it wrote."""
    drawn = drawing.on_all_cores(partial(draw, tables=tables, folder=folder), FIGURES)
    floats = [text for each in zip(FIGURES, drawn, strict=True) for text in _floats(*each)]
    made = {f"{name}.tex": text for name, text in latex_tables(tables).items()}
    made["figures.tex"] = "\n".join(floats)
    for name, text in made.items():
        with writing(folder / name, ResultsError, REMEDY):
            replace_file(folder / name, text.encode())
    known = sum(caption is not None for caption in drawn)
    return (
        f"{folder}: {known} figures of {WIDTH:g} in, those of one panel or two of 3.3 in as well, and "
        f"{len(made) - 1} tables; use the packages booktabs and graphicx"
    )


def draw(name: str, tables: Tables, folder: Path) -> str | None:
    """Draws a figure on every sheet that it fits; returns what its small print says, None without data."""
    said = None
    for end, sheet in SHEETS.items():
        if end and name not in IN_A_COLUMN:
            continue
        path = folder / f"{name}{end}.pdf"
        with mpl.rc_context(STYLE), drawn_on(sheet):
            try:
                figure = FIGURES[name](tables)
            except Missing:
                remove(path)
                return None
            write(figure, path)
            said = str(figure.get_label())
    return said


def _floats(name: str, said: str | None) -> list[str]:
    """The LaTeX of a figure, in two columns and, where it fits, in one, as a comment to choose from."""
    if said is None:
        return []
    titles = ACCURACY_FIGURES | {each: text for page in PAGES.values() for each, text in page.figures.items()}
    caption = ". ".join(escape(part) for part in (titles.get(name, ""), said) if part)
    label = f"fig:pibench-{name.replace('_', '-')}"

    def environment(kind: str, file: str, width: str) -> str:
        return (
            f"\\begin{{{kind}}}[t]\n\\centering\n\\includegraphics[width={width}]{{{file}.pdf}}\n"
            f"\\caption{{{caption}}}\n\\label{{{label}}}\n\\end{{{kind}}}\n"
        )

    two = environment("figure*", name, r"\textwidth")
    if name not in IN_A_COLUMN:
        return [two]
    commented = "".join(f"% {line}\n" for line in two.splitlines())
    return [environment("figure", f"{name}-column", r"\columnwidth") + commented]
