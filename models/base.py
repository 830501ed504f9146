"""The declaration of a reduction: pure data, so that reports and figures read it without torch."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pibench.models.decisions import Step
from pibench.models.layout import Layout

if TYPE_CHECKING:
    from pibench.models.training.phases import Phase
    from pibench.models.training.schedules import Plan

FOLD = Step("fold_batchnorm")


@dataclass(frozen=True)
class Family:
    """A reduction: the variants of one method.

    `name` is the word before the budget in a variant's name (`senet` of `senet-0.09`). `label` is the name in
    figures, `paper` the source, `summary` one sentence about the method. `colour` and `marker` are its look
    in figures. `place` orders families in reports, the smallest first. `shown` is the variant that represents
    the family where there is room for few, or "" if the family may be left out.
    """

    name: str
    label: str
    paper: str
    summary: str
    colour: str
    marker: str
    place: int
    shown: str = ""


def family_name(variant: str) -> str:
    """Returns a variant's name without the budget at its end.

    >>> family_name("senet-0.09"), family_name("merged-exact")
    ('senet', 'merged-exact')
    """
    return re.sub(r"-\d+(\.\d+)?$", "", variant)


def original(layout: Layout) -> tuple[Step, ...]:
    """Returns no transforms: the structure of a variant that changes no layer before its ReLUs are chosen."""
    return ()


@dataclass(frozen=True)
class Variant:
    """The way from an architecture to the network that is run; `pibench.models.variants` builds it.

    `network` is an architecture of the zoo. `structure` returns the transforms that make the trainable
    structure from its layout, before BatchNorm is folded. `fraction` is the share of the architecture's ReLUs
    that is then kept; None keeps all that are left. `masks` draws the kept positions from the layout, the
    shapes of the remaining ReLUs, their number and a seed; training chooses better ones. `finish` are the
    transforms after training. Those before BatchNorm's folding change the values that BatchNorm sees, so a
    seeded network is calibrated after them. `phase` returns the last phase of its training; None means that
    the variant is not trained. `plan` is the plan of its committed rows. `source` names the variant whose
    trained network is taken, with its masks, until this one is trained; the transforms of `finish` continue
    those of the source.
    """

    name: str
    phase: Callable[[Any, Plan], Phase] | None = None
    structure: Callable[[Layout], tuple[Step, ...]] = original
    fraction: float | None = None
    masks: Callable[[Layout, Mapping[str, tuple[int, ...]], int, int], dict[str, Any]] | None = None
    finish: tuple[Step, ...] = (FOLD,)
    plan: str = "long"
    network: str = "resnet18"
    source: str | None = None

    @property
    def family(self) -> str:
        """The name without the budget."""
        return family_name(self.name)
