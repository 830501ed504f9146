"""Figures from the tables in results/: one function for each figure, which returns a Figure.

They are written as SVG and PDF, with text as text. Colours are those of Okabe and Ito. Markers, line styles
and hatches carry the same information, so that the figures can be read in grey.
"""

from pibench.figures.accuracy import (
    accuracy_full_width,
    accuracy_vs_latency,
    accuracy_vs_macs,
    accuracy_vs_relus,
)
from pibench.figures.cost_models import MODELS, break_even, literature
from pibench.figures.data import Missing, Tables
from pibench.figures.drawing import FIGURES, write
from pibench.figures.iso_accuracy import iso_accuracy
from pibench.figures.masks import masks, sensitivity
from pibench.figures.profiles import layer_profile, stock_vs_lean
from pibench.figures.protocols import protocols
from pibench.figures.shaped_links import link_model_error, links, links_all
from pibench.figures.style import LINKS, STYLE
from pibench.figures.systems import systems
from pibench.figures.variants import (
    batch,
    latency_vs_relus,
    linear_vs_relu,
    offline_online,
    relus_macs_latency,
)

__all__ = [
    "FIGURES",
    "LINKS",
    "MODELS",
    "STYLE",
    "Missing",
    "Tables",
    "accuracy_full_width",
    "accuracy_vs_latency",
    "accuracy_vs_macs",
    "accuracy_vs_relus",
    "batch",
    "break_even",
    "iso_accuracy",
    "latency_vs_relus",
    "layer_profile",
    "linear_vs_relu",
    "link_model_error",
    "links",
    "links_all",
    "literature",
    "masks",
    "offline_online",
    "protocols",
    "relus_macs_latency",
    "sensitivity",
    "stock_vs_lean",
    "systems",
    "write",
]
