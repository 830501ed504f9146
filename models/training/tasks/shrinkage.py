"""Learning with weights that shrink to zero."""

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from pibench.models.training.loop import Setting
from pibench.models.training.schedules import ShrinkSchedule
from pibench.models.training.tasks.distilled import Distilled


def smallest(weight: Tensor, share: float) -> Tensor:
    """Returns where the smallest magnitudes of `weight` are: a rounded `share` of its elements, boolean."""
    count = round(share * weight.numel())
    found = torch.zeros(weight.numel(), dtype=torch.bool, device=weight.device)
    if count:
        found[weight.abs().flatten().topk(count, largest=False, sorted=False).indices] = True
    return found.view(weight.shape)


class Shrinkage(Distilled):
    """ISS-P: after every step the smallest weights of each convolution lose a percentage of themselves.

        W <- (1 - rate) W  where |W| is among the smallest `share`,   later  W <- 0  there

    A weight that shrinks may grow back while the first part of the training lasts (`settled` of the
    schedule). Then the smallest are set to 0 for good, and the others are tuned. Source: iterative soft
    shrinkage by a percentage (arXiv 2303.09650). Ours: one share for all convolutions, the teacher.
    """

    schedule: ShrinkSchedule

    def __init__(
        self,
        model: nn.Module,
        schedule: ShrinkSchedule,
        teacher: nn.Module,
        stages: Iterable[str],
        share: float,
    ) -> None:
        super().__init__(model, schedule, teacher, stages)
        self.share = share
        self.convs = {name: conv for name, conv in model.named_modules() if isinstance(conv, nn.Conv2d)}
        self.extra = {
            name: torch.zeros_like(conv.weight, dtype=torch.bool) for name, conv in self.convs.items()
        }

    @torch.no_grad()
    def after_step(self, done: float) -> None:
        """Shrinks the smallest weights, or keeps them at 0."""
        for name, conv in self.convs.items():
            if done < self.schedule.settled:
                conv.weight.mul_(1 - self.schedule.shrink * smallest(conv.weight, self.share))
                continue
            if not self.extra[name].any():
                self.extra[name] = smallest(conv.weight, self.share).contiguous()
            conv.weight.masked_fill_(self.extra[name], 0)

    def after_epoch(self, setting: Setting, epoch: int) -> dict[str, Any]:
        """Returns the share of the convolutions' weights that are 0 for the log."""
        zeros = sum(int((conv.weight == 0).sum()) for conv in self.convs.values())
        return {"zeros": round(zeros / sum(conv.weight.numel() for conv in self.convs.values()), 4)}
