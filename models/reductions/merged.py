"""merged-exact: the least sensitive blocks lose their middle ReLU; their convolutions are merged exactly."""

from pibench.models.base import Family

FAMILIES = (
    Family(
        name="merged-exact",
        label="merged-exact",
        paper="exact merging, the counter-example of arXiv 2304.13274",
        summary="The least sensitive blocks lose their middle ReLU; their convolutions are merged exactly.",
        colour="#009E73",
        marker="D",
        place=60,
        shown="merged-exact",
    ),
)
NAMES = ("merged-exact",)
