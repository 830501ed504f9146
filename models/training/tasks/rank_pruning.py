"""Learning kernels of low rank."""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from pibench.models.training.loop import Setting
from pibench.models.training.schedules import RankSchedule, Schedule
from pibench.models.training.tasks.supervised import Supervised
from pibench.models.transforms.factorize_convs import Rank, truncated


class RankPruning(Supervised):
    """Trained rank pruning: steps on the labels alternate with truncations of kernels to low rank.

        W <- U_r S_r V_r^T  at regular steps,   gradient + lambda U_r V_r^T  at all others

    The second term is a subgradient of lambda times the nuclear norm, with U and V of the last truncation.
    `forms` maps convolutions to their factored form. `rank` chooses the rank of a kernel in this form: by its
    energy, so that ranks fall as training goes on, or a fixed one. Source: TRP (arXiv 1812.02402,
    2004.14566). Ours: between truncations the old U and V stay.
    """

    schedule: RankSchedule

    def __init__(
        self,
        model: nn.Module,
        schedule: RankSchedule,
        forms: Mapping[str, str],
        rank: Callable[[Tensor, str], Rank],
    ) -> None:
        super().__init__(model, schedule)
        self.forms, self.rank = forms, rank
        self.convs = {name: model.get_submodule(name) for name in forms}
        self.extra = {f"{name}.direction": torch.zeros_like(conv.weight) for name, conv in self.convs.items()}
        self.extra |= {f"{name}.rank": torch.zeros(2, dtype=torch.int64) for name in self.convs}

    def ranks(self) -> dict[str, Rank]:
        """Returns the ranks of the last truncation."""
        return {name: Rank(*self.extra[f"{name}.rank"].tolist()) for name in self.convs}

    def optimizers(self, schedule: Schedule, steps: int) -> list[torch.optim.Optimizer]:
        """Keeps the number of steps, by which truncations are spaced."""
        self.steps = steps
        return super().optimizers(schedule, steps)

    def loss(self, x: Tensor, labels: Tensor) -> Tensor:
        """Returns the cross-entropy and, as a linear function with its gradient, the nuclear norm."""
        products = [
            (self.extra[f"{name}.direction"] * conv.weight).sum() for name, conv in self.convs.items()
        ]
        return super().loss(x, labels) + self.schedule.nuclear * torch.stack(products).sum()

    def after_step(self, done: float) -> None:
        """Truncates the kernels at regular steps and at the last one."""
        step = round(done * self.steps)
        if step % self.schedule.every == 0 or step == self.steps:
            self.truncate()

    @torch.no_grad()
    def truncate(self) -> None:
        """Replaces every kernel by one of low rank; notes its rank and the direction of its nuclear norm."""
        for name, conv in self.convs.items():
            form = self.forms[name]
            rank = self.rank(conv.weight, form)
            near, direction = truncated(conv.weight, form, rank)
            conv.weight.copy_(near)
            # in place: a recorded step reads this tensor
            self.extra[f"{name}.direction"].copy_(direction)
            self.extra[f"{name}.rank"].copy_(torch.tensor(rank))

    def after_epoch(self, setting: Setting, epoch: int) -> dict[str, Any]:
        """Returns the sum of the ranks for the log; 0 before the first truncation."""
        return {"ranks": sum(rank.out for rank in self.ranks().values())}
