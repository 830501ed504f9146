"""Matrix products over Z_2^64 and Z_2^32: register-blocked, in vector instructions.

A block of 4 rows and 4 vectors of 64 bytes is summed in registers over the whole inner dimension. With 64
bits this reaches 24 GMAC/s on one Zen 4 core, with 32 bits twice as many. The 64-bit product of torch keeps
its sums in memory and reaches 17 GMAC/s.
"""

from __future__ import annotations

import numpy as np
import torch
from llvmlite import ir
from numba import intp, types, uint32, uint64, void
from numba.core import cgutils
from numba.extending import intrinsic

from pibench.engines.lean.compiled import compiled

_VECTOR = 64
"""Bytes of a vector."""
_ROWS = 4


def panel(word: torch.dtype) -> int:
    """Returns the columns of a panel: b is read in panels of 4 vectors, which `pack` makes contiguous."""
    return 4 * _VECTOR // word.itemsize


def _block(rows: int, vectors: int, whole: bool = True):
    """Computes c[rows, columns] (+)= a b from addresses and strides in bytes, for the words of `like`.

    The columns are `vectors` vectors, or words if not `whole`. ar and ak are the strides of a.
    """

    @intrinsic
    def block(context, like, a, ar, ak, b, bk, c, cr, k, add):
        size = like.dtype.bitwidth // 8
        lanes = _VECTOR // size if whole else 1

        def generate(context, builder, signature, arguments):
            _, a, ar, ak, b, bk, c, cr, k, add = arguments
            word, address, index = ir.IntType(8 * size), ir.IntType(64), ir.IntType(32)
            vector = ir.VectorType(word, lanes)
            nothing = ir.Constant(vector, ir.Undefined)
            first = ir.Constant(ir.VectorType(index, lanes), [0] * lanes)

            def number(value):
                return ir.Constant(address, value)

            def pointer(base, offset, kind):
                return builder.inttoptr(builder.add(base, offset), kind.as_pointer())

            def target(row, j):
                offset = builder.add(builder.mul(cr, number(row)), number(size * lanes * j))
                return pointer(c, offset, vector)

            zero = ir.Constant(vector, [0] * lanes)
            sums = [[cgutils.alloca_once_value(builder, zero) for _ in range(vectors)] for _ in range(rows)]
            with builder.if_then(builder.icmp_signed("!=", add, number(0))):
                for row in range(rows):
                    for j in range(vectors):
                        builder.store(builder.load(target(row, j), align=size), sums[row][j])
            with cgutils.for_range(builder, k) as loop:
                from_a = builder.add(a, builder.mul(loop.index, ak))
                from_b = builder.add(b, builder.mul(loop.index, bk))
                right = [
                    builder.load(pointer(from_b, number(size * lanes * j), vector), align=size)
                    for j in range(vectors)
                ]
                for row in range(rows):
                    left = builder.load(pointer(from_a, builder.mul(ar, number(row)), word), align=size)
                    left = builder.insert_element(nothing, left, ir.Constant(index, 0))
                    left = builder.shuffle_vector(left, nothing, first)
                    for j in range(vectors):
                        total = builder.add(builder.load(sums[row][j]), builder.mul(left, right[j]))
                        builder.store(total, sums[row][j])
            for row in range(rows):
                for j in range(vectors):
                    builder.store(builder.load(sums[row][j]), target(row, j), align=size)
            return context.get_dummy_value()

        return types.void(like, *(types.intp,) * 9), generate

    return block


_block_wide, _block_one, _block_word = _block(_ROWS, 4), _block(_ROWS, 1), _block(_ROWS, 1, whole=False)
_row_wide, _row_one, _row_word = _block(1, 4), _block(1, 1), _block(1, 1, whole=False)


@compiled([void(w, *(intp,) * 16) for w in (uint64[::1], uint32[::1])], nogil=True)
def _multiply(like, a, ar, ak, b, bk, bj, c, cr, m, k, n, add, count, a_step, b_step, c_step):
    size = like.itemsize
    lanes = _VECTOR // size
    width = 4 * lanes
    rows = m // _ROWS * _ROWS
    for part in range(count):
        at, bt, ct = a + part * a_step, b + part * b_step, c + part * c_step
        for panel in range((n + width - 1) // width):
            left = bt + panel * bj
            to = ct + panel * width * size
            columns = min(width, n - panel * width)
            if columns == width:
                for i in range(0, rows, _ROWS):
                    _block_wide(like, at + i * ar, ar, ak, left, bk, to + i * cr, cr, k, add)
                for i in range(rows, m):
                    _row_wide(like, at + i * ar, ar, ak, left, bk, to + i * cr, cr, k, add)
                continue
            full = columns // lanes * lanes
            for j in range(0, full, lanes):
                near, there = left + size * j, to + size * j
                for i in range(0, rows, _ROWS):
                    _block_one(like, at + i * ar, ar, ak, near, bk, there + i * cr, cr, k, add)
                for i in range(rows, m):
                    _row_one(like, at + i * ar, ar, ak, near, bk, there + i * cr, cr, k, add)
            for j in range(full, columns):
                near, there = left + size * j, to + size * j
                for i in range(0, rows, _ROWS):
                    _block_word(like, at + i * ar, ar, ak, near, bk, there + i * cr, cr, k, add)
                for i in range(rows, m):
                    _row_word(like, at + i * ar, ar, ak, near, bk, there + i * cr, cr, k, add)


_LIKE = {torch.int64: np.empty(1, np.uint64), torch.int32: np.empty(1, np.uint32)}


def pack(b: torch.Tensor) -> torch.Tensor:
    """Copies b [..., K, N] into panels [..., N / p, K, p] of p = `panel` columns.

    If p does not divide N it only makes b contiguous.
    """
    width = panel(b.dtype)
    if b.shape[-1] % width:
        return b.clone(memory_format=torch.contiguous_format)
    panels = b.unflatten(-1, (-1, width)).transpose(-3, -2)
    return panels.clone(memory_format=torch.contiguous_format)


def multiply(
    a: torch.Tensor, b: torch.Tensor, out: torch.Tensor, packed: bool = False, add: bool = False
) -> torch.Tensor:
    """Computes out[p] = a[p] b[p] (or += with `add`) for a [P, M, K], b [P, K, N], out [P, M, N].

    All three are int64, or all int32. `packed` is true if b is in panels, as `pack` makes them. Rows of b
    and out must be contiguous; other strides are free. An `out` with stride 0 in P, together with `add`, sums
    over P.
    """
    count, m, k = a.shape
    n = out.shape[2]
    size, width = a.dtype.itemsize, panel(a.dtype)
    if packed and b.dim() == 4:
        bk, bj = size * width, size * width * k
        fits = b.shape == (count, n // width, k, width) and b[0].is_contiguous()
    else:
        bk, bj = size * b.stride(1), size * width
        fits = b.shape == (count, k, n) and b.stride(2) == 1
    if not fits or out.shape != (count, m, n) or out.stride(2) != 1 or not a.dtype == b.dtype == out.dtype:
        raise ValueError(
            f"no product of {list(a.shape)} {a.dtype} and {list(b.shape)} {b.dtype} "
            f"in {list(out.shape)} {out.dtype}"
        )
    _multiply(
        _LIKE[a.dtype],
        a.data_ptr(),
        size * a.stride(1),
        size * a.stride(2),
        b.data_ptr(),
        bk,
        bj,
        out.data_ptr(),
        size * out.stride(1),
        m,
        k,
        n,
        int(add),
        count,
        size * a.stride(0),
        size * b.stride(0),
        size * out.stride(0),
    )
    return out
