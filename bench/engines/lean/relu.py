"""Online protocols on shared words: ReLU with a free truncation, truncation alone, Beaver products.

**ReLU** (5 rounds). ReLU(x) = (1 - msb(x)) x for x = x_0 + x_1 mod 2^64:

1. bit-slice. G = x_0 AND x_1 for bits 0..62 comes from a dealt AND whose operands are each known to one
   party (63 bits). P = x_0 ^ x_1 needs no communication;
2. to 4. compute the carry into bit 63 by a radix-4 tree over 64 positions (position 0 is the identity P = 1,
   G = 0): G' = G3 ^ P3 G2 ^ P3 P2 G1 ^ P3 P2 P1 G0, P' = P3 P2 P1 P0. Each node is opened once (146 bits).
   Then msb = x_0[63] ^ x_1[63] ^ G;
5. select: b = NOT msb is opened masked, z_b = b ^ rho (1 bit), together with one word.
   Without truncation this word is eps = x - a: y = z_b x + (1 - 2 z_b)(eps rho + rho a).
   With truncation it is c = z' + r for z' = z + 2^62, in (0, 2^63) as long as |z| < 2^62.

**Exact truncation**. As integers z' = c - r + 2^64 w, where w = mu (1 - m), mu = msb(r), m = msb(c). If mu =
0 the sum cannot wrap. If mu = 1 it lies in [2^63, 2^64 + 2^63) and wraps exactly when c < 2^63. Divide by 2^f
and write U = floor(r / 2^f) - 2^(64 - f) mu, the signed shift of r:

    t = T - U - 2^(64 - f) m mu,   T = floor(c / 2^f) - 2^(62 - f).

This is floor(z / 2^f) or floor(z / 2^f) + 1, and it is linear in the dealt U and mu. The select needs y = z_b
t + (1 - 2 z_b) rho t with rho t = T rho - rho U - 2^(64 - f) m rho mu. No element is ever wrong by more than
one unit in the last place. A local truncation (SecureML, S&P 2017) fails with probability |v| / 2^32.

**Product** (Beaver): open x - a and y - b; **square**: open x - a, x^2 = eps^2 + 2 eps a + a^2.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np

from pibench.engines.lean import kernels
from pibench.engines.lean.kernels import TILE
from pibench.engines.lean.memory import Workspace

Exchange = Callable[[np.ndarray, np.ndarray], None]
Fields = Mapping[str, np.ndarray]

_HALF = 1 << 62


def _swap_rows(exchange: Exchange, sent: np.ndarray, got: np.ndarray, rows: int, n: int) -> None:
    """Exchanges `rows` bits of each of n elements, packed to whole blocks; both buffers stay in tiles."""
    full, live = divmod(kernels.blocks(n), TILE)
    size = rows * kernels.blocks(n)
    if live:
        kernels.pack_tail(sent, rows, full, live)
    exchange(sent[:size], got[:size])
    if live:
        kernels.unpack_tail(sent, rows, full, live)
        kernels.unpack_tail(got, rows, full, live)


def rectify(
    rank: int,
    exchange: Exchange,
    x: np.ndarray,
    rest: np.ndarray,
    shift: int,
    dealt: Fields,
    space: Workspace,
    y: np.ndarray,
    rest_y: np.ndarray,
) -> None:
    """Computes shares of y = max(x, 0) >> shift, in 5 rounds.

    With shift > 0 it also computes rest_y = rest >> shift in the same rounds.
    """
    n = x.size
    words = kernels.tiles(n) * TILE
    masks, products = dealt["masks"], dealt["products"]
    rows = space.words("rows", 64 * words)
    tops, up_tops = space.words("tops", 16 * words), space.words("up_tops", 4 * words)
    even = (space.words("sent 0", 63 * words), space.words("got 0", 63 * words))
    odd = (space.words("sent 1", 112 * words), space.words("got 1", 112 * words))

    kernels.slice_bits(x, masks, rows, even[0])
    _swap_rows(exchange, *even, kernels.BITS, n)
    kernels.generate(rank, rows, *even, masks, products, odd[0], tops)
    _swap_rows(exchange, *odd, 7 * 16, n)
    kernels.fold(rank, 0, *odd, masks, products, tops, even[0], up_tops)
    _swap_rows(exchange, *even, 7 * 4, n)
    kernels.fold(rank, 1, *even, masks, products, up_tops, odd[0], tops[:words])
    _swap_rows(exchange, *odd, 6, n)

    bits = kernels.blocks(n)
    size = bits + n + rest.size
    sent, got = space.words("sent 2", max(size, words)), space.words("got 2", max(size, words))
    kernels.sign(rank, *odd, masks, products, tops[:words], rows, sent)
    word, rest_word = slice(bits, bits + n), slice(bits + n, size)
    if shift == 0:
        kernels.subtract(x, dealt["a"], sent[word])
        exchange(sent[:size], got[:size])
        kernels.select(rank, sent, got, sent[word], got[word], x, dealt["rho"], dealt["rho_a"], y)
        return
    half = np.uint64(_HALF if rank == 0 else 0)
    kernels.add_mask(x, dealt["r"], half, sent[word])
    kernels.add_mask(rest, dealt["rest_r"], half, sent[rest_word])
    exchange(sent[:size], got[:size])
    kernels.select_truncate(
        rank,
        shift,
        sent,
        got,
        sent[word],
        got[word],
        dealt["rho"],
        dealt["rho_u"],
        dealt["u"],
        dealt["mu"],
        dealt["rho_mu"],
        y,
    )
    kernels.truncate(rank, shift, sent[rest_word], got[rest_word], dealt["rest_u"], dealt["rest_mu"], rest_y)


def truncate(
    rank: int, exchange: Exchange, x: np.ndarray, shift: int, dealt: Fields, space: Workspace, y: np.ndarray
) -> None:
    """Computes shares of y = floor(x / 2^shift), within one unit; 1 round, 8 bytes an element."""
    sent, got = space.words("sent 2", x.size), space.words("got 2", x.size)
    kernels.add_mask(x, dealt["r"], np.uint64(_HALF if rank == 0 else 0), sent)
    exchange(sent, got)
    kernels.truncate(rank, shift, sent, got, dealt["u"], dealt["mu"], y)


def open_difference(exchange: Exchange, x: np.ndarray, a: np.ndarray, space: Workspace) -> np.ndarray:
    """Opens eps = x - a; 1 round, 8 bytes an element. The result lives in the workspace."""
    sent, got = space.words("sent 2", x.size), space.words("got 2", x.size)
    kernels.subtract(x, a, sent)
    exchange(sent, got)
    np.add(sent, got, out=got)
    return got


def multiply(
    rank: int, exchange: Exchange, operands: tuple[np.ndarray, ...], dealt: Fields, space: Workspace
) -> np.ndarray:
    """Computes shares of x y, or of x^2 for one operand; 1 round, 8 bytes an operand's element."""
    opened = open_difference(exchange, np.concatenate(operands), dealt["a"], space)
    count = dealt["c"].size
    eps, delta = opened[:count], opened[-count:]
    a, b = dealt["a"][:count], dealt["a"][-count:]
    product = eps * b + delta * a + dealt["c"]
    return product + eps * delta if rank == 0 else product


def multiply_repeated(
    rank: int, exchange: Exchange, x: np.ndarray, y: np.ndarray, dealt: Fields, space: Workspace
) -> np.ndarray:
    """Computes shares of x y for a y that repeats to the shape of x; 1 round, 8 bytes an element of both."""
    masks = np.concatenate((dealt["a"], dealt["b"]))
    opened = open_difference(exchange, np.concatenate((x.reshape(-1), y.reshape(-1))), masks, space)
    eps, delta = opened[: x.size].reshape(x.shape), opened[x.size :].reshape(y.shape)
    a, b = dealt["a"].reshape(x.shape), dealt["b"].reshape(y.shape)
    product = eps * b + delta * a + dealt["c"].reshape(x.shape)
    return product + eps * delta if rank == 0 else product
