"""The traffic of ABY3's primitives: each party of three holds two of three shares.

Bytes for each element (of the result), messages of a party, and one-way trips in sequence:

    product       8 bytes, 1 message of each party, 1 trip; of matrices too
    truncation    12 bytes, 2 messages of two parties; 4 bytes, 1 message of the third; 2 trips
    maximum       its sign: 36 bytes, 8 messages of each party, 8 trips: a share of 8, a carry of 63 bits
                  (8 + 8 + 4 + 4 * 2); its product with the bit, by two oblivious transfers: 24 bytes, 3
                  messages of parties 0 and 2; 16 bytes, 2 messages of party 1; 2 trips

SPU draws anew in each truncation which party is the third. The law lets them take turns, party 2 first: the
bytes of all parties together are exact, and those of one party are one of the possible runs. A public number
that becomes a share costs a message of 8 bytes of each party, once in an inference.

Source: libspu/mpc/aby3 (arithmetic.cc, boolean.cc, conversion.cc, ot.cc).
"""

from __future__ import annotations

from itertools import count

from pibench.engines.spu.price import Price, alike, nothing
from pibench.engines.spu.primitives import (
    Constant,
    MatrixProduct,
    Maximum,
    Primitive,
    Truncation,
    ValueProduct,
    WeightProduct,
)

PARTIES = 3
SHARE_TYPE = "aby3.AShr<FM64>"
WORD = 8
ELEMENT = 2 * WORD
"""The bytes of a value at a party: two shares."""


def product(n: int) -> Price:
    """Returns the price of n products or sums of products."""
    return alike(PARTIES, WORD * n)


def truncation(n: int, third: int) -> Price:
    """Returns the price of n truncations; party `third` sends least."""
    return Price(
        tuple((4 if rank == third else 12) * n for rank in range(PARTIES)),
        tuple(1 if rank == third else 2 for rank in range(PARTIES)),
        2,
    )


def maximum(n: int) -> Price:
    """Returns the price of n maxima."""
    return alike(PARTIES, 36 * n, messages=8) + Price((24 * n, 16 * n, 24 * n), (3, 2, 3), 2)


def prices(made: list[Primitive]) -> list[Price]:
    """Returns the prices of an inference's primitives, in order."""
    turns = count(2)
    shared: set[Constant] = set()
    found = []
    for primitive in made:
        match primitive:
            case MatrixProduct():
                parts = [product(tile.rows * tile.columns) for tile in primitive.tiles(ELEMENT)]
                found.append(sum(parts[1:], parts[0]))
            case WeightProduct() | ValueProduct():
                found.append(product(primitive.count))
            case Truncation():
                found.append(truncation(primitive.count, next(turns) % PARTIES))
            case Maximum():
                found.append(maximum(primitive.count))
            case Constant():
                found.append(nothing(PARTIES) if primitive in shared else alike(PARTIES, WORD))
                shared.add(primitive)
    return found
