"""Phases: what a variant goes through, declared once; what is run and what is planned are read from it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pibench.models.decisions import Step
from pibench.models.training.schedules import Plan, Schedule, assembled

if TYPE_CHECKING:
    from torch import nn

    from pibench.models.training.loop import Task
    from pibench.models.training.run import Run


@dataclass(frozen=True)
class Phase:
    """One phase of training, and the phases `after` which it comes: those that it starts or learns from.

    `task` makes what is trained from the run and the results of `after`, in their order. `settle` returns the
    network that others go on with when the task is done (by default the task's own). `chosen` returns the
    transforms that made its structure, where training has chosen them; without it they are the variant's own.
    Phases of one name are one phase: it is trained once.
    """

    name: str
    schedule: Schedule
    task: Callable[..., Task]
    after: tuple[Phase, ...] = ()
    settle: Callable[[Run, Any], nn.Module] | None = None
    chosen: Callable[[Run, Any], tuple[Step, ...]] | None = None


def phases(last: Phase) -> Iterator[Phase]:
    """Yields the phases that lead to `last` in the order in which they are trained, `last` at the end."""
    seen: set[str] = set()

    def walk(phase: Phase) -> Iterator[Phase]:
        if phase.name not in seen:
            seen.add(phase.name)
            for before in phase.after:
                yield from walk(before)
            yield phase

    return walk(last)


def last_phase(variant: Any, plan: Plan) -> Phase:
    """Returns the last phase of a variant's training; ValueError for one that is not trained."""
    if variant.phase is None:
        raise ValueError(f"the variant {variant.name} is not trained: its reduction declares no phase")
    return variant.phase(variant, plan)


def schedules_of(variant: Any, plan: Plan) -> dict[str, Schedule]:
    """Returns the phases that a variant goes through, each with its schedule."""
    return {phase.name: phase.schedule for phase in phases(last_phase(variant, plan))}


def planned(variant: Any, plan: Plan) -> dict[str, int]:
    """Returns the phases that a variant goes through, and the epochs of each."""
    return {name: schedule.epochs for name, schedule in schedules_of(variant, plan).items()}


def plan_named(name: str) -> Plan:
    """Returns the plan of this name, from the schedules of all reductions in the catalogue."""
    from pibench.models import catalogue

    return assembled((getattr(module, "SCHEDULES", {}) for module in catalogue.modules()), name)
