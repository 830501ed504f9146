"""ResNet-18 written by hand for SPU, in jax.numpy: the yardstick for the cost of the suite itself.

A user of SPU would write this for the CIFAR ResNet-18 of `pibench.models.zoo` with BatchNorm folded. The
module knows no program. Only SPU's compiler process imports it, because it needs jax.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import jax.numpy as jnp
from jax import lax


def by_hand(names: tuple[str, ...]) -> Callable[..., Any]:
    """Returns the function (weights in the order of `names`, image) -> logits."""

    def run(*arguments: Any) -> Any:
        return resnet18(dict(zip(names, arguments, strict=False)), arguments[-1])

    return run


def resnet18(weights: Mapping[str, Any], x: Any) -> Any:
    """Computes logits [N, classes] of images [N, 3, H, W]."""

    def convolution(x: Any, name: str, stride: int, padding: int) -> Any:
        y = lax.conv_general_dilated(
            x,
            weights[f"{name}.weight"],
            (stride, stride),
            [(padding, padding)] * 2,
            dimension_numbers=("NCHW", "OIHW", "NCHW"),
        )
        return y + weights[f"{name}.bias"].reshape(1, -1, 1, 1)

    def relu(x: Any) -> Any:
        return jnp.maximum(x, 0)

    x = relu(convolution(x, "conv1", 1, 1))
    for stage in range(1, 5):
        for block in range(2):
            name = f"layer{stage}.{block}"
            stride = 2 if stage > 1 and block == 0 else 1
            y = relu(convolution(x, f"{name}.conv1", stride, 1))
            y = convolution(y, f"{name}.conv2", 1, 1)
            if stride == 2:
                x = convolution(x, f"{name}.shortcut.conv", stride, 0)
            x = relu(y + x)
    return x.mean((2, 3)) @ weights["fc.weight"].T + weights["fc.bias"]
