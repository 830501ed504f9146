"""Draws figures from the tables in results/ into files: the list of all figures, and how one is written."""

from __future__ import annotations

import io
import os
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import TypeVar

import matplotlib as mpl
from matplotlib.figure import Figure

from pibench.figures.accuracy import (
    accuracy_full_width,
    accuracy_vs_latency,
    accuracy_vs_macs,
    accuracy_vs_relus,
)
from pibench.figures.cost_models import break_even, literature
from pibench.figures.data import CSVS, Missing, Tables, read_masks, read_table
from pibench.figures.iso_accuracy import iso_accuracy
from pibench.figures.masks import masks, sensitivity
from pibench.figures.profiles import layer_profile, stock_vs_lean
from pibench.figures.protocols import protocols
from pibench.figures.shaped_links import link_model_error, links, links_all
from pibench.figures.style import STYLE
from pibench.figures.systems import systems
from pibench.figures.variants import (
    batch,
    latency_vs_relus,
    linear_vs_relu,
    offline_online,
    relus_macs_latency,
)
from pibench.models.files import replace_file, writing
from pibench.store.results import ResultsError

Said = TypeVar("Said")
FIGURES: dict[str, Callable[[Tables], Figure]] = {
    "latency_vs_relus": latency_vs_relus,
    "linear_vs_relu": linear_vs_relu,
    "relus_macs_latency": relus_macs_latency,
    "layer_profile_stock": partial(layer_profile, engine="stock"),
    "layer_profile_lean": partial(layer_profile, engine="lean"),
    "stock_vs_lean": stock_vs_lean,
    "offline_online": offline_online,
    "batch": batch,
    "protocols": protocols,
    "links": links,
    "links_all": links_all,
    "link_model_error": link_model_error,
    "literature": literature,
    "break_even": break_even,
    "accuracy_vs_relus": accuracy_vs_relus,
    "accuracy_full_width": accuracy_full_width,
    "accuracy_vs_macs": accuracy_vs_macs,
    "accuracy_vs_latency": accuracy_vs_latency,
    "iso_accuracy": iso_accuracy,
    "systems": systems,
    "sensitivity": sensitivity,
    "masks": masks,
}


REMEDY = "make room or allow writing there, or choose another folder with --plots"


def write(figure: Figure, path: Path) -> None:
    """Writes one figure, byte for byte the same for the same data; raises ResultsError when it cannot."""
    undated = {"Date": None} if path.suffix == ".svg" else {"CreationDate": None}
    buffer = io.BytesIO()
    figure.savefig(buffer, format=path.suffix[1:], metadata=undated)
    with writing(path, ResultsError, REMEDY):
        replace_file(path, buffer.getvalue())


def remove(path: Path) -> None:
    """Removes an older figure if there is one; raises ResultsError when it cannot."""
    with writing(path, ResultsError, REMEDY):
        path.unlink(missing_ok=True)


def draw(name: str, tables: Tables, plots: Path, suffixes: Sequence[str] = (".svg", ".pdf")) -> str:
    """Draws a figure into the folder `plots`, or removes it if its data are missing; returns what it did."""
    paths = [plots / f"{name}{suffix}" for suffix in suffixes]
    with mpl.rc_context(STYLE):
        try:
            figure = FIGURES[name](tables)
        except Missing as reason:
            for path in paths:
                remove(path)
            return f"{name}: skipped, {reason}"
        for path in paths:
            write(figure, path)
    return f"{name}: drawn"


def draw_all(tables: Tables, plots: Path, suffixes: Sequence[str] = (".svg", ".pdf")) -> list[str]:
    """Draws every figure; returns what `draw` says of each."""
    return on_all_cores(partial(draw, tables=tables, plots=plots, suffixes=suffixes), FIGURES)


def on_all_cores(function: Callable[[str], Said], names: Iterable[str]) -> list[Said]:
    """Calls a function that draws for each name; a figure takes a second, most of it fonts."""
    with ProcessPoolExecutor(os.cpu_count(), get_context("spawn")) as pool:
        return list(pool.map(function, names))


def read_tables(results: Path, weights: Path) -> Tables:
    """Reads the tables of a report, and the masks of networks that are stored or trained by the user.

    Raises ResultsError for a file that cannot be read.
    """
    read = {name: read_table(results / f"{name}.csv") for name in CSVS}
    return Tables(**read, masks=read_masks(weights) | read_masks(results / "weights"))
