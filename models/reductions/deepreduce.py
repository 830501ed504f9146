"""DeepReDuce: whole ReLU layers are removed."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pibench.models.base import Family, Variant
from pibench.models.decisions import Step
from pibench.models.layout import Layout
from pibench.models.reductions import baseline
from pibench.models.training.phases import Phase
from pibench.models.training.schedules import Plan

if TYPE_CHECKING:
    from torch import nn

    from pibench.models.training.run import Run, Trained

FAMILIES = (
    Family(
        name="deepreduce",
        label="DeepReDuce",
        paper="DeepReDuce, ICML 2021 (arXiv 2103.01396)",
        summary="Whole ReLU layers are removed.",
        colour="#56B4E9",
        marker="v",
        place=50,
    ),
)


def culled(layout: Layout) -> list[str]:
    """Returns the ReLU layers to remove: all but the one outside the branch of each block in the latter half.

    On ResNet-18 the latter half is stages 3 and 4. They keep each block's second ReLU: 49,152 ReLUs at width
    64 as in the paper's row of 49.2 K, in 4 layers instead of 17. For other networks the rule is ours. Raises
    ValueError for a network without residual blocks.
    """
    if not layout.blocks:
        raise ValueError("the network has no residual blocks, by whose ReLUs layers are culled")
    kept = {block.other for block in layout.blocks[len(layout.blocks) // 2 :]}
    return [relu for relu in layout.relus if relu not in kept]


def structure(layout: Layout) -> tuple[Step, ...]:
    """Removes the culled layers."""
    return (Step("linearize_relus", {"keep": dict.fromkeys(culled(layout), False)}),)


def trained(variant: Variant, plan: Plan) -> Phase:
    """Cuts the layers from the baseline and tunes the network."""

    def network(run: Run, start: Trained) -> nn.Module:
        from pibench.models.training.relus import cut_relus

        return cut_relus(start.model, culled(run.layout))

    return baseline.tuned(variant, plan, network)


VARIANTS = (Variant("deepreduce", trained, structure),)
