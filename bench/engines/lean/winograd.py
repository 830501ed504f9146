"""Winograd's F(2 x 2, 3 x 3) over Z_2^l: exactly four times a convolution, for 1 / 2.25 of its products.

In one dimension y_i = d_i g_0 + d_(i+1) g_1 + d_(i+2) g_2, i = 0, 1, is y = A^T ((G g) . (B^T d)) with

    B^T = [1 0 -1 0; 0 1 1 0; 0 -1 1 0; 0 1 0 -1],  2 G = [2 0 0; 1 1 1; 1 -1 1; 0 0 2],
    A^T = [1 1 1 0; 0 1 -1 -1]

(Winograd 1980; Lavin and Gray, CVPR 2016). The halves in G do not exist in Z_2^l, so 2 G is used. In two
dimensions the result is 4 y, with two more fractional bits, for every share, mask and correction alike.

A map [C, H, W] is cut into T tiles of 2 x 2 outputs. V [16, C, T] is its transform, U [16, O, C] the
kernel's, and M[p] = U[p] V[p] are 16 matrix products. A small number of tiles is multiplied as V[p]^T U[p]^T,
so that the long dimension is the inner one.
"""

from __future__ import annotations

import numpy as np
import torch
from numba import int64 as signed
from numba import uint32, uint64, void

from pibench.engines.lean import gemm, tiles
from pibench.engines.lean.compiled import compiled

GAIN = 2
"""Fractional bits that the result has more than the product: 4 = 2^2."""
_MANY_TILES = 64
_TILES_AT_ONCE = 256
_APART = 72  # extra words between planes, so that their rows do not share cache sets
_WORDS = (uint64[::1], uint32[::1])


def count_tiles(height: int, width: int) -> int:
    """Returns T of one output map."""
    return -(-height // 2) * -(-width // 2)


def arrange(kernel: torch.Tensor, pixels: tuple[int, int]) -> torch.Tensor:
    """Returns U of a kernel [O, C, 3, 3]: [16, O, C], or packed [16, C, O] for an output map of few tiles."""
    for dim in (2, 3):
        a, b, c = kernel.unbind(dim)
        kernel = torch.stack((2 * a, a + b + c, a - b + c, 2 * c), dim)
    if count_tiles(*pixels) >= _MANY_TILES:
        return kernel.permute(2, 3, 0, 1).flatten(0, 1).contiguous()
    return gemm.pack(kernel.permute(2, 3, 1, 0).flatten(0, 1))


def convolve(
    x: torch.Tensor, u: torch.Tensor, padding: tuple[int, int], shape: tuple[int, int, int]
) -> torch.Tensor:
    """Computes 4 (x * kernel) for x [N, C, H, W] (int64, int32), outputs `shape` [O, H', W'], stride 1."""
    n, c, h, w = x.shape
    o, height, width = shape
    each = count_tiles(height, width)
    many = each >= _MANY_TILES
    step = max(1, _TILES_AT_ONCE // each)
    y = torch.empty((n, *shape), dtype=x.dtype)
    source, target = _flat(x), _flat(y)
    v, m = (torch.empty(16, channels * min(n, step) * each + _APART, dtype=x.dtype) for channels in (c, o))
    for start in range(0, n, step):
        count = min(step, n - start)
        t = count * each
        at = source[start * c * h * w : (start + count) * c * h * w]
        _transform_input(at, count, c, h, w, *padding, height, width, _flat(v), v.shape[1])
        part = v[:, : c * t].view(16, c, t)
        if many:
            gemm.multiply(u, part, m[:, : o * t].view(16, o, t))
        else:
            gemm.multiply(part.transpose(1, 2), u, m[:, : o * t].view(16, t, o), packed=True)
        to = target[start * o * height * width : (start + count) * o * height * width]
        if many:
            _transform_output(_flat(m), m.shape[1], count, o, height, width, to)
        else:
            _transform_few(_flat(m), m.shape[1], count, o, height, width, to)
    return y


def _flat(tensor: torch.Tensor):
    return tensor.contiguous().view(-1).numpy().view(f"uint{8 * tensor.dtype.itemsize}")


_spread_16, _spread_8, _spread_4, _spread_2, _spread_1 = [tiles.spread(lanes) for lanes in (16, 8, 4, 2, 1)]
_gather_16, _gather_8, _gather_4, _gather_2, _gather_1 = [tiles.gather(lanes) for lanes in (16, 8, 4, 2, 1)]


@compiled([void(x, *(signed,) * 8, x, signed) for x in _WORDS], nogil=True)
def _transform_input(x, n, c, h, w, ph, pw, height, width, v, plane):
    """Computes V = B^T d B of every tile: x [n, c, h, w], v [16, c, n T]."""
    rows, columns = (height + 1) // 2, (width + 1) // 2
    span = 2 * columns + 2
    size = x.itemsize
    padded = np.zeros((2 * rows + 2) * span, x.dtype)
    wide, high = min(w, span - pw), min(h, 2 * rows + 2 - ph)
    line, apart = span * size, plane * size
    target = v.ctypes.data
    for channel in range(c):
        for image in range(n):
            for i in range(high):
                at = (i + ph) * span + pw
                source = ((image * c + channel) * h + i) * w
                for j in range(wide):
                    padded[at + j] = x[source + j]
            for i in range(rows):
                source = padded.ctypes.data + 2 * i * line
                left = columns
                while left >= 16 and size == 4:
                    _spread_16(x, source, line, target, apart)
                    source, target, left = source + 32 * size, target + 16 * size, left - 16
                while left >= 8:
                    _spread_8(x, source, line, target, apart)
                    source, target, left = source + 16 * size, target + 8 * size, left - 8
                if left >= 4:
                    _spread_4(x, source, line, target, apart)
                    source, target, left = source + 8 * size, target + 4 * size, left - 4
                if left >= 2:
                    _spread_2(x, source, line, target, apart)
                    source, target, left = source + 4 * size, target + 2 * size, left - 2
                if left:
                    _spread_1(x, source, line, target, apart)
                    target += size


@compiled([void(x, *(signed,) * 5, x) for x in _WORDS], nogil=True)
def _transform_output(m, plane, n, o, height, width, y):
    """Computes the outputs y = A^T M A of every tile: m [16, o, n T], y [n, o, height, width]."""
    rows, columns = (height + 1) // 2, (width + 1) // 2
    size = m.itemsize
    aside = np.empty(4 * columns, m.dtype)  # for tiles that reach beyond the map
    apart = plane * size
    source = m.ctypes.data
    for channel in range(o):
        for image in range(n):
            for i in range(rows):
                to = ((image * o + channel) * height + 2 * i) * width
                beyond = width < 2 * columns
                top = aside.ctypes.data if beyond else y.ctypes.data + to * size
                low = top + width * size
                if beyond or 2 * i + 1 == height:
                    low = aside.ctypes.data + 2 * columns * size
                left = columns
                while left >= 16 and size == 4:
                    _gather_16(m, source, apart, top, low)
                    source, top, low, left = source + 16 * size, top + 32 * size, low + 32 * size, left - 16
                while left >= 8:
                    _gather_8(m, source, apart, top, low)
                    source, top, low, left = source + 8 * size, top + 16 * size, low + 16 * size, left - 8
                if left >= 4:
                    _gather_4(m, source, apart, top, low)
                    source, top, low, left = source + 4 * size, top + 8 * size, low + 8 * size, left - 4
                if left >= 2:
                    _gather_2(m, source, apart, top, low)
                    source, top, low, left = source + 2 * size, top + 4 * size, low + 4 * size, left - 2
                if left:
                    _gather_1(m, source, apart, top, low)
                    source += size
                if beyond:
                    for j in range(width):
                        y[to + j] = aside[j]
                    if 2 * i + 1 < height:
                        for j in range(width):
                            y[to + width + j] = aside[2 * columns + j]


@compiled([void(x, *(signed,) * 5, x) for x in _WORDS], nogil=True)
def _transform_few(m, plane, n, o, height, width, y):
    """Computes the same for m [16, n T, o]; its inner loops run over channels."""
    rows, columns = (height + 1) // 2, (width + 1) // 2
    four = np.empty(4 * o, m.dtype)
    pixels = height * width
    for image in range(n):
        for i in range(rows):
            for j in range(columns):
                at = ((image * rows + i) * columns + j) * o
                for channel in range(o):
                    k = at + channel
                    t0 = m[k] + m[k + 4 * plane] + m[k + 8 * plane]
                    t1 = m[k + plane] + m[k + 5 * plane] + m[k + 9 * plane]
                    t2 = m[k + 2 * plane] + m[k + 6 * plane] + m[k + 10 * plane]
                    t3 = m[k + 3 * plane] + m[k + 7 * plane] + m[k + 11 * plane]
                    four[channel] = t0 + t1 + t2
                    four[o + channel] = t1 - t2 - t3
                    s0 = m[k + 4 * plane] - m[k + 8 * plane] - m[k + 12 * plane]
                    s1 = m[k + 5 * plane] - m[k + 9 * plane] - m[k + 13 * plane]
                    s2 = m[k + 6 * plane] - m[k + 10 * plane] - m[k + 14 * plane]
                    s3 = m[k + 7 * plane] - m[k + 11 * plane] - m[k + 15 * plane]
                    four[2 * o + channel] = s0 + s1 + s2
                    four[3 * o + channel] = s1 - s2 - s3
                for part in range(4):
                    row, column = 2 * i + part // 2, 2 * j + part % 2
                    if row < height and column < width:
                        to = image * o * pixels + row * width + column
                        for channel in range(o):
                            y[to + channel * pixels] = four[part * o + channel]
