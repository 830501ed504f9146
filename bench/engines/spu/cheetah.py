"""The traffic of CHEETAH's primitives: ciphertexts for products, oblivious transfers for comparisons.

Party 0 holds the weights and party 1 the image in plaintext until they meet a share. What party 1 computes
from the image alone is free.

Products are homomorphic. One party encrypts its factor, the other multiplies and returns masked ciphertexts:
two hops. SPU chooses the shape of the sub-matrices that fit into a polynomial by a search (`submatrix`), and
with it who encrypts. SEAL compresses ciphertexts, so their bytes vary by some hundred; the constants are
means. Few products of two shared values take Beaver's triples from a stock (`TRIPLES`).

Oblivious transfers (Ferret) are taken from two stocks, one for each sender. A stock of 10,017,120 is made
anew when it is used up (`REFILL`). The law shares the prices of stocks out among those who take from them. It
therefore gives the mean of many inferences, and one inference is at most one refill of each stock away. Left
out: the keys for elementwise products, which the first of them in a session exchanges (161 KB of each party).
For n elements:

    truncation   n transfers of party 0: 16 bits for each element, packed by eight; party 1 sends its choices
    maximum      16 digits of 4 bits: 64 n transfers of party 0, 64 bytes for each element; 15 n ANDs, which
                 take 15 n transfers of each sender and are opened in 17 messages; n products with a bit,
                 n transfers of each sender and 8 bytes for each element

Source: libspu/mpc/cheetah (arithmetic.cc, state.cc, arith/, nonlinear/, ot/).
"""

from __future__ import annotations

from functools import cache

from pibench.engines.spu.price import Price, nothing
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
SHARE_TYPE = "cheetah.AShr<FM64>"
IMAGE_TYPE = "Priv2k<FM64,1>"
"""The type of a value that party 1 alone holds."""
WORD = 8
DEGREE = 8192
"""Coefficients of a polynomial."""
BUFFER_BYTES = 1 << 20
"""Transfers are sent in messages of at most so many bytes."""


def _ceil(a: int, b: int) -> int:
    return -(-a // b)


def _from(party: int, sent: float, messages: float = 1) -> Price:
    """Returns the price of messages of one party, without hops."""
    own = [0.0, 0.0], [0.0, 0.0]
    own[0][party], own[1][party] = sent, messages
    return Price(tuple(own[0]), tuple(own[1]), 0)


def _hops(number: int) -> Price:
    return Price((0, 0), (0, 0), number)


# Products.


@cache
def submatrix(rows: int, inner: int, columns: int, packed: bool) -> tuple[int, int, int]:
    """Returns the shape of the sub-matrices of a product [rows, inner] [inner, columns], by SPU's search.

    A ciphertext costs 1000, a product of polynomials 0.1, an automorphism of the packing 1. The last one of
    the cheapest shapes is taken. Source: `MatMatProtocol::GetSubMatShape`.
    """
    best, least = (0, 0, 0), float("inf")
    for high in range(1, min(DEGREE, rows) + 1):
        up = _ceil(rows, high)
        deep = 1
        while deep <= inner and high * deep <= DEGREE:
            along = _ceil(inner, deep)
            wide = min(columns, DEGREE // high // deep)
            across = _ceil(columns, wide)
            sent = min(up, across) * along + _ceil(up * across, deep)
            packing = _ceil(rows * columns, DEGREE) * deep if packed else 0
            price = sent * 1000.0 + packing + up * along * across / 10.0
            if price <= least:
                best, least = (high, deep, wide), price
            deep = 2 * deep if packed else deep + 1
    return best


ENCRYPTED_BYTES, RETURNED_BYTES = 184_965, 254_350
"""Bytes of a ciphertext of a matrix product, there (its random half is a seed) and back."""
SLOT_CIPHERTEXTS, SLOT_ENCRYPTED_BYTES, SLOT_RETURNED_BYTES = 4, 160_965, 125_010
"""Ciphertexts for 8192 products of elements, one for each prime, and their bytes there and back."""


def _unpacked_bytes(kept: float) -> float:
    """Returns the bytes of a returned ciphertext that is not packed.

    All but the needed coefficients of its second half are zero and compress to almost nothing.
    """
    return min(RETURNED_BYTES, RETURNED_BYTES / 2 + 16.6 * kept)


def _matrix_product(one: MatrixProduct) -> Price:
    """Returns the price of a product without tiles: the weights, on the right, are party 0's."""
    rows, inner, columns = one.rows, one.inner, one.columns
    high, deep, wide = submatrix(rows, inner, columns, packed=True)
    up, across = _ceil(rows, high), _ceil(columns, wide)
    packing = "one" if up * across == 1 else "interleaved" if deep < rows * columns else "packed"
    if packing == "one":
        high, deep, wide = submatrix(rows, inner, columns, packed=False)
        up, across = _ceil(rows, high), _ceil(columns, wide)
    along = _ceil(inner, deep)
    encryptor = 1 if up * along <= along * across else 0
    sent = min(up, across) * along
    returned, each_bytes = {
        "one": (up * across, _unpacked_bytes(rows * columns / (up * across))),
        "interleaved": (_ceil(up * across, deep), RETURNED_BYTES),
        "packed": (_ceil(rows * columns, DEGREE), RETURNED_BYTES),
    }[packing]
    return (
        _from(encryptor, sent * ENCRYPTED_BYTES, sent)
        + _from(1 - encryptor, returned * each_bytes, returned)
        + _hops(2)
    )


def _slots(n: int, encryptor: int, factors: int = 1) -> Price:
    """Returns the price of n products of elements, of which one party encrypts its factors."""
    number = SLOT_CIPHERTEXTS * _ceil(n, DEGREE)
    return (
        _from(encryptor, factors * number * SLOT_ENCRYPTED_BYTES, factors * number)
        + _from(1 - encryptor, number * SLOT_RETURNED_BYTES, number)
        + _hops(2)
    )


TRIPLES, TRIPLES_STOCK = _slots(DEGREE, 1), DEGREE // 2
"""The price of a stock of Beaver's triples, and for how many products it lasts."""


def triples(primitive: Primitive) -> int:
    """Returns how many of Beaver's triples a primitive takes from the stock."""
    match primitive:
        case ValueProduct(count=n, owners=("both", "both")) if n < 2 * DEGREE:
            return n
        case WeightProduct(count=n, owner="image") if n < 2 * DEGREE:
            return n
    return 0


def _product(n: int) -> Price:
    """Returns the price of n products of two shared values.

    Many are two halves, of which each party encrypts the factors of one. Few take Beaver's triples.
    """
    if n >= 2 * DEGREE:
        half = n // 2
        both = _slots(half, 0, 2) + _slots(n - half, 1, 2)
        return Price(both.sent, both.messages, 2)
    return _from(0, 2 * WORD * n) + _from(1, 2 * WORD * n) + _hops(1)


# Oblivious transfers.

STOCK = 10_485_760 - 468_640
"""Transfers of one refill: what Ferret makes, without those that the next refill takes."""
REFILL = (Price((266_259, 0), (1281, 0), 2), Price((0, 266_259), (0, 1281), 2))
"""The price of a refill, by the sender of the transfers."""


def transfers(primitive: Primitive) -> tuple[int, int]:
    """Returns how many transfers of each sender a primitive takes from the stocks."""
    match primitive:
        case Truncation(count=n, owner="both"):
            return n, 0
        case Maximum(count=n, owner="both"):
            return 80 * n, 16 * n
    return 0, 0


def _choices(chooser: int, n: int) -> Price:
    """Returns the price of n choices: a bit each, in blocks of 128."""
    return _from(chooser, 16 * _ceil(n, 128)) + _hops(1)


def _buffered(sender: int, sent: int) -> Price:
    return _from(sender, sent, _ceil(sent, BUFFER_BYTES)) + _hops(1)


def _packed(n: int, bits: int) -> int:
    """Returns the bytes of n numbers: groups of eight are packed into words of 8 bytes."""
    whole, rest = divmod(n, 8)
    return 8 * (whole * _ceil(8 * bits, 64) + _ceil(rest * bits, 64))


def _correlated(sender: int, n: int, bits: int) -> Price:
    """Returns the price of n transfers of correlated numbers of so many bits."""
    return _choices(1 - sender, n) + _buffered(sender, _packed(n, bits))


def _truncation(n: int) -> Price:
    return _correlated(0, n, 16)


def _opened(n: int, times: int) -> Price:
    """Returns the price of opening n bits, several times in sequence."""
    each = 8 * _ceil(n, 64)
    return (_from(0, each) + _from(1, each) + _hops(1)) * times


def _maximum(n: int) -> Price:
    digits = 16
    price = _choices(1, 4 * digits * n) + _buffered(0, 4 * digits * n)
    while digits > 1:
        digits //= 2
        price += _opened(n, 2)
        if digits > 1:
            price += _opened((digits - 1) * n, 3)
    selected = _correlated(0, n, 64) + _correlated(1, n, 64)
    return price + Price(selected.sent, selected.messages, 3)


def _price(primitive: Primitive) -> Price:
    match primitive:
        case MatrixProduct():
            parts = [_matrix_product(tile) for tile in primitive.tiles(WORD)]
            price = sum(parts[1:], parts[0])
            if primitive.shared:  # each party's share of the weights with the other's share of the value
                both = price + Price(price.sent[::-1], price.messages[::-1], 0)
                return Price(both.sent, both.messages, price.hops)
            return price
        case WeightProduct(count=n, owner="image"):  # two plaintexts of different parties become shares
            return _product(n)
        case WeightProduct():
            return _slots(primitive.count, 0)
        case ValueProduct(count=n, owners=("both", "both")):
            return _product(n)
        case ValueProduct(count=n, owners=("image", "image")):
            return nothing(PARTIES)
        case ValueProduct(count=n):
            return _slots(n, 1)
        case Constant() | Truncation(owner="image") | Maximum(owner="image"):
            return nothing(PARTIES)
        case Truncation(count=n):
            return _truncation(n)
        case Maximum(count=n):
            return _maximum(n)


def prices(made: list[Primitive], refills: bool = True) -> list[Price]:
    """Returns the prices of an inference's primitives, in order, with their shares of refills or without."""
    found = []
    for primitive in made:
        price = _price(primitive)
        if refills:
            price += TRIPLES * (triples(primitive) / TRIPLES_STOCK)
            for refill, taken in zip(REFILL, transfers(primitive), strict=True):
                price += refill * (taken / STOCK)
        found.append(price)
    return found
