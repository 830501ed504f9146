"""Phases: the training of a variant, declared once; the run and the plan both read this declaration."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
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
    """One phase of training; the phases `after` come before it, because it starts or learns from them.

    `task` makes the task from the run and the results of `after`, in their order. `settle` returns the
    network for later phases when the task is done (by default the task's own). `chosen` returns the
    transforms that made its structure, if training has chosen them. Without it they are the variant's own.
    `finish` returns the last transforms in the same way. Phases with the same name are one phase, which is
    trained once.

    `row` names a variant of which this is the last phase, if only its deployed network is needed: the stored
    network of that row then takes the place of the training, where there is one.
    """

    name: str
    schedule: Schedule
    task: Callable[..., Task]
    after: tuple[Phase, ...] = ()
    settle: Callable[[Run, Any], nn.Module] | None = None
    chosen: Callable[[Run, Any], tuple[Step, ...]] | None = None
    finish: Callable[[Run, Any], tuple[Step, ...]] | None = None
    row: str | None = None


def phases(last: Phase, stored: Collection[str] = ()) -> Iterator[Phase]:
    """Yields the phases that lead to `last` in the order of training, `last` at the end.

    Those that are needed for the rows `stored` alone are left out.
    """
    seen: set[str] = set()

    def walk(phase: Phase) -> Iterator[Phase]:
        if phase.name not in seen and phase.row not in stored:
            seen.add(phase.name)
            for before in phase.after:
                yield from walk(before)
            yield phase

    return walk(last)


def last_phase(variant: Any, plan: Plan) -> Phase:
    """Returns the last phase of a variant's training; raises ValueError if the variant is not trained."""
    if variant.phase is None:
        raise ValueError(f"the variant {variant.name} is not trained: its reduction declares no phase")
    return variant.phase(variant, plan)


def schedules_of(variant: Any, plan: Plan) -> dict[str, Schedule]:
    """Returns the phases of a variant, each with its schedule."""
    return {phase.name: phase.schedule for phase in phases(last_phase(variant, plan))}


def planned(variant: Any, plan: Plan) -> dict[str, int]:
    """Returns the phases of a variant, each with its number of epochs."""
    return {name: schedule.epochs for name, schedule in schedules_of(variant, plan).items()}


def plan_named(name: str) -> Plan:
    """Returns the plan of this name, from the schedules of all reductions in the catalogue."""
    from pibench.models import catalogue

    return assembled((getattr(module, "SCHEDULES", {}) for module in catalogue.modules()), name)
