"""DeepReDuce: whole ReLU layers are removed."""

from pibench.models.base import Family

FAMILIES = (
    Family(
        name="deepreduce",
        label="DeepReDuce",
        paper="DeepReDuce, ICML 2021 (arXiv 2103.01396)",
        summary="Whole ReLU layers are removed.",
        colour="#56B4E9",
        marker="v",
        place=50,
    ),
)
NAMES = ("deepreduce",)
