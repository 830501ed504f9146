"""SENet: ReLUs are removed position by position; a more sensitive layer keeps more."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from pibench.models.allocation import allocate_layers, least_sensitive_blocks, published_sensitivity
from pibench.models.base import Family, Variant
from pibench.models.layout import Layout
from pibench.models.reductions import baseline
from pibench.models.training.phases import Phase, last_phase
from pibench.models.training.schedules import MaskSchedule, Plan, Schedules, SparseSchedule

if TYPE_CHECKING:
    from torch import nn

    from pibench.models.training.loop import Task
    from pibench.models.training.run import Run, Trained

FAMILIES = (
    Family(
        name="senet",
        label="SENet",
        paper="SENet, ICLR 2023 (arXiv 2301.09254)",
        summary="ReLUs are removed position by position; a layer keeps the more, the more sensitive it is.",
        colour="#0072B2",
        marker="o",
        place=10,
        shown="senet-0.09",
    ),
)
SCHEDULES: Schedules = {
    "sensitivity": {
        "quick": None,  # None takes the published one
        "standard": SparseSchedule(6, 0.4),
        "long": SparseSchedule(10, 0.4),
        "paper": SparseSchedule(150, 0.4),
    },
    "masks": {
        "quick": MaskSchedule(6, 0.05),
        "standard": MaskSchedule(14, 0.05),
        "long": MaskSchedule(40, 0.05),
        "scored": MaskSchedule(40, 0.05, standardized=True),
        "extended": MaskSchedule(32, 0.05, descending=True),
        "paper": MaskSchedule(240, 0.05),
    },
}
RANKED = (3, 5)
"""So many least sensitive blocks are noted beside a measured sensitivity."""


def masks(layout: Layout, shapes: Mapping[str, Any], budget: int, seed: int) -> dict[str, Any]:
    """Draws random masks; their sizes are SENet's allocation of the budget by the published sensitivity."""
    from pibench.models.masks import random_masks

    return random_masks(shapes, allocate_layers(shapes, published_sensitivity(layout), budget), seed)


def measured(layout: Layout, proxy: Mapping[str, Any]) -> dict[str, float]:
    """Returns the sensitivity of each ReLU: 1 - density of its convolution in a trained sparse proxy."""
    from pibench.models.training.tasks.sparse_proxy import densities

    found = densities(proxy)
    return {relu: 1 - found[conv] for relu, conv in layout.convolutions.items()}


def sensitivity(plan: Plan) -> Phase:
    """Trains the sparse proxy; writes the sensitivity and the lowest-ranked blocks beside the logs."""

    def task(run: Run) -> Task:
        from pibench.models.training.tasks.sparse_proxy import SparseProxy

        return SparseProxy(run.original(), plan["sensitivity"], run.setting.seed)

    def settle(run: Run, proxy: Task) -> nn.Module:
        from pibench.models.training.files import write_bytes

        found, layout = measured(run.layout, proxy.extra), run.layout
        ranking = {
            str(n): least_sensitive_blocks(n, layout, found) for n in RANKED if n <= len(layout.blocks)
        }
        content = {"sensitivity": found, "least_sensitive_blocks": ranking}
        write_bytes(run.logs / "sensitivity.json", (json.dumps(content, indent=1) + "\n").encode())
        return proxy.model

    return Phase("sensitivity", plan["sensitivity"], task, settle=settle)


def next_larger(variant: Variant) -> Variant | None:
    """Returns the smallest variant of the same family with at least about twice the ReLUs.

    Returns None if there is none. "About" means 1.9 times, because budgets are rounded.
    """
    from pibench.models.catalogue import variants

    least = 1.9 * (variant.fraction or 1)
    family = {other.fraction: other for other in variants().values() if other.family == variant.family}
    larger = [fraction for fraction in family if fraction is not None and fraction >= least]
    return replace(family[min(larger)], network=variant.network) if larger else None


def masked(variant: Variant, plan: Plan, start: Phase) -> Phase:
    """Chooses masks on the network of `start`, which has the variant's structure, and tunes it.

    The teacher is the baseline. Where budgets descend, a larger variant replaces `start`.
    """
    schedule = plan["masks"]
    larger = next_larger(variant) if schedule.descending else None
    before = start if larger is None else last_phase(larger, plan)
    proxy = () if plan["sensitivity"] is None else (sensitivity(plan),)

    def task(run: Run, teacher: Trained, before: Trained, *proxy: Trained) -> Task:
        import copy

        from pibench.models.masks import all_kept
        from pibench.models.training.relus import mask_relus, masks_of
        from pibench.models.training.tasks.mask_tuning import MaskTuning

        model = copy.deepcopy(before.model)
        if larger is None:
            mask_relus(model, all_kept(run.shapes(before.model)))
        shapes = {relu: tuple(mask.shape) for relu, mask in masks_of(model).items()}
        known = (
            measured(run.layout, proxy[0].phases[-1].extra) if proxy else published_sensitivity(run.layout)
        )
        return MaskTuning(
            model,
            schedule,
            run.teacher(teacher),
            run.layout.stages,
            run.frozen(before.model),
            allocate_layers(shapes, known, run.budget(variant)),
        )

    return Phase(variant.name, schedule, task, (baseline.trained(variant, plan), before, *proxy))


def trained(variant: Variant, plan: Plan) -> Phase:
    """Chooses masks on the baseline and tunes it."""
    return masked(variant, plan, baseline.trained(variant, plan))


VARIANTS = tuple(
    Variant(f"senet-{fraction}", trained, fraction=fraction, masks=masks, plan=plan)
    for plan, fractions in (("scored", (0.72, 0.54)), ("long", (0.36, 0.18, 0.09, 0.045)))
    for fraction in fractions
)
