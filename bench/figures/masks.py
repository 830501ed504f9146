"""Figures of the kept ReLUs: the sensitivity of each layer, and the masks of one layer."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pandas as pd
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from pibench.figures.data import Missing, Tables
from pibench.figures.style import BAND, BLACK, BLUE, WIDTH, add_small_print, family_style
from pibench.models import catalogue
from pibench.models.pairs import EQUAL
from pibench.store.settings import TRAINED_WIDTH

CHANNELS = 8
SHALLOW = 5  # blocks that joint-* turns into one convolution


def sensitivity(tables: Tables) -> Figure:
    """Draws the sensitivity of every ReLU layer, measured here and published by SENet's authors."""
    rows = tables.sensitivity
    if rows.empty:
        raise Missing("it needs a sensitivity.json in results/training: run `make data train`")
    width = rows["width"].min()
    rows = rows[rows["width"] == width]
    layers = rows.sort_values("position").drop_duplicates("layer").set_index("layer")
    measured = rows.groupby("layer")["measured_sensitivity"].agg(["mean", "min", "max"]).loc[layers.index]
    mids = [layer for layer in layers.index if layer.endswith("relu1")]
    dropped = layers.loc[mids, "published_sensitivity"].nsmallest(SHALLOW).index
    chosen = measured.loc[mids, "mean"].nsmallest(SHALLOW).index
    figure = Figure(figsize=(WIDTH, 2.6), layout="constrained")
    axes = figure.subplots()
    places = np.arange(len(layers))
    for place, layer in enumerate(layers.index):
        if layer in dropped:
            axes.axvspan(place - 0.5, place + 0.5, **BAND)
    seeds = rows["seed"].nunique()
    bars = np.array([measured["mean"] - measured["min"], measured["max"] - measured["mean"]]).clip(0)
    axes.bar(
        places,
        measured["mean"],
        0.6,
        yerr=bars if seeds > 1 else None,
        error_kw={"elinewidth": 0.8, "capsize": 2},
        color=BLUE,
        edgecolor="black",
        linewidth=0.4,
    )
    look = {"color": BLACK, "marker": "o", "markerfacecolor": "white", "linewidth": 0.8, "linestyle": ":"}
    axes.plot(places, layers["published_sensitivity"], **look)
    axes.set_xticks(places, [_layer_name(layer).replace(" ", "\n") for layer in layers.index])
    axes.tick_params(axis="x", length=0)
    axes.grid(visible=False, axis="x")
    axes.set(xlim=(-0.6, len(layers) - 0.4), ylim=(0, 1.08))
    axes.set_ylabel("sensitivity, 1 - density")
    axes.set_xlabel("ReLU layer: stage.block, middle or last of its block")
    handles = [
        Patch(facecolor=BLUE, edgecolor="black", linewidth=0.4, label=f"measured, width {width}"),
        Line2D([], [], label="published (SENet), width 64", **look),
        Patch(label="gone in joint-*", **BAND),
    ]
    figure.legend(handles=handles, loc="outside upper center", ncols=3, handlelength=1.8)
    same = set(dropped) == set(chosen)
    ours = ", ".join(_layer_name(layer).split()[0] for layer in chosen)
    whole = ", ".join(_layer_name(layer) for layer in measured.index[measured["mean"] < 0.005])
    add_small_print(
        figure,
        f"Measured: 1 - density of the convolution before the ReLU in a sparse proxy network on CIFAR-100, "
        f"{seeds} seed{'s' * (seeds > 1)}"
        f"{f' (0: {whole})' if whole else ''}. Grey: middle ReLUs of the {SHALLOW} blocks that joint-* makes "
        f"shallow, the least sensitive by the published values; "
        + ("by the measured ones the same." if same else f"by the measured ones they would be {ours}."),
    )
    return figure


def _layer_name(layer: str) -> str:
    """Writes a layer's name shorter: `layer2.0.relu1` as `2.0 middle`; the stem's ReLU is `stem`."""
    if "." not in layer:
        return "stem"
    stage, block, relu = layer.removeprefix("layer").split(".")
    return f"{stage}.{block} {'middle' if relu == 'relu1' else 'last'}"


def masks(tables: Tables) -> Figure:
    """Draws masks of some channels of a layer in networks of one budget, and all channels' counts."""
    names = masked_variants()
    found = {
        name: tables.masks[name, TRAINED_WIDTH] for name in names if (name, TRAINED_WIDTH) in tables.masks
    }
    if len(found) < 2:
        raise Missing(f"it needs the trained masks of two of {', '.join(names)} at width {TRAINED_WIDTH}")
    layer = shown_layer(found)
    shown = {name: by_layer[layer] for name, by_layer in found.items()}
    counts = {name: mask.sum(axis=(1, 2)) for name, mask in shown.items()}
    channels, height, width = next(iter(shown.values())).shape
    order = np.argsort(next(iter(counts.values())), kind="stable")[::-1]
    chosen = order[np.linspace(0, channels - 1, min(CHANNELS, channels)).round().astype(int)]
    figure = Figure(figsize=(WIDTH, 0.85 + 0.7 * len(shown)), layout="constrained")
    left, right = figure.subfigures(1, 2, width_ratios=(CHANNELS, 2.6))
    panels = left.subplots(len(shown), len(chosen), squeeze=False)
    for row, (name, mask) in enumerate(shown.items()):
        colour = family_style(name)[1]
        for axes, channel in zip(panels[row], chosen, strict=True):
            axes.imshow(mask[channel], cmap=ListedColormap(["0.93", colour]), vmin=0, vmax=1)
            axes.set_xticks([])
            axes.set_yticks([])
            axes.grid(visible=False)
            axes.spines[:].set_visible(False)
            axes.set_xlabel(f"{counts[name][channel]}", labelpad=2)
            if row == 0:
                axes.set_title(f"ch. {channel}", fontweight="normal", loc="center", fontsize=7)
        label = name if len(name) < 16 else name.replace("-", "-\n", 1)  # a row is low
        panels[row][0].set_ylabel(label, color=colour)
    axes = right.subplots()
    for name, kept in counts.items():
        family, colour, marker = family_style(name)
        look = {"color": colour, "marker": marker, "markevery": max(1, channels // 8), "markersize": 3.5}
        axes.plot(np.arange(1, channels + 1), np.sort(kept)[::-1], label=family, **look)
    axes.legend(loc="upper right", handlelength=1.4, fontsize=6)
    axes.set(xlim=(0, channels + 1), ylim=(0, None))
    axes.set_xlabel("channel, by rank")
    axes.set_ylabel("ReLUs kept")
    totals = ", ".join(
        f"{name} {kept.sum():,} ({100 * kept.sum() / mask_size(shown):.0f} %)"
        for name, kept in counts.items()
    )
    add_small_print(
        figure,
        f"ReLU layer {_layer_name(layer)} ({layer}), {channels} channels of {height} x {width} positions. In "
        f"colour: positions that keep their ReLU; below each channel how many. Channels are evenly spaced by "
        f"their rank in {next(iter(shown))}. Of {mask_size(shown):,} positions keep a ReLU: {totals}. "
        f"Trained networks of width {TRAINED_WIDTH}, seed 0, {_budget(shown)} % of all ReLUs each.",
    )
    return figure


def masked_variants() -> tuple[str, ...]:
    """Returns the variants of one budget: SENet's, joint reduction's, then all others of the catalogue.

    Variants with the masks of their `source` are left out.
    """
    budget = EQUAL[0].rpartition("-")[2]
    copies = {name for name, variant in catalogue.variants().items() if variant.source is not None}
    names = (name for name in catalogue.variant_names() if name.endswith(f"-{budget}"))
    return (*EQUAL, *(name for name in names if name not in {*EQUAL, *copies}))


def mask_size(shown: Mapping[str, np.ndarray]) -> int:
    """Returns the number of positions of the layer."""
    return next(iter(shown.values())).size


def _budget(shown: Mapping[str, np.ndarray]) -> str:
    return f"{100 * float(next(iter(shown)).rpartition('-')[2]):g}"


def shown_layer(found: Mapping[str, Mapping[str, np.ndarray]]) -> str:
    """Returns the layer with the largest maps of which every network keeps 5 to 95 %; the last of equal ones.

    Without such a layer it is the one nearest to half kept. Raises Missing if the networks share no masked
    layer.
    """
    first = next(iter(found.values()))
    common = [
        layer
        for layer in first
        if all(layer in masks and masks[layer].shape == first[layer].shape for masks in found.values())
    ]
    if not common:
        raise Missing("it needs a layer that is masked in all of the networks")
    shares = pd.DataFrame({name: {x: masks[x].mean() for x in common} for name, masks in found.items()})
    inside = shares[(shares >= 0.05).all(axis=1) & (shares <= 0.95).all(axis=1)].index
    if inside.empty:
        return (shares - 0.5).abs().max(axis=1).idxmin()
    largest = max(first[layer][0].size for layer in inside)
    return [layer for layer in inside if first[layer][0].size == largest][-1]
