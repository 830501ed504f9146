"""Figures of profiled inferences: layer by layer, and the saving of a reduction on each engine."""

from __future__ import annotations

import re
from collections.abc import Sequence

import pandas as pd
from matplotlib.figure import Figure

from pibench.figures.data import Missing, Tables, class_seconds, headline_cases, whole_percents
from pibench.figures.style import (
    CLASSES,
    VERMILLION,
    WIDTH,
    add_caption,
    add_legend,
    add_note,
    category_axis,
    short_number,
    stack_bars,
)
from pibench.models.pairs import PAIRS, TYPICAL
from pibench.store.engines import engine_look
from pibench.store.settings import ENGINES

RIVALS = (TYPICAL, *(pair for pair in PAIRS if pair != TYPICAL))
"""Variants of matching budgets, the first that were measured are shown."""


def layer_profile(tables: Tables, engine: str) -> Figure:
    """Draws milliseconds and bytes of each layer, of the baseline and a reduced network in one list."""
    cases = headline_cases(tables.summary)
    cases = cases[cases["engine"] == engine]
    variants = list(cases["variant"])
    others = [variant for variant in variants if variant != "baseline"]
    if "baseline" not in variants or not others:
        raise Missing(f"it needs the baseline and a reduced variant on the engine {engine}")
    reduced = next((joint for _, joint in RIVALS if joint in others), others[-1])
    shown = cases[cases["variant"].isin(["baseline", reduced])].set_index("variant")
    layers = tables.layers
    if layers.empty or not set(shown["case"]) <= set(layers["case"]):
        raise Missing(f"layers.csv lacks the profile of {' or '.join(shown['case'])}")
    profiles = {name: _condensed(layers[layers["case"] == shown.loc[name, "case"]]) for name in shown.index}
    names = merged_names(list(profiles["baseline"].index), list(profiles[reduced].index))
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
    panels[0].set_title(engine_look(engine).label)
    category_axis(panels[0], [re.sub(r"_(?=\d)|(?<=\d)_", ".", name) for name in names])
    add_legend(figure, {name: (name, *looks[name]) for name in looks})
    add_caption(
        figure,
        shown.copy().reset_index(),  # in one piece: wide tables come in many
        "A profiled inference, layers in the order of execution; a layer without a bar is not in that "
        "network. Steps that take under 0.2 % of the time and send nothing are summed as other steps.",
        rounds=False,
    )
    return figure


def stock_vs_lean(tables: Tables) -> Figure:
    """Draws the time of each part, and the saving from fewer ReLUs or layers, on both engines."""
    cases = headline_cases(tables.summary)
    if not set(ENGINES) <= set(cases["engine"]):
        raise Missing("it needs both engines in the role headline")
    seconds = class_seconds(cases, tables.layers)
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
    spent = pd.DataFrame({engine_look(engine).label: found for engine, found in baselines.items()}).T
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
            stack_bars(axes, table, CLASSES)
            for place, label in enumerate(table.index):
                values = table.loc[label]
                if column == 0:
                    text = short_number(values.sum()) + " s"
                elif row == 0:
                    text = " · ".join(str(share) for share in whole_percents(values)) + " %"
                else:
                    text = f"{values.sum():.0f} %  (linear {values['linear']:.0f}, ReLU {values['relu']:.0f})"
                add_note(axes, values.clip(lower=0).sum(), place, text)
            axes.set_title(titles[row][column])
            axes.set_xlabel("seconds" if column == 0 else "% of the engine's baseline")
            axes.margins(x=0.2 if column == 0 else 0.4)
            axes.set_xlim(left=min(0, table.clip(upper=0).sum(axis=1).min() * 1.1))
            if column == 1:
                axes.set_xlim(right=150)
                axes.set_xticks([0, 25, 50, 75, 100])
        category_axis(panels[row][0], list(shown[row][0].index))
    add_legend(figure, CLASSES)
    add_caption(
        figure,
        cases,
        f"{rivals[0]} removes ReLUs; {rivals[1]} removes layers and ReLUs. From profiled inferences.",
        rounds=False,
    )
    return figure


def _condensed(profile: pd.DataFrame) -> pd.DataFrame:
    """Returns seconds and bytes by layer, in order, the negligible steps summed into one line."""
    small = (profile["seconds"].fillna(0) < 0.002 * profile["seconds"].sum()) & (profile["bytes_sent"] == 0)
    kept = profile[~small].groupby("layer", sort=False)[["seconds", "bytes_sent"]].sum()
    if small.any():
        kept.loc["other steps"] = profile.loc[small, ["seconds", "bytes_sent"]].sum()
    return kept


def merged_names(first: Sequence[str], second: Sequence[str]) -> list[str]:
    """Merges both lists into one order; a name that only the second has comes after its predecessor there."""
    names = list(first)
    place = 0
    for name in second:
        if name in names:
            place = names.index(name) + 1
        else:
            names.insert(place, name)
            place += 1
    return names
