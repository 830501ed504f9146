"""SENet: ReLUs are removed position by position; a more sensitive layer keeps more."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from pibench.models.allocation import allocate_layers, least_sensitive_blocks, published_sensitivity
from pibench.models.base import Family, Variant
from pibench.models.layout import Layout
from pibench.models.reductions import baseline
from pibench.models.training.phases import Phase
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


def masked(variant: Variant, plan: Plan, start: Phase) -> Phase:
    """Chooses masks on the network of `start`, which has the variant's structure, and tunes it.

    The teacher is the baseline.
    """
    proxy = () if plan["sensitivity"] is None else (sensitivity(plan),)

    def task(run: Run, teacher: Trained, before: Trained, *proxy: Trained) -> Task:
        import copy

        from pibench.models.masks import all_kept
        from pibench.models.training.relus import mask_relus
        from pibench.models.training.tasks.mask_tuning import MaskTuning

        model, shapes = copy.deepcopy(before.model), run.shapes(before.model)
        mask_relus(model, all_kept(shapes))
        known = (
            measured(run.layout, proxy[0].phases[-1].extra) if proxy else published_sensitivity(run.layout)
        )
        return MaskTuning(
            model,
            plan["masks"],
            run.teacher(teacher),
            run.layout.stages,
            run.frozen(before.model),
            allocate_layers(shapes, known, run.budget(variant)),
        )

    return Phase(variant.name, plan["masks"], task, (baseline.trained(variant, plan), start, *proxy))


def trained(variant: Variant, plan: Plan) -> Phase:
    """Chooses masks on the baseline and tunes it."""
    return masked(variant, plan, baseline.trained(variant, plan))


VARIANTS = tuple(
    Variant(f"senet-{fraction}", trained, fraction=fraction, masks=masks, plan=plan)
    for plan, fractions in (("scored", (0.72, 0.54)), ("long", (0.36, 0.18, 0.09, 0.045)))
    for fraction in fractions
)
