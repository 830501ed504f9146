"""Channels that are weighed by what all of them hold on average."""

from __future__ import annotations

from math import log2

import torch
from torch import Tensor, nn

GATES = {"sigmoid": nn.Sigmoid, "hardsigmoid": nn.Hardsigmoid}


def span(channels: int) -> int:
    """Returns the number of neighbouring channels that decide about one: (log2 C + 1) / 2, made odd.

    >>> span(16), span(64), span(512)
    (3, 3, 5)
    """
    return int((log2(channels) + 1) / 2) // 2 * 2 + 1


class EfficientAttention(nn.Module):
    """Computes x[c] g(sum_j w[j] mean(x[c + j])): each channel times a gate of the means around it.

    The window w slides over the channels and is the same for all of them; the mean is over pixels. `gate` is
    "sigmoid" or "hardsigmoid". [N, C, H, W] -> the same shape. Source: ECA-Net (arXiv 1910.03151). Raises
    ValueError for an unknown gate.
    """

    def __init__(
        self,
        channels: int,
        gate: str = "sigmoid",
        device: torch.device | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        if gate not in GATES:
            raise ValueError(f"unknown gate {gate!r}: known are {', '.join(GATES)}")
        width = span(channels)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.conv = nn.Conv1d(1, 1, width, padding=width // 2, bias=False, device=device, dtype=dtype)
        self.gate = GATES[gate]()

    def forward(self, x: Tensor) -> Tensor:
        means = torch.flatten(self.pool(x), 1).unsqueeze(1)
        return x * self.gate(self.conv(means)).transpose(1, 2).unsqueeze(3)
