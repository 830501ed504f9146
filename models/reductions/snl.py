"""SNL: reLUs are removed position by position, chosen by a lasso on trained slopes."""

from pibench.models.base import Family

FAMILIES = (
    Family(
        name="snl",
        label="SNL",
        paper="Selective Network Linearization, ICML 2022 (arXiv 2202.02340)",
        summary="ReLUs are removed position by position, chosen by a lasso on trained slopes.",
        colour="#CC79A7",
        marker="^",
        place=20,
    ),
)
NAMES = ("snl-0.09",)
