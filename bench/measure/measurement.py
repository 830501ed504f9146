"""Measures a case: rounds of offline and online time, with the answer checked beside the clock.

A round is one offline phase and one online phase; when the case has a reference, a round of the reference
comes right before it, so that the two pair up. The answer of every round is compared with the float64
network. A round with a wrong answer is no measurement. Stock CrypTen's local truncation is sometimes wrong
(`pibench.program.lower`), so such a round is counted as a truncation failure if the law explains it and the
same inference comes out right when repeated; in every other case the measurement fails with WrongAnswer.
"""

from __future__ import annotations

import copy
import json
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

import torch
from scipy import stats
from torch import nn

from pibench.costs import literature
from pibench.engines.base import StepCost
from pibench.measure.cases import Case
from pibench.models.cost import Cost, count_cost
from pibench.parties.driver import Parties, Traffic
from pibench.store import provenance

TOLERANCE = 0.02  # of the largest difference between two images' logits
IMPLAUSIBLE = 1e-6  # chance under which the truncation law no longer explains the wrong rounds


class WrongAnswer(AssertionError):  # noqa: N818 (what happened, as pytest prints it)
    """Raised when the parties' logits are not those of the network."""


@dataclass
class Rounds:
    """Seconds of the rounds of one case, in order; None where an answer was wrong."""

    offline_s: list[float | None] = field(default_factory=list)
    online_s: list[float | None] = field(default_factory=list)

    @property
    def total_s(self) -> list[float | None]:
        """Offline and online seconds of each round together."""
        return [
            None if None in pair else sum(pair) for pair in zip(self.offline_s, self.online_s, strict=True)
        ]

    def as_dict(self) -> dict[str, list[float | None]]:
        """The three clocks."""
        return {"offline_s": self.offline_s, "online_s": self.online_s, "total_s": self.total_s}


class Subject:
    """A network on parties, with the answer it must give.

    `images` [M, C, H, W] with M >= 2: the first `batch` are inferred, all of them give the spread of logits.
    """

    def __init__(self, model: nn.Module, images: torch.Tensor, batch: int, parties: Parties) -> None:
        if len(images) < max(2, batch):
            raise ValueError(
                f"{len(images)} images are too few: a batch of {batch} and two to compare are needed"
            )
        self.parties = parties
        self.images = images[:batch].clone()  # a view would send every image each time
        with torch.no_grad():
            logits = copy.deepcopy(model).double().eval()(images.double())
        self.expected = logits[:batch]
        self.spread = (logits.max(0).values - logits.min(0).values).max().item()
        self.tolerance = TOLERANCE * self.spread
        self.max_error = 0.0  # of the right answers
        self.attempted = 0
        self.wrong = 0
        parties.load(model, images)
        self.set_up = parties.set_up
        self.link_check = parties.check_link()
        self.traffic: Traffic | None = None

    def prepare(self) -> float:
        """Runs the offline phase; returns its seconds."""
        return self.parties.prepare(len(self.images))

    def infer(self) -> torch.Tensor:
        """Runs the online phase; returns the logits. Every round must send the same."""
        logits = self.parties.infer(self.images)
        if self.traffic not in (None, self.parties.sent):
            raise WrongAnswer(f"two rounds of one case sent {self.traffic} and {self.parties.sent}")
        self.traffic = self.parties.sent
        return logits

    def right(self, logits: torch.Tensor) -> bool:
        """Judges the answer of a round and keeps count."""
        self.attempted += 1
        error = (logits.double() - self.expected).abs().max().item()
        if not error < self.tolerance:  # a NaN is wrong too
            self.wrong += 1
            return False
        self.max_error = max(self.max_error, error)
        return True

    @property
    def expected_failures(self) -> float:
        """Wrong local truncations expected in one inference of the batch (0 for an exact engine)."""
        if self.parties.exact_truncation:
            return 0.0
        return self.parties.lowered.truncation_failures * len(self.images)

    def demand_explanation(self) -> None:
        """Raises WrongAnswer unless truncation explains every wrong round so far."""
        if not self.wrong:
            return
        self.prepare()
        repeated = self.right(self.infer())
        law = self.expected_failures * self.attempted
        chance = stats.poisson.sf(self.wrong - 1, law) if law else 0.0
        if not repeated or chance < IMPLAUSIBLE:
            raise WrongAnswer(
                f"{self.wrong} of {self.attempted} answers are off by {self.tolerance:.3g} or more (2 % of "
                f"the spread {self.spread:.3g} between images); the parties do not compute this network"
            )


class Measurement:
    """The rounds of one case; `before` and `online` are called in turn, `row` at the end.

    `before` runs the reference's round and this case's offline phase, `online` what is timed.
    """

    def __init__(self, case: Case, subject: Subject, reference: Subject | None = None) -> None:
        self.case = case
        self.subject = subject
        self.reference = reference
        self.rounds = Rounds()
        self.reference_rounds = Rounds()
        self.started = datetime.now(UTC).isoformat(timespec="seconds")

    def before(self) -> None:
        """Runs everything of a round that comes before the timed phase."""
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
        return logits

    def warm_up(self) -> None:
        """Runs a round whose times are dropped, but not its verdicts; the reference's only if it had none."""
        if self.reference is not None and not self.reference.attempted:
            self.before()
        else:
            self.subject.prepare()
        self.online()
        self.rounds, self.reference_rounds = Rounds(), Rounds()

    def row(
        self, cost: Cost, profiles: int, weights: str, images: str, run: str, context: dict[str, Any]
    ) -> dict[str, Any]:
        """Profiles layers and gives the row of results/bench.json.

        Raises WrongAnswer when wrong rounds have no explanation.
        """
        subject, case = self.subject, self.case
        subject.demand_explanation()
        if self.reference is not None:
            self.reference.demand_explanation()
        kept = [i for i, online in enumerate(self.rounds.online_s) if online is not None]
        times = {clock: [values[i] for i in kept] for clock, values in self.rounds.as_dict().items()}
        paired = (
            {clock: [values[i] for i in kept] for clock, values in self.reference_rounds.as_dict().items()}
            if self.reference is not None
            else None
        )
        offline = subject.parties.offline
        layers = layer_rows([subject.parties.profile(subject.images) for _ in range(profiles)], cost)
        return {
            "case": case.id,
            "variant": case.variant,
            "width": case.width,
            "engine": case.engine,
            "provider": subject.parties.provider,
            "batch": case.batch,
            "link": case.link,
            "timing": "emulated" if subject.parties.link.shaped else "measured",
            "link_check": subject.link_check.as_dict(),
            "parties": case.parties,
            "role": case.role,
            "weights": weights,
            "images": images,
            "cost": {name: getattr(cost, name) for name in COUNTS},
            "traffic": traffic_row(subject.traffic, subject.parties.hops),
            "setup": {
                "seconds": subject.set_up.seconds,
                "rounds": subject.set_up.rounds,
                "bytes_sent_by_party": list(subject.set_up.by_party),
            },
            "offline": {
                "correlated_bytes_by_party": list(offline.correlated_bytes),
                "dealt_bytes": offline.dealt_bytes,
            },
            "times": times,
            "reference": paired
            and {"case": case.reference.id, "link_check": self.reference.link_check.as_dict(), **paired},
            "peak_memory_bytes_by_party": list(subject.parties.peak_memory()),
            "truncation": {
                "expected_per_inference": subject.expected_failures,
                "expected": subject.expected_failures * subject.attempted,
                "observed": subject.wrong,
            },
            "answer": {
                "max_error": subject.max_error,
                "spread": subject.spread,
                "relative_error": subject.max_error / subject.spread,
                "tolerance": TOLERANCE,
            },
            "rounds": {"attempted": len(self.rounds.online_s), "succeeded": len(kept)},
            "layers": layers,
            "network": network_row(case.variant, subject),
            "conventions": provenance.CONVENTIONS,
            **context,
            "run": run,
            "started": self.started,
        }


COUNTS = ("relus", "comparisons", "relu_layers", "linear_layers", "macs", "parameters")


def traffic_row(traffic: Traffic, hops: int) -> dict[str, Any]:
    """Traffic as it is stored; `hops` are one-way trips in sequence."""
    return {
        "rounds": traffic.rounds,
        "bytes_sent": traffic.bytes_sent,
        "bytes_sent_by_party": list(traffic.by_party),
        "bytes_total": traffic.bytes_total,
        "hops": hops,
    }


def network_row(name: str, subject: Subject) -> dict[str, Any] | None:
    """The network as the literature's cost models see it; None if it holds a step that they do not price."""
    try:
        described = literature.describe(name, subject.parties.lowered.program).as_dict()
    except ValueError:
        return None
    return json.loads(json.dumps(described))


def context() -> dict[str, Any]:
    """Machine, versions and commit, as every row holds them."""
    head, dirty = provenance.commit()
    return {
        "machine": provenance.machine(),
        "versions": provenance.versions(),
        "commit": head,
        "dirty": dirty,
    }


def layer_rows(profiles: Sequence[Sequence[StepCost]], cost: Cost) -> list[dict[str, Any]]:
    """Joins profiled steps (the median over profiles) with the layers' static counts by name."""
    static = {layer.name: layer for layer in cost.layers}
    rows = []
    for steps in zip(*profiles, strict=True):
        layer = static.get(steps[0].name)
        rows.append(
            {
                "name": steps[0].name,
                "kind": steps[0].kind,
                "seconds": statistics.median(step.seconds for step in steps),
                "rounds": steps[0].rounds,
                "bytes_sent": steps[0].bytes_sent,
                "relus": layer.relus if layer else 0,
                "macs": layer.macs if layer else 0,
                "parameters": layer.parameters if layer else 0,
            }
        )
    return rows


def cost_of(model: nn.Module, images: torch.Tensor) -> Cost:
    """Counts the static cost of `model` for one of `images`."""
    return count_cost(model, images[:1])
