"""poly: a quadratic stands where a ReLU is removed; training chooses the positions with hysteresis."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from pibench.models.base import FOLD, Family, Variant
from pibench.models.decisions import Step
from pibench.models.layout import Layout
from pibench.models.reductions import baseline
from pibench.models.training.phases import Phase
from pibench.models.training.schedules import HysteresisSchedule, Plan, Schedule, Schedules

if TYPE_CHECKING:
    from pibench.models.training.loop import Task
    from pibench.models.training.run import Run, Trained

FAMILIES = (
    Family(
        name="poly",
        label="AutoReP",
        paper="AutoReP, ICCV 2023 (arXiv 2308.10134)",
        summary="A fitted quadratic stands where a ReLU is removed; scores with hysteresis choose where.",
        colour="#E7298A",
        marker="P",
        place=24,
    ),
)
SCHEDULES: Schedules = {
    "hysteresis": {
        "quick": HysteresisSchedule(3, 0.01),
        "standard": HysteresisSchedule(6, 0.01),
        "long": HysteresisSchedule(8, 0.01),
    },
    "quadratics": {"quick": Schedule(2, 0.01), "standard": Schedule(6, 0.01), "long": Schedule(12, 0.01)},
}


def masks(layout: Layout, shapes: Mapping[str, Any], budget: int, seed: int) -> dict[str, Any]:
    """Draws one random mask over the entire network; training chooses other positions."""
    from pibench.models.masks import random_network_masks

    return random_network_masks(shapes, budget, seed)


def selection(variant: Variant, plan: Plan) -> Phase:
    """Trains weights and scores of the baseline, with itself as teacher, down to the variant's budget."""

    def task(run: Run, start: Trained) -> Task:
        import copy

        from pibench.models.training.relus import HysteresisReLU, exchange_relus
        from pibench.models.training.tasks.hysteresis import Hysteresis

        model = copy.deepcopy(start.model)
        exchange_relus(model, {relu: HysteresisReLU(each) for relu, each in run.shapes(start.model).items()})
        return Hysteresis(
            model, plan["hysteresis"], run.teacher(start), run.layout.stages, run.budget(variant)
        )

    return Phase(f"{variant.name}-scores", plan["hysteresis"], task, (baseline.trained(variant, plan),))


def trained(variant: Variant, plan: Plan) -> Phase:
    """Keeps the ReLUs with the highest scores, one in each layer at least, and tunes the network."""

    def task(run: Run, teacher: Trained, selected: Trained) -> Task:
        import copy

        from pibench.models.masks import largest_network_masks
        from pibench.models.training.relus import FittedReLU, HysteresisReLU, exchange_relus, named_relus
        from pibench.models.training.tasks.hysteresis import QuadraticTuning

        model = copy.deepcopy(selected.model)
        found = {name: relu for name, relu in named_relus(model).items() if isinstance(relu, HysteresisReLU)}
        scores = {}
        for name, relu in found.items():
            score = relu.alpha.detach()[0].cpu()
            score = (score + (relu.kept[0].cpu() * 1e3)).contiguous()  # what is kept comes first
            score.view(-1)[score.argmax()] = 1e4  # a layer without a ReLU would have no quadratic
            scores[name] = score
        chosen = {}
        for name, mask in largest_network_masks(scores, run.budget(variant)).items():
            chosen[name] = FittedReLU(mask)
            chosen[name].quadratic.load_state_dict(found[name].quadratic.state_dict())
        exchange_relus(model, chosen)
        return QuadraticTuning(model, plan["quadratics"], run.teacher(teacher), run.layout.stages)

    def finish(run: Run, learnt: Any) -> tuple[Step, ...]:
        from pibench.models.training.relus import FittedReLU, named_relus

        coefficients = {
            name: list(relu.quadratic.coefficients())
            for name, relu in named_relus(learnt.model).items()
            if isinstance(relu, FittedReLU)
        }
        return (Step("polynomial_relus", {"coefficients": coefficients}), FOLD)

    after = (baseline.trained(variant, plan), selection(variant, plan))
    return Phase(variant.name, plan["quadratics"], task, after, finish=finish)


VARIANTS = tuple(
    Variant(
        f"poly-{fraction}",
        trained,
        fraction=fraction,
        masks=masks,
        finish=(Step("polynomial_relus"), FOLD),
    )
    for fraction in (0.09, 0.045)
)
