"""The figure of protocols: the cost of the same networks under each, relative to its own baseline."""

from __future__ import annotations

import pandas as pd
from matplotlib.figure import Figure

from pibench.figures.data import Missing, Tables
from pibench.figures.style import (
    SKY,
    VERMILLION,
    WIDTH,
    add_caption,
    add_note,
    category_axis,
    short_number,
)
from pibench.store.engines import engine_look


def protocols(tables: Tables) -> Figure:
    """Draws seconds of all phases and bytes of each network under each protocol, in % of its baseline's."""
    cases = tables.protocols
    cases = cases[cases["timing"] == "measured"] if not cases.empty else cases
    if cases.empty or "baseline" not in set(cases["variant"]):
        raise Missing("protocols.csv has no baseline: it needs `make protocols`")
    cases = cases.drop_duplicates(["engine", "variant"])
    variants = list(dict.fromkeys(cases["variant"]))
    engines = list(cases.loc[cases["variant"] == "baseline", "engine"])
    figure = Figure(figsize=(WIDTH, 1.6 + 0.34 * len(variants)), layout="constrained")
    panels = figure.subplots(2, len(engines), sharey=True, squeeze=False)
    for column, engine in zip(panels.T, engines, strict=True):
        group = cases[cases["engine"] == engine].set_index("variant").reindex(variants)
        percent = 100 / group["whole_speedup"]
        ends = [100 / group[f"whole_speedup_{end}"] for end in ("high", "low")]
        bars = [(percent - ends[0]).clip(lower=0).fillna(0), (ends[1] - percent).clip(lower=0).fillna(0)]
        sent = group["bytes_all"].astype(float)
        look = {"height": 0.7, "edgecolor": "black", "linewidth": 0.4}
        above, below = column
        above.barh(
            range(len(variants)), percent, color=VERMILLION, xerr=bars, error_kw={"elinewidth": 0.8}, **look
        )
        below.barh(range(len(variants)), 100 * sent / sent["baseline"], color=SKY, hatch="\\\\\\\\", **look)
        for place, variant in enumerate(variants):
            if not pd.isna(percent[variant]):
                end = percent[variant] + bars[1][variant]
                add_note(above, end, place, short_number(group.loc[variant, "whole_median_s"]))
                add_note(
                    below, 100 * sent[variant] / sent["baseline"], place, short_number(sent[variant] / 1e6)
                )
        above.set_title(engine_look(engine).label.replace(" (", "\n("))
        for axes in column:
            axes.set_xlabel("% of baseline")
            axes.axvline(100, color="black", linewidth=0.6, linestyle=":")
            axes.set_xticks([0, 50, 100])
            axes.set_xlim(0, 1.55 * max(100, axes.get_xlim()[1] / 1.05))
    for row, name in zip(panels, ("seconds", "MB"), strict=True):
        row[0].set_ylabel(name)
        category_axis(row[0], variants)
    found = tables.summary[tables.summary["case"].isin(cases["case"])]
    trust = "; ".join(
        f"{engine_look(engine).label}: {cases.loc[cases['engine'] == engine, 'trust'].iloc[0]}"
        for engine in engines
    )
    add_caption(
        figure,
        found,
        "Numbers: seconds of all phases and MB of all processes. Lines: 95 % intervals of paired speed-ups. "
        f"Whom to trust: {trust}.",
    )
    return figure
