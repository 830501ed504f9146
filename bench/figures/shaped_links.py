"""Figures of links: measured, emulated and modelled."""

from __future__ import annotations

import pandas as pd
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import MaxNLocator

from pibench.figures.data import Missing, Tables, engines_of
from pibench.figures.style import (
    BAND,
    BLACK,
    GREEN,
    PURPLE,
    WIDTH,
    YELLOW,
    add_caption,
    add_legend,
    add_note,
    category_axis,
    link_style,
    plain_log,
    short_number,
    stack_bars,
)
from pibench.store.engines import engine_look
from pibench.store.settings import GOAL, LINKED

PARTS = {  # of an online phase: (its name in figures, colour, hatch)
    "compute": ("compute", GREEN, ""),
    "hops": ("hops", YELLOW, "////"),
    "bytes": ("bytes", PURPLE, "....."),
}


def links(tables: Tables) -> Figure:
    """Draws online seconds of the variants of every run, on each link: see `links_all`."""
    emulated, loopback = _linked(tables.summary)
    few = emulated["variant"].isin(LINKED)
    if few.any():
        emulated, loopback = emulated[few], loopback[loopback["variant"].isin(LINKED)]
    return _stacked(emulated, loopback)


def links_all(tables: Tables) -> Figure:
    """Draws online seconds on each link: the model's parts stacked, measured or emulated ones as markers."""
    emulated, loopback = _linked(tables.summary)
    if emulated["variant"].isin(LINKED).all():
        raise Missing("it needs link cases of other variants than the figure links: run `make sweep`")
    return _stacked(emulated, loopback)


def _stacked(emulated: pd.DataFrame, loopback: pd.DataFrame) -> Figure:
    cases = pd.concat([loopback, emulated])
    names, engines = list(dict.fromkeys(cases["link"])), engines_of(emulated)
    variants = list(dict.fromkeys(emulated["variant"]))
    figure = Figure(figsize=(WIDTH, 1.0 + (0.5 + 0.2 * len(variants)) * len(engines)), layout="constrained")
    panels = figure.subplots(len(engines), len(names), sharey=True, squeeze=False)
    columns = [f"modelled_{part}_s" for part in PARTS]
    for row, engine in enumerate(engines):
        for axes, link in zip(panels[row], names, strict=True):
            group = cases[(cases["engine"] == engine) & (cases["link"] == link)]
            table = group.set_index("variant").reindex(variants)
            parts = table[columns].set_axis(list(PARTS), axis=1)
            stack_bars(axes, parts, PARTS)
            found = table["online_median_s" if link == "loopback" else "emulated_online_median_s"]
            axes.plot(found, range(len(variants)), **_emulated_marker())
            for place, variant in enumerate(variants):
                error = table.loc[variant, "model_error"]
                if not pd.isna(found[variant]):
                    text = short_number(found[variant]) + ("" if pd.isna(error) else f" ({_signed(error)})")
                    flag = "!" if str(table.loc[variant, "link_flagged"]) == "True" else ""
                    add_note(axes, max(found[variant], parts.loc[variant].sum()), place, text + flag, 5)
            if row == 0:
                axes.set_title(link_style(link)[0])
            if row == len(engines) - 1:
                axes.set_xlabel("online seconds")
            axes.set_xlim(0, 1.75 * max(parts.sum(axis=1).max(), found.fillna(0).max()) or 1)
            axes.xaxis.set_major_locator(MaxNLocator(4, steps=[1, 2, 5, 10]))
        panels[row][0].set_ylabel(engine_look(engine).label.replace(" (", "\n("), fontweight="bold")
    category_axis(panels[0][0], variants)
    marker = Line2D([], [], label="measured or emulated", **_emulated_marker())
    add_legend(figure, {part: (f"modelled {name}", *look) for part, (name, *look) in PARTS.items()}, [marker])
    add_caption(
        figure,
        cases,
        "Bars: modelled from loopback's compute, on loopback the split of what was measured; hops are "
        "latency, bytes bandwidth. Beside them: median online seconds, measured on loopback, else emulated, "
        "in brackets the model's error. The panels' scales differ. " + _links_said(emulated),
    )
    return figure


def link_model_error(tables: Tables) -> Figure:
    """Draws modelled against emulated seconds of every link case, and the model's error against the goal."""
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
    left.fill_between(line, *([factor * x for x in line] for factor in (1 - GOAL, 1 + GOAL)), **BAND)
    left.plot(line, line, color="black", linewidth=0.6, linestyle=":")
    right.axvspan(-100 * GOAL, 100 * GOAL, **BAND)
    right.axvline(0, color="black", linewidth=0.6, linestyle=":")
    for (link, engine), group in cases.groupby(["link", "engine"], sort=False):
        _, colour, marker = link_style(link)
        look = {"color": colour, "marker": marker, "linestyle": "none", "clip_on": False}
        look["markerfacecolor"] = colour if engine_look(engine).filled else "white"
        left.plot(group["emulated_online_median_s"], group["modelled_online_s"], **look)
        aside = 0.24 * (names.index(link) - (len(names) - 1) / 2)
        places = [rows.index(f"{case.engine} {case.variant}") + aside for case in group.itertuples()]
        right.plot(100 * group["model_error"], places, **look)
    left.set(xscale="log", yscale="log", xlim=line, ylim=line)
    for axis in (left.xaxis, left.yaxis):
        plain_log(axis)
    left.set_xlabel("emulated online seconds")
    left.set_ylabel("modelled online seconds")
    reach = max(1.5 * 100 * GOAL, 110 * cases["model_error"].abs().max())
    right.set_xlim(-reach, reach)
    right.set_xlabel("error of the model, % of emulated")
    category_axis(right, rows)
    right.grid(visible=True, axis="y")
    handles = [Patch(label=f"within {100 * GOAL:.0f} %", **BAND)]
    for link, engine in cases[["link", "engine"]].drop_duplicates().itertuples(index=False):
        name, colour, marker = link_style(link)
        face = colour if engine_look(engine).filled else "white"
        look = {"color": colour, "marker": marker, "markerfacecolor": face, "linestyle": "none"}
        handles.append(Line2D([], [], label=f"{name}, {engine}", **look))
    add_legend(figure, {}, handles)
    add_caption(
        figure,
        cases,
        "Modelled from the same case on loopback: compute + hops (RTT / 2 + h0) + bytes / bandwidth. "
        "A positive error: the model is too slow. " + _links_said(cases),
    )
    return figure


def _linked(summary: pd.DataFrame) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Returns the link cases of the most frequent setting, fastest link first, and their loopback cases."""
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


def _emulated_marker() -> dict[str, object]:
    look = {"color": BLACK, "marker": "D", "linestyle": "none", "markersize": 4, "zorder": 3}
    return look | {"markeredgecolor": "white", "markeredgewidth": 0.7}


def _signed(fraction: float) -> str:
    """Writes a fraction in whole percent, with its sign."""
    return f"{round(100 * fraction) + 0.0:+.0f} %".replace("-", "−")


def _links_said(emulated: pd.DataFrame) -> str:
    """Returns a text with the request for each link, its shaper and, if a check failed, the case."""
    said = []
    for link, cases in emulated.groupby("link", sort=False):
        first = cases.iloc[0]
        rate = first["asked_bandwidth_bits_s"]
        limits = [f"RTT {1e3 * first['asked_rtt_s']:g} ms"]
        limits += [] if pd.isna(rate) else [f"{rate / 1e6:g} Mbit/s each way"]
        said.append(f"{link_style(link)[0]}: {', '.join(limits)}")
    shapers = " and ".join(sorted(emulated["shaper"].dropna().unique())) or "unknown"
    flagged = emulated[emulated["link_flagged"].astype(str) == "True"]
    names = ", ".join(flagged["engine"] + " " + flagged["variant"] + " over " + flagged["link"])
    complaint = f" Not the link that was asked for (!): {names}." if names else ""
    return f"{'; '.join(said)}; shaped by {shapers}.{complaint}"
