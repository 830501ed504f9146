"""pixels: at public pixels, the same in all channels, nothing is computed but zeros."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from pibench.models.base import FOLD, Family, Variant
from pibench.models.decisions import Step
from pibench.models.layout import Layout
from pibench.models.reductions import baseline
from pibench.models.training.phases import Phase
from pibench.models.training.schedules import Plan, Schedule, Schedules

if TYPE_CHECKING:
    from pibench.models.training.loop import Task
    from pibench.models.training.run import Run, Trained

FAMILIES = (
    Family(
        name="pixels",
        label="pixel masks",
        paper="Semi-structured activation sparsity, ICCV-W 2023 (arXiv 2309.06626)",
        summary="At the same public pixels of every channel activations are 0; no ReLU is evaluated there.",
        colour="#17BECF",
        marker="X",
        place=74,
    ),
)
SCHEDULES: Schedules = {
    "pixels": {"quick": Schedule(6, 0.05), "standard": Schedule(14, 0.05), "long": Schedule(20, 0.05)},
}


def masks(layout: Layout, shapes: Mapping[str, Any], budget: int, seed: int) -> dict[str, Any]:
    """Draws one map of random scores; its highest pixels stay, as large a share of every layer."""
    from pibench.models.masks import pixel_masks

    return pixel_masks(shapes, budget, seed)


def trained(variant: Variant, plan: Plan) -> Phase:
    """Masks the baseline's pixels, drawn by the run's seed, and tunes it with the baseline as teacher."""

    def task(run: Run, start: Trained) -> Task:
        import copy

        from pibench.models.training.relus import PixelReLU, exchange_relus
        from pibench.models.training.tasks.distilled import Distilled

        model = copy.deepcopy(start.model)
        drawn = masks(run.layout, run.shapes(model), run.budget(variant), run.setting.seed)
        exchange_relus(model, {relu: PixelReLU(mask) for relu, mask in drawn.items()})
        return Distilled(model, plan["pixels"], run.teacher(start), run.layout.stages)

    return Phase(variant.name, plan["pixels"], task, (baseline.trained(variant, plan),))


VARIANTS = tuple(
    Variant(f"pixels-{fraction}", trained, fraction=fraction, masks=masks, finish=(Step("mask_pixels"), FOLD))
    for fraction in (0.75, 0.5)
)
