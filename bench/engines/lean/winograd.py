"""Winograd's F(2 x 2, 3 x 3) over Z_2^l: exactly four times a convolution, for 1 / 2.25 of its products.

In one dimension y_i = d_i g_0 + d_(i+1) g_1 + d_(i+2) g_2, i = 0, 1, is y = A^T ((G g) . (B^T d)) with

    B^T = [1 0 -1 0; 0 1 1 0; 0 -1 1 0; 0 1 0 -1],  2 G = [2 0 0; 1 1 1; 1 -1 1; 0 0 2],
    A^T = [1 1 1 0; 0 1 -1 -1]

(Winograd 1980; Lavin and Gray, CVPR 2016). The halves in G do not exist in Z_2^l, so 2 G is used. In two
dimensions the result is 4 y, with two more fractional bits, for every share, mask and correction alike.

A map [C, H, W] is cut into T tiles of 2 x 2 outputs. V [16, C, T] is its transform, U [16, O, C] the
kernel's, and M[p] = U[p] V[p] are 16 matrix products. A small number of tiles is multiplied as V[p]^T U[p]^T,
so that the long dimension is the inner one.

**Larger kernels** are sums of pieces of three taps, whose products are added in M. A stride s makes s phases:
y_i takes the taps r, r + s, r + 2 s, ... from every s-th input. The pieces of a phase begin at its taps 0, 2,
4, ... and share the tap where they meet. It belongs to the piece before, so g_0 = 0 in every later piece, and
point 0 of its transform needs no product. Where the last piece has no g_2, point 3 needs none. A kernel of 5
taps takes 4 + 3 products for two outputs instead of 10, one of 7 taps 10 instead of 14, for strides 1 and 2.
In two dimensions about half of all products remain, with the same two bits of gain. Pieces that differ in the
shift of their rows alone read one transform of the input.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from itertools import product

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


def has_many_tiles(height: int, width: int) -> bool:
    """Returns whether the tiles of one output map are the long dimension of a product."""
    return count_tiles(height, width) >= _MANY_TILES


def suits(kernel: tuple[int, int], stride: tuple[int, int]) -> bool:
    """Returns whether a kernel of this size has pieces that save products."""
    return all(size > 2 * step for size, step in zip(kernel, stride, strict=True))


@dataclass(frozen=True)
class Piece:
    """Three taps of one dimension of a kernel: taps 2 `shift` to 2 `shift` + 2 of the phase `phase`.

    The taps of `taps` (0 to 2) belong to the piece, the others are 0. The points of the transform from
    `first` to before `last` need products.
    """

    phase: int
    shift: int
    taps: tuple[int, ...]
    first: int
    last: int


@cache
def pieces(size: int, stride: int) -> tuple[Piece, ...]:
    """Returns the pieces of a kernel's dimension; the first one needs all points if size > 2 stride."""
    found = []
    for phase in range(min(size, stride)):
        taps = -(-(size - phase) // stride)
        for shift in range(max(1, taps // 2)):
            own = tuple(q for q in range(3) if 2 * shift + q < taps and (q or not shift))
            found.append(Piece(phase, shift, own, 0 if 0 in own else 1, 4 if 2 in own else 3))
    return tuple(found)


@cache
def _parts(kernel: tuple[int, int], stride: tuple[int, int]) -> tuple[tuple[Piece, Piece], ...]:
    """Returns the pieces of a kernel in two dimensions; the first needs all 16 points.

    Those that read one transform of the input follow each other: they differ in the rows' shift alone.
    """
    if not suits(kernel, stride):
        raise ValueError(f"a kernel of {kernel} taps is too small for the stride {stride}")
    parts = product(*map(pieces, kernel, stride))
    return tuple(sorted(parts, key=_transform_of))


def _transform_of(part: tuple[Piece, Piece]) -> tuple[int, int, int]:
    """Returns what tells the transforms of the input apart: phases, and the shift of columns."""
    rows, columns = part
    return rows.phase, columns.phase, columns.shift


@cache
def _runs(rows: Piece, columns: Piece) -> tuple[tuple[int, int], ...]:
    """Returns where the needed points p = 4 i + j of a part follow each other: (first, last + 1)."""
    if (columns.first, columns.last) == (0, 4):
        return ((4 * rows.first, 4 * rows.last),)
    return tuple((4 * i + columns.first, 4 * i + columns.last) for i in range(rows.first, rows.last))


def arrange(kernel: torch.Tensor, pixels: tuple[int, int], stride: tuple[int, int] = (1, 1)) -> torch.Tensor:
    """Returns U of a kernel [O, C, h, w], h and w larger than twice the stride: [P, O, C].

    P counts the needed points of all parts, 16 for a kernel of 3 x 3. For an output map of few tiles U is
    packed [P, C, O].
    """
    transformed = []
    for rows, columns in _parts(tuple(kernel.shape[2:]), stride):
        part = kernel.new_zeros(*kernel.shape[:2], 3, 3)
        for i, j in product(rows.taps, columns.taps):
            place = (
                piece.phase + step * (2 * piece.shift + tap)
                for piece, step, tap in zip((rows, columns), stride, (i, j), strict=True)
            )
            part[:, :, i, j] = kernel[:, :, *place]
        for dim in (2, 3):
            a, b, c = part.unbind(dim)
            part = torch.stack((2 * a, a + b + c, a - b + c, 2 * c), dim)
        needed = part[:, :, rows.first : rows.last, columns.first : columns.last]
        transformed.append(needed.permute(2, 3, 0, 1).flatten(0, 1))
    u = torch.cat(transformed)
    return u if has_many_tiles(*pixels) else gemm.pack(u.transpose(1, 2))


def convolve(
    x: torch.Tensor,
    u: torch.Tensor,
    padding: tuple[int, int],
    shape: tuple[int, int, int],
    kernel: tuple[int, int] = (3, 3),
    stride: tuple[int, int] = (1, 1),
) -> torch.Tensor:
    """Computes 4 (x * kernel) for x [N, C, H, W] (int64, int32), outputs `shape` [O, H', W'].

    `kernel` is its size [h, w], and u comes from `arrange`.
    """
    n, c = x.shape[:2]
    o, height, width = shape
    parts = _parts(kernel, stride)
    below = max(rows.shift for rows, _ in parts)
    columns = -(-width // 2)
    each = count_tiles(height, width)
    held = each + below * columns  # tiles of an image's transform
    many = has_many_tiles(height, width)
    step = 1 if below else max(1, _TILES_AT_ONCE // each)
    y = torch.empty((n, *shape), dtype=x.dtype)
    target = _flat(y)
    v, m = (
        torch.empty(16, tiles_held * min(n, step) + _APART, dtype=x.dtype)
        for tiles_held in (c * held, o * each)
    )
    for start in range(0, n, step):
        count = min(step, n - start)
        t = count * each
        done, here = 0, None
        for part in parts:
            if here != (here := _transform_of(part)):
                source, size, offset = _phase(x[start : start + count], part, stride, padding)
                _transform_input(
                    source, count, c, *size, *offset, height + 2 * below, width, _flat(v), v.shape[1]
                )
            shifted = v[:, : c * count * held].view(16, c, -1)[:, :, part[0].shift * columns :][:, :, :t]
            for first, last in _runs(*part):
                factor, to = u[done : done + last - first], m[first:last, : o * t]
                add = done >= 16
                if many:
                    gemm.multiply(factor, shifted[first:last], to.view(-1, o, t), add=add)
                else:
                    tiled = shifted[first:last].transpose(1, 2)
                    gemm.multiply(tiled, factor, to.view(-1, t, o), packed=True, add=add)
                done += last - first
        to = target[start * o * height * width : (start + count) * o * height * width]
        if many:
            _transform_output(_flat(m), m.shape[1], count, o, height, width, to)
        else:
            _transform_few(_flat(m), m.shape[1], count, o, height, width, to)
    return y


def _phase(
    x: torch.Tensor, part: tuple[Piece, Piece], stride: tuple[int, int], padding: tuple[int, int]
) -> tuple[np.ndarray, tuple[int, ...], tuple[int, int]]:
    """Returns the words of x that a part reads, their height and width, and their padding.

    The rows' shift is left out. A negative padding cuts.
    """
    rows, columns = part
    down, i = divmod(rows.phase - padding[0], stride[0])
    right, j = divmod(columns.phase - padding[1], stride[1])
    phase = x[:, :, i :: stride[0], j :: stride[1]]
    return _flat(phase), tuple(phase.shape[2:]), (-down, -right - 2 * columns.shift)


def _flat(tensor: torch.Tensor):
    return tensor.contiguous().view(-1).numpy().view(f"uint{8 * tensor.dtype.itemsize}")


_spread_16, _spread_8, _spread_4, _spread_2, _spread_1 = [tiles.spread(lanes) for lanes in (16, 8, 4, 2, 1)]
_gather_16, _gather_8, _gather_4, _gather_2, _gather_1 = [tiles.gather(lanes) for lanes in (16, 8, 4, 2, 1)]


@compiled([void(x, *(signed,) * 8, x, signed) for x in _WORDS], nogil=True)
def _transform_input(x, n, c, h, w, ph, pw, height, width, v, plane):
    """Computes V = B^T d B of every tile: x [n, c, h, w], v [16, c, n T]. A negative padding cuts."""
    rows, columns = (height + 1) // 2, (width + 1) // 2
    span = 2 * columns + 2
    size = x.itemsize
    padded = np.zeros((2 * rows + 2) * span, x.dtype)
    wide, high = min(w, span - pw), min(h, 2 * rows + 2 - ph)
    line, apart = span * size, plane * size
    target = v.ctypes.data
    for channel in range(c):
        for image in range(n):
            for i in range(max(0, -ph), high):
                at = (i + ph) * span + pw
                source = ((image * c + channel) * h + i) * w
                for j in range(max(0, -pw), wide):
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
