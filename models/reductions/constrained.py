"""constrained: training meets a budget of ReLUs, MACs or measured seconds, without hand-set shares."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from math import prod
from typing import TYPE_CHECKING, Any

from pibench.models.base import Family, Variant
from pibench.models.decisions import Step
from pibench.models.layout import Layout
from pibench.models.reductions import baseline, cap, snl
from pibench.models.training.phases import Phase
from pibench.models.training.schedules import ConstraintSchedule, Plan, Schedules

if TYPE_CHECKING:
    from torch import nn

    from pibench.models.training.loop import Task
    from pibench.models.training.run import Run, Trained

_PAPER = "Controlled sparsity, NeurIPS 2022 (arXiv 2208.04425)"
_LOOKS = {"relus": ("ReLUs", "#3182BD"), "macs": ("MACs", "#6BAED6"), "seconds": ("seconds", "#08519C")}
FAMILIES = (
    *(
        Family(
            name=f"constrained-{what}",
            label=f"channels for {named}",
            paper=_PAPER,
            summary=f"Gates remove channels inside the blocks until the network has its budget of {named}.",
            colour=colour,
            marker="H",
            place=90 + place,
        )
        for place, (what, (named, colour)) in enumerate(_LOOKS.items())
    ),
    Family(
        name="constrained-masks",
        label="gated ReLUs",
        paper=_PAPER,
        summary="A gate for each position removes ReLUs until the network has its budget.",
        colour="#9ECAE1",
        marker="H",
        place=94,
    ),
)
SCHEDULES: Schedules = {
    "gates": {
        "quick": ConstraintSchedule(5, 0.05),
        "standard": ConstraintSchedule(10, 0.05),
        "long": ConstraintSchedule(24, 0.05),
    },
}
SECONDS = {
    "layer1.0": 4.48,
    "layer1.1": 4.44,
    "layer2.0": 3.19,
    "layer2.1": 3.31,
    "layer3.0": 2.96,
    "layer3.1": 2.92,
    "layer4.0": 3.69,
    "layer4.1": 4.72,
}
"""Milliseconds online that all inner channels of each block add to what its layers cost without channels.

Measured for ResNet-18 at width 64, engine lean, loopback, as the slope of a line through five numbers of
channels (`python -m pibench.measure.channels`, the mean of two runs). Only their proportions matter."""
SECONDS_WHOLE = 51.4
"""Milliseconds of all layers there."""
FOUND = {
    ("relus", 0.75): (0.125, 0.0625, 0.9375, 0.4375, 1.0, 1.0, 1.0, 1.0),
    ("macs", 0.5): (0.125, 0.0625, 0.8125, 0.03125, 1.0, 0.203125, 1.0, 1.0),
    ("seconds", 0.75): (0.125, 0.0625, 0.8125, 0.15625, 0.96875, 0.546875, 1.0, 1.0),
}
"""The shares of each block's inner channels that training keeps, by what is constrained to which share.

They are of ResNet-18 of width 16 on CIFAR-100, plan `standard`, seed 0. Seeded networks of every width have
them.
"""


def costs(run: Run, model: nn.Module, what: str) -> tuple[dict[str, float], float]:
    """Returns the cost of one inner channel of each block, by its middle ReLU, and the cost of all else."""
    import torch
    from torch import nn

    from pibench.models.cost import count_macs, count_relus

    size = run.setting.images.size
    example = torch.zeros(1, 3, size, size, device=run.setting.device)
    shapes = run.shapes(model)
    unit = {}
    for block in run.layout.blocks:
        channels, *map_ = shapes[block.mid]
        conv1, conv2 = model.get_submodule(block.conv1), model.get_submodule(block.conv2)
        assert isinstance(conv1, nn.Conv2d)
        assert isinstance(conv2, nn.Conv2d)
        unit[block.mid] = {
            "relus": float(prod(map_)),
            "macs": float(prod(map_) * (conv1.weight[0].numel() + conv2.weight[:, 0].numel())),
            "seconds": SECONDS[block.name] / channels,
        }[what]
    inside = sum(unit[block.mid] * shapes[block.mid][0] for block in run.layout.blocks)
    counts = {"relus": count_relus, "macs": count_macs}
    whole = SECONDS_WHOLE if what == "seconds" else float(counts[what](model, example))
    return unit, whole - inside


def structure(layout: Layout, what: str, shares: Sequence[float]) -> tuple[Step, ...]:
    """Keeps shares of the blocks' inner channels, the first ones, until training has found which.

    The shares are those of ResNet-18's blocks, or one for all blocks. Raises ValueError for seconds of a
    network whose layers have not been measured.
    """
    if what == "seconds" and [block.name for block in layout.blocks] != list(SECONDS):
        raise ValueError("only the layers of ResNet-18 have been measured; constrain ReLUs or MACs")
    return cap.structure(layout, shares)


def gated(variant: Variant, plan: Plan, what: str, target: float) -> Phase:
    """Trains the baseline with a gate for each inner channel; removes what the budget has no room for."""

    def task(run: Run, start: Trained) -> Task:
        import copy

        from pibench.models.training.gates import GatedReLU
        from pibench.models.training.relus import exchange_relus
        from pibench.models.training.tasks.constrained import Constrained

        model, shapes = copy.deepcopy(start.model), run.shapes(start.model)
        exchange_relus(
            model,
            {block.mid: GatedReLU((shapes[block.mid][0], 1, 1), linear=False) for block in run.layout.blocks},
        )
        unit, fixed = costs(run, start.model, what)
        return Constrained(model, plan["gates"], unit, fixed, target, run.setting.seed)

    def kept(run: Run, learnt: Any) -> dict[str, list[int]]:
        from pibench.models.training.gates import affordable

        odds = {name: gate.odds for name, gate in learnt.gates.items()}
        room = learnt.target * learnt.whole - learnt.fixed
        masks = affordable(odds, learnt.unit, room)
        conv2 = {block.mid: block.conv2 for block in run.layout.blocks}
        return {conv2[name]: mask.flatten().nonzero().flatten().tolist() for name, mask in masks.items()}

    def settle(run: Run, learnt: Any) -> nn.Module:
        import copy

        import torch
        from torch import nn

        from pibench.models.training.relus import exchange_relus
        from pibench.models.transforms.prune_channels import prune_channels

        model = copy.deepcopy(learnt.model).cpu().eval()
        with torch.no_grad():
            for block in run.layout.blocks:  # z ReLU(x) = ReLU(x) with z in the next weights
                gates = model.get_submodule(block.mid).gates()
                model.get_submodule(block.conv2).weight.mul_(gates)
        exchange_relus(model, {block.mid: nn.ReLU() for block in run.layout.blocks})
        return run.placed(prune_channels(model, kept(run, learnt)))

    def chosen(run: Run, learnt: Any) -> tuple[Step, ...]:
        return (Step("prune_channels", {"kept": kept(run, learnt)}),)

    after = (baseline.trained(variant, plan),)
    return Phase(f"{variant.name}-gates", plan["gates"], task, after, settle, chosen)


def trained(variant: Variant, plan: Plan, what: str, target: float) -> Phase:
    """Removes channels down to a budget and tunes the network, with the baseline as teacher."""
    return baseline.tuned(variant, plan, baseline.left, (gated(variant, plan, what, target),))


def positions(variant: Variant, plan: Plan) -> Phase:
    """Trains the baseline with a gate for each position, under a budget of ReLUs."""

    def task(run: Run, start: Trained) -> Task:
        import copy

        from pibench.models.training.gates import GatedReLU
        from pibench.models.training.relus import exchange_relus
        from pibench.models.training.tasks.constrained import Constrained

        model, shapes = copy.deepcopy(start.model), run.shapes(start.model)
        exchange_relus(model, {name: GatedReLU(shape, linear=True) for name, shape in shapes.items()})
        unit: Mapping[str, float] = dict.fromkeys(shapes, 1.0)
        whole = sum(map(prod, shapes.values()))
        target = run.budget(variant) / whole
        return Constrained(model, plan["gates"], unit, 0.0, target, run.setting.seed)

    return Phase(f"{variant.name}-gates", plan["gates"], task, (baseline.trained(variant, plan),))


def masked(variant: Variant, plan: Plan) -> Phase:
    """Keeps the positions whose gates are the most open, exactly the budget, and tunes the network."""

    def network(run: Run, teacher: Trained, start: Trained) -> nn.Module:
        import copy

        from pibench.models.masks import largest_network_masks
        from pibench.models.training.gates import GatedReLU
        from pibench.models.training.relus import mask_relus

        model = copy.deepcopy(start.model)
        odds = {
            name: gate.odds.detach()[0].cpu()
            for name, gate in model.named_modules()
            if isinstance(gate, GatedReLU)
        }
        mask_relus(model, largest_network_masks(odds, run.budget(variant)))
        return model

    return baseline.tuned(variant, plan, network, (positions(variant, plan),))


VARIANTS = (
    *(
        Variant(
            f"constrained-{what}-{share}",
            partial(trained, what=what, target=share),
            partial(structure, what=what, shares=shares),
        )
        for (what, share), shares in FOUND.items()
    ),
    Variant("constrained-masks-0.09", masked, fraction=0.09, masks=snl.masks),
)
