"""Figures of the literature's cost models."""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter

from pibench.figures.data import Missing, Tables
from pibench.figures.style import (
    BLUE,
    LINKS,
    SKY,
    WIDTH,
    add_legend,
    add_note,
    add_small_print,
    category_axis,
    family_style,
    link_style,
    short_number,
)
from pibench.models.catalogue import shown_variants

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


def literature(tables: Tables) -> Figure:
    """Draws modelled seconds of a few variants under each published cost model, with their ranks."""
    modelled = tables.modelled
    if modelled.empty or modelled["network"].nunique() < 2:
        raise Missing("modelled.csv has fewer than two networks")
    names = shown_variants()
    shown = modelled[modelled["network"].isin(names)]
    networks = [name for name in names if name in set(shown["network"])]
    if len(networks) < 2:
        raise Missing(f"it needs two of the variants {', '.join(names)}")
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
                    add_note(axes, total, line, f"#{ranks[name]:.0f}  {short_number(total)}")
            axes.set_xlim(0, 1.9 * group["modelled_total_s"].max())
            axes.xaxis.set_major_locator(MaxNLocator(2, steps=[1, 2, 5, 10]))
            name = "any link" if linkless else link_style(channel)[0]
            axes.text(
                0.98, 0, name, ha="right", va="center", color="0.3", transform=axes.get_yaxis_transform()
            )
            if row == 0:
                axes.set_title(MODELS[model])
    for column in panels.T:
        lowest = [axes for axes in column if axes.get_visible()][-1:]
        for axes in lowest:
            axes.set_xlabel("modelled seconds")
    category_axis(panels[0][0], ["", *networks])
    unverified = Patch(facecolor="white", hatch="/////", edgecolor="black", linewidth=0.4, label="unverified")
    add_legend(figure, MODELLED_PHASES, [unverified])
    add_small_print(
        figure,
        "Modelled by published costs, nothing measured here: see docs/literature.md. Beside the bars: rank "
        "among these networks and seconds, offline + online. Scales differ, and seconds of different models "
        "do not compare: DELPHI's are computation (server: EPYC 7502, client: Atom Z8350) and communication, "
        "CrypTFlow2's to ABY3's communication alone. " + _modelled_said(shown, channels),
    )
    return figure


def break_even(tables: Tables) -> Figure:
    """Draws the number of ReLUs that cost as much as one linear layer, under each published model."""
    even = tables.break_even
    if even.empty or "baseline" not in set(even["network"]):
        raise Missing("break_even.csv has no prices of the baseline's layers")
    prices = even[even["network"] == "baseline"]
    relus = even.drop_duplicates("network").set_index("network")["relus_left"]
    relus = relus.reindex([name for name in shown_variants() if name in relus.index])
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
            # A label moves away from a near neighbour.
            near = [other for other in relus.drop(name) if 1 / 1.8 < other / count < 1.8]
            side = "center" if not near else "right" if near[0] >= count else "left"
            colour = family_style(name)[1]
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
                _, colour, marker = link_style(channel)
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
    category_axis(panels[0], [MODELS[model].replace("\n", " ") for model in models])
    for edge in range(1, len(models)):
        for axes in panels:
            axes.axhline(edge - 0.5, color="0.88", linewidth=0.5)
    handles = []
    for channel in channels:
        name, colour, marker = link_style(channel)
        handles.append(Line2D([], [], color=colour, marker=marker, linestyle="none", label=name))
    hollow = {"color": "0.3", "marker": "o", "markerfacecolor": "white", "linestyle": "none"}
    add_legend(figure, {}, [*handles, Line2D([], [], label="unverified", **hollow)])
    add_small_print(
        figure,
        "Modelled by published costs, nothing measured here: see docs/literature.md. A layer: the median "
        "convolution beyond 1x1 of the baseline, its ReLUs kept. Dashed: ReLUs of a variant; where a marker "
        "is to the right of it, dropping one more such layer saves more than dropping all its ReLUs. "
        + _modelled_said(tables.modelled, channels),
    )
    return figure


def _modelled_said(modelled: pd.DataFrame, channels: Sequence[str]) -> str:
    said = []
    for channel, lines in modelled.groupby("channel", sort=False):
        if channel in channels:
            rtt, rate = lines[["channel_rtt_s", "channel_up_bit_per_s"]].iloc[0]
            said.append(f"{link_style(channel)[0]}: RTT {1e3 * rtt:g} ms, {rate / 1e6:g} Mbit/s")
    return f"Width {modelled['width'].iloc[0]}, one image of 32 x 32. {'; '.join(said)}."
