"""eca: efficient channel attention, which is nearly free in the clear and costs rounds on shares."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from pibench.models.base import Family, Variant
from pibench.models.decisions import Step
from pibench.models.layout import Layout
from pibench.models.training.phases import Phase
from pibench.models.training.schedules import Plan, Schedule, Schedules

if TYPE_CHECKING:
    from pibench.models.training.loop import Task
    from pibench.models.training.run import Run

_PAPER = "ECA-Net, CVPR 2020 (arXiv 1910.03151)"
FAMILIES = (
    Family(
        name="eca",
        label="channel attention",
        paper=_PAPER,
        summary="Each block's output is multiplied by a sigmoid of its channels' means; nothing is removed.",
        colour="#BCBD22",
        marker="h",
        place=84,
    ),
    Family(
        name="eca-hard",
        label="channel attention, hard",
        paper=_PAPER,
        summary="As eca, with a hard sigmoid, which takes two comparisons instead of ten.",
        colour="#DBDB8D",
        marker="H",
        place=85,
    ),
)
SCHEDULES: Schedules = {
    "attention": {"quick": Schedule(14, 0.4), "standard": Schedule(24, 0.4), "long": Schedule(40, 0.4)},
}


def structure(layout: Layout, gate: str) -> tuple[Step, ...]:
    """Puts attention at the end of each block's deep branch.

    Its weights are drawn from the network's own generator. Raises ValueError for a network without residual
    blocks.
    """
    if not layout.blocks:
        raise ValueError("the network has no residual blocks, at whose ends channels are weighed")
    convs = [block.conv2 for block in layout.blocks]
    return (Step("attend_channels", {"convs": convs, "gate": gate, "seed": None}),)


def trained(variant: Variant, plan: Plan) -> Phase:
    """Trains the network as the baseline is trained, from random weights on labels alone."""

    def task(run: Run) -> Task:
        from pibench.models.training.tasks.supervised import Supervised

        return Supervised(run.structured(variant), plan["attention"])

    return Phase(variant.name, plan["attention"], task)


VARIANTS = tuple(
    Variant(name, trained, partial(structure, gate=gate))
    for name, gate in (("eca", "sigmoid"), ("eca-hard", "hardsigmoid"))
)
