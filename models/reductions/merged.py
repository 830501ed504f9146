"""merged-exact: the least sensitive blocks lose their middle ReLU; their convolutions are merged exactly."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pibench.models.allocation import least_sensitive_blocks
from pibench.models.base import FOLD, Family, Variant
from pibench.models.decisions import Step
from pibench.models.layout import Block, Layout
from pibench.models.reductions import baseline
from pibench.models.training.phases import Phase
from pibench.models.training.schedules import Plan

if TYPE_CHECKING:
    from torch import nn

    from pibench.models.training.run import Run, Trained

FAMILIES = (
    Family(
        name="merged-exact",
        label="merged-exact",
        paper="exact merging, the counter-example of arXiv 2304.13274",
        summary="The least sensitive blocks lose their middle ReLU; their convolutions are merged exactly.",
        colour="#009E73",
        marker="D",
        place=60,
        shown="merged-exact",
    ),
)
COUNT = 5


def blocks(layout: Layout) -> list[Block]:
    """Returns the merged blocks: the `COUNT` ones with the least sensitive mid ReLU."""
    names = least_sensitive_blocks(COUNT, layout)
    return [block for block in layout.blocks if block.name in names]


def structure(layout: Layout) -> tuple[Step, ...]:
    """Removes the mid ReLUs of the blocks."""
    return (Step("linearize_relus", {"keep": {block.mid: False for block in blocks(layout)}}),)


def hoist_in_training(model: nn.Module, merged: list[Block]) -> None:
    """Moves the padding of each block's second convolution to its first, in place, past the BatchNorm.

    The trained network then computes the same as the merged one, borders included: conv1 pads by p1 + s1 p2,
    conv2 by nothing. The formula is that of `pibench.models.transforms.hoist_padding`, which finds nothing
    left to do.
    """
    for block in merged:
        conv1: Any = model.get_submodule(block.conv1)
        conv2: Any = model.get_submodule(block.conv2)
        pairs = zip(conv1.padding, conv1.stride, conv2.padding, strict=True)
        conv1.padding = tuple(p1 + s1 * p2 for p1, s1, p2 in pairs)
        conv2.padding = (0, 0)


def trained(variant: Variant, plan: Plan) -> Phase:
    """Cuts the mid ReLUs and hoists the paddings, then tunes the baseline's weights."""

    def network(run: Run, start: Trained) -> nn.Module:
        from pibench.models.training.relus import cut_relus

        merged = blocks(run.layout)
        model = cut_relus(start.model, [block.mid for block in merged])
        hoist_in_training(model, merged)
        return model

    return baseline.tuned(variant, plan, network)


VARIANTS = (
    Variant(
        "merged-exact",
        trained,
        structure,
        finish=(FOLD, Step("hoist_padding"), Step("merge_convs"), Step("absorb_skips")),
    ),
)
