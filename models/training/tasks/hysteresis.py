"""Learning which ReLUs a quadratic can replace."""

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from pibench.models.training.loop import Setting
from pibench.models.training.relus import HysteresisReLU, Quadratic, named_relus
from pibench.models.training.schedules import HysteresisSchedule, Schedule
from pibench.models.training.statistics import recompute_statistics
from pibench.models.training.tasks.distilled import Distilled

ESCAPED = 0.01
"""The weight of values that escape from a quadratic."""


class QuadraticTuning(Distilled):
    """Tuning of a network with quadratics: values kept inside, statistics renewed, gradients of bounded norm.

    Quadratics magnify values far outside, what running statistics lag behind, and every large step. A single
    image whose values escape spoils the statistics of all.
    """

    clip = 1.0

    def loss(self, x: Tensor, labels: Tensor) -> Tensor:
        """Returns the loss of the tuning and the weighted sum of what escaped."""
        loss = super().loss(x, labels)
        escaped = [each.escaped for each in self.model.modules() if isinstance(each, Quadratic)]
        return loss + ESCAPED * torch.stack([each for each in escaped if each is not None]).sum()

    def optimizers(self, schedule: Schedule, steps: int) -> list[torch.optim.Optimizer]:
        """Returns the optimizer of the weights, which scales gradients down to the norm `clip` first."""
        weights, *others = super().optimizers(schedule, steps)
        parameters = [parameter for group in weights.param_groups for parameter in group["params"]]

        def scale_down(*_: object) -> None:
            nn.utils.clip_grad_norm_(parameters, self.clip)

        weights.register_step_pre_hook(scale_down)
        return [weights, *others]

    def after_epoch(self, setting: Setting, epoch: int) -> dict[str, Any]:
        """Recomputes the BatchNorm statistics."""
        recompute_statistics(self.model, setting, self.schedule.batch, epoch)
        return super().after_epoch(setting, epoch)


class Hysteresis(QuadraticTuning):
    """AutoReP's selection: weights and scores learn together while the number of ReLUs falls to the budget.

    The gradient of a kept ReLU goes straight to its score. At every check the positions with the highest
    scores keep their ReLU. A kept position counts as `threshold` higher and another one as `threshold` lower
    than its score, so that none flickers. Source: AutoReP (ICCV 2023, arXiv 2308.10134). Ours: the number of
    ReLUs follows the schedule; in AutoReP a penalty moves all scores through a threshold at zero.
    """

    schedule: HysteresisSchedule

    def __init__(
        self,
        model: nn.Module,
        schedule: HysteresisSchedule,
        teacher: nn.Module,
        stages: Iterable[str],
        budget: int,
    ) -> None:
        super().__init__(model, schedule, teacher, stages)
        self.clip, self.budget = schedule.clip, budget
        self.softs = {n: relu for n, relu in named_relus(model).items() if isinstance(relu, HysteresisReLU)}
        self.whole = sum(soft.kept.numel() for soft in self.softs.values())

    def optimizers(self, schedule: Schedule, steps: int) -> list[torch.optim.Optimizer]:
        """Returns the optimizers of the weights and an Adam for the scores."""
        self.every = max(1, steps // (self.schedule.epochs * self.schedule.checks))
        self.steps = steps
        scores = [soft.alpha for soft in self.softs.values()]
        return [*super().optimizers(schedule, steps), torch.optim.Adam(scores, lr=self.schedule.pace)]

    def target(self, done: float) -> int:
        """Returns the number of ReLUs after the fraction `done` of all steps."""
        part = min(done / self.schedule.falling, 1.0)
        return round(self.whole * (self.budget / self.whole) ** part)

    @torch.no_grad()
    def after_step(self, done: float) -> None:
        """Lets the kept positions follow the scores at regular steps."""
        if round(done * self.steps) % self.every:
            return
        ranks = {name: soft.rank() for name, soft in self.softs.items()}
        flat = torch.cat([rank.flatten() for rank in ranks.values()])
        chosen = torch.zeros_like(flat)
        chosen[flat.topk(self.target(done)).indices] = 1.0
        for soft, part in zip(
            self.softs.values(), chosen.split([rank.numel() for rank in ranks.values()]), strict=True
        ):
            soft.kept.copy_(part.view_as(soft.kept))

    def after_epoch(self, setting: Setting, epoch: int) -> dict[str, Any]:
        """Recomputes the statistics; returns the number of ReLUs for the log."""
        noted = super().after_epoch(setting, epoch)
        return noted | {"relus": sum(int(soft.kept.sum()) for soft in self.softs.values())}
