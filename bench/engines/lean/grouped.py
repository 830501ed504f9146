"""Grouped and depthwise convolutions over Z_2^l: every output is a sum of words at fixed distances.

A depthwise convolution has few products for each word that it reads, so a matrix product would gain nothing.
The input channels of a group lie with their padding in a buffer that stays in the cache, cut into the phases
of the stride: phase (a, b) holds rows a, a + sh, ... and columns b, b + sw, ... Then an output (r, c) stands
at r * line + c, where `line` is the width of a phase, and the tap (i, j) lies the same number of words away
from every output. Outputs are therefore summed in registers, in whole vectors along the buffer. Those that
stand between the rows belong to no window and are left out.
"""

from __future__ import annotations

from functools import cache

import numpy as np
import torch
from llvmlite import ir
from numba import int64 as signed
from numba import types, uint32, uint64, void
from numba.core import cgutils
from numba.extending import intrinsic

from pibench.engines.lean.compiled import compiled
from pibench.program.ir import Convolution

_VECTOR = 64
"""Bytes of a vector."""


def convolve(operator: Convolution, x: torch.Tensor, w: torch.Tensor) -> torch.Tensor:
    """Maps [N, C, H, W] to [N, O, H', W'] with w [O, C / groups, h, w], all int64 or all int32."""
    (ph, pw), (sh, sw), (dh, dw) = operator.padding, operator.stride, operator.dilation
    n, c, height, width = x.shape
    o, each, kh, kw = w.shape
    rows = (height + 2 * ph - dh * (kh - 1) - 1) // sh + 1
    columns = (width + 2 * pw - dw * (kw - 1) - 1) // sw + 1
    high, line = -(-(height + 2 * ph) // sh), -(-(width + 2 * pw) // sw)  # of a phase
    places = _places((each, kh, kw), operator.stride, operator.dilation, (high, line), x.dtype.itemsize)
    y = torch.empty(n, o, rows, columns, dtype=x.dtype)
    sizes = (n, c, height, width, o, each, ph, pw, sh, sw, high, line, rows, columns)
    _convolve(_flat(x), _flat(w), places, *sizes, _flat(y))
    return y


@cache
def _places(
    kernel: tuple[int, int, int],
    stride: tuple[int, int],
    dilation: tuple[int, int],
    phase: tuple[int, int],
    word: int,
) -> np.ndarray:
    """Returns how many bytes each tap of a kernel [C / groups, h, w] lies behind the place of its output."""
    (sh, sw), (dh, dw), (high, line) = stride, dilation, phase
    part, i, j = np.ogrid[tuple(map(slice, kernel))]
    phases = part * sh * sw + dh * i % sh * sw + dw * j % sw
    return word * (phases * high * line + dh * i // sh * line + dw * j // sw).reshape(-1)


def _flat(tensor: torch.Tensor):
    return tensor.contiguous().view(-1).numpy().view(f"uint{8 * tensor.dtype.itemsize}")


def _sums(vectors: int):
    """Computes `vectors` vectors of sums: out[k] = sum of factors[t] source[k + places[t]] over all taps t.

    All but the first and the last argument are addresses; `places` are in bytes.
    """

    @intrinsic
    def sums(context, like, source, factors, places, out, taps):
        size = like.dtype.bitwidth // 8
        lanes = _VECTOR // size

        def generate(context, builder, signature, arguments):
            _, source, factors, places, out, taps = arguments
            word, address, index = ir.IntType(8 * size), ir.IntType(64), ir.IntType(32)
            vector = ir.VectorType(word, lanes)
            nothing = ir.Constant(vector, ir.Undefined)
            first = ir.Constant(ir.VectorType(index, lanes), [0] * lanes)

            def load(base, offset, kind):
                at = builder.inttoptr(builder.add(base, offset), kind.as_pointer())
                return builder.load(at, align=kind.width // 8 if kind in (word, address) else size)

            def number(value):
                return ir.Constant(address, value)

            zero = ir.Constant(vector, [0] * lanes)
            totals = [cgutils.alloca_once_value(builder, zero) for _ in range(vectors)]
            with cgutils.for_range(builder, taps) as loop:
                place = load(places, builder.mul(loop.index, number(8)), address)
                factor = load(factors, builder.mul(loop.index, number(size)), word)
                factor = builder.insert_element(nothing, factor, ir.Constant(index, 0))
                factor = builder.shuffle_vector(factor, nothing, first)
                at = builder.add(source, place)
                for k, total in enumerate(totals):
                    right = load(at, number(_VECTOR * k), vector)
                    builder.store(builder.add(builder.load(total), builder.mul(factor, right)), total)
            for k, total in enumerate(totals):
                at = builder.inttoptr(builder.add(out, number(_VECTOR * k)), vector.as_pointer())
                builder.store(builder.load(total), at, align=size)
            return context.get_dummy_value()

        return types.void(like, *(types.intp,) * 5), generate

    return sums


_sums_4, _sums_1 = _sums(4), _sums(1)


@compiled([void(x, x, signed[::1], *(signed,) * 14, x) for x in (uint64[::1], uint32[::1])], nogil=True)
def _convolve(
    x, w, places, n, c, height, width, o, each, ph, pw, sh, sw, high, line, rows, columns, y
):  # fmt: skip
    size = x.itemsize
    lanes = _VECTOR // size
    groups = c // each
    share = o // groups  # output channels of a group
    phase = high * line
    channel = sh * sw * phase
    needed = (rows - 1) * line + columns
    block = 4 * lanes
    held = np.zeros(each * channel + block, x.dtype)  # a vector may reach beyond the last word
    sums = np.empty(needed + block, x.dtype)
    top = (np.arange(sh) - ph) % sh  # the first row of each phase
    left = (np.arange(sw) - pw) % sw
    for image in range(n):
        for group in range(groups):
            for part in range(each):
                source = (image * c + group * each + part) * height * width
                for a in range(sh):
                    for b in range(sw):
                        at = source + top[a] * width + left[b]
                        to = part * channel + (a * sw + b) * phase
                        to += (top[a] + ph) // sh * line + (left[b] + pw) // sw
                        count = (width - left[b] + sw - 1) // sw
                        for _ in range((height - top[a] + sh - 1) // sh):
                            if sw == 1:
                                for k in range(count):
                                    held[to + k] = x[at + k]
                            else:
                                for k in range(count):
                                    held[to + k] = x[at + k * sw]
                            at += sh * width
                            to += line
            for member in range(share):
                out = group * share + member
                factors = w.ctypes.data + out * places.size * size
                k = 0
                while k < needed:
                    at, to = held.ctypes.data + k * size, sums.ctypes.data + k * size
                    if needed - k > 2 * lanes:
                        _sums_4(x, at, factors, places.ctypes.data, to, places.size)
                        k += block
                    else:
                        _sums_1(x, at, factors, places.ctypes.data, to, places.size)
                        k += lanes
                to = (image * o + out) * rows * columns
                for row in range(rows):
                    for column in range(columns):
                        y[to + column] = sums[row * line + column]
                    to += columns
