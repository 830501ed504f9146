"""Figures of accuracy against ReLUs, MACs and measured latency, all at the width of the trained networks."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from pibench.figures.data import Missing, Tables, engines_of, measured_cases
from pibench.figures.style import (
    add_caption,
    add_point_labels,
    add_small_print,
    error_bars,
    family_handles,
    family_style,
    is_narrow,
    label_y,
    one_panel,
    panels_beside,
    plain_log,
)
from pibench.models import catalogue
from pibench.models.published import ALL_RELU_ACCURACY, FULL_WIDTH_RELUS, PUBLISHED
from pibench.store.cases import single_images
from pibench.store.engines import engine_look
from pibench.store.results import plans_of
from pibench.store.settings import TRAINED_WIDTH
from pibench.store.settings import WIDTH as FULL_WIDTH

PUBLISHED_MARKERS = {"AutoReP": "P", "ReLUPruner": "X"}  # of methods without a family here
GREY = "0.45"


def accuracy_vs_relus(tables: Tables) -> Figure:
    """Draws accuracy against ReLUs, as a number and as a share of the original's, with published points."""
    points = trained_points(tables.accuracy)
    if "baseline" not in points.index:
        raise Missing(f"it needs the baseline, trained at width {TRAINED_WIDTH}")
    figure, panels = panels_beside(2, 3.5 + _beyond(points["family"], 3, 4))
    originals = (points.loc["baseline", "relus"], FULL_WIDTH_RELUS)
    for axes, scales in zip(panels, ((1e3, 1e3), [whole / 100 for whole in originals]), strict=True):
        _draw_published(axes, scales[1])
        _draw_families(axes, points, points["relus"] / scales[0])
        axes.set(xscale="log")
        plain_log(axes.xaxis)
        axes.margins(x=0.08, y=0.07)
    label_y(panels, "test accuracy, %")
    panels[0].set_xlabel("ReLUs per image, thousands")
    panels[1].set_xlabel("ReLUs kept, % of the original network's")
    _legend(figure, family_handles(points["family"]), 3, "left", f"Ours, width {TRAINED_WIDTH}")
    _legend(figure, _published_handles(), 3, "right", "Published by others, width 64")
    add_small_print(
        figure,
        "In colour: ours. Hollow and grey: what others published for ResNet-18 on CIFAR-100 at width 64, "
        "with schedules of their own; vertical bar: their networks with all ReLUs. " + _said(tables.accuracy),
    )
    return figure


def accuracy_full_width(tables: Tables) -> Figure:
    """Draws accuracy against ReLUs of the networks trained at full width, with published points."""
    points = trained_points(tables.accuracy, FULL_WIDTH)
    figure, axes = one_panel(0.72, 4.3 + _beyond(points["family"], 2, 10))
    _draw_published(axes, 1e3)
    _draw_families(axes, points, points["relus"] / 1e3)
    axes.set(xscale="log", xlabel="ReLUs per image, thousands", ylabel="test accuracy, %")
    plain_log(axes.xaxis)
    axes.margins(x=0.08, y=0.07)
    _legend(figure, family_handles(points["family"]), 2, "left", f"Ours, width {FULL_WIDTH}")
    _legend(figure, _published_handles(), 2, "right", f"Published by others, width {FULL_WIDTH}")
    add_small_print(
        figure,
        "In colour: ours. Hollow and grey: what others published for ResNet-18 on CIFAR-100 at the same "
        "width, with longer schedules of their own. " + _said(tables.accuracy, FULL_WIDTH),
    )
    return figure


def accuracy_vs_macs(tables: Tables) -> Figure:
    """Draws test accuracy against multiply-accumulates per image."""
    points = trained_points(tables.accuracy)
    figure, axes = one_panel(0.8, 3.7 + _beyond(points["family"], 4, 4))
    millions = points["macs"] / 1e6
    _draw_families(axes, points, millions, joined=False)
    axes.set_xlabel("MACs per image, millions")
    axes.set_ylabel("test accuracy, %")
    axes.margins(x=0.16, y=0.07)
    _legend(figure, family_handles(points["family"]), 4, "center")
    add_small_print(
        figure,
        "At the points, where there is room: share of ReLUs kept, as in the names; all: all that merging "
        "leaves. " + _said(tables.accuracy),
    )
    _label_shares(axes, points, millions)
    return figure


def accuracy_vs_latency(tables: Tables) -> Figure:
    """Draws test accuracy against measured online milliseconds of the same networks, one panel an engine."""
    points = trained_points(tables.accuracy)
    cases = latency_cases(tables.summary)
    cases = cases[cases["variant"].isin(points.index)]
    if cases.groupby("engine")["variant"].nunique().max() < 2:
        raise Missing(f"it needs measured cases of two trained variants at width {TRAINED_WIDTH}")
    engines = engines_of(cases)
    families = points.loc[points.index.isin(cases["variant"]), "family"]
    many = families.nunique() > 7
    figure, panels = panels_beside(len(engines), 4.2 if many else 3.5, 1 if len(engines) > 1 else 0.6)
    labelled = []
    for axes, engine in zip(panels, engines, strict=True):
        of_engine = cases[cases["engine"] == engine].set_index("variant")
        times = 1e3 * of_engine[["online_median_s", "online_low_s", "online_high_s"]]
        shown = points[points.index.isin(times.index)]
        times = times.loc[shown.index]
        bars = error_bars(times["online_median_s"], times["online_low_s"], times["online_high_s"])
        _draw_families(axes, shown, times["online_median_s"], bars)
        axes.set_title(engine_look(engine).label)
        axes.set_xlabel("online latency, milliseconds")
        axes.xaxis.set_major_locator(MaxNLocator(6, steps=[1, 2, 5, 10]))
        axes.margins(x=0.12, y=0.09)
        labelled.append((axes, shown, times["online_median_s"], bars))
    label_y(panels, "test accuracy, %")
    columns = (5 if many else 7) if len(engines) > 1 else 4
    _legend(figure, family_handles(families), columns, "center")
    add_caption(
        figure,
        cases,
        "Accuracy and latency of the same networks. Horizontal bars: 95 % intervals. At the points, where "
        "there is room: share of ReLUs kept; all: all that merging leaves. The panels' scales differ. "
        + _said(tables.accuracy),
    )
    for each in labelled:
        _label_shares(*each)
    return figure


def trained_points(accuracy: pd.DataFrame, width: int = TRAINED_WIDTH) -> pd.DataFrame:
    """Returns counts and accuracy in percent of each variant at one width: mean, low and high over seeds."""
    rows = accuracy[accuracy["width"] == width].dropna(subset=["accuracy_test"])
    if rows["variant"].nunique() < 2:
        raise Missing(f"it needs two variants trained at width {width}: run `make data train`")
    rows = rows.assign(percent=100 * rows["accuracy_test"])
    points = rows.groupby("variant", sort=False).agg(
        relus=("relus", "first"),
        macs=("macs", "first"),
        mean=("percent", "mean"),
        low=("percent", "min"),
        high=("percent", "max"),
        seeds=("seed", "nunique"),
    )
    return points.assign(family=[catalogue.family_name(name) for name in points.index])


def latency_cases(summary: pd.DataFrame) -> pd.DataFrame:
    """Returns the measured cases of one image at the trained width, between two parties on loopback."""
    cases = single_images(measured_cases(summary), TRAINED_WIDTH)
    cases = cases[cases["link"] == "loopback"].drop_duplicates(["engine", "variant"])
    if cases.empty:
        raise Missing(f"it needs measured cases at width {TRAINED_WIDTH}: run `make sweep`")
    return cases


def _draw_families(
    axes: Axes,
    points: pd.DataFrame,
    x: pd.Series,
    x_bars: list[pd.Series] | None = None,
    joined: bool = True,
) -> None:
    """Draws one line for each family through its means by rising ReLUs; a bar shows the range of seeds."""
    for family, group in points.groupby("family", sort=False):
        _, colour, marker = family_style(family)
        group = group.sort_values("relus")
        order = group.index
        axes.errorbar(
            x.loc[order].astype(float),
            group["mean"],
            yerr=np.array([group["mean"] - group["low"], group["high"] - group["mean"]]).clip(0),
            xerr=None if x_bars is None else [bar.loc[order] for bar in x_bars],
            color=colour,
            marker=marker,
            markersize=8 if marker == "*" else 4.5,
            linestyle="-" if joined and len(group) > 1 else "none",
            elinewidth=0.8,
            capsize=2,
            zorder=3,
        )


def _draw_published(axes: Axes, scale: float) -> None:
    for method in dict.fromkeys(each.method for each in PUBLISHED):
        shown = [each for each in PUBLISHED if each.method == method]
        axes.plot(
            [each.relus / scale for each in shown],
            [100 * each.accuracy for each in shown],
            color=GREY,
            linestyle=":",
            linewidth=0.8,
            marker=_published_marker(method),
            markerfacecolor="white",
            markersize=4,
        )
    ends = [100 * end for end in ALL_RELU_ACCURACY]
    axes.plot([FULL_WIDTH_RELUS / scale] * 2, ends, color=GREY, linewidth=3)
    axes.annotate(
        "all ReLUs",
        (FULL_WIDTH_RELUS / scale, sum(ends) / 2),
        xytext=(-5, 0),
        textcoords="offset points",
        ha="right",
        va="center",
        color=GREY,
        fontsize=6.5,
    )


def _published_marker(method: str) -> str:
    families = [each.family for each in PUBLISHED if each.method == method and each.family]
    return family_style(families[0])[2] if families else PUBLISHED_MARKERS.get(method, "d")


def _label_shares(
    axes: Axes, points: pd.DataFrame, x: pd.Series, x_bars: list[pd.Series] | None = None
) -> None:
    """Writes the share of kept ReLUs at each point, from the end of its name, beside bars and lines.

    A family's point without a share in its name gets "all".
    """
    labels, inked = [], []
    several = points["family"].duplicated(keep=False)
    for variant, point in points.iterrows():
        at, share = float(x[variant]), variant[len(point["family"]) + 1 :] or "all" * bool(several[variant])
        inked.append((at, point["mean"]))
        inked += [(at, y) for y in np.linspace(point["low"], point["high"], 9)]
        if x_bars is not None:
            left, right = (at + sign * bar[variant] for sign, bar in zip((-1, 1), x_bars, strict=True))
            inked += [(place, point["mean"]) for place in np.linspace(left, right, 25) if place == place]
        if share:
            labels.append((at, float(point["mean"]), share, family_style(point["family"])[1]))
    for _, group in points.groupby("family") if x_bars is not None else ():
        line = [(float(x[name]), point["mean"]) for name, point in group.sort_values("relus").iterrows()]
        for start, end in pairwise(line):
            inked += [*zip(*(np.linspace(a, b, 25) for a, b in zip(start, end, strict=True)), strict=True)]
    add_point_labels(axes, labels, inked)


def _published_handles() -> list[Line2D]:
    look = {"color": GREY, "linestyle": ":", "linewidth": 0.8, "markerfacecolor": "white", "markersize": 4}
    methods = dict.fromkeys(each.method for each in PUBLISHED)
    return [Line2D([], [], marker=_published_marker(name), label=name, **look) for name in methods]


def _beyond(families: pd.Series, columns: int, rows: int) -> float:
    """Returns the height, in inches, of what a legend of families has beyond so many rows."""
    return 0.16 * max(0, -(-families.nunique() // columns) - rows)


def _legend(figure: Figure, handles: list[Line2D], columns: int, side: str, title: str | None = None) -> None:
    look = {"handlelength": 1.8, "columnspacing": 0.9, "alignment": "left"}
    loc = "outside lower left" if is_narrow() and side == "right" else f"outside upper {side}"
    figure.legend(
        handles=handles, loc=loc, ncols=min(columns, 2) if is_narrow() else columns, title=title, **look
    )


def _said(accuracy: pd.DataFrame, width: int = TRAINED_WIDTH) -> str:
    """Returns a text with width, data, plan and seeds of the trained networks."""
    rows = accuracy[accuracy["width"] == width]
    seeds = rows.groupby("variant")["seed"].nunique()
    spread = " Vertical bars: lowest and highest of several seeds." if (seeds > 1).any() else ""
    plans = "; ".join(
        f"{', '.join(names)} by {plan}" if index else f"plan {plan}"
        for index, (plan, _, names) in enumerate(plans_of(rows.to_dict("records")))
    )
    low, high = int(seeds.min()), int(seeds.max())
    count = f"{low} to {high} seeds" if low < high else f"{low} seed{'s' * (low > 1)}"
    return (
        f"Trained networks: width {width}, CIFAR-100, {plans or 'plan unknown'}, {count}; 10,000 "
        f"test images.{spread}"
    )
