"""shrinkage: most weights shrink to zero, one by one; a null result, because shares hide which ones."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from pibench.models.base import Family, Variant
from pibench.models.reductions import baseline
from pibench.models.training.phases import Phase
from pibench.models.training.schedules import Plan, Schedules, ShrinkSchedule

if TYPE_CHECKING:
    from pibench.models.training.loop import Task
    from pibench.models.training.run import Run, Trained

FAMILIES = (
    Family(
        name="shrinkage",
        label="zero weights",
        paper="Iterative soft shrinkage, ICCV 2023 (arXiv 2303.09650)",
        summary="The smallest weights of each convolution shrink to 0; nothing is removed from the network.",
        colour="#A6761D",
        marker="v",
        place=88,
    ),
)
SCHEDULES: Schedules = {
    "shrinkage": {
        "quick": ShrinkSchedule(6, 0.05),
        "standard": ShrinkSchedule(14, 0.05),
        "long": ShrinkSchedule(20, 0.05),
    },
}


def trained(variant: Variant, plan: Plan, share: float) -> Phase:
    """Shrinks a `share` of the baseline's weights to zero while it is tuned, with itself as teacher."""

    def task(run: Run, start: Trained) -> Task:
        import copy

        from pibench.models.training.tasks.shrinkage import Shrinkage

        model = copy.deepcopy(start.model)
        return Shrinkage(model, plan["shrinkage"], run.teacher(start), run.layout.stages, share)

    return Phase(variant.name, plan["shrinkage"], task, (baseline.trained(variant, plan),))


VARIANTS = tuple(Variant(f"shrinkage-{share}", partial(trained, share=share)) for share in (0.9,))
