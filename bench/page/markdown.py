"""Turns a report's Markdown into HTML that holds only text, tables, lists and emphasis."""

from __future__ import annotations

import re
from functools import cache
from html import escape

from markdown_it import MarkdownIt
from markupsafe import Markup

FIGURE = re.compile(r"^!\[(?P<caption>[^\]\n]*)\]\(plots/(?P<name>\w+)\.svg\)$", re.MULTILINE)
FOLDED = re.compile(r"^(?:<details><summary>(?P<title>.*)</summary>|(?P<end></details>))$", re.MULTILINE)
"""The only tags that reports write, each alone on its line."""


@cache
def _parser() -> MarkdownIt:
    """Returns a parser that passes no tag, link or image on: the content of rows is only text."""
    parser = MarkdownIt("commonmark", {"html": False}).enable("table")
    parser.disable(["image", "autolink", "html_inline", "html_block", "reference"])
    scroll = '<div class="scroll" tabindex="0" role="region" aria-label="table">'
    parser.add_render_rule("table_open", lambda *_: f'{scroll}<table class="sortable">\n')
    parser.add_render_rule("table_close", lambda *_: "</table></div>\n")
    for place in ("link_open", "link_close"):
        parser.add_render_rule(place, lambda *_: "")
    return parser


def figures_of(text: str) -> dict[str, str]:
    """Returns the captions of the figures that a report's Markdown shows, by the figures' names."""
    return {found["name"]: found["caption"] for found in FIGURE.finditer(text)}


def to_html(text: str) -> Markup:
    """Returns the HTML of a report's Markdown; figures are left out, and links become plain words."""
    text = FIGURE.sub("", text)
    made, at = [], 0
    for mark in FOLDED.finditer(text):
        made.append(_parser().render(text[at : mark.start()]))
        at = mark.end()
        if mark["end"]:
            made.append("</details>\n")
        else:
            made.append(f"<details><summary>{escape(mark['title'])}</summary>\n")
    return Markup("".join([*made, _parser().render(text[at:])]))
