"""baseline: the original network. Every reduction starts from it and has it as teacher."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from pibench.models.base import Family, Variant
from pibench.models.training.phases import Phase
from pibench.models.training.schedules import Plan, Schedule, Schedules

if TYPE_CHECKING:
    from torch import nn

    from pibench.models.training.loop import Task
    from pibench.models.training.run import Run, Trained

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
SCHEDULES: Schedules = {
    "baseline": {
        "quick": Schedule(14, 0.4),
        "standard": Schedule(24, 0.4),
        "long": Schedule(40, 0.4),
        "paper": Schedule(200, 0.4),
    },
    "tune": {
        "quick": Schedule(3, 0.05),
        "standard": Schedule(10, 0.05),
        "long": Schedule(24, 0.05),
        "paper": Schedule(100, 0.05),
    },
}


def trained(variant: Variant, plan: Plan) -> Phase:
    """Trains the original network on labels alone."""

    def task(run: Run) -> Task:
        from pibench.models.training.tasks.supervised import Supervised

        return Supervised(run.original(), plan["baseline"])

    return Phase("baseline", plan["baseline"], task)


def left(run: Run, teacher: Trained, before: Trained) -> nn.Module:
    """Returns a copy of the network that the phase before has left: a `network` of `tuned`."""
    import copy

    return copy.deepcopy(before.model).requires_grad_(True)


def tuned(
    variant: Variant,
    plan: Plan,
    network: Callable[..., nn.Module],
    after: tuple[Phase, ...] = (),
    kind: str = "tune",
) -> Phase:
    """Fine-tunes a network whose ReLUs are settled, as SENet does, with the baseline as teacher.

    `network` makes it from the run, the baseline and the results of `after`; `kind` names the schedule.
    """

    def task(run: Run, teacher: Trained, *others: Trained) -> Task:
        from pibench.models.training.tasks.distilled import Distilled

        model = network(run, teacher, *others)
        return Distilled(model, plan[kind], run.teacher(teacher), run.layout.stages)

    return Phase(variant.name, plan[kind], task, (trained(variant, plan), *after))


VARIANTS = (Variant("baseline", trained),)
