"""cap-joint: channels go first, then five blocks become shallow, then masks keep a budget of the ReLUs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from pibench.models.allocation import least_sensitive_blocks
from pibench.models.base import Family, Variant
from pibench.models.decisions import Step
from pibench.models.layout import Block, Layout
from pibench.models.reductions import baseline, cap, joint, senet
from pibench.models.training.phases import Phase
from pibench.models.training.schedules import Plan

if TYPE_CHECKING:
    from torch import nn

    from pibench.models.training.loop import Task
    from pibench.models.training.run import Run, Trained

FAMILIES = (
    Family(
        name="cap-joint",
        label="channels, joint",
        paper="arXiv 2108.13728, then 2304.13274; the composition is ours",
        summary="Inner channels are removed, five blocks become one convolution each, masks keep a budget.",
        colour="#542788",
        marker="^",
        place=45,
    ),
)
DROP = 0.03
"""The accuracy that the search for channels may cost."""
FOUND = (0.75, 0.6875, 0.875)
"""The shares of the deep blocks' inner channels that the search keeps.

They are of ResNet-18 of width 16, from the published baseline. Seeded networks of every width have them.
"""


def deep_blocks(layout: Layout) -> Sequence[Block]:
    """Returns the blocks that stay deep: only inside these are channels left to remove."""
    shallow = least_sensitive_blocks(joint.COUNT, layout)
    return [block for block in layout.blocks if block.name not in shallow]


def structure(layout: Layout) -> tuple[Step, ...]:
    """Removes channels of the deep blocks, then makes the others shallow."""
    return (*cap.structure(layout, FOUND, deep_blocks), *joint.structure(layout, joint.COUNT))


def gated(variant: Variant, plan: Plan) -> Phase:
    """Finds the channels on the baseline; learns the shallow blocks of the network that is left."""
    found = cap.untuned(variant, plan, "cap-joint-channels", DROP, deep_blocks)

    def shallow(run: Run, pruned: Trained) -> nn.Module:
        """Returns the pruned and shallow network with random weights."""
        from pibench.models.weights import apply

        steps = (*(pruned.chosen or ()), *joint.structure(run.layout, joint.COUNT))
        return run.seeded(lambda: apply(run.original(), steps))

    def task(run: Run, teacher: Trained, pruned: Trained) -> Task:
        start = run.original()  # the zoo's blocks can hold a gate, those of a graph cannot
        for name, module in pruned.model.named_modules():
            if not list(module.children()) and name:
                start.set_submodule(name, module)
        return joint.gated_task(run, plan, joint.COUNT, shallow(run, pruned), teacher, start)

    def settle(run: Run, learnt: Task) -> nn.Module:
        return joint.without_gates(run, shallow(run, run.train(found)), learnt)

    def chosen(run: Run, learnt: Task) -> tuple[Step, ...]:
        return (*(run.train(found).chosen or ()), *joint.structure(run.layout, joint.COUNT))

    after = (baseline.trained(variant, plan), found)
    return Phase("cap-joint-gated", plan["gated"], task, after, settle, chosen)


def trained(variant: Variant, plan: Plan) -> Phase:
    """Chooses SENet's masks on the pruned and shallow network, and tunes it."""
    return senet.masked(variant, plan, gated(variant, plan))


VARIANTS = tuple(
    Variant(
        f"cap-joint-{fraction}",
        trained,
        structure,
        fraction,
        senet.masks,
        joint.FINISH,
    )
    for fraction in (0.052,)
)
