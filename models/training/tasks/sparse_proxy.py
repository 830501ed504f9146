"""Learning with few weights that move: a measure of a network's sensitivity."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from pibench.models.allocation import allocate
from pibench.models.masks import largest_masks
from pibench.models.training.loop import Setting
from pibench.models.training.schedules import Schedule, SparseSchedule
from pibench.models.training.tasks.supervised import Supervised


def densities(kept: Mapping[str, Tensor]) -> dict[str, float]:
    """Returns the share of its weights that each convolution has, from the proxy's masks."""
    return {name: float(mask.float().mean()) for name, mask in kept.items()}


class SparseProxy(Supervised):
    """Trains with few weights that move to the places of large momentum: SENet's measure of sensitivity.

    The smallest weights of each convolution are cut. The same number grows again at the largest momenta,
    shared among the layers by the mean momentum of their weights (sparse momentum, arXiv 1907.04840). The
    number of weights in all convolutions never changes.
    """

    schedule: SparseSchedule

    def __init__(self, model: nn.Module, schedule: SparseSchedule, seed: int = 0) -> None:
        super().__init__(model, schedule)
        self.convs = {name: module for name, module in model.named_modules() if isinstance(module, nn.Conv2d)}
        generator = torch.Generator().manual_seed(seed)
        for name, conv in self.convs.items():
            size = conv.weight.numel()
            chosen = torch.zeros(size, dtype=torch.bool)
            chosen[torch.randperm(size, generator=generator)[: round(schedule.density * size)]] = True
            self.extra[name] = chosen.view_as(conv.weight)

    def start(self, setting: Setting) -> None:
        """Cuts the first weights."""
        self._cut()

    @torch.no_grad()
    def _cut(self) -> None:
        for name, conv in self.convs.items():
            conv.weight.mul_(self.extra[name])

    def optimizers(self, schedule: Schedule, steps: int) -> list[torch.optim.Optimizer]:
        """Keeps the optimizer, because its momenta decide where weights grow."""
        self.steps = steps
        (self.sgd,) = super().optimizers(schedule, steps)
        return [self.sgd]

    def after_step(self, done: float) -> None:
        """Keeps cut weights at 0, and moves weights at regular steps."""
        self._cut()
        step = round(done * self.steps)
        if (
            step < self.steps
            and step % max(1, self.steps // (self.schedule.epochs * self.schedule.moves)) == 0
        ):
            self._move(self.schedule.moved * (1 - done))

    @torch.no_grad()
    def _move(self, fraction: float) -> None:
        momenta = {
            name: self.sgd.state[conv.weight]["momentum_buffer"].abs() for name, conv in self.convs.items()
        }
        cut, means = 0, []
        for name, conv in self.convs.items():
            there = self.extra[name]
            count = int(there.sum())
            fewer = int(fraction * count)
            keep = largest_masks(
                {name: conv.weight.abs().masked_fill(~there, -1.0).cpu()}, {name: count - fewer}
            )
            self.extra[name] = keep[name].to(there.device)
            cut += fewer
            means.append(float(momenta[name][self.extra[name]].mean()) if count > fewer else 0.0)
        free = [int((~self.extra[name]).sum()) for name in self.convs]
        grown = dict(zip(self.convs, allocate(free, means, cut), strict=True))
        for name in self.convs:
            # -1 excludes the places that are taken
            places = momenta[name].masked_fill(self.extra[name], -1.0).cpu()
            new = largest_masks({name: places}, {name: grown[name]})[name]
            self.extra[name] = self.extra[name] | new.to(self.extra[name].device)
        self._cut()
