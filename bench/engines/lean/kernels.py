"""Compiled kernels of the ReLU: bit-slicing, the carry tree, the select, and the dealer's products.

Shares are words of 64 or of 32 bits; every kernel exists for both. The sign of a value that fits in k bits is
bit k - 1 of the sum of its shares modulo 2^k, so a comparison looks at the k lowest bits alone: `positions`,
one of `POSITIONS`, at most the bits of a word.

Bit-sliced data is cut into *tiles* of `TILE` blocks. A block is 64 elements, and a row of a tile holds one
64-bit word for each block. In a full tile that begins at element s, bit k of block j's word belongs to
element s + k * TILE + j. Elementwise butterflies therefore turn rows of 64 elements into rows of 64 bits. The
last tile may hold fewer blocks, t < TILE. Its element is s + k * t + j, so that exactly ceil(n / 64) blocks
carry data. Its rows are padded to TILE in memory and packed before they are sent (`pack_tail`).

All arrays are flat. Rows are uint64; shares are uint64 or uint32. Inner loops run over the TILE words of a
row, with constant offsets, so that the compiler turns them into vector instructions.

The carry tree has nodes of four children in one or two levels, and a last node of two to four (`levels`).
Rows of a tile's masks, drawn by each party: one for each generate bit, 7 for each node, 2 (c - 1) for the
last node of c children, 1 for the select (`masks_of`). Rows of a tile's products, dealt: one for each
generate bit, 22 for each node; 1, 5 or 15 for the last (`products_of`). Both lie in memory in the order of
the rounds, each part with the rows of all tiles, so that a round reads one stretch of memory from its
beginning to its end.
"""

import numpy as np
from numba import int64 as signed
from numba import njit, uint16, uint32, uint64, void
from numba.extending import register_jitable

from pibench.engines.lean.compiled import compiled

TILE = 8
POSITIONS = (16, 32, 48, 64)
"""The numbers of low bits that a comparison can look at."""


@register_jitable
def levels(positions):
    """Returns the nodes of the first and of the second level, and the children of the last node."""
    first = positions // 4
    second = positions // 16 if positions > 16 else 0
    return first, second, second if second > 0 else first


@register_jitable
def tree_of(positions):
    """Returns the rows that the carry tree opens: 7 for each node, 2 (c - 1) for the last."""
    first, second, last = levels(positions)
    return 7 * (first + second) + 2 * (last - 1)


@register_jitable
def masks_of(positions):
    """Returns the rows of masks of a tile."""
    return positions + tree_of(positions)


@register_jitable
def products_of(positions):
    """Returns the rows of products of a tile."""
    first, second, last = levels(positions)
    return positions - 1 + 22 * (first + second) + (1 if last == 2 else 5 if last == 3 else 15)


@register_jitable
def _gates(positions, words):
    """Returns the tiles of which masks of this size are, and the words of their generate bits."""
    count = words // (masks_of(positions) * TILE)
    return count, count * (positions - 1) * TILE


@register_jitable
def _level_masks(positions, words, level):
    """Returns where the masks of a level of nodes (2: the last node) begin."""
    first, second, _ = levels(positions)
    count, at = _gates(positions, words)
    return at + count * 7 * TILE * (0 if level == 0 else first if level == 1 else first + second)


@register_jitable
def _level_products(positions, words, level):
    """Returns where the products of a level of nodes (2: the last node) begin, for masks of this size."""
    first, second, _ = levels(positions)
    count, at = _gates(positions, words)
    return at + count * 22 * TILE * (0 if level == 0 else first if level == 1 else first + second)


@register_jitable
def _select_masks(positions, words):
    """Returns where the masks of the selects begin."""
    _, _, last = levels(positions)
    count, _ = _gates(positions, words)
    return _level_masks(positions, words, 2) + count * 2 * (last - 1) * TILE


_rows = uint64[::1]
_wide, _slim = uint64[::1], uint32[::1]
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
_U0, _U1 = np.uint64(0), np.uint64(1)


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


@njit(inline="always")
def _transpose_halves(w):
    """Transposes each block's two 32 x 32 bit matrices, in the lower and upper halves of its 32 words."""
    for g in range(4):
        for j in range(TILE):
            i = g * TILE + j
            a = w[i]
            b = w[i + 4 * TILE]
            c = w[i + 8 * TILE]
            d = w[i + 12 * TILE]
            e = w[i + 16 * TILE]
            f = w[i + 20 * TILE]
            x = w[i + 24 * TILE]
            y = w[i + 28 * TILE]
            a, e = _swap(a, e, _S16, _M16)
            b, f = _swap(b, f, _S16, _M16)
            c, x = _swap(c, x, _S16, _M16)
            d, y = _swap(d, y, _S16, _M16)
            a, c = _swap(a, c, _S8, _M8)
            b, d = _swap(b, d, _S8, _M8)
            e, x = _swap(e, x, _S8, _M8)
            f, y = _swap(f, y, _S8, _M8)
            a, b = _swap(a, b, _S4, _M4)
            c, d = _swap(c, d, _S4, _M4)
            e, f = _swap(e, f, _S4, _M4)
            x, y = _swap(x, y, _S4, _M4)
            w[i] = a
            w[i + 4 * TILE] = b
            w[i + 8 * TILE] = c
            w[i + 12 * TILE] = d
            w[i + 16 * TILE] = e
            w[i + 20 * TILE] = f
            w[i + 24 * TILE] = x
            w[i + 28 * TILE] = y
    for g in range(8):
        for j in range(TILE):
            i = 4 * g * TILE + j
            a = w[i]
            b = w[i + TILE]
            c = w[i + 2 * TILE]
            d = w[i + 3 * TILE]
            a, c = _swap(a, c, _S2, _M2)
            b, d = _swap(b, d, _S2, _M2)
            a, b = _swap(a, b, _S1, _M1)
            c, d = _swap(c, d, _S1, _M1)
            w[i] = a
            w[i + TILE] = b
            w[i + 2 * TILE] = c
            w[i + 3 * TILE] = d


@compiled([void(x, signed, _rows, _rows, _rows) for x in (_wide, _slim)], nogil=True)
def slice_bits(x, positions, masks, rows, message):
    """Round 1: bit-slices x [n] into `rows`, `positions` a tile, and masks all but the last of a tile.

    message = rows ^ mask.
    """
    n = x.size
    width = 64 * TILE
    w = np.empty(width, np.uint64)
    for tile in range((n + width - 1) // width):
        start = tile * width
        live = min(TILE, (n - start + 63) // 64)
        full = start + width <= n
        if x.itemsize == 8:
            for k in range(64):
                for j in range(TILE):
                    i = start + k * live + j
                    w[k * TILE + j] = x[i] if full or (j < live and i < n) else _U0
            _transpose(w, 0)
        else:
            for k in range(32):
                for j in range(TILE):
                    i = start + k * live + j
                    low = np.uint64(x[i]) if full or (j < live and i < n) else _U0
                    i += 32 * live
                    high = np.uint64(x[i]) if full or (j < live and i < n) else _U0
                    w[k * TILE + j] = low | (high << _S32)
            _transpose_halves(w)
        r = tile * positions * TILE
        o = tile * (positions - 1) * TILE
        for i in range(positions * TILE):
            rows[r + i] = w[i]
        for i in range((positions - 1) * TILE):
            message[o + i] = w[i] ^ masks[o + i]


@compiled(void(_rows, signed, signed, signed), nogil=True)
def pack_tail(message, rows, full, live):
    """Packs the last tile's rows from TILE words to `live` ones, in place, after `full` whole tiles."""
    at = full * rows * TILE
    for r in range(rows):
        for j in range(live):
            message[at + r * live + j] = message[at + r * TILE + j]


@compiled(void(_rows, signed, signed, signed), nogil=True)
def unpack_tail(message, rows, full, live):
    """Reverses `pack_tail` and fills the gaps with zeros."""
    at = full * rows * TILE
    for back in range(rows):
        r = rows - 1 - back
        for over in range(TILE):
            j = TILE - 1 - over
            message[at + r * TILE + j] = message[at + r * live + j] if j < live else _U0


@njit(inline="always")
def _mask_inputs(p, g, at, children, full, masks, m, message, b, tops, t):
    """Masks a node's inputs P_(c-1) .. P_1, G_(c-2) .. G_0 (and P_0 if `full`); keeps G_(c-1).

    Rows of `p` and `g` from `at` on belong to its `children`, in order.
    """
    last = children - 1
    for row in range(last):
        for j in range(TILE):
            message[b + row * TILE + j] = p[at + (last - row) * TILE + j] ^ masks[m + row * TILE + j]
    for row in range(last):
        for j in range(TILE):
            i = (last + row) * TILE + j
            message[b + i] = g[at + (last - 1 - row) * TILE + j] ^ masks[m + i]
    for j in range(TILE):
        tops[t + j] = g[at + last * TILE + j]
    if full:
        for j in range(TILE):
            i = 2 * last * TILE + j
            message[b + i] = p[at + j] ^ masks[m + i]


@compiled(void(signed, signed, _rows, _rows, _rows, _rows, _rows, _rows, _rows), nogil=True)
def generate(rank, positions, rows, sent, got, masks, products, message, tops):
    """Round 2: shares G = x_0 AND x_1 and masks the inputs of the nodes of the first level.

    With the opened d = x_0 ^ a and e = x_1 ^ b: x_0 x_1 = x_0 e ^ d b ^ a b. Party 0 takes x_0 e, party 1
    takes d b. `tops` keeps G3 of each node. Position 0 is the identity, P = 1 and G = 0.
    """
    one = _ONES if rank == 0 else _U0
    first, _, _ = levels(positions)
    bits = (positions - 1) * TILE
    nodes = _level_masks(positions, masks.size, 0)
    g = np.empty(64 * TILE, np.uint64)
    p = np.empty(64 * TILE, np.uint64)
    for tile in range(rows.size // (positions * TILE)):
        r = tile * positions * TILE
        o = tile * bits
        for j in range(TILE):
            p[j] = one
            g[j] = _U0
        if rank == 0:
            for i in range(bits):
                g[TILE + i] = (rows[r + i] & got[o + i]) ^ products[o + i]
        else:
            for i in range(bits):
                g[TILE + i] = (masks[o + i] & got[o + i]) ^ products[o + i]
        for i in range(bits):
            p[TILE + i] = rows[r + i]
        for node in range(first):
            _mask_inputs(
                p,
                g,
                4 * node * TILE,
                4,
                True,
                masks,
                nodes + (tile * first + node) * 7 * TILE,
                message,
                (tile * first + node) * 7 * TILE,
                tops,
                (tile * first + node) * TILE,
            )


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


@njit(inline="always")
def _last_node(children, one, sent, got, w, masks, m, products, c, tops, t, out):
    """Evaluates G' of the last node on a row of words: of four children, or of three or two."""
    if children == 4:
        _node(one, sent, got, w, masks, m, products, c, tops, t, out, out, 0, False)
        return
    for j in range(TILE):
        k = m + j
        i = c + j
        if children == 3:
            p2 = sent[w + j] ^ got[w + j]
            p1 = sent[w + TILE + j] ^ got[w + TILE + j]
            g1 = sent[w + 2 * TILE + j] ^ got[w + 2 * TILE + j]
            g0 = sent[w + 3 * TILE + j] ^ got[w + 3 * TILE + j]
            u_1 = (p2 & one) ^ masks[k]
            u_i = (p2 & masks[k + TILE]) ^ products[i]
            u_c1 = (p2 & masks[k + 2 * TILE]) ^ products[i + TILE]
            u_c0 = (p2 & masks[k + 3 * TILE]) ^ products[i + 2 * TILE]
            u_ic0 = (p2 & products[i + 3 * TILE]) ^ products[i + 4 * TILE]
            v_1 = (p1 & u_1) ^ u_i
            v_c0 = (p1 & u_c0) ^ u_ic0
            out[j] = tops[t + j] ^ (g1 & u_1) ^ u_c1 ^ (g0 & v_1) ^ v_c0
        else:
            p1 = sent[w + j] ^ got[w + j]
            g0 = sent[w + TILE + j] ^ got[w + TILE + j]
            u_1 = (p1 & one) ^ masks[k]
            u_c0 = (p1 & masks[k + TILE]) ^ products[i]
            out[j] = tops[t + j] ^ (g0 & u_1) ^ u_c0


@compiled(void(signed, signed, signed, _rows, _rows, _rows, _rows, _rows, _rows, _rows), nogil=True)
def fold(rank, positions, level, sent, got, masks, products, tops, message, up_tops):
    """Evaluates the nodes of `level` (0 or 1) and masks the inputs of the next level, or of the last node.

    G' = G3 ^ P3 G2 ^ P3 P2 G1 ^ P3 P2 P1 G0 and P' = P3 P2 P1 P0. Each opened input p is P ^ a, and each g is
    G ^ c. The dealt products of masks (22 a node) make every monomial linear in shares.
    """
    one = _ONES if rank == 0 else _U0
    first, second, last = levels(positions)
    ends = level == 1 or second == 0
    count = first if level == 0 else second
    up = 1 if ends else second
    children = last if ends else 4
    inputs = 2 * (children - 1) if ends else 7
    own, above_own = (
        _level_masks(positions, masks.size, level),
        _level_masks(positions, masks.size, 2 if ends else 1),
    )
    dealt = _level_products(positions, masks.size, level)
    p = np.empty(4 * TILE, np.uint64)
    g = np.empty(4 * TILE, np.uint64)
    for tile in range(tops.size // (count * TILE)):
        w = tile * 7 * count * TILE
        m = own + w
        c = dealt + tile * 22 * count * TILE
        t = tile * count * TILE
        for above in range(up):
            for child in range(children):
                q = children * above + child
                _node(
                    one,
                    sent,
                    got,
                    w + 7 * q * TILE,
                    masks,
                    m + 7 * q * TILE,
                    products,
                    c + 22 * q * TILE,
                    tops,
                    t + q * TILE,
                    p,
                    g,
                    child * TILE,
                    True,
                )
            _mask_inputs(
                p,
                g,
                0,
                children,
                not ends,
                masks,
                above_own + (tile * up + above) * inputs * TILE,
                message,
                (tile * up + above) * inputs * TILE,
                up_tops,
                (tile * up + above) * TILE,
            )


@compiled(void(signed, signed, _rows, _rows, _rows, _rows, _rows, _rows, _rows), nogil=True)
def sign(rank, positions, sent, got, masks, products, tops, rows, message):
    """Last round: evaluates the last node and masks b, the NOT of the sign: message = b ^ rho."""
    one = _ONES if rank == 0 else _U0
    _, _, last = levels(positions)
    inputs = 2 * (last - 1)
    dealt = 1 if last == 2 else 5 if last == 3 else 15
    own, selects = _level_masks(positions, masks.size, 2), _select_masks(positions, masks.size)
    c = _level_products(positions, masks.size, 2)
    g = np.empty(TILE, np.uint64)
    for tile in range(tops.size // TILE):
        _last_node(
            last,
            one,
            sent,
            got,
            tile * inputs * TILE,
            masks,
            own + tile * inputs * TILE,
            products,
            c + tile * dealt * TILE,
            tops,
            tile * TILE,
            g,
        )
        for j in range(TILE):
            b = g[j] ^ rows[(tile * positions + positions - 1) * TILE + j] ^ one
            message[tile * TILE + j] = b ^ masks[selects + tile * TILE + j]


@compiled([void(w, w, uint64, w) for w in (_wide, _slim)], nogil=True)
def add_mask(x, r, offset, message):
    """Computes the opened word of a truncation: c = x + r + offset."""
    for i in range(x.size):
        message[i] = x[i] + r[i] + offset


@compiled([void(w, w, w) for w in (_wide, _slim)], nogil=True)
def subtract(x, a, message):
    """Computes the opened word of a product: eps = x - a."""
    for i in range(x.size):
        message[i] = x[i] - a[i]


def _truncate(rank, f, c0, c1, u, mu, y):
    word = y.dtype.type
    bits = np.uint64(8 * y.itemsize)
    first = _ONES if rank == 0 else _U0
    back = bits - f
    half = _U1 << (bits - np.uint64(2) - f)
    top = bits - _U1
    for i in range(y.size):
        c = np.uint64(word(c0[i] + c1[i]))
        lead = (c >> f) - half
        y[i] = (first & lead) - u[i] - ((_U0 - (c >> top)) & (np.uint64(mu[i]) << back))


@njit(inline="always")
def _spread_bits(words, at, live, bits):
    """Sets bits[k * live + j] = bit k of words[at + j]: one for each element of a tile, in order."""
    if live == TILE:
        for k in range(64):
            for j in range(TILE):
                bits[k * TILE + j] = (words[at + j] >> np.uint64(k)) & _U1
    else:
        for k in range(64):
            for j in range(live):
                bits[k * live + j] = (words[at + j] >> np.uint64(k)) & _U1


def _select_truncate(rank, f, z0, z1, c0, c1, rho, rho_u, u, mu, rho_mu, y):
    word = y.dtype.type
    size = np.uint64(8 * y.itemsize)
    f = f & (size - _U1)  # the compiler then knows that a shifted word stays one
    first = _ONES if rank == 0 else _U0
    back = (size - f) & (size - _U1)
    half = _U1 << (size - np.uint64(2) - f)
    top = size - _U1
    n = y.size
    width = 64 * TILE
    bits = np.empty(width, y.dtype)
    opened = np.empty(TILE, np.uint64)
    for tile in range((n + width - 1) // width):
        start = tile * width
        live = min(TILE, (n - start + 63) // 64)
        for j in range(TILE):
            opened[j] = z0[tile * TILE + j] ^ z1[tile * TILE + j]
        _spread_bits(opened, 0, live, bits)
        for q in range(min(width, n - start)):
            i = start + q
            c = word(c0[i] + c1[i])
            lead = word((c >> f) - half)
            high = word(_U0 - (c >> top))
            whole = word((first & lead) - u[i] - (high & word(np.uint64(mu[i]) << back)))
            part = word(lead * rho[i] - rho_u[i] - (high & word(np.uint64(rho_mu[i]) << back)))
            # bit 0: part; bit 1: whole - part
            y[i] = part + (_U0 - bits[q]) * (part + part - whole)


_KINDS = [(word, mu) for word in (_wide, _slim) for mu in (uint16[::1], uint32[::1])]
truncate = compiled([void(signed, uint64, w, w, w, m, w) for w, m in _KINDS])(_truncate)
truncate.__doc__ = """Computes floor(z / 2^f), within one unit, from the opened c0 + c1 = z + 2^(l-2) + r."""
select_truncate = compiled(
    [void(signed, uint64, _rows, _rows, w, w, w, w, w, m, m, w) for w, m in _KINDS],
    nogil=True,
)(_select_truncate)
select_truncate.__doc__ = (
    """Computes y = b floor(z / 2^f) from the opened z_b = z0 ^ z1 and c = c0 + c1; within one unit."""
)


@compiled([void(signed, _rows, _rows, w, w, w, w, w, w) for w in (_wide, _slim)], nogil=True)
def select(rank, z0, z1, e0, e1, x, rho, rho_a, y):
    """Selects y = b x from the opened z = b ^ rho and eps = x - a: z x + (1 - 2 z)(eps rho + rho a)."""
    word = y.dtype.type
    n = y.size
    width = 64 * TILE
    bits = np.empty(width, y.dtype)
    opened = np.empty(TILE, np.uint64)
    for tile in range((n + width - 1) // width):
        start = tile * width
        live = min(TILE, (n - start + 63) // 64)
        for j in range(TILE):
            opened[j] = z0[tile * TILE + j] ^ z1[tile * TILE + j]
        _spread_bits(opened, 0, live, bits)
        for q in range(min(width, n - start)):
            i = start + q
            part = word(word(e0[i] + e1[i]) * rho[i] + rho_a[i])
            y[i] = part + (_U0 - bits[q]) * (part + part - x[i])


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


@njit(inline="always")
def _deal_last(children, a, b, m, out, c):
    if children == 4:
        _deal_node(a, b, m, out, c, False)
        return
    for j in range(TILE):
        k = m + j
        i = c + j
        if children == 3:
            a2 = a[k] ^ b[k]
            a1 = a[k + TILE] ^ b[k + TILE]
            c1 = a[k + 2 * TILE] ^ b[k + 2 * TILE]
            c0 = a[k + 3 * TILE] ^ b[k + 3 * TILE]
            out[i] ^= a2 & a1
            out[i + TILE] ^= a2 & c1
            out[i + 2 * TILE] ^= a2 & c0
            out[i + 3 * TILE] ^= a1 & c0
            out[i + 4 * TILE] ^= a2 & a1 & c0
        else:
            out[i] ^= (a[k] ^ b[k]) & (a[k + TILE] ^ b[k + TILE])


@compiled(void(signed, _rows, _rows, _rows), nogil=True)
def deal_products(positions, a, b, products):
    """Turns party 1's shares of the mask products into party 0's, in place, at the dealer.

    `a` and `b` are the masks of parties 0 and 1. The product of a generate bit is a AND b. The inputs of a
    node have the masks a ^ b. Its products are the monomials that `fold` needs, in the order of `fold`.
    """
    first, second, last = levels(positions)
    count, bits = _gates(positions, a.size)
    for i in range(bits):
        products[i] ^= a[i] & b[i]
    for node in range(count * (first + second)):
        _deal_node(a, b, bits + 7 * node * TILE, products, bits + 22 * node * TILE, True)
    m, c = _level_masks(positions, a.size, 2), _level_products(positions, a.size, 2)
    inputs, dealt = 2 * (last - 1), 1 if last == 2 else 5 if last == 3 else 15
    for tile in range(count):
        _deal_last(last, a, b, m + tile * inputs * TILE, products, c + tile * dealt * TILE)


@njit(inline="always")
def _high(r, f, bits):
    """Returns the signed shift r >> f of a word of `bits` bits, as uint64."""
    spare = np.int64(64 - bits)
    return np.uint64(np.int64(np.uint64(r) << np.uint64(spare)) >> (spare + np.int64(f)))


def _deal_truncate(f, r0, r1, u, mu):
    word = r0.dtype.type
    bits = 8 * r0.itemsize
    top = np.uint64(bits - 1)
    for i in range(r0.size):
        r = word(r0[i] + r1[i])
        u[i] = _high(r, f, bits) - u[i]
        mu[i] = (np.uint64(r) >> top) - mu[i]


def _deal_select_truncate(positions, f, a, b, r0, r1, rho, rho_u, u, mu, rho_mu):
    word = r0.dtype.type
    size = np.uint64(8 * r0.itemsize)
    f = f & (size - _U1)
    top = size - _U1
    n = r0.size
    width = 64 * TILE
    bits, high, sign = np.empty(width, r0.dtype), np.empty(width, r0.dtype), np.empty(width, r0.dtype)
    drawn = np.empty(TILE, np.uint64)
    selects = _select_masks(positions, a.size)
    for tile in range((n + width - 1) // width):
        start = tile * width
        live = min(TILE, (n - start + 63) // 64)
        for j in range(TILE):
            drawn[j] = a[selects + tile * TILE + j] ^ b[selects + tile * TILE + j]
        _spread_bits(drawn, 0, live, bits)
        count = min(width, n - start)
        # Loops of few arrays: the compiler gives up where it must compare too many of them for overlaps.
        for q in range(count):
            r = word(r0[start + q] + r1[start + q])
            fill = word(_U0 - (r >> top))
            high[q] = word((r ^ fill) >> f) ^ fill  # the signed shift
            sign[q] = r >> top
        for q in range(count):
            rho[start + q] = bits[q] - rho[start + q]
            u[start + q] = high[q] - u[start + q]
        for q in range(count):
            rho_u[start + q] = (high[q] & word(_U0 - bits[q])) - rho_u[start + q]
        for q in range(count):
            mu[start + q] = sign[q] - mu[start + q]
            rho_mu[start + q] = (sign[q] & bits[q]) - rho_mu[start + q]


deal_truncate = compiled([void(uint64, w, w, w, m) for w, m in _KINDS], nogil=True)(_deal_truncate)
deal_truncate.__doc__ = """Computes the corrections of U = r >> f (signed) and mu = msb(r) in place."""
deal_select_truncate = compiled(
    [void(signed, uint64, _rows, _rows, w, w, w, w, w, m, m) for w, m in _KINDS],
    nogil=True,
)(_deal_select_truncate)
deal_select_truncate.__doc__ = """Computes the corrections of rho, rho U, U, mu and rho mu in place."""


@compiled([void(signed, _rows, _rows, w, w, w, w) for w in (_wide, _slim)], nogil=True)
def deal_select(positions, a, b, a0, a1, rho, rho_a):
    """Computes the corrections of rho and rho a in place, at the dealer."""
    n = a0.size
    width = 64 * TILE
    bits = np.empty(width, a0.dtype)
    drawn = np.empty(TILE, np.uint64)
    selects = _select_masks(positions, a.size)
    for tile in range((n + width - 1) // width):
        start = tile * width
        live = min(TILE, (n - start + 63) // 64)
        for j in range(TILE):
            drawn[j] = a[selects + tile * TILE + j] ^ b[selects + tile * TILE + j]
        _spread_bits(drawn, 0, live, bits)
        for q in range(min(width, n - start)):
            i = start + q
            bit = bits[q]
            rho[i] = bit - rho[i]
            rho_a[i] = ((a0[i] + a1[i]) & (_U0 - bit)) - rho_a[i]
