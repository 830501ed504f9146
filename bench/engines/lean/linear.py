"""Products with fixed weights over Z_2^64: a convolution or a linear layer as one integer bilinear map.

[x * W] = eps * [W] + [a * W] with eps = x - a open; [a * W] = [a * B] (dealt) + [a] * delta, where
delta = W - B was opened once at load, with B fresh at every load (Beaver, CRYPTO 1991, for a bilinear map).

Three lowerings. Ordinary 3 x 3 convolutions run by Winograd's algorithm (`winograd`), which computes four
times the product: any bilinear map will do, and the two bits go to the scale. Maps of few pixels are lowered
to a matmul whose inner loop runs over output channels, for the 64-bit convolution of torch runs at a quarter
of its speed there. The rest is that convolution.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from math import prod

import torch
import torch.nn.functional as F

from bench.engines.lean import winograd
from bench.program import Convolution, Linear, Step

_FEW_PIXELS = 16
_FEW_CHANNELS = 16


@dataclass(frozen=True)
class Lowering:
    """How a step's map runs: `arrange(w)`, a copy, once for each weight, `apply(x, arranged)` for each input.

    The result is 2^gain times the product.
    """

    arrange: Callable[[torch.Tensor], torch.Tensor]
    apply: Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
    gain: int = 0


def lowering(step: Step) -> Lowering:
    """Chooses the lowering of a convolution or a linear layer."""
    operator = step.operator
    if isinstance(operator, Linear):
        return Lowering(_transposed, lambda x, w: x @ w)
    if _suits_winograd(step):
        pixels = step.shape[1], step.shape[2]
        return Lowering(
            lambda w: winograd.arrange(w, pixels),
            lambda x, u: winograd.convolve(x, u, operator.padding, step.shape),
            winograd.GAIN,
        )
    if operator.groups == 1 and prod(step.shape[1:]) <= _FEW_PIXELS:
        return Lowering(_by_place, lambda x, w: _by_matmul(operator, step, x, w))
    return Lowering(torch.clone, lambda x, w: _by_convolution(operator, x, w))


def _suits_winograd(step: Step) -> bool:
    """Tells whether fewer products outweigh the transforms."""
    operator = step.operator
    outputs, inputs, *kernel = operator.weight_shape
    ordinary = operator.groups == 1 and kernel == [3, 3] and operator.stride == operator.dilation == (1, 1)
    return ordinary and min(outputs, inputs) >= _FEW_CHANNELS and prod(step.shape[1:]) > _FEW_PIXELS


def bias_shape(step: Step) -> tuple[int, ...]:
    """The shape in which a bias [O] is added to outputs [N, O, H, W] or [N, ..., O]."""
    return (1, -1, 1, 1) if isinstance(step.operator, Convolution) else (-1,)


def _transposed(w: torch.Tensor) -> torch.Tensor:
    return w.t().clone(memory_format=torch.contiguous_format)


def _by_place(w: torch.Tensor) -> torch.Tensor:
    """[O, C, kh, kw] to [kh kw, C, O]."""
    return w.permute(2, 3, 1, 0).flatten(0, 1).clone(memory_format=torch.contiguous_format)


def _by_convolution(operator: Convolution, x: torch.Tensor, w: torch.Tensor) -> torch.Tensor:
    return F.conv2d(x, w, None, operator.stride, operator.padding, operator.dilation, operator.groups)


def _by_matmul(operator: Convolution, step: Step, x: torch.Tensor, w: torch.Tensor) -> torch.Tensor:
    """[N, C, H, W] to [N, O, H', W'], a product [N H' W', C] @ [C, O] for each place of the kernel."""
    (_, c, kh, kw), (sh, sw), (dh, dw) = operator.weight_shape, operator.stride, operator.dilation
    ph, pw = operator.padding
    o, height, width = step.shape
    n = x.shape[0]
    last = F.pad(x, (pw, pw, ph, ph)).permute(0, 2, 3, 1).contiguous()
    y = torch.zeros(n * height * width, o, dtype=torch.int64)
    for place in range(kh * kw):
        i, j = place // kw * dh, place % kw * dw
        rows = last[:, i : i + (height - 1) * sh + 1 : sh, j : j + (width - 1) * sw + 1 : sw]
        y.addmm_(rows.reshape(-1, c), w[place])
    return y.view(n, height, width, o).permute(0, 3, 1, 2).contiguous()
