"""joint: the least sensitive blocks become one convolution each; a budget of the other ReLUs is kept."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

from pibench.models.allocation import least_sensitive_blocks
from pibench.models.base import FOLD, Family, Variant
from pibench.models.decisions import Step
from pibench.models.layout import Layout
from pibench.models.reductions import baseline, senet
from pibench.models.training.phases import Phase
from pibench.models.training.schedules import GateSchedule, Plan, Schedule, Schedules

if TYPE_CHECKING:
    from torch import nn

    from pibench.models.training.loop import Task
    from pibench.models.training.run import Run, Trained

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
SCHEDULES: Schedules = {
    "gated": {
        "quick": GateSchedule(8, 0.1),
        "standard": GateSchedule(14, 0.1),
        "long": GateSchedule(24, 0.1),
        "paper": GateSchedule(120, 0.1, bounded=True),
    },
    "whole": {
        "long": None,  # None leaves the shallow structure as the gate has left it
        "scored": Schedule(40, 0.05, standardized=True),
    },
}


COUNT = 5
"""The shallow blocks, where a variant's name says nothing else."""
FINISH = (FOLD, Step("absorb_skips"))
"""The last transforms of a network with shallow blocks."""


def structure(layout: Layout, count: int) -> tuple[Step, ...]:
    """Makes the `count` blocks with the least sensitive mid ReLU shallow.

    Their kernels are drawn from the network's own generator.
    """
    blocks = list(least_sensitive_blocks(count, layout))
    return (Step("shallow_blocks", {"blocks": blocks, "seed": None}),)


def gated(variant: Variant, plan: Plan, count: int) -> Phase:
    """Learns the shallow structure by falling gates, with all its ReLUs; all its budgets share this phase."""

    def task(run: Run, start: Trained) -> Task:
        return gated_task(run, plan, count, run.structured(variant), start, start.model)

    def settle(run: Run, learnt: Task) -> nn.Module:
        return without_gates(run, run.structured(variant), learnt)

    after = (baseline.trained(variant, plan),)
    return Phase(f"gated-{count}", plan["gated"], task, after, settle)


def gated_task(
    run: Run, plan: Plan, count: int, structured: nn.Module, teacher: Trained, start: nn.Module
) -> Task:
    """Returns the training whose gates fall, from the network `start` to the shallow network `structured`."""
    import copy

    from pibench.models.training.shallow import put_gate
    from pibench.models.training.tasks.gated import Gated

    model = copy.deepcopy(start)
    for block in least_sensitive_blocks(count, run.layout):
        put_gate(model, structured, block)
    return Gated(model, plan["gated"], run.teacher(teacher), run.layout.stages, run.frozen(start))


def without_gates(run: Run, structured: nn.Module, learnt: Task) -> nn.Module:
    """Returns the shallow network `structured` with the weights of a training whose gates have fallen."""
    state = learnt.model.state_dict()
    structured.load_state_dict({key: state[key] for key in structured.state_dict()})
    return run.placed(structured)


def trained(variant: Variant, plan: Plan, count: int) -> Phase:
    """Learns the shallow structure, then SENet's masks on the rest; without a budget it tunes all ReLUs."""
    start = gated(variant, plan, count)
    if variant.fraction is not None:
        return senet.masked(variant, plan, start)
    return start if plan["whole"] is None else baseline.tuned(variant, plan, baseline.left, (start,), "whole")


def _variant(name: str, fraction: float | None = None, count: int = COUNT, **changes: Any) -> Variant:
    return Variant(
        name,
        partial(trained, count=count),
        partial(structure, count=count),
        fraction,
        None if fraction is None else senet.masks,
        FINISH,
        **changes,
    )


VARIANTS = (
    _variant("joint", plan="scored"),
    *(_variant(f"joint-{fraction}", fraction, plan="scored") for fraction in (0.416, 0.312)),
    *(_variant(f"joint-{fraction}", fraction) for fraction in (0.208, 0.104, 0.09, 0.052, 0.026)),
    _variant("joint3-0.052", 0.052, count=3),
)
