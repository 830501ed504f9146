"""folding: training chooses the blocks whose middle ReLU goes; their convolutions are merged exactly."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

from pibench.models.allocation import least_sensitive_blocks
from pibench.models.base import FOLD, Family, Variant
from pibench.models.decisions import Step
from pibench.models.layout import Layout
from pibench.models.reductions import baseline, merged
from pibench.models.training.phases import Phase
from pibench.models.training.schedules import FoldSchedule, Plan, Schedules

if TYPE_CHECKING:
    from torch import nn

    from pibench.models.training.loop import Task
    from pibench.models.training.run import Run, Trained

FAMILIES = (
    Family(
        name="folding",
        label="layer folding",
        paper="Layer Folding (arXiv 2106.09309)",
        summary="A slope learnt for each middle ReLU chooses the blocks; their convolutions merge exactly.",
        colour="#006D2C",
        marker="h",
        place=61,
    ),
)
SCHEDULES: Schedules = {
    "slopes": {
        "quick": FoldSchedule(4, 0.05),
        "standard": FoldSchedule(8, 0.05),
        "long": FoldSchedule(16, 0.05),
    },
}
FOUND = {
    3: ("layer1.0", "layer1.1", "layer3.0"),
    5: ("layer1.0", "layer1.1", "layer2.0", "layer2.1", "layer3.0"),
}
"""The blocks of ResNet-18 that the training of each row has chosen at width 16 (seed 0)."""


def structure(layout: Layout, count: int) -> tuple[Step, ...]:
    """Removes the middle ReLUs of `count` blocks: those `FOUND`, elsewhere the least sensitive.

    So that a seeded network has the structure of the trained one.
    """
    blocks = [block.name for block in layout.blocks]
    known = blocks == [f"layer{stage}.{block}" for stage in (1, 2, 3, 4) for block in (0, 1)]
    names = FOUND[count] if known else least_sensitive_blocks(count, layout)
    keep = {block.mid: False for block in layout.blocks if block.name in names}
    return (Step("linearize_relus", {"keep": keep}),)


def sloped(variant: Variant, plan: Plan) -> Phase:
    """Trains the baseline with a slope in place of each block's middle ReLU; all counts share this phase."""

    def task(run: Run, start: Trained) -> Task:
        import copy

        from pibench.models.training.relus import SoftReLU, exchange_relus
        from pibench.models.training.tasks.folding import Folding

        model = copy.deepcopy(start.model)
        exchange_relus(model, {block.mid: SoftReLU((1, 1, 1)) for block in run.layout.blocks})
        return Folding(model, plan["slopes"])

    return Phase("folding-slopes", plan["slopes"], task, (baseline.trained(variant, plan),))


def trained(variant: Variant, plan: Plan, count: int) -> Phase:
    """Cuts the `count` middle ReLUs with the largest mean slopes, hoists the paddings, and tunes."""

    def network(run: Run, teacher: Trained, start: Trained) -> nn.Module:
        import copy

        from torch import nn

        from pibench.models.training.relus import CutReLU, exchange_relus

        slopes = {block: start.phases[-1].extra[block.mid].item() for block in run.layout.blocks}
        chosen = sorted(slopes, key=lambda block: -slopes[block])[:count]
        model = copy.deepcopy(start.model)
        exchange_relus(
            model, {block.mid: CutReLU() if block in chosen else nn.ReLU() for block in run.layout.blocks}
        )
        merged.hoist_in_training(model, chosen)
        return model

    def cut(run: Run, learnt: Any) -> tuple[Step, ...]:
        from pibench.models.training.relus import CutReLU, named_relus

        names = [name for name, relu in named_relus(learnt.model).items() if isinstance(relu, CutReLU)]
        return (Step("linearize_relus", {"keep": dict.fromkeys(names, False)}),)

    return replace(baseline.tuned(variant, plan, network, (sloped(variant, plan),)), chosen=cut)


VARIANTS = tuple(
    Variant(
        f"folding-{count}",
        partial(trained, count=count),
        partial(structure, count=count),
        finish=(FOLD, Step("hoist_padding"), Step("merge_convs"), Step("absorb_skips")),
    )
    for count in (5, 3)
)
