"""Learning which ReLU layers can become linear."""

from typing import Any

import torch
from torch import Tensor, nn

from pibench.models.training.loop import Setting
from pibench.models.training.relus import SoftReLU
from pibench.models.training.schedules import FoldSchedule, Schedule
from pibench.models.training.tasks.supervised import Supervised


class Folding(Supervised):
    """Layer Folding's selection: one slope a layer, which a penalty draws towards the identity.

        y = a x + (1 - a) ReLU(x),   loss = cross-entropy + weight sum |1 - a^2|

    `SoftReLU` holds 1 - a, here one number for a whole layer. `extra` holds the sum of its slopes over all
    steps: slopes that end at 0 or 1 are told apart by the way there. Source: Layer Folding (arXiv
    2106.09309). Ours: the slopes begin at a = 0.5, because the penalty has no gradient at 0, and have their
    own Adam, whose rate lets them travel `travels` times from 0 to 1.
    """

    schedule: FoldSchedule

    def __init__(self, model: nn.Module, schedule: FoldSchedule) -> None:
        super().__init__(model, schedule)
        self.softs = {name: soft for name, soft in model.named_modules() if isinstance(soft, SoftReLU)}
        self.extra = {name: torch.zeros((), dtype=torch.float64) for name in self.softs}

    def start(self, setting: Setting) -> None:
        """Gives every slope its first value."""
        with torch.no_grad():
            for soft in self.softs.values():
                soft.alpha.fill_(0.5)

    def optimizers(self, schedule: Schedule, steps: int) -> list[torch.optim.Optimizer]:
        """Returns the optimizer of the weights and an Adam for the slopes."""
        slopes = [soft.alpha for soft in self.softs.values()]
        adam = torch.optim.Adam(slopes, lr=self.schedule.travels / steps)
        return [*super().optimizers(schedule, steps), adam]

    def loss(self, x: Tensor, labels: Tensor) -> Tensor:
        """Returns the sum of the cross-entropy and the penalty."""
        shares = torch.stack([soft.alpha.sum() for soft in self.softs.values()])
        return super().loss(x, labels) + self.schedule.weight * (1 - (1 - shares).square()).abs().sum()

    @torch.no_grad()
    def after_step(self, done: float) -> None:
        """Keeps slopes in [0, 1] and sums them."""
        for name, soft in self.softs.items():
            soft.alpha.clamp_(0, 1)
            self.extra[name] += 1 - soft.alpha.sum()

    def after_epoch(self, setting: Setting, epoch: int) -> dict[str, Any]:
        """Returns the slopes for the log."""
        return {"slopes": {name: round(1 - soft.alpha.item(), 4) for name, soft in self.softs.items()}}
