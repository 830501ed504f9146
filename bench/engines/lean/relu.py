"""Online protocols on shared words: ReLU with a free truncation, truncation alone, Beaver products.

**ReLU** (5 rounds). ReLU(x) = (1 - sign(x)) x for x = x_0 + x_1 mod 2^l, where l is the bits of a word. A
value that fits in k bits has its sign in bit k - 1 of the sum of its shares modulo 2^k, so k bits of the
shares are enough (k = l: the whole word):

1. bit-slice. G = x_0 AND x_1 for bits 0..k-2 comes from a dealt AND whose operands are each known to one
   party (k - 1 bits). P = x_0 ^ x_1 needs no communication;
2. to 4. compute the carry into bit k - 1 by a radix-4 tree over k positions (position 0 is the identity
   P = 1, G = 0): G' = G3 ^ P3 G2 ^ P3 P2 G1 ^ P3 P2 P1 G0, P' = P3 P2 P1 P0. Each node is opened once: 7
   bits, and 2 (c - 1) bits for the last one, of c children. 64 positions take 146 bits, 48 take 109, 32 take
   72; 16 take 34 and a round less. Then sign = x_0[k-1] ^ x_1[k-1] ^ G;
5. select: b = NOT sign is opened masked, z_b = b ^ rho (1 bit), together with one word.
   Without truncation this word is eps = x - a: y = z_b x + (1 - 2 z_b)(eps rho + rho a).
   With truncation it is c = z' + r for z' = z + 2^(l-2), in (0, 2^(l-1)) as long as |z| < 2^(l-2).

**Exact truncation**. As integers z' = c - r + 2^l w, where w = mu (1 - m), mu = msb(r), m = msb(c). If mu = 0
the sum cannot wrap. If mu = 1 it lies in [2^(l-1), 2^l + 2^(l-1)) and wraps exactly when c < 2^(l-1). Divide
by 2^f and write U = floor(r / 2^f) - 2^(l - f) mu, the signed shift of r:

    t = T - U - 2^(l - f) m mu,   T = floor(c / 2^f) - 2^(l - 2 - f).

This is floor(z / 2^f) or floor(z / 2^f) + 1, and it is linear in the dealt U and mu. The select needs y = z_b
t + (1 - 2 z_b) rho t with rho t = T rho - rho U - 2^(l - f) m rho mu. No element is ever wrong by more than
one unit in the last place. A local truncation (SecureML, S&P 2017) fails with probability |v| / 2^32 on 64
bits.

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
    positions: int,
    dealt: Fields,
    space: Workspace,
    y: np.ndarray,
    rest_y: np.ndarray,
) -> None:
    """Computes shares of y = max(x, 0) >> shift, in 5 rounds (4 with 16 positions).

    The sign is that of the `positions` lowest bits: x must fit in them. With shift > 0 it also computes
    rest_y = rest >> shift in the same rounds.
    """
    n = x.size
    words = kernels.tiles(n) * TILE
    first, second, last = kernels.levels(positions)
    masks, products = dealt["masks"], dealt["products"]
    rows = space.words("rows", positions * words)
    tops, up_tops = space.words("tops", first * words), space.words("up_tops", max(second, 1) * words)
    even = (space.words("sent 0", (positions - 1) * words), space.words("got 0", (positions - 1) * words))
    odd = (space.words("sent 1", 7 * first * words), space.words("got 1", 7 * first * words))

    kernels.slice_bits(x, positions, masks, rows, even[0])
    _swap_rows(exchange, *even, positions - 1, n)
    kernels.generate(rank, positions, rows, *even, masks, products, odd[0], tops)
    _swap_rows(exchange, *odd, 7 * first, n)
    kernels.fold(rank, positions, 0, *odd, masks, products, tops, even[0], up_tops)
    if second:
        _swap_rows(exchange, *even, 7 * second, n)
        kernels.fold(rank, positions, 1, *even, masks, products, up_tops, odd[0], tops[:words])
        even, odd = odd, even
        tops, up_tops = up_tops, tops[:words]
    _swap_rows(exchange, *even, 2 * (last - 1), n)

    bits = kernels.blocks(n)
    size = 8 * bits + (n + rest.size) * x.itemsize
    sent, got = (space.words(name, max(-(-size // 8), words)) for name in ("sent 2", "got 2"))
    kernels.sign(rank, positions, *even, masks, products, up_tops, rows, sent)
    (own, own_rest), (other, other_rest) = (_after(part, bits, x, rest) for part in (sent, got))
    whole = (sent.view(np.uint8)[:size], got.view(np.uint8)[:size])
    if shift == 0:
        kernels.subtract(x, dealt["a"], own)
        exchange(*whole)
        kernels.select(rank, sent, got, own, other, x, dealt["rho"], dealt["rho_a"], y)
        return
    half = _half(rank, x)
    kernels.add_mask(x, dealt["r"], half, own)
    kernels.add_mask(rest, dealt["rest_r"], half, own_rest)
    exchange(*whole)
    kernels.select_truncate(
        rank,
        shift,
        sent,
        got,
        own,
        other,
        dealt["rho"],
        dealt["rho_u"],
        dealt["u"],
        dealt["mu"],
        dealt["rho_mu"],
        y,
    )
    kernels.truncate(rank, shift, own_rest, other_rest, dealt["rest_u"], dealt["rest_mu"], rest_y)


def _after(words: np.ndarray, bits: int, x: np.ndarray, rest: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns where the opened words of x and of rest lie in a message that begins with `bits` words."""
    free = words[bits:].view(x.dtype)
    return free[: x.size], free[x.size : x.size + rest.size]


def _half(rank: int, x: np.ndarray) -> np.uint64:
    """Returns 2^(l - 2) at party 0, for words of l bits: it makes a value within the bound positive."""
    return np.uint64(1 << (8 * x.itemsize - 2) if rank == 0 else 0)


def truncate(
    rank: int, exchange: Exchange, x: np.ndarray, shift: int, dealt: Fields, space: Workspace, y: np.ndarray
) -> None:
    """Computes shares of y = floor(x / 2^shift), within one unit; 1 round, one word an element."""
    sent, got = (space.words(name, x.size, x.dtype.type) for name in ("sent 2", "got 2"))
    kernels.add_mask(x, dealt["r"], _half(rank, x), sent)
    exchange(sent, got)
    kernels.truncate(rank, shift, sent, got, dealt["u"], dealt["mu"], y)


def open_difference(exchange: Exchange, x: np.ndarray, a: np.ndarray, space: Workspace) -> np.ndarray:
    """Opens eps = x - a; 1 round, one word an element. The result lives in the workspace."""
    sent, got = (space.words(name, x.size, x.dtype.type) for name in ("sent 2", "got 2"))
    kernels.subtract(x, a, sent)
    exchange(sent, got)
    np.add(sent, got, out=got)
    return got


def multiply(
    rank: int, exchange: Exchange, operands: tuple[np.ndarray, ...], dealt: Fields, space: Workspace
) -> np.ndarray:
    """Computes shares of x y, or of x^2 for one operand; 1 round, one word an operand's element."""
    opened = open_difference(exchange, np.concatenate(operands), dealt["a"], space)
    count = dealt["c"].size
    eps, delta = opened[:count], opened[-count:]
    a, b = dealt["a"][:count], dealt["a"][-count:]
    product = eps * b + delta * a + dealt["c"]
    return product + eps * delta if rank == 0 else product


def multiply_repeated(
    rank: int, exchange: Exchange, x: np.ndarray, y: np.ndarray, dealt: Fields, space: Workspace
) -> np.ndarray:
    """Computes shares of x y for a y that repeats to the shape of x; 1 round, one word an element of both."""
    masks = np.concatenate((dealt["a"], dealt["b"]))
    opened = open_difference(exchange, np.concatenate((x.reshape(-1), y.reshape(-1))), masks, space)
    eps, delta = opened[: x.size].reshape(x.shape), opened[x.size :].reshape(y.shape)
    a, b = dealt["a"].reshape(x.shape), dealt["b"].reshape(y.shape)
    product = eps * b + delta * a + dealt["c"].reshape(x.shape)
    return product + eps * delta if rank == 0 else product
