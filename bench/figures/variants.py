"""Figures of whole variants: latency, ReLUs, MACs, offline and online, batches."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator, NullLocator

from pibench.figures.data import (
    Missing,
    Tables,
    cases_like,
    class_seconds,
    engines_of,
    headline_cases,
    measured_cases,
    plaintext_seconds,
    whole_percents,
)
from pibench.figures.style import (
    BAND,
    CLASSES,
    ORANGE,
    PLAINTEXT,
    SKY,
    VERMILLION,
    WIDTH,
    add_caption,
    add_legend,
    add_note,
    category_axis,
    error_bars,
    family_handles,
    family_style,
    is_narrow,
    one_panel,
    panels_beside,
    plain_log,
    short_number,
    stack_bars,
)
from pibench.models.catalogue import family_name
from pibench.store.engines import engine_look

PHASES = {"offline": ("offline", SKY, "\\\\\\\\"), "online": ("online", VERMILLION, "")}


def latency_vs_relus(tables: Tables) -> Figure:
    """Draws online seconds with their 95 % intervals against ReLUs, one line a family and engine."""
    cases = headline_cases(tables.summary)
    if cases["variant"].nunique() < 2:
        raise Missing("it needs at least two variants in the role headline")
    figure, axes = one_panel(0.72, 4.0)
    for engine in engines_of(cases):
        of_engine = cases[cases["engine"] == engine]
        for family, group in of_engine.groupby(of_engine["variant"].map(family_name), sort=False):
            _, colour, marker = family_style(family)
            group = group.sort_values("relus")
            median = group["online_median_s"]
            axes.errorbar(
                group["relus"],
                median,
                yerr=error_bars(median, group["online_low_s"], group["online_high_s"]),
                color=colour,
                linestyle=engine_look(engine).line,
                marker=marker,
                markersize=8 if marker == "*" else 4.5,
                markerfacecolor=colour if engine_look(engine).filled else "white",
                elinewidth=0.8,
                capsize=2,
            )
    _draw_plaintext(axes, cases)
    axes.set(xscale="log", yscale="log")
    axes.set_xlabel("ReLUs evaluated per image, thousands")
    axes.set_ylabel("online latency, seconds")
    axes.margins(x=0.08, y=0.1)
    plain_log(axes.xaxis, 1e3)
    _add_legend_of_lines(figure, cases)
    plain_log(axes.yaxis)
    add_caption(
        figure,
        cases,
        "Bars: 95 % intervals, where wider than the marker.",
    )
    return figure


def linear_vs_relu(tables: Tables) -> Figure:
    """Draws stacked seconds of linear layers, ReLUs and the rest of each variant, with their shares."""
    cases = headline_cases(tables.summary)
    seconds = class_seconds(cases, tables.layers)
    engines = engines_of(cases)
    variants = list(dict.fromkeys(cases["variant"]))
    figure, panels = panels_beside(len(engines), 1.1 + 0.2 * len(variants))
    for axes, engine in zip(panels, engines, strict=True):
        of_engine = cases[cases["engine"] == engine].set_index("variant")["case"].reindex(variants)
        table = seconds.reindex(of_engine).set_axis(variants)
        stack_bars(axes, table, CLASSES)
        for place, variant in enumerate(variants):
            total = table.loc[variant].sum()
            if total > 0:
                shares = whole_percents(table.loc[variant])
                add_note(axes, total, place, " · ".join(str(share) for share in shares) + " %")
        axes.set_title(engine_look(engine).label)
        axes.set_xlabel("seconds of a profiled inference")
        axes.xaxis.set_major_locator(MaxNLocator(6, steps=[1, 2, 5, 10]))
        axes.margins(x=0.34)
        axes.set_xlim(left=0)
    category_axis(panels[0], variants)
    add_legend(figure, CLASSES)
    add_caption(
        figure,
        cases,
        "Beside the bars: shares of linear · ReLU · other. Profiled apart from the timed repetitions. "
        "The panels' scales differ.",
        rounds=False,
    )
    return figure


def relus_macs_latency(tables: Tables) -> Figure:
    """Draws ReLUs, MACs and latency of each variant side by side, relative to the baseline."""
    cases = headline_cases(tables.summary)
    variants = list(dict.fromkeys(cases["variant"]))
    if "baseline" not in variants or len(variants) < 2:
        raise Missing("it needs the baseline and at least one other variant in the role headline")
    known = cases.drop_duplicates("variant").set_index("variant")
    columns = [
        ("ReLUs, thousands", known["relus"] / 1e3, "0.55", ""),
        ("MACs, millions", known["macs"] / 1e6, SKY, "\\\\\\\\"),
    ]
    for engine in engines_of(cases):
        times = cases[cases["engine"] == engine].set_index("variant")["online_median_s"] * 1e3
        colour, hatch = (VERMILLION, "") if engine_look(engine).filled else (ORANGE, "////")
        columns.append((f"online, {engine}, ms", times, colour, hatch))
    plain = plaintext_seconds(cases)
    if "baseline" in plain:
        columns.append(("plaintext, ms", 1e3 * plain.droplevel("batch"), "white", ""))
    figure = Figure(figsize=(WIDTH, 1.0 + 0.2 * len(variants)), layout="constrained")
    panels = figure.subplots(1, len(columns), sharey=True)
    for axes, (title, values, colour, hatch) in zip(panels, columns, strict=True):
        values = values.reindex(variants)
        relative = 100 * values / values["baseline"]
        axes.barh(
            range(len(variants)), relative, 0.7, color=colour, hatch=hatch, edgecolor="black", linewidth=0.4
        )
        for place, variant in enumerate(variants):
            if not pd.isna(values[variant]):
                add_note(axes, relative[variant], place, short_number(values[variant]))
        axes.axvline(100, color="black", linewidth=0.6, linestyle=":")
        axes.set_title(",\n".join(title.rsplit(", ", 1)))  # the unit has a line of its own
        axes.set_xlabel("% of baseline")
        axes.set_xlim(0, 1.32 * max(100, relative.max()))
        axes.set_xticks([0, 50, 100])
    category_axis(panels[0], variants)
    add_caption(figure, cases, "Numbers: absolute values.")
    return figure


def offline_online(tables: Tables) -> Figure:
    """Draws offline and online seconds of each variant, stacked, for each engine."""
    cases = headline_cases(tables.summary).dropna(subset=["offline_median_s", "online_median_s"])
    if cases.empty:
        raise Missing("it needs cases in the role headline with an offline phase of their own")
    engines = engines_of(cases)
    variants = list(dict.fromkeys(cases["variant"]))
    figure, panels = panels_beside(len(engines), 1.1 + 0.2 * len(variants))
    for axes, engine in zip(panels, engines, strict=True):
        table = cases[cases["engine"] == engine].set_index("variant").reindex(variants)
        stack_bars(
            axes, table[["offline_median_s", "online_median_s"]].set_axis(list(PHASES), axis=1), PHASES
        )
        for place, variant in enumerate(variants):
            total = table.loc[variant, "total_median_s"]
            if not pd.isna(total):
                end = table.loc[variant, ["offline_median_s", "online_median_s"]].sum()
                add_note(axes, end, place, short_number(total))
        axes.set_title(engine_look(engine).label)
        axes.set_xlabel("seconds")
        axes.margins(x=0.16)
        axes.set_xlim(left=0)
    category_axis(panels[0], variants)
    add_legend(figure, PHASES, _mark_plaintext(panels, cases, variants))
    add_caption(figure, cases, "Beside the bars: median of offline + online. The panels' scales differ.")
    return figure


def batch(tables: Tables) -> Figure:
    """Draws online seconds per image against the batch, one line a variant and engine."""
    cases = cases_like(measured_cases(tables.summary), headline_cases(tables.summary))
    cases = cases[cases["role"].isin(["headline", "batch"])]
    several = cases.groupby(["engine", "variant"])["batch"].transform("nunique") > 1
    cases = cases[several]
    if cases.empty:
        raise Missing("it needs one variant at two batches or more")
    figure, axes = one_panel(0.6, 2.9)
    for (engine, variant), group in cases.groupby(["engine", "variant"], sort=False):
        _, colour, marker = family_style(variant)
        group = group.sort_values("batch")
        per_image = group["online_median_s"] / group["batch"]
        low, high = group["online_low_s"] / group["batch"], group["online_high_s"] / group["batch"]
        axes.errorbar(
            group["batch"],
            per_image,
            yerr=error_bars(per_image, low, high),
            color=colour,
            linestyle=engine_look(engine).line,
            marker="o" if marker == "*" else marker,
            markerfacecolor=colour if engine_look(engine).filled else "white",
            elinewidth=0.8,
            capsize=2,
        )
        last = per_image.iloc[-1]
        axes.annotate(
            f"{engine}, {variant}\n{short_number(1 / last)} images/s",
            (group["batch"].iloc[-1], last),
            xytext=(7, 0),
            textcoords="offset points",
            va="center",
            color=colour,
        )
    _draw_plaintext_batches(axes, cases)
    axes.set(xscale="log", yscale="log")
    batches = sorted(cases["batch"].unique())
    axes.set_xticks(batches, [str(size) for size in batches])
    axes.xaxis.set_minor_locator(NullLocator())
    axes.set_xlim(batches[0] / 1.3, batches[-1] * 3.2)
    axes.margins(y=0.15)
    plain_log(axes.yaxis)
    axes.set_xlabel("images per inference (batch)")
    axes.set_ylabel("online seconds per image")
    add_caption(figure, cases, "Bars: 95 % intervals where they are wider than the markers.", batches=True)
    return figure


def _draw_plaintext(axes: Axes, cases: pd.DataFrame) -> None:
    """Draws the span of the plaintext seconds of all networks as a band."""
    plain = plaintext_seconds(cases)
    if plain.empty:
        return
    axes.axhspan(plain.min(), plain.max(), **BAND)
    axes.annotate(
        PLAINTEXT[0],
        (0.99, plain.min()),
        xycoords=("axes fraction", "data"),
        xytext=(0, -3),
        textcoords="offset points",
        ha="right",
        va="top",
        color=PLAINTEXT[1],
    )


def _mark_plaintext(panels: Sequence[Axes], cases: pd.DataFrame, variants: list[str]) -> list[Line2D]:
    """Draws a line across each network's bar at its plaintext seconds; returns the legend's entry."""
    plain = plaintext_seconds(cases)
    if plain.empty:
        return []
    look = {"color": PLAINTEXT[1], "marker": "|", "markeredgewidth": 1.6, "linestyle": "none"}
    places = [variants.index(variant) for variant, _ in plain.index]
    for axes in panels:
        axes.plot(plain, places, markersize=9, zorder=4, **look)
    return [Line2D([], [], label=PLAINTEXT[0], markersize=7, **look)]


def _draw_plaintext_batches(axes: Axes, cases: pd.DataFrame) -> None:
    """Draws plaintext seconds per image of each network that has them at two batches or more."""
    plain = plaintext_seconds(cases)
    for variant, group in plain.groupby("variant") if len(plain) else ():
        batches = group.index.get_level_values("batch").to_numpy()
        if len(batches) < 2:
            continue
        order = np.argsort(batches)
        per_image = (group.to_numpy() / batches)[order]
        axes.plot(batches[order], per_image, color=PLAINTEXT[1], linestyle=":", marker="_")
        axes.annotate(
            f"{PLAINTEXT[0]}, {variant}\n{short_number(1 / per_image[-1])} images/s",
            (batches[order][-1], per_image[-1]),
            xytext=(7, 0),
            textcoords="offset points",
            va="center",
            color=PLAINTEXT[1],
        )


def _add_legend_of_lines(figure: Figure, cases: pd.DataFrame) -> None:
    """Names the families by colour and marker, and the engines by line and filling."""
    handles = family_handles(cases["variant"].map(family_name), linestyle="none")
    for engine in engines_of(cases):
        look = engine_look(engine)
        filled = "0.3" if look.filled else "white"
        line = {"color": "0.3", "linestyle": look.line, "marker": "o", "markerfacecolor": filled}
        handles.append(Line2D([], [], label=look.label, **line))
    figure.legend(handles=handles, loc="outside upper left", ncols=2 if is_narrow() else 4, handlelength=2.2)
