"""joint: the least sensitive blocks become one convolution each; of the other ReLUs a budget is kept."""

from pibench.models.base import Family

FAMILIES = (
    Family(
        name="joint",
        label="joint",
        paper="Making Models Shallow Again, CVPR-W 2023 (arXiv 2304.13274)",
        summary="The least sensitive blocks become one convolution each; of other ReLUs a budget is kept.",
        colour="#D55E00",
        marker="s",
        place=30,
        shown="joint-0.052",
    ),
    Family(
        name="joint3",
        label="joint, 3 blocks",
        paper="Making Models Shallow Again, CVPR-W 2023 (arXiv 2304.13274)",
        summary="As joint, with three shallow blocks instead of five.",
        colour="#E69F00",
        marker="p",
        place=40,
    ),
)
NAMES = ("joint", "joint-0.208", "joint-0.104", "joint-0.09", "joint-0.052", "joint-0.026", "joint3-0.052")
PAIRS = (
    ("senet-0.36", "joint-0.208"),
    ("senet-0.18", "joint-0.104"),
    ("senet-0.09", "joint-0.052"),
    ("senet-0.045", "joint-0.026"),
)
"""SENet's budgets, and joint reduction's at 1.73 times fewer ReLUs (arXiv 2304.13274)."""
EQUAL = ("senet-0.09", "joint-0.09")
"""A pair of one budget: what merging layers costs beside masks."""
TYPICAL = PAIRS[2]
"""The pair that stands for all where there is room for one."""
UNMASKED = "joint"
"""Shallow blocks alone: what merging layers costs before any budget."""
