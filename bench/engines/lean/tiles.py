"""Winograd's transforms of `lanes` tiles that stand side by side, in vector instructions.

A tile overlaps the next one by two of its four columns. So four rows of 2 `lanes` + 2 words hold `lanes`
tiles. The even and the odd words of a row are the columns of all its tiles: two loads and one shuffle each
bring one column of every tile into one vector. Compilers do not find this by themselves: they gather words
one by one, which costs four times as much.
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba import types
from numba.extending import intrinsic

_ADDRESS = ir.IntType(64)
_INDEX = ir.IntType(32)


class _Words:
    """Loads and stores vectors of `lanes` words of `size` bytes at an address plus a number of words."""

    def __init__(self, builder: Any, size: int, lanes: int) -> None:
        self._builder, self._size, self._lanes = builder, size, lanes
        self._kind = ir.VectorType(ir.IntType(8 * size), lanes)

    def load(self, address: Any, words: int = 0) -> Any:
        return self._builder.load(self._pointer(address, words), align=self._size)

    def store(self, vector: Any, address: Any, words: int = 0) -> None:
        self._builder.store(vector, self._pointer(address, words), align=self._size)

    def every_second(self, low: Any, high: Any, first: int) -> Any:
        """Takes every second word of two vectors that follow each other."""
        return self._shuffle(low, high, [2 * lane + first for lane in range(self._lanes)])

    def in_turn(self, even: Any, odd: Any) -> tuple[Any, Any]:
        """Is the inverse: the words of two vectors in turn, as two vectors that follow each other."""
        places = [lane // 2 + self._lanes * (lane % 2) for lane in range(2 * self._lanes)]
        low, high = places[: self._lanes], places[self._lanes :]
        return self._shuffle(even, odd, low), self._shuffle(even, odd, high)

    def _pointer(self, address: Any, words: int) -> Any:
        at = self._builder.add(address, ir.Constant(_ADDRESS, words * self._size))
        return self._builder.inttoptr(at, self._kind.as_pointer())

    def _shuffle(self, low: Any, high: Any, places: list[int]) -> Any:
        return self._builder.shuffle_vector(
            low, high, ir.Constant(ir.VectorType(_INDEX, self._lanes), places)
        )


def _forward(builder: Any, d: list[Any]) -> list[Any]:
    """Computes B^T d of four vectors."""
    return [
        builder.sub(d[0], d[2]),
        builder.add(d[1], d[2]),
        builder.sub(d[2], d[1]),
        builder.sub(d[1], d[3]),
    ]


def _back(builder: Any, m: list[Any]) -> list[Any]:
    """Computes A^T m of four vectors."""
    both = builder.add(m[1], m[2])
    apart = builder.sub(m[1], m[2])
    return [builder.add(m[0], both), builder.sub(apart, m[3])]


def spread(lanes: int) -> Any:
    """Makes B^T d B of `lanes` tiles: (like, source, row, target, plane), addresses and strides in bytes.

    It reads four rows of 2 `lanes` + 2 words (`row` bytes apart) and writes 16 vectors (`plane` bytes apart).
    The words are those of the array `like`.
    """

    @intrinsic
    def tiles(context, like, source, row, target, plane):  # type: ignore[no-untyped-def]
        def generate(context, builder, signature, arguments):  # type: ignore[no-untyped-def]
            _, source, row, target, plane = arguments
            words = _Words(builder, like.dtype.bitwidth // 8, lanes)
            at, columns = source, []
            for _ in range(4):
                pairs = [(words.load(at, start), words.load(at, start + lanes)) for start in (0, 2)]
                d = [words.every_second(*pair, first) for pair in pairs for first in (0, 1)]
                columns.append(_forward(builder, d))
                at = builder.add(at, row)
            done = [_forward(builder, [line[j] for line in columns]) for j in range(4)]
            for i in range(4):
                for j in range(4):
                    words.store(done[j][i], target)
                    target = builder.add(target, plane)
            return context.get_dummy_value()

        return types.void(like, *(types.intp,) * 4), generate

    return tiles


def gather(lanes: int) -> Any:
    """Makes A^T m A of `lanes` tiles: (like, source, plane, top, low), addresses and strides in bytes.

    It reads 16 vectors and writes two rows of 2 `lanes` words, at `top` and at `low`.
    """

    @intrinsic
    def tiles(context, like, source, plane, top, low):  # type: ignore[no-untyped-def]
        def generate(context, builder, signature, arguments):  # type: ignore[no-untyped-def]
            _, source, plane, top, low = arguments
            words = _Words(builder, like.dtype.bitwidth // 8, lanes)
            lines = []
            for _ in range(4):
                m = []
                for _ in range(4):
                    m.append(words.load(source))
                    source = builder.add(source, plane)
                lines.append(_back(builder, m))
            even, odd = (_back(builder, [line[j] for line in lines]) for j in range(2))
            for i, target in enumerate((top, low)):
                for k, vector in enumerate(words.in_turn(even[i], odd[i])):
                    words.store(vector, target, k * lanes)
            return context.get_dummy_value()

        return types.void(like, *(types.intp,) * 4), generate

    return tiles
