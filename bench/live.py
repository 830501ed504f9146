"""The progress of a measurement on a terminal: cases, rounds, the running median, the time left."""

from __future__ import annotations

import statistics
from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from pibench.api import Watch
from pibench.measure.case import Case
from pibench.measure.rounds import Measurement
from pibench.measure.session import Session


@contextmanager
def watching() -> Iterator[Watch]:
    """Returns the `watch` of `pibench.api.measure`, which shows rounds on standard error."""
    columns = (
        TextColumn("{task.description}"),
        BarColumn(bar_width=20),
        TextColumn("{task.completed}/{task.total} rounds, left"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=Console(stderr=True), speed_estimate_period=600) as progress:
        task = progress.add_task("starting the parties", total=None)

        def watch(session: Session, case: Case, done: int, measurement: Measurement | None) -> None:
            if measurement is None:
                left = sum(each.rounds for each in session.waiting)
                total = progress.tasks[task].completed + left
                progress.update(task, total=total, description=f"{case.variant}: loading")
                return
            clock, right = measurement.rounds.shown
            said = f"{clock.replace('_', ' ')} {statistics.median(right):.3g} s" if right else "-"
            progress.update(task, advance=1, description=f"{case.variant}: {said}")
            if done == case.rounds:
                progress.console.print(f"{case.id}: {said}", markup=False, highlight=False)

        yield watch
