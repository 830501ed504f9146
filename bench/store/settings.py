"""The cases of every run and its goals, for reports and figures."""

WIDTH = 64
"""Channels of the first stage in the latency headline: the networks' full width."""
TRAINED_WIDTH = 16
"""The width of the accuracy figures."""
ENGINES = ("stock", "lean")
"""The engines that every run measures: the ordinary one first, then the one that is compared with it."""
LINKED = ("baseline", "senet-0.09", "joint-0.052")
"""The variants that every run measures over shaped links."""
GOAL = 0.10
"""How far the arithmetic model of a link may be off, as a share of the emulated time."""
