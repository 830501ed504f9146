"""Compiled kernels of the ReLU: bit-slicing, the carry tree, the select, and the dealer's products.

Bit-sliced data is cut into *tiles* of `TILE` blocks. A block is 64 elements, and a row of a tile holds one
64-bit word for each block. In a full tile that begins at element s, bit k of block j's word belongs to
element s + k * TILE + j. Elementwise butterflies therefore turn rows of 64 elements into rows of 64 bits. The
last tile may hold fewer blocks, t < TILE. Its element is s + k * t + j, so that exactly ceil(n / 64) blocks
carry data. Its rows are padded to TILE in memory and packed before they are sent (`pack_tail`).

All arrays are flat, and uint64 if nothing else is said. Inner loops run over the TILE words of a row, with
constant offsets, so that the compiler turns them into vector instructions.

Rows of a tile's masks (`MASKS` of them, drawn by each party): 63 for the generate bits, 7 for each of the 20
upper nodes and 6 for the last, 1 for the select. Rows of a tile's products (`PRODUCTS`, dealt): 63 for the
generate bits, 22 for each of the 20 nodes and 15 for the last.
"""

import numpy as np
from numba import int64 as signed
from numba import njit, uint16, uint32, uint64, void

from pibench.engines.lean.compiled import compiled

TILE = 8
BITS = 63
TREE = 7 * 20 + 6
MASKS = BITS + TREE + 1
PRODUCTS = BITS + 22 * 20 + 15

_words = uint64[::1]
_ONES = np.uint64(0xFFFFFFFFFFFFFFFF)
_SIX_MASKS = tuple(
    np.uint64(m)
    for m in (
        0x00000000FFFFFFFF,
        0x0000FFFF0000FFFF,
        0x00FF00FF00FF00FF,
        0x0F0F0F0F0F0F0F0F,
        0x3333333333333333,
        0x5555555555555555,
    )
)
_M32, _M16, _M8, _M4, _M2, _M1 = _SIX_MASKS
_S32, _S16, _S8, _S4, _S2, _S1 = (np.uint64(s) for s in (32, 16, 8, 4, 2, 1))
_U0, _U1, _U63 = np.uint64(0), np.uint64(1), np.uint64(63)


def blocks(n: int) -> int:
    """Returns the number of blocks of 64 elements that hold n elements."""
    return -(-n // 64)


def tiles(n: int) -> int:
    """Returns the number of tiles that hold n elements."""
    return -(-n // (64 * TILE))


@njit(inline="always")
def _swap(a, b, shift, mask):
    t = ((a >> shift) ^ b) & mask
    return a ^ (t << shift), b ^ t


@njit(inline="always")
def _transpose(w, at):
    """Transposes each block's 64 x 64 bit matrix: w[at + k * TILE + j] is row k of block j."""
    for g in range(8):
        for j in range(TILE):
            i = at + g * TILE + j
            a = w[i]
            b = w[i + 8 * TILE]
            c = w[i + 16 * TILE]
            d = w[i + 24 * TILE]
            e = w[i + 32 * TILE]
            f = w[i + 40 * TILE]
            x = w[i + 48 * TILE]
            y = w[i + 56 * TILE]
            a, e = _swap(a, e, _S32, _M32)
            b, f = _swap(b, f, _S32, _M32)
            c, x = _swap(c, x, _S32, _M32)
            d, y = _swap(d, y, _S32, _M32)
            a, c = _swap(a, c, _S16, _M16)
            b, d = _swap(b, d, _S16, _M16)
            e, x = _swap(e, x, _S16, _M16)
            f, y = _swap(f, y, _S16, _M16)
            a, b = _swap(a, b, _S8, _M8)
            c, d = _swap(c, d, _S8, _M8)
            e, f = _swap(e, f, _S8, _M8)
            x, y = _swap(x, y, _S8, _M8)
            w[i] = a
            w[i + 8 * TILE] = b
            w[i + 16 * TILE] = c
            w[i + 24 * TILE] = d
            w[i + 32 * TILE] = e
            w[i + 40 * TILE] = f
            w[i + 48 * TILE] = x
            w[i + 56 * TILE] = y
    for g in range(8):
        for j in range(TILE):
            i = at + 8 * g * TILE + j
            a = w[i]
            b = w[i + TILE]
            c = w[i + 2 * TILE]
            d = w[i + 3 * TILE]
            e = w[i + 4 * TILE]
            f = w[i + 5 * TILE]
            x = w[i + 6 * TILE]
            y = w[i + 7 * TILE]
            a, e = _swap(a, e, _S4, _M4)
            b, f = _swap(b, f, _S4, _M4)
            c, x = _swap(c, x, _S4, _M4)
            d, y = _swap(d, y, _S4, _M4)
            a, c = _swap(a, c, _S2, _M2)
            b, d = _swap(b, d, _S2, _M2)
            e, x = _swap(e, x, _S2, _M2)
            f, y = _swap(f, y, _S2, _M2)
            a, b = _swap(a, b, _S1, _M1)
            c, d = _swap(c, d, _S1, _M1)
            e, f = _swap(e, f, _S1, _M1)
            x, y = _swap(x, y, _S1, _M1)
            w[i] = a
            w[i + TILE] = b
            w[i + 2 * TILE] = c
            w[i + 3 * TILE] = d
            w[i + 4 * TILE] = e
            w[i + 5 * TILE] = f
            w[i + 6 * TILE] = x
            w[i + 7 * TILE] = y


@compiled(void(_words, _words, _words, _words), nogil=True)
def slice_bits(x, masks, rows, message):
    """Round 1: bit-slices x [n] into `rows` (64 a tile) and masks the lower 63: message = rows ^ mask."""
    n = x.size
    width = 64 * TILE
    count = (n + width - 1) // width
    for tile in range(count):
        at = tile * width
        start = tile * width
        if start + width <= n:
            for k in range(64):
                for j in range(TILE):
                    rows[at + k * TILE + j] = x[start + k * TILE + j]
        else:
            live = (n - start + 63) // 64
            for k in range(64):
                for j in range(TILE):
                    i = start + k * live + j
                    rows[at + k * TILE + j] = x[i] if j < live and i < n else _U0
        _transpose(rows, at)
        m = tile * MASKS * TILE
        o = tile * BITS * TILE
        for k in range(BITS):
            for j in range(TILE):
                message[o + k * TILE + j] = rows[at + k * TILE + j] ^ masks[m + k * TILE + j]


@compiled(void(_words, signed, signed, signed), nogil=True)
def pack_tail(message, rows, full, live):
    """Packs the last tile's rows from TILE words to `live` ones, in place, after `full` whole tiles."""
    at = full * rows * TILE
    for r in range(rows):
        for j in range(live):
            message[at + r * live + j] = message[at + r * TILE + j]


@compiled(void(_words, signed, signed, signed), nogil=True)
def unpack_tail(message, rows, full, live):
    """Reverses `pack_tail` and fills the gaps with zeros."""
    at = full * rows * TILE
    for back in range(rows):
        r = rows - 1 - back
        for over in range(TILE):
            j = TILE - 1 - over
            message[at + r * TILE + j] = message[at + r * live + j] if j < live else _U0


@compiled(void(signed, _words, _words, _words, _words, _words, _words, _words), nogil=True)
def generate(rank, rows, sent, got, masks, products, message, tops):
    """Round 2: shares G = x_0 AND x_1 and masks the inputs of the 16 upper nodes.

    With the opened d = x_0 ^ a and e = x_1 ^ b: x_0 x_1 = x_0 e ^ d b ^ a b. Party 0 takes x_0 e, party 1
    takes d b. `tops` keeps G3 of each node.
    """
    one = _ONES if rank == 0 else _U0
    g = np.empty(64 * TILE, np.uint64)
    p = np.empty(64 * TILE, np.uint64)
    for tile in range(rows.size // (64 * TILE)):
        r = tile * 64 * TILE
        o = tile * BITS * TILE
        m = tile * MASKS * TILE
        c = tile * PRODUCTS * TILE
        for j in range(TILE):
            p[j] = one
            g[j] = _U0
        if rank == 0:
            for i in range(BITS * TILE):
                g[TILE + i] = (rows[r + i] & got[o + i]) ^ products[c + i]
        else:
            for i in range(BITS * TILE):
                g[TILE + i] = (masks[m + i] & got[o + i]) ^ products[c + i]
        for i in range(BITS * TILE):
            p[TILE + i] = rows[r + i]
        t = tile * 16 * TILE
        w = tile * 112 * TILE
        m += BITS * TILE
        for node in range(16):
            for j in range(TILE):
                a = 4 * node * TILE + j
                b = 7 * node * TILE + j
                message[w + b] = p[a + 3 * TILE] ^ masks[m + b]
                message[w + b + TILE] = p[a + 2 * TILE] ^ masks[m + b + TILE]
                message[w + b + 2 * TILE] = p[a + TILE] ^ masks[m + b + 2 * TILE]
                message[w + b + 3 * TILE] = g[a + 2 * TILE] ^ masks[m + b + 3 * TILE]
                message[w + b + 4 * TILE] = g[a + TILE] ^ masks[m + b + 4 * TILE]
                message[w + b + 5 * TILE] = g[a] ^ masks[m + b + 5 * TILE]
                message[w + b + 6 * TILE] = p[a] ^ masks[m + b + 6 * TILE]
                tops[t + node * TILE + j] = g[a + 3 * TILE]


@njit(inline="always")
def _node(one, sent, got, w, masks, m, products, c, tops, t, up_p, up_g, u, full):
    """Evaluates one node of the carry tree on a row of words (see `fold`); `full` asks for P' too."""
    for j in range(TILE):
        p3 = sent[w + j] ^ got[w + j]
        p2 = sent[w + TILE + j] ^ got[w + TILE + j]
        p1 = sent[w + 2 * TILE + j] ^ got[w + 2 * TILE + j]
        g2 = sent[w + 3 * TILE + j] ^ got[w + 3 * TILE + j]
        g1 = sent[w + 4 * TILE + j] ^ got[w + 4 * TILE + j]
        g0 = sent[w + 5 * TILE + j] ^ got[w + 5 * TILE + j]
        k = m + j
        i = c + j
        # m_S times P3, for every needed monomial S of masks: p3 m_S ^ m_3S
        u_1 = (p3 & one) ^ masks[k]
        u_2 = (p3 & masks[k + TILE]) ^ products[i]
        u_i = (p3 & masks[k + 2 * TILE]) ^ products[i + TILE]
        u_2i = (p3 & products[i + 2 * TILE]) ^ products[i + 3 * TILE]
        u_c2 = (p3 & masks[k + 3 * TILE]) ^ products[i + 4 * TILE]
        u_c1 = (p3 & masks[k + 4 * TILE]) ^ products[i + 5 * TILE]
        u_2c1 = (p3 & products[i + 6 * TILE]) ^ products[i + 7 * TILE]
        u_c0 = (p3 & masks[k + 5 * TILE]) ^ products[i + 8 * TILE]
        u_2c0 = (p3 & products[i + 9 * TILE]) ^ products[i + 10 * TILE]
        u_ic0 = (p3 & products[i + 11 * TILE]) ^ products[i + 12 * TILE]
        u_2ic0 = (p3 & products[i + 13 * TILE]) ^ products[i + 14 * TILE]
        # times P2
        v_1 = (p2 & u_1) ^ u_2
        v_i = (p2 & u_i) ^ u_2i
        v_c1 = (p2 & u_c1) ^ u_2c1
        v_c0 = (p2 & u_c0) ^ u_2c0
        v_ic0 = (p2 & u_ic0) ^ u_2ic0
        # times P1
        w_1 = (p1 & v_1) ^ v_i
        w_c0 = (p1 & v_c0) ^ v_ic0
        up_g[u + j] = tops[t + j] ^ (g2 & u_1) ^ u_c2 ^ (g1 & v_1) ^ v_c1 ^ (g0 & w_1) ^ w_c0
        if full:
            p0 = sent[w + 6 * TILE + j] ^ got[w + 6 * TILE + j]
            u_0 = (p3 & masks[k + 6 * TILE]) ^ products[i + 15 * TILE]
            u_20 = (p3 & products[i + 16 * TILE]) ^ products[i + 17 * TILE]
            u_i0 = (p3 & products[i + 18 * TILE]) ^ products[i + 19 * TILE]
            u_2i0 = (p3 & products[i + 20 * TILE]) ^ products[i + 21 * TILE]
            v_0 = (p2 & u_0) ^ u_20
            v_i0 = (p2 & u_i0) ^ u_2i0
            up_p[u + j] = (p0 & w_1) ^ (p1 & v_0) ^ v_i0


@compiled(void(signed, signed, _words, _words, _words, _words, _words, _words, _words), nogil=True)
def fold(rank, level, sent, got, masks, products, tops, message, up_tops):
    """Rounds 3 and 4: evaluates the nodes of `level` (0 or 1) and masks the inputs of the next level.

    G' = G3 ^ P3 G2 ^ P3 P2 G1 ^ P3 P2 P1 G0 and P' = P3 P2 P1 P0. Each opened input p is P ^ a, and each g is
    G ^ c. The dealt products of masks (22 a node) make every monomial linear in shares.
    """
    one = _ONES if rank == 0 else _U0
    if level == 0:
        count, below, base = 16, 0, 16
    else:
        count, below, base = 4, 16, 20
    inputs = 7 if level == 0 else 6
    up = count // 4
    p = np.empty(4 * TILE, np.uint64)
    g = np.empty(4 * TILE, np.uint64)
    for tile in range(tops.size // (count * TILE)):
        w = tile * 7 * count * TILE
        m = (tile * MASKS + BITS) * TILE
        c = (tile * PRODUCTS + BITS) * TILE
        t = tile * count * TILE
        o = tile * inputs * up * TILE
        for above in range(up):
            for child in range(4):
                q = 4 * above + child
                _node(
                    one,
                    sent,
                    got,
                    w + 7 * q * TILE,
                    masks,
                    m + 7 * (below + q) * TILE,
                    products,
                    c + 22 * (below + q) * TILE,
                    tops,
                    t + q * TILE,
                    p,
                    g,
                    child * TILE,
                    True,
                )
            b = o + inputs * above * TILE
            a = m + 7 * (base + above) * TILE
            for j in range(TILE):
                message[b + j] = p[3 * TILE + j] ^ masks[a + j]
                message[b + TILE + j] = p[2 * TILE + j] ^ masks[a + TILE + j]
                message[b + 2 * TILE + j] = p[TILE + j] ^ masks[a + 2 * TILE + j]
                message[b + 3 * TILE + j] = g[2 * TILE + j] ^ masks[a + 3 * TILE + j]
                message[b + 4 * TILE + j] = g[TILE + j] ^ masks[a + 4 * TILE + j]
                message[b + 5 * TILE + j] = g[j] ^ masks[a + 5 * TILE + j]
                up_tops[(tile * up + above) * TILE + j] = g[3 * TILE + j]
            if level == 0:
                for j in range(TILE):
                    message[b + 6 * TILE + j] = p[j] ^ masks[a + 6 * TILE + j]


@compiled(void(signed, _words, _words, _words, _words, _words, _words, _words), nogil=True)
def sign(rank, sent, got, masks, products, tops, rows, message):
    """Round 5, bits: evaluates the last node and masks b = NOT msb(x), message = b ^ rho, a row a tile."""
    one = _ONES if rank == 0 else _U0
    g = np.empty(TILE, np.uint64)
    for tile in range(tops.size // TILE):
        m = (tile * MASKS + BITS) * TILE
        _node(
            one,
            sent,
            got,
            tile * 6 * TILE,
            masks,
            m + 140 * TILE,
            products,
            (tile * PRODUCTS + BITS + 440) * TILE,
            tops,
            tile * TILE,
            g,
            g,
            0,
            False,
        )
        for j in range(TILE):
            b = g[j] ^ rows[(tile * 64 + 63) * TILE + j] ^ one
            message[tile * TILE + j] = b ^ masks[m + TREE * TILE + j]


@compiled(void(_words, _words, uint64, _words), nogil=True)
def add_mask(x, r, offset, message):
    """Computes the opened word of a truncation: c = x + r + offset."""
    for i in range(x.size):
        message[i] = x[i] + r[i] + offset


@compiled(void(_words, _words, _words), nogil=True)
def subtract(x, a, message):
    """Computes the opened word of a product: eps = x - a."""
    for i in range(x.size):
        message[i] = x[i] - a[i]


@njit(inline="always")
def _truncated(first, c, u, mu, f):
    """Returns a share of t = T - U - 2^(64-f) m mu (see pibench.engines.lean.relu)."""
    lead = (c >> f) - (_U1 << (np.uint64(62) - f))
    wrap = (_U0 - (c >> _U63)) & (np.uint64(mu) << (np.uint64(64) - f))
    return (first & lead) - u - wrap


def _truncate(rank, f, c0, c1, u, mu, y):
    first = _ONES if rank == 0 else _U0
    for i in range(y.size):
        y[i] = _truncated(first, c0[i] + c1[i], u[i], mu[i], f)


def _select_truncate(rank, f, z0, z1, c0, c1, rho, rho_u, u, mu, rho_mu, y):
    first = _ONES if rank == 0 else _U0
    n = y.size
    width = 64 * TILE
    back = np.uint64(64) - f
    half = _U1 << (np.uint64(62) - f)
    for tile in range((n + width - 1) // width):
        start = tile * width
        live = min(TILE, (n - start + 63) // 64)
        for k in range(64):
            s = np.uint64(k)
            base = start + k * live
            for j in range(min(live, n - base)):
                i = base + j
                z = ((z0[tile * TILE + j] ^ z1[tile * TILE + j]) >> s) & _U1
                c = c0[i] + c1[i]
                lead = (c >> f) - half
                high = _U0 - (c >> _U63)
                whole = (first & lead) - u[i] - (high & (np.uint64(mu[i]) << back))
                part = lead * rho[i] - rho_u[i] - (high & (np.uint64(rho_mu[i]) << back))
                # z = 0: part; z = 1: whole - part
                y[i] = part + (_U0 - z) * (part + part - whole)


_small, _wide = uint16[::1], uint32[::1]
truncate = compiled([void(signed, uint64, _words, _words, _words, m, _words) for m in (_small, _wide)])(
    _truncate
)
truncate.__doc__ = (
    """Computes t = floor(z / 2^f) from the opened c = z + 2^62 + r, shared as c0 + c1; within one unit."""
)
select_truncate = compiled(
    [
        void(signed, uint64, _words, _words, _words, _words, _words, _words, _words, m, m, _words)
        for m in (_small, _wide)
    ],
    nogil=True,
)(_select_truncate)
select_truncate.__doc__ = (
    """Computes y = b floor(z / 2^f) from the opened z_b = z0 ^ z1 and c = c0 + c1; within one unit."""
)


@compiled(void(signed, _words, _words, _words, _words, _words, _words, _words, _words), nogil=True)
def select(rank, z0, z1, e0, e1, x, rho, rho_a, y):
    """Selects y = b x from the opened z = b ^ rho and eps = x - a: z x + (1 - 2 z)(eps rho + rho a)."""
    n = y.size
    width = 64 * TILE
    for tile in range((n + width - 1) // width):
        start = tile * width
        live = min(TILE, (n - start + 63) // 64)
        for k in range(64):
            s = np.uint64(k)
            base = start + k * live
            for j in range(min(live, n - base)):
                i = base + j
                z = ((z0[tile * TILE + j] ^ z1[tile * TILE + j]) >> s) & _U1
                part = (e0[i] + e1[i]) * rho[i] + rho_a[i]
                y[i] = part + (_U0 - z) * (part + part - x[i])


@njit(inline="always")
def _deal_node(a, b, m, out, c, full):
    for j in range(TILE):
        k = m + j
        i = c + j
        a3 = a[k] ^ b[k]
        a2 = a[k + TILE] ^ b[k + TILE]
        a1 = a[k + 2 * TILE] ^ b[k + 2 * TILE]
        c2 = a[k + 3 * TILE] ^ b[k + 3 * TILE]
        c1 = a[k + 4 * TILE] ^ b[k + 4 * TILE]
        c0 = a[k + 5 * TILE] ^ b[k + 5 * TILE]
        a32 = a3 & a2
        a21 = a2 & a1
        a321 = a32 & a1
        out[i] ^= a32
        out[i + TILE] ^= a3 & a1
        out[i + 2 * TILE] ^= a21
        out[i + 3 * TILE] ^= a321
        out[i + 4 * TILE] ^= a3 & c2
        out[i + 5 * TILE] ^= a3 & c1
        out[i + 6 * TILE] ^= a2 & c1
        out[i + 7 * TILE] ^= a32 & c1
        out[i + 8 * TILE] ^= a3 & c0
        out[i + 9 * TILE] ^= a2 & c0
        out[i + 10 * TILE] ^= a32 & c0
        out[i + 11 * TILE] ^= a1 & c0
        out[i + 12 * TILE] ^= a3 & a1 & c0
        out[i + 13 * TILE] ^= a21 & c0
        out[i + 14 * TILE] ^= a321 & c0
        if full:
            a0 = a[k + 6 * TILE] ^ b[k + 6 * TILE]
            out[i + 15 * TILE] ^= a3 & a0
            out[i + 16 * TILE] ^= a2 & a0
            out[i + 17 * TILE] ^= a32 & a0
            out[i + 18 * TILE] ^= a1 & a0
            out[i + 19 * TILE] ^= a3 & a1 & a0
            out[i + 20 * TILE] ^= a21 & a0
            out[i + 21 * TILE] ^= a321 & a0


@compiled(void(_words, _words, _words), nogil=True)
def deal_products(a, b, products):
    """Turns party 1's shares of the mask products into party 0's, in place, at the dealer.

    `a` and `b` are the masks of parties 0 and 1. The product of a generate bit is a AND b. The inputs of a
    node have the masks a ^ b. Its products are the monomials that `fold` needs, in the order of `fold`.
    """
    for tile in range(a.size // (MASKS * TILE)):
        m = tile * MASKS * TILE
        c = tile * PRODUCTS * TILE
        for i in range(BITS * TILE):
            products[c + i] ^= a[m + i] & b[m + i]
        m += BITS * TILE
        c += BITS * TILE
        for node in range(20):
            _deal_node(a, b, m + 7 * node * TILE, products, c + 22 * node * TILE, True)
        _deal_node(a, b, m + 140 * TILE, products, c + 440 * TILE, False)


def _deal_truncate(f, r0, r1, u, mu):
    for i in range(r0.size):
        r = r0[i] + r1[i]
        u[i] = np.uint64(np.int64(r) >> np.int64(f)) - u[i]
        mu[i] = (r >> _U63) - mu[i]


def _deal_select_truncate(f, a, b, r0, r1, rho, rho_u, u, mu, rho_mu):
    n = r0.size
    width = 64 * TILE
    shift = np.int64(f)
    for tile in range((n + width - 1) // width):
        start = tile * width
        live = min(TILE, (n - start + 63) // 64)
        row = (tile * MASKS + BITS + TREE) * TILE
        for k in range(64):
            s = np.uint64(k)
            base = start + k * live
            for j in range(min(live, n - base)):
                i = base + j
                bit = ((a[row + j] ^ b[row + j]) >> s) & _U1
                keep = _U0 - bit
                r = r0[i] + r1[i]
                high = np.uint64(np.int64(r) >> shift)
                rho[i] = bit - rho[i]
                rho_u[i] = (high & keep) - rho_u[i]
                u[i] = high - u[i]
                mu[i] = (r >> _U63) - mu[i]
                rho_mu[i] = ((r >> _U63) & bit) - rho_mu[i]


deal_truncate = compiled([void(uint64, _words, _words, _words, m) for m in (_small, _wide)], nogil=True)(
    _deal_truncate
)
deal_truncate.__doc__ = """Computes the corrections of U = r >> f (signed) and mu = msb(r) in place."""
deal_select_truncate = compiled(
    [void(uint64, _words, _words, _words, _words, _words, _words, _words, m, m) for m in (_small, _wide)],
    nogil=True,
)(_deal_select_truncate)
deal_select_truncate.__doc__ = """Computes the corrections of rho, rho U, U, mu and rho mu in place."""


@compiled(void(_words, _words, _words, _words, _words, _words), nogil=True)
def deal_select(a, b, a0, a1, rho, rho_a):
    """Computes the corrections of rho and rho a in place, at the dealer.

    The bit rho is in the masks a and b.
    """
    n = a0.size
    width = 64 * TILE
    for tile in range((n + width - 1) // width):
        start = tile * width
        live = min(TILE, (n - start + 63) // 64)
        row = (tile * MASKS + BITS + TREE) * TILE
        for k in range(64):
            s = np.uint64(k)
            base = start + k * live
            for j in range(min(live, n - base)):
                i = base + j
                bit = ((a[row + j] ^ b[row + j]) >> s) & _U1
                rho[i] = bit - rho[i]
                rho_a[i] = ((a0[i] + a1[i]) & (_U0 - bit)) - rho_a[i]
