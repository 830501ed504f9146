"""Products with fixed weights over Z_2^l: a convolution or a linear layer as one integer bilinear map.

[x * W] = eps * [W] + [a * W], where eps = x - a is open. [a * W] = [a * B] + [a] * delta, where [a * B] is
dealt and delta = W - B was opened once at load. B is fresh at every load (Beaver, CRYPTO 1991, for a bilinear
map).

There are four lowerings:

- Ordinary 3 x 3 convolutions run by Winograd's algorithm (`winograd`), and so do those with larger kernels,
  many channels and many tiles. It computes four times the product. Any bilinear map is allowed, and the two
  bits go into the scale.
- Maps of few pixels become one product [N H' W', C] @ [C, O] for each place of the kernel, so that the long
  dimension is the inner one.
- Other convolutions gather the windows of each image, in panels of the product, and multiply.
- Grouped convolutions sum words at fixed distances (`grouped`).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from math import prod

import torch
import torch.nn.functional as F

from pibench.engines.lean import gemm, grouped, winograd
from pibench.program.ir import Affine, Convolution, Linear, Step

_FEW_PIXELS = 16
_FEW_CHANNELS = 16
_LARGE_FEW_CHANNELS = 64
"""The same for kernels above 3 x 3: their pieces have fewer products for each word that is transformed."""


@dataclass(frozen=True)
class Lowering:
    """The way in which a step's map runs.

    `arrange(w)` copies and reorders a weight once. `apply(x, arranged)` computes the map for each input. The
    result is 2^gain times the product.
    """

    arrange: Callable[[torch.Tensor], torch.Tensor]
    apply: Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
    gain: int = 0


def lowering(step: Step) -> Lowering:
    """Chooses the lowering of a convolution, a linear layer or an elementwise product."""
    operator = step.operator
    if isinstance(operator, Affine):
        return Lowering(torch.clone, torch.mul)
    if isinstance(operator, Linear):
        return Lowering(lambda w: gemm.pack(w.t()[None]), _by_rows)
    if operator.groups > 1:
        return Lowering(torch.clone, lambda x, w: grouped.convolve(operator, x, w))
    if _suits_winograd(step):
        pixels, kernel, stride = step.shape[1:], operator.weight_shape[2:], operator.stride
        return Lowering(
            lambda w: winograd.arrange(w, pixels, stride),
            lambda x, u: winograd.convolve(x, u, operator.padding, step.shape, kernel, stride),
            winograd.GAIN,
        )
    if prod(step.shape[1:]) <= _FEW_PIXELS:
        return Lowering(
            lambda w: gemm.pack(w.permute(2, 3, 1, 0).flatten(0, 1)),
            lambda x, w: _by_places(step, x, w),
        )
    return Lowering(lambda w: w.flatten(1)[None].clone(), lambda x, w: _by_windows(step, x, w))


def _suits_winograd(step: Step) -> bool:
    """Returns whether the saved products outweigh the transforms, and the larger weights."""
    operator = step.operator
    outputs, inputs, *kernel = operator.weight_shape
    if operator.groups > 1 or operator.dilation != (1, 1):
        return False
    if kernel == [3, 3] and operator.stride == (1, 1):
        return min(outputs, inputs) >= _FEW_CHANNELS and prod(step.shape[1:]) > _FEW_PIXELS
    fits = winograd.suits(tuple(kernel), operator.stride) and winograd.has_many_tiles(*step.shape[1:])
    return fits and min(outputs, inputs) >= _LARGE_FEW_CHANNELS


def bias_shape(step: Step) -> tuple[int, ...]:
    """Returns the bias shape that broadcasts to outputs [N, O, H, W], [N, ..., O] or those of an `Affine`."""
    if isinstance(step.operator, Affine):
        return step.operator.weight_shape
    return (1, -1, 1, 1) if isinstance(step.operator, Convolution) else (-1,)


def _by_rows(x: torch.Tensor, w: torch.Tensor) -> torch.Tensor:
    """Maps [..., C] to [..., O]."""
    o = w.shape[-1] if w.dim() == 3 else w.shape[1] * w.shape[3]
    y = torch.empty(*x.shape[:-1], o, dtype=x.dtype)
    gemm.multiply(x.reshape(1, -1, x.shape[-1]), w, y.view(1, -1, o), packed=True)
    return y


def _by_windows(step: Step, x: torch.Tensor, w: torch.Tensor) -> torch.Tensor:
    """Computes [O, C kh kw] @ [C kh kw, H' W'] for each image."""
    operator = step.operator
    (_, c, kh, kw), (sh, sw), (dh, dw) = operator.weight_shape, operator.stride, operator.dilation
    ph, pw = operator.padding
    o, height, width = step.shape
    if ph or pw:
        x = F.pad(x, (pw, pw, ph, ph))
    x = x.contiguous()
    image, channel, row, _ = x.stride()
    y = torch.empty(x.shape[0], o, height, width, dtype=x.dtype)
    (shape, strides), panels = _gathering((height, width), (sh * row, sw), gemm.panel(x.dtype))
    shape, strides = (*shape[:2], c, kh, kw, *shape[2:]), (*strides[:2], channel, dh * row, dw, *strides[2:])
    gathered = torch.empty(shape, dtype=x.dtype)
    if panels:
        right = gathered.view(1, -1, c * kh * kw, gemm.panel(x.dtype))
    else:
        right = gathered.view(1, c * kh * kw, -1)
    for i in range(x.shape[0]):
        gathered.copy_(x.as_strided(shape, strides, i * image))
        gemm.multiply(w, right, y[i].view(1, o, -1), packed=panels)
    return y


def _gathering(
    pixels: tuple[int, int], steps: tuple[int, int], panel: int
) -> tuple[tuple[tuple[int, ...], tuple[int, ...]], bool]:
    """Returns the shape and the strides of a map's pixels, with two dimensions of panels first.

    `steps` are the strides of a row and of a column. If panels of `panel` pixels are neither whole rows nor
    whole parts of rows, there is one panel of all pixels, and the second value is False.
    """
    (height, width), (down, right) = pixels, steps
    if width % panel == 0:
        return ((height, width // panel, 1, panel), (down, panel * right, 0, right)), True
    if panel % width == 0 and height * width % panel == 0:
        rows = panel // width
        return ((height // rows, 1, rows, width), (rows * down, 0, down, right)), True
    return ((1, 1, height, width), (0, 0, down, right)), False


def _by_places(step: Step, x: torch.Tensor, w: torch.Tensor) -> torch.Tensor:
    """Maps [N, C, H, W] to [N, O, H', W'] by a product [N H' W', C] @ [C, O] for each place of the kernel."""
    operator = step.operator
    (_, c, kh, kw), (sh, sw), (dh, dw) = operator.weight_shape, operator.stride, operator.dilation
    ph, pw = operator.padding
    o, height, width = step.shape
    n = x.shape[0]
    last = F.pad(x, (pw, pw, ph, ph)).permute(0, 2, 3, 1).contiguous()
    image, row, column, _ = last.stride()
    places = last.as_strided(
        (kh, kw, n, height, width, c), (dh * row, dw * column, image, sh * row, sw * column, 1)
    )
    y = torch.zeros(n * height * width, o, dtype=x.dtype)
    gemm.multiply(places.reshape(kh * kw, -1, c), w, y.expand(kh * kw, -1, -1), packed=True, add=True)
    return y.view(n, height, width, o).permute(0, 3, 1, 2).contiguous()
