"""SENet: reLUs are removed position by position; a layer keeps the more, the more sensitive it is."""

from pibench.models.base import Family

FAMILIES = (
    Family(
        name="senet",
        label="SENet",
        paper="SENet, ICLR 2023 (arXiv 2301.09254)",
        summary="ReLUs are removed position by position; a layer keeps the more, the more sensitive it is.",
        colour="#0072B2",
        marker="o",
        place=10,
        shown="senet-0.09",
    ),
)
NAMES = ("senet-0.36", "senet-0.18", "senet-0.09", "senet-0.045")
