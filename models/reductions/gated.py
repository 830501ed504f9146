"""gated: ReLUs become products with fixed gates; a null result, because a gate is a comparison on shares."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pibench.models.base import Family, Variant
from pibench.models.decisions import Step
from pibench.models.layout import Layout
from pibench.models.training.phases import Phase
from pibench.models.training.schedules import Plan, Schedule, Schedules

if TYPE_CHECKING:
    from pibench.models.training.loop import Task
    from pibench.models.training.run import Run

FAMILIES = (
    Family(
        name="gated",
        label="gated ReLU",
        paper="Fixing the NTK (arXiv 2309.15096)",
        summary="Fixed gates of the convolutions' inputs stand in place of ReLUs; nothing is removed.",
        colour="#FB9A99",
        marker="d",
        place=89,
    ),
)
SCHEDULES: Schedules = {
    "fixed_gates": {"quick": Schedule(14, 0.4), "standard": Schedule(24, 0.4), "long": Schedule(40, 0.4)},
}


def structure(layout: Layout) -> tuple[Step, ...]:
    """Gates every ReLU by the input of the convolution before it, but for the ReLUs after a residual sum.

    The gates are drawn from the network's own generator.
    """
    summed = {block.conv2 for block in layout.blocks}
    convs = {relu: conv for relu, conv in layout.convolutions.items() if conv not in summed}
    return (Step("gate_relus", {"convs": convs, "seed": None}),)


def trained(variant: Variant, plan: Plan) -> Phase:
    """Trains all but the gates as the baseline is trained, from random weights on labels alone."""

    def task(run: Run) -> Task:
        from pibench.models.training.tasks.supervised import Supervised

        return Supervised(run.structured(variant), plan["fixed_gates"])

    return Phase(variant.name, plan["fixed_gates"], task)


VARIANTS = (Variant("gated", trained, structure),)
