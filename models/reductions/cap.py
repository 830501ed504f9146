"""cap: channels inside the blocks go, and the weights after them compensate; with or without tuning."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

from pibench.models.allocation import at_depth
from pibench.models.base import Family, Variant
from pibench.models.decisions import Step
from pibench.models.layout import Block, Layout
from pibench.models.reductions import baseline
from pibench.models.training.phases import Phase
from pibench.models.training.schedules import Plan, Schedule, Schedules

if TYPE_CHECKING:
    from torch import nn

    from pibench.models.training.loop import Task
    from pibench.models.training.run import Run, Trained

_PAPER = "Compensation-aware pruning (arXiv 2108.13728)"
FAMILIES = (
    Family(
        name="cap",
        label="channel pruning",
        paper=_PAPER,
        summary="Channels inside the blocks are removed where accuracy allows, and the network is tuned.",
        colour="#66A61E",
        marker="8",
        place=86,
    ),
    Family(
        name="cap-untuned",
        label="pruning, not tuned",
        paper=_PAPER,
        summary="Channels inside the blocks are removed; the next weights compensate in closed form alone.",
        colour="#B3DE69",
        marker="8",
        place=87,
    ),
)
STILL = 1e-9
"""A rate that moves no weight: an epoch at it estimates BatchNorm's statistics."""
SCHEDULES: Schedules = {
    "statistics": {
        "quick": Schedule(1, STILL),
        "standard": Schedule(1, STILL),
        "long": Schedule(1, STILL),
    },
}
FOUND = {
    3: (0.5, 0.5, 0.875, 0.875, 0.875, 0.9375, 0.875, 0.9375),
    10: (0.4375, 0.3125, 0.75, 0.8125, 0.875, 0.6875, 0.8125, 0.8125),
}
"""The shares of each block's inner channels that the search keeps, by the points that it may lose.

They are of ResNet-18 of width 16 on CIFAR-100, plan `long`, seed 0. Seeded networks of every width have them.
"""
SHARE = 0.2
"""The share of the training images that give the statistics, as in the paper."""


def blocks(layout: Layout) -> Sequence[Block]:
    """Returns the residual blocks; raises ValueError for a network without any."""
    if not layout.blocks:
        raise ValueError("the network has no residual blocks, inside which channels can be removed")
    return layout.blocks


def structure(
    layout: Layout, shares: Sequence[float], among: Callable[[Layout], Sequence[Block]] = blocks
) -> tuple[Step, ...]:
    """Keeps shares of the blocks' inner channels, the first ones, until training has found which.

    The shares are those of ResNet-18's blocks, or one for all blocks.
    """
    kept = at_depth(shares, [block.conv2 for block in among(layout)])
    return (Step("prune_channels", {"kept": kept}),)


def untuned(
    variant: Variant, plan: Plan, name: str, drop: float, among: Callable[[Layout], Sequence[Block]] = blocks
) -> Phase:
    """Removes channels down to an accuracy `drop` below the baseline's, on the held-out images.

    Only the blocks `among` those of the network lose channels. The choice is noted beside the logs, so that a
    training that goes on need not search again.
    """

    def found(run: Run, start: Trained) -> tuple[nn.Module, dict[str, list[int]]]:
        from pibench.models.training.channels import channel_statistics, search_channels
        from pibench.models.training.files import write_bytes
        from pibench.models.training.images import accuracy
        from pibench.models.transforms.prune_channels import prune_channels

        images, convs = run.setting.images, [block.conv2 for block in among(run.layout)]
        model = run.frozen(start.model)
        with run.setting.autocast():
            sampled = images.sample(round(SHARE * len(images.labels)))
            statistics = channel_statistics(model, convs, sampled)
        path, kept = run.logs / f"{name}.json", None
        if path.is_file():
            noted = json.loads(path.read_text())
            kept = noted["kept"] if noted["start"] == start.digest else None
        if kept is None:

            def right(pruned: nn.Module) -> float:
                with run.setting.autocast():
                    return accuracy(run.placed(pruned), images.heldout, images.heldout_labels)

            kept = search_channels(model, convs, statistics, right, drop)
            write_bytes(path, (json.dumps({"start": start.digest, "kept": kept}) + "\n").encode())
        return prune_channels(model, kept, statistics), kept

    def task(run: Run, start: Trained) -> Task:
        from pibench.models.training.tasks.supervised import Supervised

        model, _ = found(run, start)
        return Supervised(model.requires_grad_(True), plan["statistics"])

    def chosen(run: Run, learnt: Any) -> tuple[Step, ...]:
        kept = json.loads((run.logs / f"{name}.json").read_text())["kept"]
        return (Step("prune_channels", {"kept": kept}),)

    return Phase(name, plan["statistics"], task, (baseline.trained(variant, plan),), chosen=chosen)


def tuned(variant: Variant, plan: Plan, name: str, drop: float) -> Phase:
    """Tunes what `untuned` leaves, with the baseline as teacher."""
    return baseline.tuned(variant, plan, baseline.left, (untuned(variant, plan, name, drop),))


VARIANTS = tuple(
    Variant(
        f"{family}-{points}",
        partial(phase, name=f"cap-untuned-{points}", drop=points / 100),
        partial(structure, shares=shares),
    )
    for family, phase in (("cap", tuned), ("cap-untuned", untuned))
    for points, shares in FOUND.items()
)
