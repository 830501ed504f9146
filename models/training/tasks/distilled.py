"""Learning from a teacher."""

import copy
from collections.abc import Iterable

import torch
from torch import Tensor, nn

from pibench.models.training.losses import (
    cross_entropy,
    distillation,
    pram,
    standardized_distillation,
)
from pibench.models.training.schedules import Schedule
from pibench.models.training.taps import run_tapped
from pibench.models.training.tasks.supervised import Supervised

TUNING = (0.1, 0.9, 1000.0)
"""Weights of cross-entropy, distillation and PRAM in SENet's fine-tuning."""
STANDARDIZED = (0.1, 9.0, 1000.0)
"""The same with distillation of standard scores, whose gradients are small (arXiv 2403.01683)."""


class Distilled(Supervised):
    """Cross-entropy, distillation and PRAM from a frozen teacher in eval mode, as in SENet's fine-tuning.

    `stages` are the modules whose outputs PRAM compares.
    """

    def __init__(
        self,
        model: nn.Module,
        schedule: Schedule,
        teacher: nn.Module,
        stages: Iterable[str],
    ) -> None:
        super().__init__(model, schedule)
        self.teacher, self.stages = teacher, tuple(stages)

    def loss(self, x: Tensor, labels: Tensor) -> Tensor:
        """Returns the weighted sum; with a teacher the labels are not smoothed."""
        with torch.no_grad():
            wanted, theirs, _ = run_tapped(self.teacher, x, self.stages)
        logits, ours, _ = run_tapped(self.model, x, self.stages)
        standardized = self.schedule.standardized
        parts = (
            cross_entropy(logits, labels),
            (standardized_distillation if standardized else distillation)(logits, wanted),
            pram([ours[name] for name in self.stages], [theirs[name] for name in self.stages]),
        )
        weights = STANDARDIZED if standardized else TUNING
        return sum(weight * part for weight, part in zip(weights, parts, strict=True))


def frozen(model: nn.Module, device: torch.device) -> nn.Module:
    """Returns a copy in eval mode that learns nothing, in channels_last memory."""
    result = copy.deepcopy(model).eval().requires_grad_(False)
    return result.to(device, memory_format=torch.channels_last)
