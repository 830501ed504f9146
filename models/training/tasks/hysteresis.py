"""Learning which ReLUs a quadratic can replace."""

from typing import Any

import torch
from torch import Tensor

from pibench.models.training.loop import Setting
from pibench.models.training.relus import HysteresisReLU
from pibench.models.training.statistics import recompute_statistics
from pibench.models.training.tasks.distilled import Distilled
from pibench.models.training.tasks.lasso import Lasso


class Hysteresis(Lasso):
    """AutoReP's selection: weights and scores learn labels together, with a penalty on the kept ReLUs.

    The gradient of a kept ReLU goes straight to its score. A ReLU goes or comes back only when its score has
    passed a threshold on the other side of zero, so that it does not flicker. Source: AutoReP (ICCV 2023,
    arXiv 2308.10134). Ours: the weight of the penalty grows as in `Lasso`, and the scores stop at the budget.
    """

    def count(self) -> int:
        """Returns the number of kept ReLUs."""
        return sum(int(soft.kept.sum()) for soft in self.softs.values())

    def size(self) -> Tensor:
        """Returns the sum of all scores, whose gradient is that of the number of ReLUs."""
        return torch.stack([soft.alpha.sum() for soft in self.softs.values()]).sum()

    def bound(self) -> None:
        """Lets the kept positions follow the scores."""
        for soft in self.softs.values():
            assert isinstance(soft, HysteresisReLU)
            soft.decide()

    def after_epoch(self, setting: Setting, epoch: int) -> dict[str, Any]:
        """Recomputes the BatchNorm statistics; returns the entries of the log.

        Quadratics magnify what running statistics lag behind.
        """
        recompute_statistics(self.model, setting, self.schedule.batch, epoch)
        return super().after_epoch(setting, epoch)


class QuadraticTuning(Distilled):
    """Tuning of a network with quadratics, with statistics as in `Hysteresis`."""

    def after_epoch(self, setting: Setting, epoch: int) -> dict[str, Any]:
        """Recomputes the BatchNorm statistics."""
        recompute_statistics(self.model, setting, self.schedule.batch, epoch)
        return super().after_epoch(setting, epoch)
