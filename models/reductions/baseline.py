"""baseline: The original network, nothing removed."""

from pibench.models.base import Family

FAMILIES = (
    Family(
        name="baseline",
        label="baseline",
        paper="He et al., CVPR 2016 (arXiv 1512.03385)",
        summary="The original network, nothing removed.",
        colour="#000000",
        marker="*",
        place=0,
        shown="baseline",
    ),
)
NAMES = ("baseline",)
