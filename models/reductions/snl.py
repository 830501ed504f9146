"""SNL: ReLUs are removed position by position, chosen by a lasso on trained slopes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from pibench.models.base import Family, Variant
from pibench.models.layout import Layout
from pibench.models.reductions import baseline
from pibench.models.training.phases import Phase
from pibench.models.training.schedules import LassoSchedule, Plan, Schedules

if TYPE_CHECKING:
    from torch import nn

    from pibench.models.training.loop import Task
    from pibench.models.training.run import Run, Trained

FAMILIES = (
    Family(
        name="snl",
        label="SNL",
        paper="Selective Network Linearization, ICML 2022 (arXiv 2202.02340)",
        summary="ReLUs are removed position by position, chosen by a lasso on trained slopes.",
        colour="#CC79A7",
        marker="^",
        place=20,
    ),
)
SCHEDULES: Schedules = {
    "lasso": {
        "quick": LassoSchedule(3, 0.02),
        "standard": LassoSchedule(6, 0.02),
        "long": LassoSchedule(8, 0.02),
        "paper": LassoSchedule(300, 0.02),
    },
}


def masks(layout: Layout, shapes: Mapping[str, Any], budget: int, seed: int) -> dict[str, Any]:
    """Draws one random mask over the entire network.

    The even distribution is ours, SNL learns another one.
    """
    from pibench.models.masks import random_network_masks

    return random_network_masks(shapes, budget, seed)


def selection(variant: Variant, plan: Plan, start: Phase) -> Phase:
    """Trains weights and slopes of the network of `start` with a lasso, down to the variant's budget."""

    def task(run: Run, start: Trained) -> Task:
        import copy

        from pibench.models.training.relus import SoftReLU, exchange_relus
        from pibench.models.training.tasks.lasso import Lasso

        model = copy.deepcopy(start.model)
        exchange_relus(model, {relu: SoftReLU(shape) for relu, shape in run.shapes(start.model).items()})
        return Lasso(model, plan["lasso"], run.budget(variant))

    return Phase(f"{variant.name}-lasso", plan["lasso"], task, (start,))


def selected(variant: Variant, plan: Plan, start: Phase) -> Phase:
    """Keeps the largest slopes of the entire network as ReLUs, and tunes the network after the lasso.

    The network of `start` has the variant's structure; the teacher is the baseline.
    """

    def network(run: Run, teacher: Trained, selected: Trained) -> nn.Module:
        import copy

        from pibench.models.masks import largest_network_masks
        from pibench.models.training.relus import SoftReLU, mask_relus, named_relus

        model = copy.deepcopy(selected.model)
        slopes = {
            relu: soft.alpha.detach()[0].cpu()
            for relu, soft in named_relus(model).items()
            if isinstance(soft, SoftReLU)
        }
        mask_relus(model, largest_network_masks(slopes, run.budget(variant)))
        return model

    return baseline.tuned(variant, plan, network, (selection(variant, plan, start),))


def trained(variant: Variant, plan: Plan) -> Phase:
    """Chooses ReLUs of the baseline and tunes it."""
    return selected(variant, plan, baseline.trained(variant, plan))


VARIANTS = tuple(
    Variant(f"snl-{fraction}", trained, fraction=fraction, masks=masks) for fraction in (0.18, 0.09, 0.052)
)
