"""Learning which ReLUs can be removed."""

from collections.abc import Hashable
from typing import Any

import torch
from torch import Tensor, nn

from pibench.models.training.loop import Setting
from pibench.models.training.losses import lasso
from pibench.models.training.relus import SoftReLU, named_relus
from pibench.models.training.schedules import LassoSchedule, Schedule
from pibench.models.training.tasks.supervised import Supervised


class Lasso(Supervised):
    """SNL's selection: weights and slopes learn labels together, with a lasso on the slopes.

    The number of ReLUs counts the slopes above the threshold. At every check it should have fallen at an even
    pace towards the budget. If it has fallen less, the lasso's weight grows (in SNL: when it stalls). At the
    budget the slopes stop. Source: SNL (ICML 2022).
    """

    schedule: LassoSchedule

    def __init__(self, model: nn.Module, schedule: LassoSchedule, budget: int) -> None:
        super().__init__(model, schedule)
        self.budget = budget
        self.softs = {name: relu for name, relu in named_relus(model).items() if isinstance(relu, SoftReLU)}
        self.extra = {
            "weight": torch.tensor(schedule.weight, dtype=torch.float64),
            "count": torch.tensor(self.count()),
            "full": torch.tensor(False),
        }

    def count(self) -> int:
        """Returns the number of slopes above the threshold."""
        return sum(int((soft.alpha > self.schedule.threshold).sum()) for soft in self.softs.values())

    def size(self) -> Tensor:
        """Returns what the penalty weighs: the sum of all slopes."""
        return lasso(soft.alpha for soft in self.softs.values())

    def bound(self) -> None:
        """Keeps slopes in [0, 1]."""
        for soft in self.softs.values():
            soft.alpha.clamp_(0, 1)

    def optimizers(self, schedule: Schedule, steps: int) -> list[torch.optim.Optimizer]:
        """Returns the optimizers of the weights and an Adam for the slopes."""
        self.steps = steps
        self.pace = self.schedule.travels / steps
        self.adam = torch.optim.Adam([soft.alpha for soft in self.softs.values()], lr=self.pace)
        return [*super().optimizers(schedule, steps), self.adam]

    def before_step(self, done: float) -> None:
        """Stops the slopes when the budget is reached."""
        self.stopped = bool(self.extra["full"])

    def constants(self) -> Hashable | None:
        """Returns whether the slopes have stopped; the lasso's weight is a tensor."""
        return self.stopped

    def loss(self, x: Tensor, labels: Tensor) -> Tensor:
        """Returns the sum of the cross-entropy and the lasso."""
        loss = super().loss(x, labels)
        if self.stopped:
            return loss
        return loss + self.extra["weight"].float() * self.size()

    @torch.no_grad()
    def after_step(self, done: float) -> None:
        """Bounds the slopes; checks their number at regular steps."""
        for group in self.adam.param_groups:
            group["lr"] = 0.0 if self.stopped else self.pace
        self.bound()
        step = round(done * self.steps)
        every = max(1, self.steps // (self.schedule.epochs * self.schedule.checks))
        if self.stopped or step % every:
            return
        count, before = self.count(), int(self.extra["count"])
        left = max(1, (self.steps - step) // every)
        self.extra["full"] = torch.tensor(count <= self.budget)
        if before - count < (before - self.budget) / left:
            self.extra["weight"].mul_(self.schedule.growth)  # in place: a recorded step reads this tensor
        self.extra["count"] = torch.tensor(count)

    def after_epoch(self, setting: Setting, epoch: int) -> dict[str, Any]:
        """Returns the number of ReLUs and the lasso's weight for the log."""
        return {"relus": self.count(), "lasso": float(self.extra["weight"])}
