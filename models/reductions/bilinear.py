"""bilinear: every layer but the stem is a product of two small factors, trained from scratch."""

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

FAMILIES = (
    Family(
        name="bilinear",
        label="bilinear",
        paper="Parameter Efficient DNNs with Bilinear Projections, TNNLS 2021 (arXiv 2011.01391)",
        summary="Every layer is a product of two small factors; a scale widens all layers to make up for it.",
        colour="#8C564B",
        marker="P",
        place=70,
    ),
)
SCHEDULES: Schedules = {
    "bilinear": {"quick": Schedule(14, 0.2), "standard": Schedule(24, 0.2), "long": Schedule(40, 0.2)},
}


def structure(layout: Layout, scale: int) -> tuple[Step, ...]:
    """Makes the layers bilinear, with `scale`^2 times as many channels.

    Their weights are drawn from the network's own generator.
    """
    return (Step("bilinear_layers", {"scale": scale, "seed": None}),)


def trained(variant: Variant, plan: Plan) -> Phase:
    """Trains the structure on labels alone, from random weights and without a teacher."""

    def task(run: Run) -> Task:
        from pibench.models.training.tasks.supervised import Supervised

        return Supervised(run.structured(variant), plan["bilinear"])

    return Phase(variant.name, plan["bilinear"], task)


VARIANTS = tuple(Variant(f"bilinear-{scale}", trained, partial(structure, scale=scale)) for scale in (1, 2))
