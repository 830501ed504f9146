"""Learning from labels."""

from collections.abc import Hashable
from typing import Any

import torch
from torch import Tensor, nn

from pibench.models.training.loop import Setting
from pibench.models.training.losses import cross_entropy
from pibench.models.training.relus import SoftReLU
from pibench.models.training.schedules import Schedule


class Supervised:
    """Cross-entropy with label smoothing."""

    def __init__(self, model: nn.Module, schedule: Schedule) -> None:
        self.model = model
        self.schedule = schedule
        self.extra: dict[str, Tensor] = {}

    def start(self, setting: Setting) -> None:
        """Does nothing."""

    def optimizers(self, schedule: Schedule, steps: int) -> list[torch.optim.Optimizer]:
        """Returns SGD with Nesterov's momentum on all parameters but the slopes of `SoftReLU`."""
        slopes = {id(m.alpha) for m in self.model.modules() if isinstance(m, SoftReLU)}
        weights = [parameter for parameter in self.model.parameters() if id(parameter) not in slopes]
        sgd = torch.optim.SGD(
            weights,
            lr=schedule.peak,
            momentum=schedule.momentum,
            weight_decay=schedule.weight_decay,
            nesterov=True,
        )
        return [sgd]

    def before_step(self, done: float) -> None:
        """Does nothing."""

    def constants(self) -> Hashable | None:
        """Returns an empty value: the loss depends only on tensors."""
        return ()

    def loss(self, x: Tensor, labels: Tensor) -> Tensor:
        """Returns the cross-entropy."""
        return cross_entropy(self.model(x), labels, self.schedule.smoothing)

    def after_step(self, done: float) -> None:
        """Does nothing."""

    def after_epoch(self, setting: Setting, epoch: int) -> dict[str, Any]:
        """Returns nothing to log."""
        return {}
