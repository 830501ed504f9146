"""Grouped and depthwise convolutions over Z_2^l, row by row.

Each place of a kernel adds a multiple of a row of the input to a row of the output. A depthwise convolution
has few products for each word that it reads, so a matrix product would gain nothing.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from numba import int64 as signed
from numba import uint32, uint64, void

from pibench.engines.lean.compiled import compiled
from pibench.program.ir import Convolution


def convolve(operator: Convolution, x: torch.Tensor, w: torch.Tensor) -> torch.Tensor:
    """Maps [N, C, H, W] to [N, O, H', W'] with w [O, C / groups, h, w], all int64 or all int32."""
    (ph, pw), (sh, sw), (dh, dw) = operator.padding, operator.stride, operator.dilation
    x = F.pad(x, (pw, pw, ph, ph)) if ph or pw else x
    n, c, height, width = x.shape
    o, each, kh, kw = w.shape
    rows, columns = (height - dh * (kh - 1) - 1) // sh + 1, (width - dw * (kw - 1) - 1) // sw + 1
    y = torch.zeros(n, o, rows, columns, dtype=x.dtype)
    sizes = (n, c, height, width, o, each, kh, kw, sh, sw, dh, dw, rows, columns)
    _convolve(_flat(x), _flat(w), *sizes, _flat(y))
    return y


def _flat(tensor: torch.Tensor):
    return tensor.contiguous().view(-1).numpy().view(f"uint{8 * tensor.dtype.itemsize}")


@compiled([void(x, x, *(signed,) * 14, x) for x in (uint64[::1], uint32[::1])], nogil=True)
def _convolve(x, w, n, c, height, width, o, each, kh, kw, sh, sw, dh, dw, rows, columns, y):
    share = o * each // c  # output channels of a group
    for image in range(n):
        for channel in range(o):
            to = (image * o + channel) * rows * columns
            for part in range(each):
                at = (image * c + channel // share * each + part) * height * width
                for i in range(kh):
                    for j in range(kw):
                        factor = w[((channel * each + part) * kh + i) * kw + j]
                        for row in range(rows):
                            source = at + (row * sh + i * dh) * width + j * dw
                            target = to + row * columns
                            if sw == 1:
                                for column in range(columns):
                                    y[target + column] += factor * x[source + column]
                            else:
                                for column in range(columns):
                                    y[target + column] += factor * x[source + column * sw]
