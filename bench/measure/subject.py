"""A network on running parties, with its right answer."""

from __future__ import annotations

import copy
import time

import torch
from torch import nn

from pibench.measure.verdict import WrongAnswer, truth_of
from pibench.parties.driver import Parties, Traffic


class Subject:
    """A network on parties, with its right answer.

    `images` [M, C, H, W] with M >= 2: the first `batch` are inferred, and all of them give the spread of
    logits.
    """

    def __init__(self, model: nn.Module, images: torch.Tensor, batch: int, parties: Parties) -> None:
        if len(images) < max(2, batch):
            raise ValueError(
                f"{len(images)} images are too few: a batch of {batch} and two to compare are needed"
            )
        self.parties = parties
        self.images = images[:batch].clone()  # a view would send every image each time
        self._plain = copy.deepcopy(model).float().eval()
        self.truth = truth_of(model, images).first(batch)
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
        """Runs the online phase; returns the logits.

        Every round must send the same where the engine's traffic is steady; else the last round's is kept.
        """
        logits = self.parties.infer(self.images)
        if self.parties.steady_traffic and self.traffic not in (None, self.parties.sent):
            raise WrongAnswer(f"two rounds of one case sent {self.traffic} and {self.parties.sent}")
        self.traffic = self.parties.sent
        return logits

    def plaintext(self) -> float:
        """Runs the network itself on the batch, in float32 and on one thread; returns the seconds.

        This is what privacy is compared with. No party computes at the same time, and a run before it warms
        the caches.
        """
        threads = torch.get_num_threads()
        torch.set_num_threads(1)
        try:
            with torch.inference_mode():
                self._plain(self.images)
                started = time.perf_counter()
                self._plain(self.images)
                return time.perf_counter() - started
        finally:
            torch.set_num_threads(threads)

    def right(self, logits: torch.Tensor) -> bool:
        """Judges the answer of a round and counts it."""
        self.attempted += 1
        if not self.truth.right(logits).all():
            self.wrong += 1
            return False
        self.max_error = max(self.max_error, self.truth.errors(logits).max().item())
        return True

    @property
    def headroom_bits(self) -> float | None:
        """The bits that stay free above the largest value, at the step with the fewest.

        None for an engine that is not calibrated.
        """
        return self.parties.headroom_bits

    @property
    def expected_failures(self) -> float:
        """The expected wrong local truncations in one inference of the batch (0 for an exact engine)."""
        return expected_failures(self.parties, len(self.images))

    def demand_explanation(self) -> None:
        """Raises WrongAnswer unless truncation explains every wrong round so far."""
        if not self.wrong:
            return
        self.prepare()
        repeated = self.right(self.infer())
        law = self.expected_failures * self.attempted
        self.truth.demand_explanation(self.wrong, self.attempted, law, repeated, "answers")


def expected_failures(parties: Parties, images: int) -> float:
    """Returns the expected number of wrong local truncations in `images` inferences of the loaded network."""
    return 0.0 if parties.exact_truncation else parties.lowered.truncation_failures * images
