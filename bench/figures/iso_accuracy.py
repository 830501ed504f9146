"""The figure of what joint reduction needs at equal accuracy."""

from __future__ import annotations

from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from pibench.figures.data import Missing, Tables
from pibench.figures.style import (
    BLACK,
    BLUE,
    GREEN,
    ORANGE,
    VERMILLION,
    add_small_print,
    is_narrow,
    label_y,
    panels_beside,
)
from pibench.models.published import JOINT_REDUCTION
from pibench.store.engines import engine_look, shown_engines

COUNTS = {  # column: (its name in figures, colour, marker, the factor that is claimed)
    "relus_ratio": ("ReLUs", BLUE, "o", JOINT_REDUCTION["relus"]),
    "macs_ratio": ("MACs", GREEN, "D", JOINT_REDUCTION["linear_operations"]),
}


def iso_accuracy(tables: Tables) -> Figure:
    """Draws SENet's cost over joint's against the accuracy that both reach, one panel a width."""
    lines = tables.iso_accuracy
    if lines.empty:
        raise Missing("it needs two trained networks of SENet and of joint reduction that reach one accuracy")
    looks = COUNTS | {
        f"{engine}_online_ratio": (f"online, {engine}", VERMILLION if filled else ORANGE, "^v"[filled], None)
        for engine in shown_engines()
        for filled in [engine_look(engine).filled]
    }
    looks = {column: look for column, look in looks.items() if lines[column].notna().any()}
    widths = sorted(lines["width"].unique())
    figure, panels = panels_beside(len(widths), 3.2, 1 if len(widths) > 1 else 0.6)
    for axes, width in zip(panels, widths, strict=True):
        for _, group in lines[lines["width"] == width].groupby("plan", dropna=False):
            percent = 100 * group["accuracy"]
            for column, (_, colour, marker, _) in looks.items():
                axes.fill_between(
                    percent,
                    group[f"{column}_low"],
                    group[f"{column}_high"],
                    color=colour,
                    alpha=0.15,
                    linewidth=0,
                )
                axes.plot(percent, group[column], color=colour, marker=marker, markersize=3)
        for _, colour, _, claimed in looks.values():
            if claimed is not None:
                axes.axhline(claimed, color=colour, linestyle=":", linewidth=0.9)
        axes.axhline(1, color=BLACK, linewidth=0.6)
        axes.set_title(f"width {width}")
        axes.set_xlabel("test accuracy, %")
        axes.xaxis.set_major_locator(MaxNLocator(7, integer=True))
    label_y(panels, "SENet / joint, times")
    handles = [
        Line2D([], [], color=colour, marker=marker, markersize=3, label=name)
        for name, colour, marker, _ in looks.values()
    ]
    handles.append(Line2D([], [], color="0.4", linestyle=":", linewidth=0.9, label="claimed by its authors"))
    columns = 2 if is_narrow() else 3 if len(widths) == 1 else len(handles)
    figure.legend(handles=handles, loc="outside upper center", ncols=columns)
    add_small_print(
        figure,
        "Above 1 joint reduction needs less than SENet for the same accuracy. Read off monotone curves "
        "through the trained networks of each method: "
        f"{' and '.join(f'width {width}' for width in widths)}, CIFAR-100, 10,000 test images. Bands: 95 % "
        "of the curves whose points are drawn anew with the standard error of each accuracy. Seconds: "
        "measured on loopback, as shares of the baseline's interleaved repetitions. Claimed: "
        f"{JOINT_REDUCTION['relus']} times fewer ReLUs, {JOINT_REDUCTION['linear_operations']} times fewer "
        f"linear operations ({JOINT_REDUCTION['source']}).",
    )
    return figure
