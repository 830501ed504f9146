"""A session of measurements: the parties of the current case and of the references that are still needed.

A reference stays loaded, in separate processes, until the last case that pairs with it. The other cases of
one setting use the same processes one after the other. These drop an earlier network before the next one.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import nn

from pibench.engines import ENGINES
from pibench.hosts.remote import Remote
from pibench.measure.case import Case
from pibench.measure.count import Cost, cost_of
from pibench.measure.digest import digest_of
from pibench.measure.rounds import Measurement
from pibench.measure.row import context, row_of
from pibench.measure.subject import Subject
from pibench.models import interrupt
from pibench.models.data import default_images
from pibench.models.variants import variant
from pibench.parties.driver import Parties
from pibench.parties.memory import available_memory
from pibench.store.results import Row, Store

IMAGES = 16  # the largest batch
COMPARED = 4  # images for the spread of logits, if the batch is not larger
TIMEOUT_S = 600.0


@cache
def images(size: int = 32) -> tuple[torch.Tensor, str]:
    """Returns the default images [16, 3, size, size] and their source."""
    return default_images(IMAGES, size)


class Session:
    """Measures cases one after the other; use it with `with`.

        with Session(cases, Path("results"), run="a name") as session:
            rows = [session.measure(case) for case in cases]

    With `remote` every party 1 runs on another host, which comes first. Cases whose rows in `results` are up
    to date (`pibench.measure.digest`) are not `waiting`: their rows are in `kept`. With `again`, and with
    `remote`, every case waits.
    """

    def __init__(
        self,
        cases: Sequence[Case],
        results: Path,
        run: str,
        remote: Remote | None = None,
        again: bool = False,
    ) -> None:
        self.store = Store(results / "bench.json")
        self.store.demand_room()
        self.run = run
        self.remote = remote
        self.context = context()
        self.kept = {} if again or remote is not None else self._up_to_date(cases)
        self.waiting = [case for case in cases if case.id not in self.kept]
        self.subjects: dict[str, Subject] = {}
        self.costs: dict[str, Cost] = {}  # of users' networks, by case
        self.idle: list[Parties] = []
        self._open = ExitStack()
        self.started = time.monotonic()
        self.total_work = sum(map(_work, self.waiting))

    def _up_to_date(self, cases: Sequence[Case]) -> dict[str, Row]:
        """Returns the stored rows that measuring `cases` here would replace by their like, by case."""
        stored = {(row["case"], row.get("digest")): row for row in self.store.rows()}
        names = {name for name, _ in stored}
        found = {}
        for case in cases:
            row = stored.get((case.id, digest_of(case, self.context))) if case.id in names else None
            if row is not None:
                found[case.id] = row
        return found

    def said_of_kept(self) -> str | None:
        """Says in one line which share of the cases is up to date; None if none is."""
        total = len(self.kept) + len(self.waiting)
        if not self.kept:
            return None
        return f"{len(self.kept)} of {total} cases are up to date; --again measures them anew"

    def __enter__(self) -> Session:
        if self.remote is not None:
            self.remote.__enter__()
            self.context["hosts"] = [self.context["machine"], self.remote.machine]
        self._open.enter_context(interrupt.remembering())
        return self

    def __exit__(self, *_: object) -> None:
        with self._open:
            for subject in self.subjects.values():
                subject.parties.__exit__(None, None, None)
            for parties in self.idle:
                parties.__exit__(None, None, None)
            self.subjects.clear()
            self.idle.clear()
            if self.remote is not None:
                self.remote.__exit__(None)

    def measure(
        self, case: Case, timed: Callable[[Measurement, int], object] = Measurement.repeat
    ) -> dict[str, Any]:
        """Measures `case` and stores its row at once.

        `timed(measurement, rounds)` calls `before` and `online` of the measurement that many times. Raises
        WrongAnswer, and stores nothing, when the parties do not compute the network.
        """
        try:
            interrupt.demand_none()
            model, cost = self.model(case), self.cost(case)  # refused before anything is measured
            digest = digest_of(case, self.context)  # of the source as it is now, not after minutes of rounds
            subject = self.subject(case)
            reference = None if case.reference is None else self.subject(case.reference)
            measurement = Measurement(case, subject, reference)
            interrupt.demand_none()
            if case.warm_up:
                measurement.warm_up()
            timed(measurement, case.rounds)
            if case.own is not None:
                weights, source = "own", "own"
            else:
                weights, source = "trained" if model.meta["trained"] else "seeded", images()[1]
            row = row_of(measurement, cost, weights, source, self.run, self.context)
            if self.remote is None:
                row["digest"] = digest
            self.store.add(row)
        finally:
            self.skip(case)
        return row

    def skip(self, case: Case) -> None:
        """Removes a case from the list and ends the parties that only this case needs."""
        self.waiting = [other for other in self.waiting if other.id != case.id]
        self.dismiss()

    def model(self, case: Case) -> nn.Module:
        """Returns the network of a case; a variant is built once."""
        return _built(case.variant, case.width) if case.own is None else case.own.model

    def images(self, case: Case) -> torch.Tensor:
        """Returns the images of a case, those of its batch first."""
        pictures = images()[0] if case.own is None else case.own.images
        return pictures[: max(COMPARED, case.batch)]

    def cost(self, case: Case) -> Cost:
        """Returns the static cost of a case's network for one image."""
        if case.own is None:
            return _counted(case.variant, case.width)
        if case.id not in self.costs:
            self.costs[case.id] = cost_of(case.own.model, case.own.images)
        return self.costs[case.id]

    def subject(self, case: Case) -> Subject:
        """Returns the loaded parties of a case; starts them if they do not run yet."""
        known = self.subjects.get(case.id)
        if known is not None and known.parties.pids:
            return known
        parties = self.parties(case)
        try:
            self.subjects[case.id] = Subject(self.model(case), self.images(case), case.batch, parties)
        except BaseException:
            parties.__exit__(None, None, None)
            raise
        return self.subjects[case.id]

    def new(self, case: Case) -> Parties:
        """Returns parties for a case, not started; the verdict on their answers is the case's own."""
        return Parties(
            case.parties,
            case.engine,
            case.provider,
            TIMEOUT_S,
            case.link,
            remote=self.remote,
            check=False,
        )

    def parties(self, case: Case) -> Parties:
        """Returns idle processes that fit, or new ones."""
        wanted = self.new(case)
        for parties in self.idle:
            if parties.setting == wanted.setting and parties.pids:
                self.idle.remove(parties)
                return parties
        return wanted.__enter__()

    def dismiss(self) -> None:
        """Ends the parties that no waiting case needs."""
        needed = {case.id for case in self.waiting}
        needed |= {case.reference.id for case in self.waiting if case.reference is not None}
        for name in [name for name in self.subjects if name not in needed]:
            self.idle.append(self.subjects.pop(name).parties)
        possible = [case for case in self.waiting if ENGINES[case.engine].missing() is None]
        wanted = {self.new(case).setting for case in possible}
        for parties in [parties for parties in self.idle if parties.setting not in wanted]:
            self.idle.remove(parties)
            parties.__exit__(None, None, None)

    def obstacle(self, case: Case) -> str | None:
        """Returns why a case cannot be measured here, or None if it can.

        The engine may not be installed, or the memory may be too small. The parties of a case hold its tuples
        in memory at once. The estimate is the engine's bytes for each ReLU and parameter, and half a
        gigabyte for each process.
        """
        known = ENGINES[case.engine]
        if (reason := known.missing()) is not None:
            return reason
        free = available_memory()
        if free is None:
            return None
        alive = {subject.parties for subject in self.subjects.values()}
        wanted = [c for c in (case, case.reference) if c is not None and c.id not in self.subjects]
        need = sum(c.parties * (5e8 + self._held(c)) for c in wanted)
        if need <= free:
            return None
        return (
            f"needs about {need / 1e9:.0f} GB of memory beside {len(alive)} loaded networks, "
            f"{free / 1e9:.0f} GB are free"
        )

    def _held(self, case: Case) -> float:
        """Estimates the bytes that a party holds of a case's network and its inference."""
        known, cost = ENGINES[case.engine], self.cost(case)
        return case.batch * cost.relus * known.bytes_per_relu + cost.parameters * known.bytes_per_parameter

    def progress(self, row: dict[str, Any], total: int) -> str:
        """Returns one line: the case of `row`, its medians, the cases done of `total`, the time left."""
        times = row["times"]
        medians = [
            f"{name.replace('_', ' ')} "
            + (f"{statistics.median(times[f'{name}_s']):.3f} s" if times[f"{name}_s"] else "-")
            for name in ENGINES[row["engine"]].clocks
        ]
        return (
            f"{row['case']}: {', '.join(medians)}, {row['traffic']['bytes_sent'] / 1e6:.1f} MB, "
            f"{row['traffic']['rounds']} rounds  "
            f"[{total - len(self.waiting)}/{total}, about {self.minutes_left():.0f} min left]"
        )

    def minutes_left(self) -> float:
        """Estimates the minutes until the last case is done, from the time taken so far."""
        left = sum(map(_work, self.waiting))
        done = self.total_work - left
        elapsed = time.monotonic() - self.started
        return elapsed / done * left / 60 if done else float("nan")


@cache
def _built(variant_name: str, width: int) -> nn.Module:
    return variant(variant_name).build(width=width)


@cache
def _counted(variant_name: str, width: int) -> Cost:
    return cost_of(_built(variant_name, width), images()[0])


def _one_round(case: Case) -> float:
    """Returns the expected time of a round, in units of a stock round of one image on loopback."""
    known = ENGINES[case.engine]
    waiting = {"loopback": 0.0, "lan": 0.5, "wan-slow": 24.0}.get(case.link, 10.0)
    return known.compute * case.batch * (case.parties - 1) + known.waiting * waiting


def _work(case: Case) -> float:
    """Returns the expected time of a case, in the same units."""
    pair = 0.0 if case.reference is None else _one_round(case.reference)
    return (case.rounds + case.warm_up) * (_one_round(case) + pair) + 2.0  # processes, loading, profiles
