"""trp and tucker: convolutions become two or three thin ones, whose ranks training prunes."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import TYPE_CHECKING, Any

from pibench.models.base import Family, Variant
from pibench.models.decisions import Step
from pibench.models.layout import Layout
from pibench.models.reductions import baseline
from pibench.models.training.phases import Phase
from pibench.models.training.schedules import Plan, RankSchedule, Schedule, Schedules

if TYPE_CHECKING:
    from torch import nn

    from pibench.models.training.loop import Task
    from pibench.models.training.run import Run, Trained

_TRP = "Trained Rank Pruning, IJCAI 2020 (arXiv 2004.14566)"
FAMILIES = (
    Family(
        name="trp-channel",
        label="low rank, 3x3 and 1x1",
        paper=_TRP,
        summary="A convolution becomes a 3x3 one with few outputs and a 1x1 one; training prunes the rank.",
        colour="#E377C2",
        marker=">",
        place=76,
    ),
    Family(
        name="trp-spatial",
        label="low rank, 3x1 and 1x3",
        paper=_TRP,
        summary="A convolution becomes a 3x1 one with few outputs and a 1x3 one; training prunes the rank.",
        colour="#9467BD",
        marker="<",
        place=77,
    ),
    Family(
        name="tucker",
        label="Tucker-2",
        paper="Kim et al., ICLR 2016 (arXiv 1511.06530); funnel-regularised: arXiv 2112.03690",
        summary="A convolution becomes a thin 3x3 one between two 1x1 ones; training prunes the ranks.",
        colour="#7F7F7F",
        marker="d",
        place=78,
    ),
    Family(
        name="trp-quickest",
        label="low rank, mixed forms",
        paper=f"{_TRP}; the choice by measured seconds is ours",
        summary="Each convolution has the form, dense or factored, that was measured to be the quickest.",
        colour="#5254A3",
        marker="^",
        place=79,
    ),
)
SCHEDULES: Schedules = {
    "ranks": {
        "quick": RankSchedule(4, 0.05),
        "standard": RankSchedule(8, 0.05),
        "long": RankSchedule(10, 0.05),
    },
    "factored": {"quick": Schedule(2, 0.02), "standard": Schedule(6, 0.02), "long": Schedule(10, 0.02)},
}
ENERGY = 0.9
SHARE = 0.25
"""The rank, as a share of the channels, of variants whose name ends in -4, and before training of all."""

BLOCKS = tuple(f"layer{stage}.{block}.conv2" for stage in (1, 2, 3, 4) for block in (0, 1))
FOUND: Mapping[str, Mapping[str, float | tuple[float, float]]] = {
    "channel": {
        "layer1.0.conv1": 4 / 16,
        "layer1.0.conv2": 4 / 16,
        "layer1.1.conv1": 5 / 16,
        "layer1.1.conv2": 5 / 16,
        "layer2.0.conv2": 6 / 32,
        "layer2.1.conv1": 6 / 32,
        "layer2.1.conv2": 6 / 32,
        "layer3.0.conv2": 7 / 64,
        "layer3.1.conv1": 7 / 64,
        "layer3.1.conv2": 6 / 64,
        "layer4.0.conv2": 8 / 128,
        "layer4.1.conv1": 7 / 128,
        "layer4.1.conv2": 7 / 128,
    },
    "spatial": {
        "layer1.0.conv1": 5 / 16,
        "layer1.0.conv2": 5 / 16,
        "layer1.1.conv1": 6 / 16,
        "layer1.1.conv2": 5 / 16,
        "layer2.0.conv2": 6 / 32,
        "layer2.1.conv1": 6 / 32,
        "layer2.1.conv2": 6 / 32,
        "layer3.0.conv2": 7 / 64,
        "layer3.1.conv1": 7 / 64,
        "layer3.1.conv2": 7 / 64,
        "layer4.0.conv2": 8 / 128,
        "layer4.1.conv1": 7 / 128,
        "layer4.1.conv2": 6 / 128,
    },
    "tucker": {
        "layer1.0.conv1": (4 / 16, 4 / 16),
        "layer1.0.conv2": (4 / 16, 4 / 16),
        "layer1.1.conv1": (4 / 16, 4 / 16),
        "layer1.1.conv2": (3 / 16, 3 / 16),
        "layer2.0.conv1": (5 / 32, 2 / 16),
        "layer2.0.conv2": (5 / 32, 4 / 32),
        "layer2.1.conv1": (6 / 32, 4 / 32),
        "layer2.1.conv2": (5 / 32, 5 / 32),
        "layer3.0.conv1": (5 / 64, 5 / 32),
        "layer3.0.conv2": (5 / 64, 5 / 64),
        "layer3.1.conv1": (5 / 64, 5 / 64),
        "layer3.1.conv2": (4 / 64, 5 / 64),
        "layer4.0.conv1": (7 / 128, 7 / 64),
        "layer4.0.conv2": (6 / 128, 6 / 128),
        "layer4.1.conv1": (6 / 128, 6 / 128),
        "layer4.1.conv2": (6 / 128, 6 / 128),
    },
}
"""The ranks by energy that training has found, as shares of a kernel's channels.

They are of ResNet-18 of width 16 on CIFAR-100, seed 0, plan `long` (spatial: `standard`). Seeded networks of
every width have them.
"""

QUICKEST = {
    "layer1.0.conv1": "spatial",
    "layer1.0.conv2": "spatial",
    "layer1.1.conv1": "spatial",
    "layer1.1.conv2": "spatial",
    "layer2.0.conv1": "tucker",
    "layer2.0.conv2": "spatial",
    "layer2.1.conv1": "spatial",
    "layer2.1.conv2": "spatial",
    "layer3.0.conv1": "tucker",
    "layer3.0.conv2": "spatial",
    "layer3.1.conv1": "spatial",
    "layer3.1.conv2": "spatial",
    "layer4.0.conv1": "tucker",
    "layer4.0.conv2": "tucker",
    "layer4.1.conv1": "spatial",
    "layer4.1.conv2": "spatial",
}
"""The form in which each 3x3 convolution of ResNet-18 is the quickest, factored to a quarter of the channels.

Measured at width 64 with engine lean on loopback (`python -m pibench.measure.forms`, twice). A convolution
that is the quickest dense would be left out; there is none. Where the two runs disagree (five of the sixteen)
it is the form with fewer rounds."""

Forms = Callable[[Layout, "nn.Module"], Mapping[str, str]]
"""Returns the form of each convolution that is factored, from the layout and the network."""


def _steps(forms: Mapping[str, str], ranks: Mapping[str, Any], fit: bool) -> tuple[Step, ...]:
    """Returns one transform for each form, of the convolutions that have it."""
    return tuple(
        Step(
            "factorize_convs",
            {
                "form": form,
                "ranks": {name: ranks[name] for name, own in forms.items() if own == form},
                "fit": fit,
            },
        )
        for form in dict.fromkeys(forms.values())
    )


def _is_resnet18(layout: Layout) -> bool:
    return [block.conv2 for block in layout.blocks] == list(BLOCKS)


def structure(layout: Layout, form: str, energy: float | None) -> tuple[Step, ...]:
    """Factors the suitable convolutions; their weights are drawn, not fitted.

    Ranks by energy are those that training has `FOUND`, where it has; elsewhere, and at a fixed share, they
    are `SHARE`.
    """
    found = FOUND.get(form, {}) if energy is not None else {}
    known = bool(found) and _is_resnet18(layout)
    return (Step("factorize_convs", {"form": form, "ranks": found if known else SHARE, "fit": False}),)


def suitable_forms(layout: Layout, model: nn.Module, form: str) -> Mapping[str, str]:
    """Gives all suitable convolutions the same form."""
    from pibench.models.transforms.factorize_convs import suitable

    return dict.fromkeys(suitable(model, form), form)


def quickest_structure(layout: Layout) -> tuple[Step, ...]:
    """Gives each convolution its `QUICKEST` form at a fixed share; the weights are drawn.

    Raises ValueError for a network whose layers have not been measured.
    """
    if not _is_resnet18(layout):
        raise ValueError("only the layers of ResNet-18 have been measured; give all layers one form")
    return _steps(QUICKEST, dict.fromkeys(QUICKEST, SHARE), fit=False)


def quickest_forms(layout: Layout, model: nn.Module) -> Mapping[str, str]:
    """Gives each convolution its `QUICKEST` form."""
    return QUICKEST


def pruned(variant: Variant, plan: Plan, forms: Forms, energy: float | None) -> Phase:
    """Trains the baseline's kernels towards low rank, by an energy or at a fixed share; factors them."""

    def task(run: Run, start: Trained) -> Task:
        import copy

        from pibench.models.training.tasks.rank_pruning import RankPruning
        from pibench.models.transforms.factorize_convs import rank_of_energy, rank_of_share

        model = copy.deepcopy(start.model)
        if energy is None:
            rank = partial(rank_of_share, share=SHARE)
        else:
            rank = partial(rank_of_energy, energy=energy)
        return RankPruning(model, plan["ranks"], forms(run.layout, model), rank)

    def settle(run: Run, learnt: Any) -> nn.Module:
        import copy

        from pibench.models.weights import apply

        model = copy.deepcopy(learnt.model).cpu()
        return run.placed(apply(model, _steps(learnt.forms, learnt.ranks(), fit=True)))

    def chosen(run: Run, learnt: Any) -> tuple[Step, ...]:
        return _steps(learnt.forms, {name: list(rank) for name, rank in learnt.ranks().items()}, fit=False)

    after = (baseline.trained(variant, plan),)
    return Phase(f"{variant.name}-ranks", plan["ranks"], task, after, settle, chosen)


def trained(variant: Variant, plan: Plan, forms: Forms, energy: float | None) -> Phase:
    """Prunes ranks and tunes the factored network, with the baseline as teacher."""
    return baseline.tuned(variant, plan, baseline.left, (pruned(variant, plan, forms, energy),), "factored")


_FORMS: Mapping[str, str] = {"trp-channel": "channel", "trp-spatial": "spatial", "tucker": "tucker"}
VARIANTS = (
    *(
        Variant(
            f"{family}-{name}",
            partial(trained, forms=partial(suitable_forms, form=form), energy=energy),
            partial(structure, form=form, energy=energy),
        )
        for family, form in _FORMS.items()
        for name, energy in (("0.9", ENERGY), ("4", None))
    ),
    Variant("trp-quickest-4", partial(trained, forms=quickest_forms, energy=None), quickest_structure),
)
