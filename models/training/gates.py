"""Hard-concrete gates: numbers in [0, 1] that training draws to 0 or 1 (Louizos et al., arXiv 1712.01312)."""

from collections.abc import Mapping, Sequence
from math import log

import torch
from torch import Tensor, nn

LOW, HIGH, TEMPERATURE = -0.1, 1.1, 2 / 3
"""gamma, zeta and beta of the paper."""
FIRST = 2.0
"""The log-odds with which a gate begins: 0.97 of all draws are not 0."""


class GatedReLU(nn.Module):
    """Computes z ReLU(x) with a gate z for every channel, or z ReLU(x) + (1 - z) x for every position.

        z = min(1, max(0, s (HIGH - LOW) + LOW)),   s = sigmoid((log u - log(1 - u) + a) / TEMPERATURE)

    The noise u of a step is drawn by `draw`; outside training s = sigmoid(a). `shape` is [C, 1, 1] for
    channels and [C, H, W] for positions.
    """

    def __init__(self, shape: Sequence[int], linear: bool) -> None:
        super().__init__()
        self.linear = linear
        self.odds = nn.Parameter(torch.full((1, *shape), FIRST))
        self.register_buffer("noise", torch.full((1, *shape), 0.5))

    def draw(self, generator: torch.Generator) -> None:
        """Draws the noise of the next step."""
        drawn = torch.rand(self.noise.shape, generator=generator).clamp(1e-6, 1 - 1e-6)
        self.noise.copy_(drawn)

    def gates(self) -> Tensor:
        """Returns z [1, *shape], of one draw in training."""
        odds = self.odds
        if self.training:
            odds = (torch.logit(self.noise) + odds) / TEMPERATURE
        return (torch.sigmoid(odds) * (HIGH - LOW) + LOW).clamp(0, 1)

    def open(self) -> Tensor:
        """Returns the chance of each gate not to be 0."""
        return torch.sigmoid(self.odds - TEMPERATURE * log(-LOW / HIGH))

    def forward(self, x: Tensor) -> Tensor:
        gates = self.gates().to(x.dtype)
        positive = x.relu()
        return x + gates * (positive - x) if self.linear else gates * positive


def affordable(odds: Mapping[str, Tensor], unit: Mapping[str, float], budget: float) -> dict[str, Tensor]:
    """Returns masks, bool in the shape of each layer's `odds`, whose cost fits into `budget`.

    `unit` is the cost of one open gate of a layer. Gates open in the order of their log-odds; one that does
    not fit is passed over. The first gate of every layer opens in any case.
    """
    names = [name for name, each in odds.items() for _ in range(each.numel())]
    values = torch.cat([each.detach().float().cpu().flatten() for each in odds.values()])
    starts, at = {}, 0
    for name, each in odds.items():
        starts[name] = at
        at += each.numel()
    kept = torch.zeros(len(values), dtype=torch.bool)
    for name, each in odds.items():
        kept[starts[name] + int(each.detach().flatten().argmax())] = True
        budget -= unit[name]
    costs = torch.tensor([unit[name] for name in names], dtype=torch.float64)
    for place in values.argsort(descending=True, stable=True).tolist():
        if not kept[place] and costs[place] <= budget + 1e-9:
            kept[place] = True
            budget -= float(costs[place])
    parts = kept.split([each.numel() for each in odds.values()])
    return {
        name: part.view(each.shape).clone() for (name, each), part in zip(odds.items(), parts, strict=True)
    }
