"""The rounds of a case: their seconds, and the verdict on each answer.

A round is one offline phase and one online phase, or one inference for an engine with one clock. If the case
has a reference, a round of the reference comes right before it, so that the two form a pair. The answer of
every round is compared with the float64 network. A round with a wrong answer is no measurement. It is counted
and must be explained (`pibench.measure.verdict`).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import UTC, datetime

import torch

from pibench.engines import ENGINES
from pibench.measure.case import Case
from pibench.measure.subject import Subject
from pibench.models import interrupt
from pibench.parties.driver import Traffic


@dataclass
class Rounds:
    """Seconds and traffic of the rounds of one case, in order; None for the seconds of a wrong answer.

    For an engine with one clock, `online_s` holds the whole inference. `plaintext_s` are the seconds of the
    network itself, right before each round.
    """

    clocks: tuple[str, ...]
    plaintext_s: list[float] = field(default_factory=list)
    offline_s: list[float | None] = field(default_factory=list)
    online_s: list[float | None] = field(default_factory=list)
    traffic: list[Traffic] = field(default_factory=list)

    @property
    def total_s(self) -> list[float | None]:
        """Returns the offline and online seconds of each round together."""
        return [
            None if None in pair else sum(pair) for pair in zip(self.offline_s, self.online_s, strict=True)
        ]

    def as_dict(self) -> dict[str, list[float | None]]:
        """Returns the clocks of a row: those of both phases and their sum, or the sum alone."""
        if len(self.clocks) == 1:
            return {f"{self.clocks[0]}_s": self.total_s}
        return {"offline_s": self.offline_s, "online_s": self.online_s, "total_s": self.total_s}

    @property
    def shown(self) -> tuple[str, list[float]]:
        """Returns the last of the engine's clocks, and its seconds so far of right answers."""
        name = self.clocks[-1]
        return name, [seconds for seconds in self.as_dict()[f"{name}_s"] if seconds is not None]


class Measurement:
    """The rounds of one case; `before` and `online` are called alternately.

    `before` runs the reference's round and this case's offline phase. `online` runs the timed phase. Raises
    ValueError for a reference whose engine has other clocks.
    """

    def __init__(self, case: Case, subject: Subject, reference: Subject | None = None) -> None:
        self.case = case
        self.subject = subject
        self.reference = reference
        self.clocks = ENGINES[case.engine].clocks
        if case.reference is not None and ENGINES[case.reference.engine].clocks != self.clocks:
            raise ValueError(f"{case.id} and {case.reference.id} have other clocks and cannot be paired")
        self._clear()
        self.started = datetime.now(UTC).isoformat(timespec="seconds")

    def _clear(self) -> None:
        self.rounds, self.reference_rounds = Rounds(self.clocks), Rounds(self.clocks)

    def before(self) -> None:
        """Runs the part of a round before the timed phase."""
        interrupt.demand_none()
        self.rounds.plaintext_s.append(self.subject.plaintext())
        if self.reference is not None:
            offline = self.reference.prepare()
            right = self.reference.right(self.reference.infer())
            self.reference_rounds.offline_s.append(offline if right else None)
            self.reference_rounds.online_s.append(self.reference.parties.online_s if right else None)
        self.rounds.offline_s.append(self.subject.prepare())

    def online(self) -> torch.Tensor:
        """Runs the timed phase of a round."""
        logits = self.subject.infer()
        right = self.subject.right(logits)
        self.rounds.online_s.append(self.subject.parties.online_s if right else None)
        self.rounds.traffic.append(self.subject.traffic)
        return logits

    def warm_up(self) -> None:
        """Runs a round and drops its times, but not its verdicts.

        Runs the reference's only if it had none.
        """
        if self.reference is not None and not self.reference.attempted:
            self.before()
        else:
            self.subject.prepare()
        self.online()
        self._clear()

    def repeat(self, rounds: int) -> None:
        """Runs this many rounds."""
        for _ in range(rounds):
            self.before()
            self.online()
