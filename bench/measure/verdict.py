"""The verdict on private answers: which ones are right, and whether wrong truncations explain the others.

Stock CrypTen's local truncation is sometimes wrong by a large amount (`pibench.program.lower`). Such an
answer is explained if the law of these failures allows so many, and if the repeated inference is right. Every
other wrong answer means that the parties do not compute the network.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass

import scipy
import torch
from torch import Tensor, nn

from pibench.program.guard import WrongAnswer

__all__ = ["TOLERANCE", "Truth", "WrongAnswer", "truth_of"]

TOLERANCE = 0.02  # of the largest difference between two images' logits
IMPLAUSIBLE = 1e-6  # chance below which the truncation law no longer explains the wrong answers


@dataclass(frozen=True, eq=False)
class Truth:
    """The float64 answer of a network: `logits` [N, ...], and the `spread` between two images' logits.

    The spread is the largest difference. A private answer is right if its error is below 2 % of it.
    """

    logits: Tensor
    spread: float

    @property
    def tolerance(self) -> float:
        """The error from which an answer is wrong."""
        return TOLERANCE * self.spread

    def first(self, count: int) -> Truth:
        """Returns the truth about the first images, with the same spread."""
        return Truth(self.logits[:count], self.spread)

    def errors(self, logits: Tensor) -> Tensor:
        """Returns the largest error of each image's private `logits` [N, ...]: float64 [N]."""
        return (logits.double() - self.logits).abs().reshape(len(logits), -1).amax(1)

    def right(self, logits: Tensor) -> Tensor:
        """Returns for each image whether its private logits are right: bool [N]; NaN is wrong."""
        return self.errors(logits) < self.tolerance

    def demand_explanation(self, wrong: int, answers: int, law: float, repeated: bool, what: str) -> None:
        """Raises WrongAnswer unless wrong truncations explain `wrong` of `answers`.

        `law` is the number of wrong ones that is expected in all of them, 0 for an exact engine. `repeated`
        is true if a repetition came out right. `what` is the noun of the message.
        """
        chance = scipy.stats.poisson.sf(wrong - 1, law) if law else 0.0
        if not repeated or chance < IMPLAUSIBLE:
            raise WrongAnswer(
                f"{wrong} of {answers} {what} are off by {self.tolerance:.3g} or more (2 % of the spread "
                f"{self.spread:.3g} between images); the parties do not compute this network, or its answers "
                "differ by less than this engine's fixed point holds: try one with more fractional bits"
            )


@torch.no_grad()
def truth_of(model: nn.Module, images: Tensor) -> Truth:
    """Runs `model` in float64 on `images` [N, ...], N >= 2."""
    logits = copy.deepcopy(model).double().eval()(images.double())
    return Truth(logits, (logits.max(0).values - logits.min(0).values).max().item())
