"""What every run measures, as far as reports and figures choose by it (see `pibench.measure.cases`)."""

WIDTH = 64
"""Channels of the first stage in the latency headline: the networks' full width."""
TRAINED_WIDTH = 16
"""The width of the accuracy figures."""
ENGINES = ("stock", "lean")
"""The engines that every run measures: the ordinary one first, then the one that is compared with it."""
LINKED = ("baseline", "senet-0.09", "joint-0.052")
"""The variants that every run measures over shaped links."""
