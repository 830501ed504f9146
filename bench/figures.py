"""Figures from the tables in results/: one function a figure, each returns a Figure.

Written as SVG and PDF with text as text. Colours are Okabe and Ito's; markers, line styles and hatches say
the same, so that the figures can be read in grey.
"""

from __future__ import annotations

import argparse
import io
import re
import sys
import textwrap
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from functools import partial
from pathlib import Path

import matplotlib as mpl
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter, NullLocator

from bench.results import family_of, replace_file

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
FAMILIES = {  # family: (its name in figures, colour, marker)
    "baseline": ("baseline", BLACK, "*"),
    "senet": ("SENet", BLUE, "o"),
    "joint": ("joint", VERMILLION, "s"),
    "merged-exact": ("merged-exact", GREEN, "D"),
    "snl": ("SNL", PURPLE, "^"),
}
CLASSES = {  # class: (its name in figures, colour, hatch)
    "linear": ("linear", BLUE, ""),
    "relu": ("ReLU", ORANGE, "////"),
    "other": ("other", "#FFFFFF", "....."),
}
PHASES = {"offline": ("offline", SKY, "\\\\\\\\"), "online": ("online", VERMILLION, "")}
PARTS = {  # of an online phase: (its name in figures, colour, hatch)
    "compute": ("compute", GREEN, ""),
    "hops": ("hops (latency)", YELLOW, "////"),
    "bytes": ("bytes (bandwidth)", PURPLE, "....."),
}
LINKS = {  # link or channel: (its name in figures, colour, marker)
    "lan": ("LAN", BLUE, "o"),
    "wan": ("WAN", VERMILLION, "s"),
    "wan-slow": ("slow WAN", PURPLE, "D"),
    "garimella": ("Garimella et al.", GREEN, "^"),
}
GOAL = 0.10  # of an emulated time: how far the model of a link may be off
MODELS = {  # model: its name in figures
    "delphi-server-garbler": "DELPHI,\nserver garbles",
    "delphi-client-garbler": "DELPHI,\nclient garbles",
    "delphi-server-garbler-lphe": "DELPHI, server,\nparallel HE",
    "delphi-client-garbler-lphe": "DELPHI, client,\nparallel HE",
    "21us-column": "21 µs a ReLU\n(SENet, SNL)",
    "cryptflow2": "CrypTFlow2",
    "cheetah": "Cheetah",
    "orca": "Orca",
    "aby3": "ABY3",
    "autorep-column": "2.45 µs a ReLU\n(AutoReP)",
}
MODELLED_PHASES = {"offline": ("offline", SKY, ""), "online": ("online", BLUE, "")}
SHOWN = ("baseline", "senet-0.09", "joint-0.052", "merged-exact")
ENGINES = {"stock": ("stock (CrypTen)", "--"), "lean": ("lean (ours)", "-")}
REDUCED = ("joint-0.052", "joint-0.104", "joint-0.208", "joint-0.026")
RIVALS = (("senet-0.09", "joint-0.052"), ("senet-0.18", "joint-0.104"), ("senet-0.36", "joint-0.208"))


@dataclass(frozen=True)
class Tables:
    """What figures read: the files of the same names in results/."""

    summary: pd.DataFrame
    layers: pd.DataFrame
    modelled: pd.DataFrame
    break_even: pd.DataFrame


class Missing(Exception):  # noqa: N818 (a state of the data, not a failure)
    """Raised by a figure whose data have not been measured; says which."""


# Figures


def latency_vs_relus(tables: Tables) -> Figure:
    """Online seconds with their 95 % intervals against the ReLUs evaluated, a line a family and engine."""
    cases = _headline(tables.summary)
    if cases["variant"].nunique() < 2:
        raise Missing("it needs at least two variants in the role headline")
    figure = Figure(figsize=(WIDTH * 0.72, 3.7), layout="constrained")
    axes = figure.subplots()
    for engine in _engines(cases):
        of_engine = cases[cases["engine"] == engine]
        for family, group in of_engine.groupby(of_engine["variant"].map(family_of), sort=False):
            _, colour, marker = _family_style(family)
            group = group.sort_values("relus")
            median = group["online_median_s"]
            axes.errorbar(
                group["relus"],
                median,
                yerr=_bars(median, group["online_low_s"], group["online_high_s"]),
                color=colour,
                linestyle=_engine_style(engine)[1],
                marker=marker,
                markersize=8 if marker == "*" else 4.5,
                markerfacecolor=colour if engine == "lean" else "white",
                elinewidth=0.8,
                capsize=2,
            )
        _label_ends(axes, of_engine, engine)
    axes.set(xscale="log", yscale="log")
    axes.set_xlabel("ReLUs evaluated per image, thousands")
    axes.set_ylabel("online latency, seconds")
    axes.margins(x=0.18, y=0.1)
    _plain_log(axes.xaxis, 1e3)
    _plain_log(axes.yaxis)
    _caption(
        figure,
        cases,
        "Bars: 95 % intervals, where wider than the marker.",
    )
    return figure


def linear_vs_relu(tables: Tables) -> Figure:
    """Seconds of linear layers, ReLUs and the rest for each variant, stacked, with their shares."""
    cases = _headline(tables.summary)
    seconds = _class_seconds(cases, tables.layers)
    engines = _engines(cases)
    variants = list(dict.fromkeys(cases["variant"]))
    figure = Figure(figsize=(WIDTH, 1.1 + 0.2 * len(variants)), layout="constrained")
    panels = figure.subplots(1, len(engines), sharey=True, squeeze=False)[0]
    for axes, engine in zip(panels, engines, strict=True):
        of_engine = cases[cases["engine"] == engine].set_index("variant")["case"].reindex(variants)
        table = seconds.reindex(of_engine).set_axis(variants)
        _stack(axes, table, CLASSES)
        for place, variant in enumerate(variants):
            total = table.loc[variant].sum()
            if total > 0:
                shares = _percents(table.loc[variant])
                _note(axes, total, place, " · ".join(str(share) for share in shares) + " %")
        axes.set_title(_engine_style(engine)[0])
        axes.set_xlabel("seconds of a profiled inference")
        axes.xaxis.set_major_locator(MaxNLocator(6, steps=[1, 2, 5, 10]))
        axes.margins(x=0.34)
        axes.set_xlim(left=0)
    _category_axis(panels[0], variants)
    _legend(figure, CLASSES)
    _caption(
        figure,
        cases,
        "Beside the bars: shares of linear · ReLU · other. Profiled apart from the timed repetitions. "
        "The panels' scales differ.",
        rounds=False,
    )
    return figure


def relus_macs_latency(tables: Tables) -> Figure:
    """ReLUs, MACs and latency of each variant beside each other, relative to the baseline."""
    cases = _headline(tables.summary)
    variants = list(dict.fromkeys(cases["variant"]))
    if "baseline" not in variants or len(variants) < 2:
        raise Missing("it needs the baseline and at least one other variant in the role headline")
    known = cases.drop_duplicates("variant").set_index("variant")
    columns = [
        ("ReLUs, thousands", known["relus"] / 1e3, "0.55", ""),
        ("MACs, millions", known["macs"] / 1e6, SKY, "\\\\\\\\"),
    ]
    for engine in _engines(cases):
        times = cases[cases["engine"] == engine].set_index("variant")["online_median_s"] * 1e3
        hatch = "" if engine == "lean" else "////"
        columns.append((f"online, {engine}, ms", times, VERMILLION if engine == "lean" else ORANGE, hatch))
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
                _note(axes, relative[variant], place, _short(values[variant]))
        axes.axvline(100, color="black", linewidth=0.6, linestyle=":")
        axes.set_title(title)
        axes.set_xlabel("% of baseline")
        axes.set_xlim(0, 1.32 * max(100, relative.max()))
        axes.set_xticks([0, 50, 100])
    _category_axis(panels[0], variants)
    _caption(figure, cases, "Numbers: absolute values.")
    return figure


def layer_profile(tables: Tables, engine: str) -> Figure:
    """Milliseconds and bytes of each layer, the baseline and a reduced network in one list of layers."""
    cases = _headline(tables.summary)
    cases = cases[cases["engine"] == engine]
    variants = list(cases["variant"])
    others = [variant for variant in variants if variant != "baseline"]
    if "baseline" not in variants or not others:
        raise Missing(f"it needs the baseline and a reduced variant on the engine {engine}")
    reduced = next((name for name in REDUCED if name in others), others[-1])
    shown = cases[cases["variant"].isin(["baseline", reduced])].set_index("variant")
    layers = tables.layers
    if layers.empty or not set(shown["case"]) <= set(layers["case"]):
        raise Missing(f"layers.csv lacks the profile of {' or '.join(shown['case'])}")
    profiles = {name: _condensed(layers[layers["case"] == shown.loc[name, "case"]]) for name in shown.index}
    names = _merged(list(profiles["baseline"].index), list(profiles[reduced].index))
    figure = Figure(figsize=(WIDTH, 1.1 + 0.165 * len(names)), layout="constrained")
    panels = figure.subplots(1, 2, sharey=True)
    looks = {"baseline": ("0.6", ""), reduced: (VERMILLION, "////")}
    for axes, (column, scale, label) in zip(
        panels, (("seconds", 1e3, "milliseconds"), ("bytes_sent", 1e-6, "MB sent by one party")), strict=True
    ):
        for place, variant in enumerate(("baseline", reduced)):
            colour, hatch = looks[variant]
            values = profiles[variant][column].reindex(names) * scale
            rows = [row + 0.4 * (place - 0.5) for row in range(len(names))]
            axes.barh(rows, values, 0.4, color=colour, hatch=hatch, edgecolor="black", linewidth=0.3)
        axes.set_xlabel(label)
        axes.margins(y=0.01)
    panels[0].set_title(_engine_style(engine)[0])
    _category_axis(panels[0], [re.sub(r"_(?=\d)|(?<=\d)_", ".", name) for name in names])
    _legend(figure, {name: (name, *looks[name]) for name in looks})
    _caption(
        figure,
        shown.reset_index(),
        "A profiled inference, layers in the order of execution; a layer without a bar is not in that "
        "network. Steps that take under 0.2 % of the time and send nothing are summed as other steps.",
        rounds=False,
    )
    return figure


def stock_vs_lean(tables: Tables) -> Figure:
    """Where the time goes and what removing ReLUs or layers saves, on both engines, in seconds and shares."""
    cases = _headline(tables.summary)
    if not set(ENGINES) <= set(cases["engine"]):
        raise Missing("it needs both engines in the role headline")
    seconds = _class_seconds(cases, tables.layers)
    by_name = cases.set_index(["engine", "variant"])["case"]

    def profile(engine: str, variant: str) -> pd.Series | None:
        case = by_name.get((engine, variant))
        return seconds.loc[case] if case in seconds.index else None

    baselines = {engine: profile(engine, "baseline") for engine in ENGINES}
    if any(found is None for found in baselines.values()):
        raise Missing("it needs the baseline's profile on both engines")
    rivals = next(
        (pair for pair in RIVALS if all(profile(e, v) is not None for e in ENGINES for v in pair)), None
    )
    if rivals is None:
        raise Missing("it needs a SENet and a joint variant of matching budgets on both engines")
    spent = pd.DataFrame({_engine_style(engine)[0]: found for engine, found in baselines.items()}).T
    saved, worth = {}, {}
    for engine, whole in baselines.items():
        for variant in rivals:
            label = f"{engine}, {variant}"
            saved[label] = whole - profile(engine, variant)
            worth[label] = 100 * saved[label] / whole.sum()
    figure = Figure(figsize=(WIDTH, 3.3), layout="constrained")
    panels = figure.subplots(2, 2, gridspec_kw={"height_ratios": (2, 4)}, sharey="row")
    shown = (
        (spent, 100 * spent.div(spent.sum(axis=1), axis=0)),
        (pd.DataFrame(saved).T, pd.DataFrame(worth).T),
    )
    titles = (
        ("Baseline, seconds", "Baseline, share of its time"),
        ("Saved against the baseline, seconds", "Saved, share of the baseline's time"),
    )
    for row in range(2):
        for column in range(2):
            axes, table = panels[row][column], shown[row][column]
            _stack(axes, table, CLASSES)
            for place, label in enumerate(table.index):
                values = table.loc[label]
                if column == 0:
                    text = _short(values.sum()) + " s"
                elif row == 0:
                    text = " · ".join(str(share) for share in _percents(values)) + " %"
                else:
                    text = f"{values.sum():.0f} %  (linear {values['linear']:.0f}, ReLU {values['relu']:.0f})"
                _note(axes, values.clip(lower=0).sum(), place, text)
            axes.set_title(titles[row][column])
            axes.set_xlabel("seconds" if column == 0 else "% of the engine's baseline")
            axes.margins(x=0.2 if column == 0 else 0.4)
            axes.set_xlim(left=min(0, table.clip(upper=0).sum(axis=1).min() * 1.1))
            if column == 1:
                axes.set_xlim(right=150)
                axes.set_xticks([0, 25, 50, 75, 100])
        _category_axis(panels[row][0], list(shown[row][0].index))
    _legend(figure, CLASSES)
    _caption(
        figure,
        cases,
        f"{rivals[0]} removes ReLUs; {rivals[1]} removes layers and ReLUs. From profiled inferences.",
        rounds=False,
    )
    return figure


def offline_online(tables: Tables) -> Figure:
    """Offline and online seconds of each variant, stacked, for each engine."""
    cases = _headline(tables.summary).dropna(subset=["offline_median_s", "online_median_s"])
    if cases.empty:
        raise Missing("it needs cases in the role headline with an offline phase of their own")
    engines = _engines(cases)
    variants = list(dict.fromkeys(cases["variant"]))
    figure = Figure(figsize=(WIDTH, 1.1 + 0.2 * len(variants)), layout="constrained")
    panels = figure.subplots(1, len(engines), sharey=True, squeeze=False)[0]
    for axes, engine in zip(panels, engines, strict=True):
        table = cases[cases["engine"] == engine].set_index("variant").reindex(variants)
        _stack(axes, table[["offline_median_s", "online_median_s"]].set_axis(list(PHASES), axis=1), PHASES)
        for place, variant in enumerate(variants):
            total = table.loc[variant, "total_median_s"]
            if not pd.isna(total):
                end = table.loc[variant, ["offline_median_s", "online_median_s"]].sum()
                _note(axes, end, place, _short(total))
        axes.set_title(_engine_style(engine)[0])
        axes.set_xlabel("seconds")
        axes.margins(x=0.16)
        axes.set_xlim(left=0)
    _category_axis(panels[0], variants)
    _legend(figure, PHASES)
    _caption(figure, cases, "Beside the bars: median of offline + online. The panels' scales differ.")
    return figure


def batch(tables: Tables) -> Figure:
    """Online seconds per image against the batch, a line a variant and engine."""
    cases = _like_headline(_measured(tables.summary), _headline(tables.summary))
    cases = cases[cases["role"].isin(["headline", "batch"])]
    several = cases.groupby(["engine", "variant"])["batch"].transform("nunique") > 1
    cases = cases[several]
    if cases.empty:
        raise Missing("it needs one variant at two batches or more")
    figure = Figure(figsize=(WIDTH * 0.6, 2.9), layout="constrained")
    axes = figure.subplots()
    for (engine, variant), group in cases.groupby(["engine", "variant"], sort=False):
        _, colour, marker = _family_style(family_of(variant))
        group = group.sort_values("batch")
        per_image = group["online_median_s"] / group["batch"]
        low, high = group["online_low_s"] / group["batch"], group["online_high_s"] / group["batch"]
        axes.errorbar(
            group["batch"],
            per_image,
            yerr=_bars(per_image, low, high),
            color=colour,
            linestyle=_engine_style(engine)[1],
            marker="o" if marker == "*" else marker,
            markerfacecolor=colour if engine == "lean" else "white",
            elinewidth=0.8,
            capsize=2,
        )
        last = per_image.iloc[-1]
        axes.annotate(
            f"{engine}, {variant}\n{_short(1 / last)} images/s",
            (group["batch"].iloc[-1], last),
            xytext=(7, 0),
            textcoords="offset points",
            va="center",
            color=colour,
        )
    axes.set(xscale="log", yscale="log")
    batches = sorted(cases["batch"].unique())
    axes.set_xticks(batches, [str(size) for size in batches])
    axes.xaxis.set_minor_locator(NullLocator())
    axes.set_xlim(batches[0] / 1.3, batches[-1] * 3.2)
    axes.margins(y=0.15)
    _plain_log(axes.yaxis)
    axes.set_xlabel("images per inference (batch)")
    axes.set_ylabel("online seconds per image")
    _caption(figure, cases, "Bars: 95 % intervals where they are wider than the markers.", batches=True)
    return figure


def links(tables: Tables) -> Figure:
    """Online seconds on each link, the model's parts stacked, what was measured or emulated as a marker."""
    emulated, loopback = _linked(tables.summary)
    cases = pd.concat([loopback, emulated])
    names, engines = list(dict.fromkeys(cases["link"])), _engines(emulated)
    variants = list(dict.fromkeys(emulated["variant"]))
    figure = Figure(figsize=(WIDTH, 1.0 + (0.5 + 0.2 * len(variants)) * len(engines)), layout="constrained")
    panels = figure.subplots(len(engines), len(names), sharey=True, squeeze=False)
    columns = [f"modelled_{part}_s" for part in PARTS]
    for row, engine in enumerate(engines):
        for axes, link in zip(panels[row], names, strict=True):
            group = cases[(cases["engine"] == engine) & (cases["link"] == link)]
            table = group.set_index("variant").reindex(variants)
            parts = table[columns].set_axis(list(PARTS), axis=1)
            _stack(axes, parts, PARTS)
            found = table["online_median_s" if link == "loopback" else "emulated_online_median_s"]
            axes.plot(found, range(len(variants)), **_emulated_marker())
            for place, variant in enumerate(variants):
                error = table.loc[variant, "model_error"]
                if not pd.isna(found[variant]):
                    text = _short(found[variant]) + ("" if pd.isna(error) else f" ({_signed(error)})")
                    flag = "!" if str(table.loc[variant, "link_flagged"]) == "True" else ""
                    _note(axes, max(found[variant], parts.loc[variant].sum()), place, text + flag, 5)
            axes.set_title(f"{_engine_style(engine)[0]}: {_link_style(link)[0]}")
            if row == len(engines) - 1:
                axes.set_xlabel("online seconds")
            axes.set_xlim(0, 1.75 * max(parts.sum(axis=1).max(), found.fillna(0).max()) or 1)
            axes.xaxis.set_major_locator(MaxNLocator(4, steps=[1, 2, 5, 10]))
    _category_axis(panels[0][0], variants)
    marker = Line2D([], [], label="measured (loopback) or emulated", **_emulated_marker())
    _legend(figure, {part: (f"modelled {name}", *look) for part, (name, *look) in PARTS.items()}, [marker])
    _caption(
        figure,
        cases,
        "Bars: modelled from loopback alone, there the split of what was measured. Beside them: median "
        "online seconds, measured or emulated, in brackets the model's error. The panels' scales differ. "
        + _links_said(emulated),
    )
    return figure


def link_model_error(tables: Tables) -> Figure:
    """Modelled against emulated seconds of every link case, and the model's error, with the goal's band."""
    emulated, _ = _linked(tables.summary)
    cases = emulated.dropna(subset=["model_error"])
    if cases.empty:
        raise Missing("it needs link cases with the same case on loopback")
    rows = cases[["engine", "variant"]].drop_duplicates().agg(" ".join, axis=1).tolist()
    names = list(dict.fromkeys(cases["link"]))
    figure = Figure(figsize=(WIDTH, max(2.5, 1.3 + 0.2 * len(rows))), layout="constrained")
    left, right = figure.subplots(1, 2)
    ends = cases[["emulated_online_median_s", "modelled_online_s"]]
    line = [ends.min(axis=None) / 1.6, ends.max(axis=None) * 1.6]
    left.fill_between(line, *([factor * x for x in line] for factor in (1 - GOAL, 1 + GOAL)), **_BAND)
    left.plot(line, line, color="black", linewidth=0.6, linestyle=":")
    right.axvspan(-100 * GOAL, 100 * GOAL, **_BAND)
    right.axvline(0, color="black", linewidth=0.6, linestyle=":")
    for (link, engine), group in cases.groupby(["link", "engine"], sort=False):
        _, colour, marker = _link_style(link)
        look = {"color": colour, "marker": marker, "linestyle": "none", "clip_on": False}
        look["markerfacecolor"] = colour if engine == "lean" else "white"
        left.plot(group["emulated_online_median_s"], group["modelled_online_s"], **look)
        aside = 0.24 * (names.index(link) - (len(names) - 1) / 2)
        places = [rows.index(f"{case.engine} {case.variant}") + aside for case in group.itertuples()]
        right.plot(100 * group["model_error"], places, **look)
    left.set(xscale="log", yscale="log", xlim=line, ylim=line)
    for axis in (left.xaxis, left.yaxis):
        _plain_log(axis)
    left.set_xlabel("emulated online seconds")
    left.set_ylabel("modelled online seconds")
    reach = max(1.5 * 100 * GOAL, 110 * cases["model_error"].abs().max())
    right.set_xlim(-reach, reach)
    right.set_xlabel("error of the model, % of emulated")
    _category_axis(right, rows)
    right.grid(visible=True, axis="y")
    handles = [Patch(label=f"within {100 * GOAL:.0f} %", **_BAND)]
    for link, engine in cases[["link", "engine"]].drop_duplicates().itertuples(index=False):
        name, colour, marker = _link_style(link)
        face = colour if engine == "lean" else "white"
        look = {"color": colour, "marker": marker, "markerfacecolor": face, "linestyle": "none"}
        handles.append(Line2D([], [], label=f"{name}, {engine}", **look))
    _legend(figure, {}, handles)
    _caption(
        figure,
        cases,
        "Modelled from the same case on loopback: compute + hops (RTT / 2 + h0) + bytes / bandwidth. "
        "A positive error: the model is too slow. " + _links_said(cases),
    )
    return figure


def literature(tables: Tables) -> Figure:
    """Modelled seconds of a few variants under each published cost model, with their ranks."""
    modelled = tables.modelled
    if modelled.empty or modelled["network"].nunique() < 2:
        raise Missing("modelled.csv has fewer than two networks")
    shown = modelled[modelled["network"].isin(SHOWN)]
    networks = [name for name in SHOWN if name in set(shown["network"])]
    if len(networks) < 2:
        raise Missing(f"it needs two of the variants {', '.join(SHOWN)}")
    channels = [channel for channel in ("lan", "wan") if channel in set(shown["channel"])]
    models = [model for model in MODELS if model in set(shown["model"])]
    columns = -(-len(models) // 2)
    height = 0.135 * (len(networks) + 1)
    figure = Figure(figsize=(WIDTH, 1.9 + 2 * len(channels) * (height + 0.25)), layout="constrained")
    panels = figure.subplots(2 * len(channels), columns, sharey=True, squeeze=False)
    for axes in panels.flat:
        axes.set_visible(False)
    for place, model in enumerate(models):
        of_model = shown[shown["model"] == model].set_index(["channel", "network"])
        linkless = of_model["modelled_rounds"].isna().all()
        hatch = "" if of_model["verified"].all() else "/////"
        for row, channel in enumerate(channels[:1] if linkless else channels):
            axes = panels[place // columns * len(channels) + row][place % columns]
            axes.set_visible(True)
            group = of_model.loc[channel].reindex(networks)
            ranks = group["modelled_total_s"].rank(method="min")
            start = pd.Series(0.0, group.index)
            for phase, (_, colour, _) in MODELLED_PHASES.items():
                values = group[f"modelled_{phase}_s"].fillna(0.0)
                look = {"color": colour, "hatch": hatch, "edgecolor": "black", "linewidth": 0.4}
                axes.barh(range(1, len(networks) + 1), values, 0.76, left=start, **look)
                start = start + values
            for line, name in enumerate(networks, 1):
                total = group.loc[name, "modelled_total_s"]
                if not pd.isna(total):
                    _note(axes, total, line, f"#{ranks[name]:.0f}  {_short(total)}")
            axes.set_xlim(0, 1.9 * group["modelled_total_s"].max())
            axes.xaxis.set_major_locator(MaxNLocator(2, steps=[1, 2, 5, 10]))
            name = "any link" if linkless else _link_style(channel)[0]
            axes.text(
                0.98, 0, name, ha="right", va="center", color="0.3", transform=axes.get_yaxis_transform()
            )
            if row == 0:
                axes.set_title(MODELS[model])
    for column in panels.T:
        lowest = [axes for axes in column if axes.get_visible()][-1:]
        for axes in lowest:
            axes.set_xlabel("modelled seconds")
    _category_axis(panels[0][0], ["", *networks])
    unverified = Patch(facecolor="white", hatch="/////", edgecolor="black", linewidth=0.4, label="unverified")
    _legend(figure, MODELLED_PHASES, [unverified])
    _small_print(
        figure,
        "Modelled by published costs, nothing measured here: see docs/literature.md. Beside the bars: rank "
        "among these networks and seconds, offline + online. Scales differ, and seconds of different models "
        "do not compare: DELPHI's are computation (server: EPYC 7502, client: Atom Z8350) and communication, "
        "CrypTFlow2's to ABY3's communication alone. " + _modelled_said(shown, channels),
    )
    return figure


def break_even(tables: Tables) -> Figure:
    """How many ReLUs cost as much as one linear layer of the baseline, under each published cost model."""
    even = tables.break_even
    if even.empty or "baseline" not in set(even["network"]):
        raise Missing("break_even.csv has no prices of the baseline's layers")
    prices = even[even["network"] == "baseline"]
    relus = even.drop_duplicates("network").set_index("network")["relus_left"]
    relus = relus.reindex([name for name in SHOWN if name in relus.index])
    models = [model for model in MODELS if model in set(prices["model"])]
    channels = [channel for channel in LINKS if channel in set(prices["channel"])]
    phases = {"total_s": "Offline + online", "online_s": "Online"}
    positive = prices.loc[prices["relus_per_layer"] > 0, "relus_per_layer"]
    if positive.empty:
        raise Missing("break_even.csv has no model that prices the baseline's layers")
    low, high = min(positive.min(), relus.min()) / 2.2, max(positive.max(), relus.max()) * 1.8
    figure = Figure(figsize=(WIDTH, 1.7 + 0.27 * len(models)), layout="constrained")
    panels = figure.subplots(1, len(phases), sharey=True)
    for axes, (phase, title) in zip(panels, phases.items(), strict=True):
        for name, count in relus.items():
            # A label makes way for a neighbour that is near.
            near = [other for other in relus.drop(name) if 1 / 1.8 < other / count < 1.8]
            side = "center" if not near else "right" if near[0] >= count else "left"
            colour = _family_style(family_of(name))[1]
            axes.axvline(count, color=colour, linewidth=0.7, linestyle="--")
            axes.annotate(
                name,
                (count, 1),
                xycoords=("data", "axes fraction"),
                xytext=(0, 2),
                textcoords="offset points",
                rotation=90,
                ha=side,
                va="bottom",
                fontsize=6.5,
                color=colour,
            )
        of_phase = prices[prices["phase"] == phase].set_index(["model", "channel"])
        for place, model in enumerate(models):
            found = of_phase.loc[model]
            if not (found["relus_per_layer"] > 0).any():
                axes.text(low * 1.15, place, "0: prices no layer", va="center", color="0.4", fontsize=6.5)
            for number, channel in enumerate(channels):
                case = found.loc[channel]
                if not case["relus_per_layer"] > 0:
                    continue
                _, colour, marker = _link_style(channel)
                axes.plot(
                    case["relus_per_layer"],
                    place + 0.2 * (number - (len(channels) - 1) / 2),
                    color=colour,
                    marker=marker,
                    markersize=4,
                    markerfacecolor=colour if case["verified"] else "white",
                )
        axes.set(xscale="log", xlim=(low, high))
        axes.xaxis.set_major_locator(LogLocator())
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value / 1e3:g}"))
        axes.xaxis.set_minor_formatter(NullFormatter())
        axes.set_xlabel("ReLUs worth one layer, thousands")
        axes.set_title(title)
    _category_axis(panels[0], [MODELS[model].replace("\n", " ") for model in models])
    for edge in range(1, len(models)):
        for axes in panels:
            axes.axhline(edge - 0.5, color="0.88", linewidth=0.5)
    handles = []
    for channel in channels:
        name, colour, marker = _link_style(channel)
        handles.append(Line2D([], [], color=colour, marker=marker, linestyle="none", label=name))
    hollow = {"color": "0.3", "marker": "o", "markerfacecolor": "white", "linestyle": "none"}
    _legend(figure, {}, [*handles, Line2D([], [], label="unverified", **hollow)])
    _small_print(
        figure,
        "Modelled by published costs, nothing measured here: see docs/literature.md. A layer: the median "
        "convolution beyond 1x1 of the baseline, its ReLUs kept. Dashed: ReLUs of a variant; where a marker "
        "is to the right of it, dropping one more such layer saves more than dropping all its ReLUs. "
        + _modelled_said(tables.modelled, channels),
    )
    return figure


FIGURES: dict[str, Callable[[Tables], Figure]] = {
    "latency_vs_relus": latency_vs_relus,
    "linear_vs_relu": linear_vs_relu,
    "relus_macs_latency": relus_macs_latency,
    "layer_profile_stock": partial(layer_profile, engine="stock"),
    "layer_profile_lean": partial(layer_profile, engine="lean"),
    "stock_vs_lean": stock_vs_lean,
    "offline_online": offline_online,
    "batch": batch,
    "links": links,
    "link_model_error": link_model_error,
    "literature": literature,
    "break_even": break_even,
}


# Data


def _measured(summary: pd.DataFrame) -> pd.DataFrame:
    if summary.empty or "online_median_s" not in summary:
        raise Missing("summary.csv has no measured case")
    return summary[summary["timing"] == "measured"].dropna(subset=["online_median_s"])


def _headline(summary: pd.DataFrame) -> pd.DataFrame:
    """The headline cases of the setting (width, batch, link, parties) that most of them share."""
    cases = _measured(summary)
    cases = cases[cases["role"] == "headline"]
    if cases.empty:
        raise Missing("summary.csv has no measured case in the role headline")
    groups = [group for _, group in cases.groupby(["width", "batch", "link", "parties"], sort=False)]
    return max(groups, key=len)


def _like_headline(cases: pd.DataFrame, headline: pd.DataFrame) -> pd.DataFrame:
    first = headline.iloc[0]
    return cases[(cases[["width", "link", "parties"]] == first[["width", "link", "parties"]]).all(axis=1)]


def _linked(summary: pd.DataFrame) -> tuple[pd.DataFrame, pd.DataFrame]:
    """The link cases of the setting that most of them share, fastest link first, and these on loopback."""
    if "emulated_online_median_s" not in summary:
        raise Missing("summary.csv has no case over a shaped link")
    cases = summary[summary["role"] == "link"].dropna(subset=["emulated_online_median_s"])
    if cases.empty:
        raise Missing("summary.csv has no case in the role link")
    setting = ["width", "batch", "parties"]
    cases = max((group for _, group in cases.groupby(setting, sort=False)), key=len)
    cases = cases.sort_values(["asked_rtt_s", "link"], kind="stable")
    same = ["engine", "variant", *setting]
    cases = cases.drop_duplicates([*same, "link"])
    loopback = summary[(summary["link"] == "loopback") & (summary["role"] != "extra")]
    loopback = loopback.merge(cases[same].drop_duplicates(), on=same).drop_duplicates(same)
    return cases, loopback


def _engines(cases: pd.DataFrame) -> list[str]:
    return sorted(cases["engine"].unique(), key=[*ENGINES, *sorted(set(cases["engine"]))].index)


def _class_seconds(cases: pd.DataFrame, layers: pd.DataFrame) -> pd.DataFrame:
    """Seconds of each class [case, class]; a case without a profile has no line."""
    found = layers[layers["case"].isin(cases["case"])] if not layers.empty else layers
    if found.empty or "seconds" not in found or found["seconds"].isna().all():
        raise Missing("layers.csv has no profile of these cases")
    table = found.pivot_table(index="case", columns="class", values="seconds", aggfunc="sum")
    return table.reindex(columns=list(CLASSES), fill_value=0.0).fillna(0.0)


def _condensed(profile: pd.DataFrame) -> pd.DataFrame:
    """Seconds and bytes by layer, in order, the negligible steps summed into one line."""
    small = (profile["seconds"].fillna(0) < 0.002 * profile["seconds"].sum()) & (profile["bytes_sent"] == 0)
    kept = profile[~small].groupby("layer", sort=False)[["seconds", "bytes_sent"]].sum()
    if small.any():
        kept.loc["other steps"] = profile.loc[small, ["seconds", "bytes_sent"]].sum()
    return kept


def _merged(first: Sequence[str], second: Sequence[str]) -> list[str]:
    """Both lists in one order: what only the second has stands behind its predecessor there."""
    names = list(first)
    place = 0
    for name in second:
        if name in names:
            place = names.index(name) + 1
        else:
            names.insert(place, name)
            place += 1
    return names


def _percents(values: pd.Series) -> list[int]:
    """Whole percents that sum to 100 (largest remainders get the rest)."""
    exact = 100 * values / values.sum()
    whole = exact.astype(int)
    for name in (exact - whole).sort_values(ascending=False).index[: 100 - whole.sum()]:
        whole[name] += 1
    return whole.tolist()


# Looks

_BAND = {"facecolor": "0.85", "edgecolor": "none", "zorder": 0}


def _link_style(link: str) -> tuple[str, str, str]:
    return LINKS.get(link, (link, "0.4", "v"))


def _emulated_marker() -> dict[str, object]:
    look = {"color": BLACK, "marker": "D", "linestyle": "none", "markersize": 4, "zorder": 3}
    return look | {"markeredgecolor": "white", "markeredgewidth": 0.7}


def _signed(fraction: float) -> str:
    """A fraction in whole percent, with its sign."""
    return f"{round(100 * fraction) + 0.0:+.0f} %".replace("-", "−")


def _links_said(emulated: pd.DataFrame) -> str:
    """Names what each link was asked to be, its shaper and, if a check failed, the case."""
    said = []
    for link, cases in emulated.groupby("link", sort=False):
        first = cases.iloc[0]
        rate = first["asked_bandwidth_bits_s"]
        limits = [f"RTT {1e3 * first['asked_rtt_s']:g} ms"]
        limits += [] if pd.isna(rate) else [f"{rate / 1e6:g} Mbit/s each way"]
        said.append(f"{_link_style(link)[0]}: {', '.join(limits)}")
    shapers = " and ".join(sorted(emulated["shaper"].dropna().unique())) or "unknown"
    flagged = emulated[emulated["link_flagged"].astype(str) == "True"]
    names = ", ".join(flagged["engine"] + " " + flagged["variant"] + " over " + flagged["link"])
    complaint = f" Not the link that was asked for (!): {names}." if names else ""
    return f"{'; '.join(said)}; shaped by {shapers}.{complaint}"


def _modelled_said(modelled: pd.DataFrame, channels: Sequence[str]) -> str:
    said = []
    for channel, lines in modelled.groupby("channel", sort=False):
        if channel in channels:
            rtt, rate = lines[["channel_rtt_s", "channel_up_bit_per_s"]].iloc[0]
            said.append(f"{_link_style(channel)[0]}: RTT {1e3 * rtt:g} ms, {rate / 1e6:g} Mbit/s")
    return f"Width {modelled['width'].iloc[0]}, one image of 32 x 32. {'; '.join(said)}."


def _family_style(family: str) -> tuple[str, str, str]:
    return FAMILIES.get(family, (family, "0.4", "v"))


def _engine_style(engine: str) -> tuple[str, str]:
    return ENGINES.get(engine, (engine, ":"))


def _label_ends(axes: Axes, cases: pd.DataFrame, engine: str) -> None:
    """Names each family at its case with the fewest ReLUs, on the side away from the nearest other family."""
    order = cases.sort_values("relus")
    columns = ["relus", "online_median_s", "online_low_s", "online_high_s"]
    ends = order.groupby(order["variant"].map(family_of), sort=False)[columns].head(1)
    ends = ends.set_index(order.loc[ends.index, "variant"].map(family_of))
    for family, (relus, seconds, low, high) in ends.iterrows():
        name, colour, _ = _family_style(family)
        rest = ends.drop(index=family)
        near = (rest["relus"] / relus).where(rest["relus"] >= relus, relus / rest["relus"])
        above = rest.empty or seconds >= rest.loc[near.idxmin(), "online_median_s"]
        axes.annotate(
            f"{name}, {engine}",
            (relus, np.nanmax([seconds, high]) if above else np.nanmin([seconds, low])),
            xytext=(0, 6 if above else -6),
            textcoords="offset points",
            ha="center",
            va="bottom" if above else "top",
            color=colour,
        )


def _stack(axes: Axes, table: pd.DataFrame, styles: dict[str, tuple[str, str, str]]) -> None:
    """Stacked bars, one a line of `table`; negative parts grow to the left of zero."""
    rows = range(len(table))
    right, left = pd.Series(0.0, table.index), pd.Series(0.0, table.index)
    for name, (_, colour, hatch) in styles.items():
        values = table[name].fillna(0.0)
        start = right.where(values >= 0, left)
        axes.barh(rows, values, 0.7, left=start, color=colour, hatch=hatch, edgecolor="black", linewidth=0.4)
        right, left = right + values.clip(lower=0), left + values.clip(upper=0)


def _bars(middle: pd.Series, low: pd.Series, high: pd.Series) -> list[pd.Series]:
    """Lengths of error bars; never below zero, which rounded tables could ask for."""
    return [(middle - low).clip(lower=0), (high - middle).clip(lower=0)]


def _note(axes: Axes, x: float, y: float, text: str, space: float = 3) -> None:
    """Small print behind the end of a bar, over the grid."""
    axes.annotate(
        text,
        (x, y),
        xytext=(space, 0),
        textcoords="offset points",
        va="center",
        fontsize=6.5,
        bbox={"facecolor": "white", "edgecolor": "none", "pad": 0.4},
    )


def _category_axis(axes: Axes, names: Sequence[str]) -> None:
    """Names from top to bottom, without a grid across the bars."""
    axes.set_yticks(range(len(names)), names)
    axes.set_ylim(len(names) - 0.4, -0.6)
    for panel in axes.figure.axes:
        if panel.get_shared_y_axes().joined(axes, panel):
            panel.grid(visible=False, axis="y")
            panel.tick_params(axis="y", length=0)


def _legend(
    figure: Figure, styles: dict[str, tuple[str, str, str]], more: Sequence[Line2D | Patch] = ()
) -> None:
    handles = [
        Patch(facecolor=colour, hatch=hatch, edgecolor="black", linewidth=0.4, label=label)
        for label, colour, hatch in styles.values()
    ]
    handles += more
    figure.legend(handles=handles, loc="outside upper right", ncols=len(handles), handlelength=1.8)


def _plain_log(axis: mpl.axis.Axis, scale: float = 1.0) -> None:
    """Ticks at 1, 2 and 5 of each decade, written as plain numbers in units of `scale`."""
    axis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value / scale:g}"))
    axis.set_minor_locator(NullLocator())
    axis.set_minor_formatter(NullFormatter())


def _short(value: float) -> str:
    """Three significant digits without exponent."""
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:#.3g}".rstrip(".")


def _caption(
    figure: Figure, cases: pd.DataFrame, text: str, rounds: bool = True, batches: bool = False
) -> None:
    """Names conditions and machine in small print below the axes."""
    first = cases.iloc[0]
    names = list(dict.fromkeys(cases["link"]))
    counts = sorted(cases["repetitions_succeeded"].dropna().astype(int).unique())
    conditions = [f"Width {first['width']}"]
    if not batches:
        conditions.append(f"batch {first['batch']}")
    conditions += [f"{first['parties']} parties", ", ".join(_link_style(name)[0] for name in names)]
    if rounds and counts:
        several = f"{counts[0]} to {counts[-1]}" if len(counts) > 1 else f"{counts[0]}"
        conditions.append(f"medians of {several} repetition{'s' if counts[-1] > 1 else ''}")
        noisy = cases[cases["online_noisy"].astype(str) == "True"]
        if not noisy.empty:
            names = ", ".join(noisy["engine"] + " " + noisy["variant"])
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
    _small_print(figure, " ".join([text, *parts]))


def _small_print(figure: Figure, text: str) -> None:
    """Writes below the axes."""
    lines = textwrap.wrap(text, int(figure.get_figwidth() * 20))
    figure.supxlabel("\n".join(lines), x=0.01, ha="left", fontsize=6, color="0.3")


# The command


def write(figure: Figure, path: Path) -> None:
    """Writes one figure, byte for byte the same for the same data."""
    undated = {"Date": None} if path.suffix == ".svg" else {"CreationDate": None}
    buffer = io.BytesIO()
    figure.savefig(buffer, format=path.suffix[1:], metadata=undated)
    replace_file(path, buffer.getvalue())


def main(arguments: Sequence[str] | None = None) -> int:
    """Draws every figure whose data are there and names the others."""
    parser = argparse.ArgumentParser(prog="python -m bench.figures", description=__doc__.splitlines()[0])
    parser.add_argument("--results", type=Path, default=Path("results"), help="folder of the tables")
    parser.add_argument("--plots", type=Path, default=Path("plots"), help="folder for the figures")
    options = parser.parse_args(arguments)
    read = {}
    for name in (f"{field.name}.csv" for field in fields(Tables)):
        try:
            read[name.removesuffix(".csv")] = pd.read_csv(options.results / name)
        except (OSError, ValueError) as error:
            print(f"{options.results / name} cannot be read ({error}): run `make report`.", file=sys.stderr)
            return 1
    for name, draw in FIGURES.items():
        paths = [options.plots / f"{name}{suffix}" for suffix in (".svg", ".pdf")]
        with mpl.rc_context(STYLE):
            try:
                figure = draw(Tables(**read))
            except Missing as reason:
                for path in paths:
                    path.unlink(missing_ok=True)
                print(f"{name}: skipped, {reason}")
                continue
            for path in paths:
                write(figure, path)
        print(f"{name}: {', '.join(str(path) for path in paths)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
