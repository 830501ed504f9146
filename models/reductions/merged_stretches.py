"""senet-merged, joint-merged: what the masks of a network leave linear becomes one convolution.

The masks of SENet and of joint reduction keep no ReLU in the first layers. Such a stretch is one convolution.
The variants here have the masks and the weights of another variant, their `source`, and merge its stretches
where that saves operations (`merge_linear_stretches`).

Borders are hoisted: all zeros of a stretch are added to the image at once. Exact borders would merge nothing,
since every 3x3 convolution of these networks pads. The interior of a merged value is exact, its border is
not. The accuracy is therefore another one than the source's, and the network is tuned. The reduction is ours.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

from pibench.models.allocation import allocate_layers, at_depth
from pibench.models.base import Family, Variant
from pibench.models.decisions import Step
from pibench.models.layout import Layout
from pibench.models.reductions import baseline, joint, senet
from pibench.models.training.phases import Phase, last_phase
from pibench.models.training.schedules import Plan, Schedule, Schedules

if TYPE_CHECKING:
    from pibench.models.training.loop import Task
    from pibench.models.training.run import Run, Trained

FAMILIES = (
    Family(
        name="senet-merged",
        label="SENet, merged",
        paper="SENet, ICLR 2023 (arXiv 2301.09254); the merging is ours",
        summary="SENet; the layers that keep no ReLU are merged into one convolution.",
        colour="#00395C",
        marker="<",
        place=62,
    ),
    Family(
        name="joint-merged",
        label="joint, merged",
        paper="Making Models Shallow Again, CVPR-W 2023 (arXiv 2304.13274); the merging is ours",
        summary="joint; the layers that keep no ReLU are merged into one convolution.",
        colour="#7A3500",
        marker=">",
        place=64,
    ),
)
SCHEDULES: Schedules = {
    "merged": {"quick": Schedule(2, 0.002), "standard": Schedule(4, 0.002), "long": Schedule(6, 0.002)},
}
"""The rate is low, because the network is tuned with BatchNorm folded."""
MERGE = Step("merge_linear_stretches", {"borders": "hoisted"})
SOURCES = (
    *("senet-0.36", "senet-0.18", "senet-0.09", "senet-0.045"),
    *("joint-0.208", "joint-0.104", "joint-0.09", "joint-0.052", "joint-0.026"),
)
"""Trained variants with a stretch to merge. Larger budgets keep ReLUs in every layer."""
MEASURED_SENSITIVITY = (
    *(0.0, 0.0, 0.0, 0.0, 0.0),
    *(0.1966145634651184, 0.5559895932674408, 0.560980886220932, 0.591254323720932),
    *(0.757052943110466, 0.8714192658662796, 0.8712836354970932, 0.881456159055233),
    *(0.9348687082529068, 0.9658474400639534, 0.9656982421875, 0.9694552943110466),
)
"""Our ReLU sensitivity of ResNet-18 on CIFAR-100, by which the sources share their budgets: width 16, seed 0,
plan `long`. The order is that of `SENET_SENSITIVITY`."""


def masks(layout: Layout, shapes: Mapping[str, Any], budget: int, seed: int) -> dict[str, Any]:
    """Draws random masks; their sizes are those of the trained sources, from the measured sensitivity."""
    from pibench.models.masks import random_masks

    measured = at_depth(MEASURED_SENSITIVITY, layout.relus)
    return random_masks(shapes, allocate_layers(shapes, measured, budget), seed)


def trained(variant: Variant, plan: Plan, source: Variant) -> Phase:
    """Merges the stretches of the trained source and tunes the network; the teacher is the baseline.

    Both are needed as deployed networks alone, so that stored ones serve.
    """
    source = replace(source, network=variant.network)
    start = replace(last_phase(source, plan), row=source.name)

    def task(run: Run, teacher: Trained, before: Trained) -> Task:
        from pibench.models.training.relus import mask_relus
        from pibench.models.training.tasks.distilled import Distilled
        from pibench.models.variants import buildable

        deployed, _ = run.deployed(buildable(source), before)
        model = buildable(variant).finished(deployed).requires_grad_(True)
        state, end = model.state_dict(), ".mask"
        mask_relus(model, {name.removesuffix(end): state[name] for name in state if name.endswith(end)})
        left = {name for name, _ in model.named_modules()}
        stages = [name for name in run.layout.stages if name in left]
        return Distilled(run.placed(model), plan["merged"], run.teacher(teacher), stages)

    def chosen(run: Run, task: Task) -> tuple[Step, ...]:
        from pibench.models.variants import buildable

        _, decisions = run.deployed(buildable(source), run.train(start))
        at = [step.transform for step in decisions.steps].index("linearize_relus")
        masks = decisions.steps[at].arguments["keep"]
        empty = {name: False for name, kept in masks.items() if kept is False}
        return (*decisions.steps[:at], Step("linearize_relus", {"keep": empty}))

    after = (replace(baseline.trained(variant, plan), row="baseline"), start)
    return Phase(variant.name, plan["merged"], task, after, chosen=chosen)


def _merged(source: Variant) -> Variant:
    return replace(
        source,
        name=source.name.replace("-", "-merged-", 1),
        phase=partial(trained, source=source),
        masks=masks,
        finish=(*source.finish, MERGE),
        source=source.name,
    )


VARIANTS = tuple(_merged(source) for source in (*senet.VARIANTS, *joint.VARIANTS) if source.name in SOURCES)
