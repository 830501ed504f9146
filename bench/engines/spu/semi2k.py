"""The traffic of SEMI2K's primitives, exactly: products by Beaver's triples, which party 0 deals locally.

Each message is sent by both parties at the same time, so it is one round and one hop. Bytes for each element:

    product of matrices    8 for each element of either factor (of each tile), 1 message
    product                16, 1 message
    truncation             4, 1 message: a product of two private bits in a ring of 32 bits
    maximum                56 + 16, 8 messages: a carry of 63 bits (16 + 16 + 8 + 4 + 4 + 4 + 4), a product

Source: libspu/mpc/semi2k (arithmetic.cc, boolean.cc, conversion.cc) and `carry_a2b` in libspu/mpc/ab_api.cc.
"""

from __future__ import annotations

from pibench.engines.spu.price import Price, alike, nothing, total
from pibench.engines.spu.primitives import (
    Constant,
    MatrixProduct,
    Maximum,
    Primitive,
    Truncation,
    ValueProduct,
    WeightProduct,
)

PARTIES = 2
SHARE_TYPE = "semi2k.AShr<FM64>"
WORD = 8


def price(primitive: Primitive) -> Price:
    """Returns the price of a primitive."""
    match primitive:
        case MatrixProduct():
            tiles = primitive.tiles(WORD)
            return total(
                PARTIES, (alike(PARTIES, WORD * each.inner * (each.rows + each.columns)) for each in tiles)
            )
        case WeightProduct() | ValueProduct():
            return alike(PARTIES, 2 * WORD * primitive.count)
        case Truncation():
            return alike(PARTIES, WORD // 2 * primitive.count)
        case Maximum():
            return alike(PARTIES, 72 * primitive.count, messages=8)
        case Constant():
            return nothing(PARTIES)


def prices(made: list[Primitive]) -> list[Price]:
    """Returns the prices of an inference's primitives, in order."""
    return [price(primitive) for primitive in made]
