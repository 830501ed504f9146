"""The figure of every reduction: accuracy against online latency on loopback and over the WAN."""

from __future__ import annotations

from typing import Any

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from pibench.figures.data import Missing, Tables
from pibench.figures.style import (
    add_point_labels,
    add_small_print,
    error_bars,
    family_handles,
    family_style,
    is_narrow,
    label_y,
    link_style,
    panels_beside,
    plain_log,
)
from pibench.models import catalogue
from pibench.store.engines import engine_look
from pibench.store.settings import TRAINED_WIDTH, WIDTH

ENGINE = "lean"
SHOWN = ("loopback", "wan")


def systems(tables: Tables) -> Figure:
    """Draws every trained reduction once a link; a line joins those that no other network beats.

    A network that only another machine measured is a hollow point, at the baseline's seconds here divided by
    its speed-up over the baseline there. It takes no part in the line.
    """
    lines = tables.systems
    lines = lines[(lines["engine"] == ENGINE) & lines["accuracy"].notna()]
    measured = lines[lines["speedup_elsewhere"].isna()]
    links = [link for link in SHOWN if (measured["link"] == link).sum() > 1]
    if not links:
        raise Missing(f"it needs measured cases of two trained variants on the engine {ENGINE}")
    figure, panels = panels_beside(len(links), 4.2, 1 if len(links) > 1 else 0.6)
    labelled: list[tuple[Axes, pd.DataFrame]] = []
    for axes, link in zip(panels, links, strict=True):
        points = lines[lines["link"] == link].set_index("variant")
        for variant, point in points[points["speedup_elsewhere"].notna()].iterrows():
            _mark(axes, variant, point, markerfacecolor="white")
        _draw(axes, points[points["speedup_elsewhere"].isna()])
        axes.set(xscale="log", xlabel="online latency, milliseconds")
        axes.set_title(f"{engine_look(ENGINE).label}, {link_style(link)[0]}")
        plain_log(axes.xaxis)
        axes.margins(x=0.1, y=0.06)
        labelled.append((axes, points))
    label_y(panels, f"test accuracy, % (width {TRAINED_WIDTH})")
    shown = lines[lines["link"].isin(links)]
    families = [catalogue.family_name(name) for name in shown["variant"]]
    handles = family_handles(families, linestyle="none")
    handles.append(Line2D([], [], color="0.6", linewidth=0.8, label="beaten by none"))
    figure.legend(
        handles=handles, loc="outside upper center", ncols=2 if is_narrow() else 5, handletextpad=0.3
    )
    placed = shown["speedup_elsewhere"].notna().any()
    hollow = " Hollow: placed by its speed-up over the baseline on another machine." if placed else ""
    add_small_print(
        figure,
        f"Accuracy of networks trained at width {TRAINED_WIDTH} on CIFAR-100; latency of the same structures "
        f"at width {WIDTH}, batch 1, two parties, medians. Horizontal bars: 95 % intervals. The line joins "
        "those of the networks measured here that none of them beats in both, however little. At the points, "
        f"where there is room: the end of the variant's name.{hollow}",
    )
    for axes, points in labelled:
        _label(axes, points)
    return figure


def _draw(axes: Axes, points: pd.DataFrame) -> None:
    times = 1e3 * points[["online_median_s", "online_low_s", "online_high_s"]]
    bars = error_bars(times["online_median_s"], times["online_low_s"], times["online_high_s"])
    for variant, point in points.iterrows():
        _mark(axes, variant, point, xerr=[[bar[variant]] for bar in bars], elinewidth=0.6)
    front, best = [], 0.0
    for variant in times["online_median_s"].sort_values(kind="stable").index:
        accuracy = points.loc[variant, "accuracy"]
        if accuracy > best:
            front.append((times.loc[variant, "online_median_s"], 100 * accuracy))
            best = accuracy
    axes.plot(*zip(*front, strict=True), color="0.6", linewidth=0.8, zorder=1)


def _mark(axes: Axes, variant: str, point: pd.Series, **style: Any) -> None:
    _, colour, marker = family_style(variant)
    size = 8 if marker == "*" else 4.5
    axes.errorbar(
        1e3 * point["online_median_s"],
        100 * point["accuracy"],
        color=colour,
        marker=marker,
        markersize=size,
        linestyle="none",
        zorder=3,
        **style,
    )


def _label(axes: Axes, points: pd.DataFrame) -> None:
    """Writes the end of each name, the share or the number, beside its point."""
    labels, inked = [], []
    for variant, point in points.iterrows():
        at, percent = 1e3 * point["online_median_s"], 100 * point["accuracy"]
        inked.append((at, percent))
        if end := str(variant)[len(catalogue.family_name(str(variant))) + 1 :]:
            labels.append((at, percent, end, family_style(str(variant))[1]))
    add_point_labels(axes, labels, inked)
