"""Common looks of all figures: colours, markers, captions, axes."""

from __future__ import annotations

import textwrap
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

import matplotlib as mpl
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter, NullLocator
from matplotlib.transforms import Bbox

from pibench.models import catalogue

STYLE = {
    "font.family": "sans-serif",
    "font.sans-serif": ["DejaVu Sans", "Arial", "Helvetica"],
    "font.size": 7.5,
    "axes.titlesize": 8,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.labelsize": 7.5,
    "axes.linewidth": 0.6,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "axes.grid": True,
    "grid.color": "0.88",
    "grid.linewidth": 0.5,
    "xtick.labelsize": 7,
    "ytick.labelsize": 7,
    "xtick.major.width": 0.6,
    "ytick.major.width": 0.6,
    "legend.fontsize": 7,
    "legend.frameon": False,
    "hatch.linewidth": 0.5,
    "lines.linewidth": 1.1,
    "lines.markersize": 4.5,
    "svg.fonttype": "none",
    "svg.hashsalt": "pibench",
    "pdf.fonttype": 42,
}
WIDTH = 7.0  # inches: two columns of a paper
BLACK, ORANGE, SKY, GREEN, YELLOW, BLUE, VERMILLION, PURPLE = (
    "#000000",
    "#E69F00",
    "#56B4E9",
    "#009E73",
    "#F0E442",
    "#0072B2",
    "#D55E00",
    "#CC79A7",
)
CLASSES = {  # class: (its name in figures, colour, hatch)
    "linear": ("linear", BLUE, ""),
    "relu": ("ReLU", ORANGE, "////"),
    "other": ("other", "#FFFFFF", "....."),
}
LINKS = {  # link or channel: (its name in figures, colour, marker)
    "lan": ("LAN", BLUE, "o"),
    "wan": ("WAN", VERMILLION, "s"),
    "wan-slow": ("slow WAN", PURPLE, "D"),
    "garimella": ("Garimella et al.", GREEN, "^"),
}
PLAINTEXT = ("plaintext, float32", "0.35")
"""The name and the colour of the network itself, without privacy."""
NAMED = 12
"""So many noisy cases are named below a figure; more are counted."""
BAND = {"facecolor": "0.85", "edgecolor": "none", "zorder": 0}


@dataclass(frozen=True)
class Sheet:
    """The place of a figure: its width in inches, and whether the figure says its conditions itself.

    In a paper the caption says them. On a narrow sheet panels stand below each other.
    """

    width: float = WIDTH
    says_conditions: bool = True

    @property
    def narrow(self) -> bool:
        """True if this is one column of a paper."""
        return self.width < 0.6 * WIDTH


PAGE = Sheet()
_SHEET: ContextVar[Sheet] = ContextVar("sheet", default=PAGE)


@contextmanager
def drawn_on(sheet: Sheet) -> Iterator[None]:
    """Draws the figures of a block on another sheet than that of the pages."""
    before = _SHEET.set(sheet)
    try:
        yield
    finally:
        _SHEET.reset(before)


def one_panel(share: float, height: float) -> tuple[Figure, Axes]:
    """Returns a figure of one panel, of a share of the page's width; in a column it is lower."""
    sheet = _SHEET.get()
    size = (sheet.width, 0.85 * height) if sheet.narrow else (WIDTH * share, height)
    figure = Figure(figsize=size, layout="constrained")
    return figure, figure.subplots()


def panels_beside(count: int, height: float, share: float = 1.0) -> tuple[Figure, Sequence[Axes]]:
    """Returns a figure of panels with one y axis, beside each other; in a column below each other."""
    sheet = _SHEET.get()
    if sheet.narrow:
        figure = Figure(figsize=(sheet.width, 0.5 + (height - 0.5) * count), layout="constrained")
        return figure, figure.subplots(count, 1, sharey=True, squeeze=False)[:, 0]
    figure = Figure(figsize=(WIDTH * share, height), layout="constrained")
    return figure, figure.subplots(1, count, sharey=True, squeeze=False)[0]


def is_narrow() -> bool:
    """Tells whether the figure that is being drawn will stand in one column of a paper."""
    return _SHEET.get().narrow


def label_y(panels: Sequence[Axes], text: str) -> None:
    """Names the common y axis at the panels that stand leftmost."""
    for axes in panels if is_narrow() else panels[:1]:
        axes.set_ylabel(text)


def family_style(variant: str) -> tuple[str, str, str]:
    """Returns name in figures, colour and marker of a variant's family; an unknown family is grey."""
    name = catalogue.family_name(variant)
    family = catalogue.families().get(name)
    return (name, "0.4", "v") if family is None else (family.label, family.colour, family.marker)


def family_handles(present: Iterable[str], **look: Any) -> list[Line2D]:
    """Returns a legend's entries of some families, in the catalogue's order, unknown ones last."""
    known, handles = catalogue.families(), []
    for family in [*known, *sorted(set(present) - set(known))]:
        if family in set(present):
            name, colour, marker = family_style(family)
            size = 8 if marker == "*" else 4.5
            handles.append(Line2D([], [], color=colour, marker=marker, markersize=size, label=name, **look))
    return handles


def link_style(link: str) -> tuple[str, str, str]:
    """Returns a link's name in figures, colour and marker; an unknown link is grey."""
    return LINKS.get(link, (link, "0.4", "v"))


def short_number(value: float) -> str:
    """Writes three significant digits without exponent."""
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:#.3g}".rstrip(".")


def plain_log(axis: mpl.axis.Axis, scale: float = 1.0) -> None:
    """Puts ticks at 1, 2 and 5 of each decade, written as plain numbers in units of `scale`."""
    axis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value / scale:g}"))
    axis.set_minor_locator(NullLocator())
    axis.set_minor_formatter(NullFormatter())


def category_axis(axes: Axes, names: Sequence[str]) -> None:
    """Puts names from top to bottom, without a grid over the bars."""
    axes.set_yticks(range(len(names)), names)
    axes.set_ylim(len(names) - 0.4, -0.6)
    for panel in axes.figure.axes:
        if panel.get_shared_y_axes().joined(axes, panel):
            panel.grid(visible=False, axis="y")
            panel.tick_params(axis="y", length=0)


def add_legend(
    figure: Figure, styles: dict[str, tuple[str, str, str]], more: Sequence[Line2D | Patch] = ()
) -> None:
    """Puts one row of patches, and the entries of `more`, above the axes; two rows if there are many."""
    handles = [
        Patch(facecolor=colour, hatch=hatch, edgecolor="black", linewidth=0.4, label=label)
        for label, colour, hatch in styles.values()
    ]
    handles += more
    columns = len(handles) if len(handles) < 6 else -(-len(handles) // 2)
    figure.legend(handles=handles, loc="outside upper right", ncols=columns, handlelength=1.8)


def stack_bars(axes: Axes, table: pd.DataFrame, styles: dict[str, tuple[str, str, str]]) -> None:
    """Draws stacked bars, one for each line of `table`; negative parts grow to the left of zero."""
    rows = range(len(table))
    right, left = pd.Series(0.0, table.index), pd.Series(0.0, table.index)
    for name, (_, colour, hatch) in styles.items():
        values = table[name].fillna(0.0)
        start = right.where(values >= 0, left)
        axes.barh(rows, values, 0.7, left=start, color=colour, hatch=hatch, edgecolor="black", linewidth=0.4)
        right, left = right + values.clip(lower=0), left + values.clip(upper=0)


def error_bars(middle: pd.Series, low: pd.Series, high: pd.Series) -> list[pd.Series]:
    """Returns lengths of error bars; rounded tables could give negative ones, which become zero."""
    return [(middle - low).clip(lower=0), (high - middle).clip(lower=0)]


def add_note(axes: Axes, x: float, y: float, text: str, space: float = 3) -> None:
    """Writes small text at the end of a bar, over the grid."""
    axes.annotate(
        text,
        (x, y),
        xytext=(space, 0),
        textcoords="offset points",
        va="center",
        fontsize=6.5,
        bbox={"facecolor": "white", "edgecolor": "none", "pad": 0.4},
    )


def add_caption(
    figure: Figure, cases: pd.DataFrame, text: str, rounds: bool = True, batches: bool = False
) -> None:
    """Writes conditions and machine in small text below the axes."""
    first = cases.iloc[0]
    names = list(dict.fromkeys(cases["link"]))
    counts = sorted(cases["repetitions_succeeded"].dropna().astype(int).unique())
    conditions = [f"Width {first['width']}"]
    if not batches:
        conditions.append(f"batch {first['batch']}")
    parties = " or ".join(str(each) for each in sorted(cases["parties"].unique()))
    conditions += [f"{parties} parties", ", ".join(link_style(name)[0] for name in names)]
    if rounds and counts:
        several = f"{counts[0]} to {counts[-1]}" if len(counts) > 1 else f"{counts[0]}"
        conditions.append(f"medians of {several} repetition{'s' if counts[-1] > 1 else ''}")
        judged = [name for name in ("online_noisy", "all_phases_noisy") if name in cases]
        noisy = cases[(cases[judged].astype(str) == "True").any(axis=1)]
        if not noisy.empty:
            names = ", ".join(noisy["engine"] + " " + noisy["variant"])
            if len(noisy) > NAMED:
                names = f"{len(noisy)} of {len(cases)} cases"
            text += f" Noisy (IQR over 10 % of the median): {names}."
    machines = [
        f"{cpu}, {int(cores) if not pd.isna(cores) else 'unknown'} cores"
        for cpu, cores in cases[["cpu", "cores"]].drop_duplicates().itertuples(index=False)
    ]
    commits = [str(commit)[:10] for commit in cases["commit"].dropna().unique()]
    dirty = " with uncommitted changes" if (cases["dirty"].astype(str) == "True").any() else ""
    parts = [
        f"{', '.join(conditions)}. {' and '.join(machines)}; commit {', '.join(commits) or 'unknown'}{dirty}."
    ]
    add_small_print(figure, " ".join([text, *parts]))


def add_small_print(figure: Figure, text: str) -> None:
    """Writes text below the axes, unless a paper's caption says it; keeps it as the figure's label."""
    figure.set_label(text)
    if not _SHEET.get().says_conditions:
        return
    lines = textwrap.wrap(text, int(figure.get_figwidth() * 20))
    figure.supxlabel("\n".join(lines), x=0.01, ha="left", fontsize=6, color="0.3")


def add_point_labels(
    axes: Axes, labels: Sequence[tuple[float, float, str, str]], points: Sequence[tuple[float, float]]
) -> None:
    """Writes (x, y, text, colour) beside points of a finished figure, where no label or point is in the way.

    Call it last: labels are placed in the final layout. One without a free place near its point is left out.
    """
    figure = axes.figure
    figure.draw_without_rendering()
    scale = 72 / figure.dpi
    frame = axes.get_window_extent()
    size = 6.0
    taken = [
        Bbox.from_bounds(x - 2.5, y - 2.5, 5, 5) for x, y in scale * axes.transData.transform(list(points))
    ]
    inside = Bbox(scale * frame.get_points())
    for x, y, text, colour in labels:
        at = scale * axes.transData.transform((x, y))
        box = (0.62 * size * len(text) + 2, 1.15 * size)
        places = [
            Bbox.from_bounds(
                at[0] + away * dx + (dx - 1) * box[0] / 2, at[1] + away * dy + (dy - 1) * box[1] / 2, *box
            )
            for away in (5, 9, 13, 18, 24)
            for dx, dy in ((1, 0), (-1, 0), (0, 1), (0, -1), (1, 1), (-1, 1), (1, -1), (-1, -1))
        ]
        free = (
            each
            for each in places
            if not any(each.overlaps(other) for other in taken)
            and inside.x0 <= each.x0
            and each.x1 <= inside.x1
            and inside.y0 <= each.y0
            and each.y1 <= inside.y1
        )
        place = next(free, None)
        if place is None:
            continue
        taken.append(place)
        middle = ((place.x0 + place.x1) / 2 - at[0], (place.y0 + place.y1) / 2 - at[1])
        label = axes.annotate(
            text,
            (x, y),
            xytext=middle,
            textcoords="offset points",
            ha="center",
            va="center_baseline",
            fontsize=size,
            color=colour,
        )
        label.set_in_layout(False)
