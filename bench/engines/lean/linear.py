"""Products with fixed weights over Z_2^64: a convolution or a linear layer as one integer bilinear map.

[x * W] = eps * [W] + [a * W] with eps = x - a open; [a * W] = [a * B] (dealt) + [a] * delta, where
delta = W - B was opened once at load, with B fresh at every load (Beaver, CRYPTO 1991, for a bilinear map).

Maps of few pixels are lowered to a matmul whose inner loop runs over output channels: the 64-bit
convolution of torch runs at a quarter of its speed there.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from math import prod

import torch
import torch.nn.functional as F

from bench.program import Convolution, Linear, Step

_FEW_PIXELS = 16


@dataclass(frozen=True)
class Lowering:
    """How a step's map runs: `arrange(w)` once for each weight, `apply(x, arranged)` for each input."""

    arrange: Callable[[torch.Tensor], torch.Tensor]
    apply: Callable[[torch.Tensor, torch.Tensor], torch.Tensor]


def lowering(step: Step) -> Lowering:
    """Chooses the lowering of a convolution or a linear layer."""
    operator = step.operator
    if isinstance(operator, Linear):
        return Lowering(_transposed, lambda x, w: x @ w)
    if operator.groups == 1 and prod(step.shape[1:]) <= _FEW_PIXELS:
        return Lowering(lambda w: _transposed(w.flatten(1)), lambda x, w: _by_matmul(operator, x, w))
    return Lowering(lambda w: w, lambda x, w: _by_convolution(operator, x, w))


def bias_shape(step: Step) -> tuple[int, ...]:
    """The shape in which a bias [O] is added to outputs [N, O, H, W] or [N, ..., O]."""
    return (1, -1, 1, 1) if isinstance(step.operator, Convolution) else (-1,)


def _transposed(w: torch.Tensor) -> torch.Tensor:
    return w.t().contiguous()


def _by_convolution(operator: Convolution, x: torch.Tensor, w: torch.Tensor) -> torch.Tensor:
    return F.conv2d(x, w, None, operator.stride, operator.padding, operator.dilation, operator.groups)


def _by_matmul(operator: Convolution, x: torch.Tensor, w: torch.Tensor) -> torch.Tensor:
    """[N, C, H, W] to [N, O, H', W'] as [N H' W', C kh kw] @ [C kh kw, O]."""
    (_, _, kh, kw), (sh, sw), (dh, dw) = operator.weight_shape, operator.stride, operator.dilation
    ph, pw = operator.padding
    if ph or pw:
        x = F.pad(x, (pw, pw, ph, ph))
    windows = x.unfold(2, dh * (kh - 1) + 1, sh).unfold(3, dw * (kw - 1) + 1, sw)[..., ::dh, ::dw]
    n, c, h, v = windows.shape[:4]
    rows = windows.permute(0, 2, 3, 1, 4, 5).reshape(n * h * v, c * kh * kw)
    return (rows @ w).reshape(n, h, v, -1).permute(0, 3, 1, 2).contiguous()
