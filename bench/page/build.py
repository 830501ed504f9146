"""Makes the page: figures drawn and embedded, text escaped, one template filled."""

from __future__ import annotations

import base64
from importlib.resources import files
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from pibench.figures.data import Tables
from pibench.figures.drawing import draw_all
from pibench.figures.style import CLASSES
from pibench.page import content
from pibench.page.markdown import figures_of, to_html
from pibench.report.collect import Report
from pibench.report.pages import PAGES
from pibench.report.provenance import conventions_list, provenance_lines

MORE_FIGURES = {
    "accuracy": {
        "sensitivity": "Accuracy that each ReLU layer is worth",
        "masks": "Where trained networks keep their ReLUs",
    }
}
"""Figures that no page of the report shows, by section: captions by name."""


def make_page(report: Report, tables: Tables) -> str:
    """Returns the page of a report as HTML that needs no other file or server.

    `tables` are the input of the figures: the report's tables after their way through CSV, and masks.
    """
    drawn = draw_figures(tables)
    sections = []
    for name, page in PAGES.items():
        text = page.tables(report)
        captions = figures_of(text) | page.figures | MORE_FIGURES.get(name, {})
        shown = {figure: caption for figure, caption in captions.items() if figure in drawn}
        sections.append(
            {
                "name": name,
                "title": page.title,
                "introduction": to_html(page.introduction),
                "text": to_html(text),
                "figures": [(drawn[figure], caption) for figure, caption in shown.items()],
            }
        )
    return fill(
        sections=sections,
        headline=content.headline(report.summary),
        profiled=next((best["variant"] for best in content.fastest(report.summary).values()), ""),
        facts=content.facts(report.summary),
        verdicts=[to_html(text) for text in content.verdicts(report)],
        findings=to_html(content.said_findings(report)),
        provenance=to_html("\n\n".join(provenance_lines(report.summary, "Run"))),
        conventions=to_html(conventions_list(report.rows)),
        machines=content.machines(report.summary),
        tables=content.tables(report),
        classes={name: {"label": look[0], "colour": look[1]} for name, look in CLASSES.items()},
    )


def draw_figures(tables: Tables) -> dict[str, str]:
    """Draws every figure whose data exist; returns each as a `data:` address by its name."""
    with TemporaryDirectory() as folder:
        draw_all(tables, Path(folder), (".svg",))
        return {path.stem: _address(path.read_bytes()) for path in sorted(Path(folder).glob("*.svg"))}


def _address(svg: bytes) -> str:
    return "data:image/svg+xml;base64," + base64.b64encode(svg).decode()


def fill(**values: Any) -> str:
    """Fills the template; every value is escaped except the Markup of `to_html`."""
    environment = Environment(
        loader=PackageLoader("pibench.page", "."),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    here = files("pibench.page")
    inlined = {
        name: Markup((here / file).read_text(encoding="utf-8"))
        for name, file in {"style": "page.css", "script": "page.js"}.items()
    }
    return environment.get_template("page.html").render(**inlined, **values)
