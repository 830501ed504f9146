"""ResNet-18 written by hand on CrypTen tensors: the yardstick for the costs of the suite itself.

It shares its weights, its provider and its clock with the stock engine. It walks no program: the forward pass
below is the code that a user of CrypTen would write. `bench_operators` compares the two, round by round.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from pibench.engines.base import Setting
from pibench.engines.crypten.compat import crypten
from pibench.engines.crypten.node import StockParty, connect
from pibench.program import ir


def make_node(setting: Setting) -> ByHand:
    """Makes the party of this process and joins it to CrypTen's process group, as the stock engine does."""
    torch.set_num_threads(1)
    connect(setting)
    return ByHand(setting)


class ByHand(StockParty):
    """A party that runs only the CIFAR ResNet-18 of `pibench.models.zoo`, with BatchNorm folded."""

    def run(self, shared: Any, after: Callable[[ir.Step], None] | None = None) -> torch.Tensor:
        with crypten.no_grad():
            logits = self.resnet18(shared).get_plain_text()
        self.finish()
        return logits

    def resnet18(self, x: Any) -> Any:
        """Computes encrypted logits [N, classes] of encrypted images [N, 3, H, W]."""
        x = self.convolution(x, "conv1", 1, 1).relu()
        for stage in range(1, 5):
            for block in range(2):
                name = f"layer{stage}.{block}"
                stride = 2 if stage > 1 and block == 0 else 1
                y = self.convolution(x, f"{name}.conv1", stride, 1).relu()
                y = self.convolution(y, f"{name}.conv2", 1, 1)
                if stride == 2:
                    x = self.convolution(x, f"{name}.shortcut.conv", stride, 0)
                x = (y + x).relu()
        x = x.avg_pool2d(x.shape[-1]).flatten(start_dim=1)
        return x.matmul(self.weights["fc.weight"].t()) + self.weights["fc.bias"]

    def convolution(self, x: Any, name: str, stride: int, padding: int) -> Any:
        """Convolves and adds the bias."""
        y = x.conv2d(self.weights[f"{name}.weight"], stride=(stride, stride), padding=(padding, padding))
        return y + self.weights[f"{name}.bias"].view(1, -1, 1, 1)
