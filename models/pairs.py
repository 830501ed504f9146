"""Variants that reports compare."""

PAIRS = (
    ("senet-0.72", "joint-0.416"),
    ("senet-0.54", "joint-0.312"),
    ("senet-0.36", "joint-0.208"),
    ("senet-0.18", "joint-0.104"),
    ("senet-0.09", "joint-0.052"),
    ("senet-0.045", "joint-0.026"),
)
"""SENet's budgets, and joint reduction's at 1.73 times fewer ReLUs (arXiv 2304.13274)."""
EQUAL = ("senet-0.09", "joint-0.09")
"""A pair with the same budget: it shows the cost of merging layers in addition to masks."""
MERGED = (("senet-0.09", "joint-merged-0.09"), ("senet-merged-0.09", "joint-merged-0.09"))
"""Pairs with the same budget whose linear stretches are merged, in joint reduction and in both."""
TYPICAL = PAIRS[4]
"""The pair that represents all where there is room for one."""
UNMASKED = "joint"
"""Shallow blocks alone: it shows the cost of merging layers before any budget."""
JOINT_FAMILIES = ("joint", "joint3", "joint-merged")
"""The families of joint reduction: by their number of shallow blocks, and with merged stretches."""
