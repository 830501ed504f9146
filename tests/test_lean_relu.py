"""The ReLU's protocol and the exact truncation, both parties in one process."""

import numpy as np
import pytest

from pibench.engines.lean import kernels, relu
from pibench.engines.lean.local import LocalDealer, LocalRelu, check_relu, run_both
from pibench.engines.lean.memory import Workspace
from pibench.engines.lean.plan import Rectification, Truncation
from pibench.engines.lean.ring import SLIM, WIDE, Ring

SIZES = (1, 2, 63, 64, 65, 511, 512, 513, 1000, 5000)
COMPARED = [(WIDE, 64), (WIDE, 48), (WIDE, 16), (SLIM, 32), (SLIM, 16)]
"""Rings, and the low bits that a comparison looks at."""


def extremes(bits: int, ring: Ring = WIDE) -> np.ndarray:
    """The numbers at the ends and in the middle of what fits in so many bits."""
    most = 1 << (bits - 1)
    return np.array([-most, -most + 1, -1, 0, 1, most - 1], dtype=ring.signed)


def words(draw: np.random.Generator, n: int, bits: int = 64, ring: Ring = WIDE) -> np.ndarray:
    """Uniform numbers of so many bits, in words of a ring."""
    return draw.integers(-(1 << (bits - 1)), 1 << (bits - 1), n, dtype=np.int64).astype(ring.signed)


def within_one_unit(got: np.ndarray, exact: np.ndarray) -> bool:
    difference = got - exact
    return bool(((difference == 0) | (difference == 1)).all())


@pytest.mark.parametrize(("ring", "positions"), COMPARED)
@pytest.mark.parametrize("n", SIZES)
def test_plain_relu_is_bit_exact_over_all_that_is_compared(n, ring, positions):
    z = words(np.random.default_rng(n), n, positions, ring)
    edge = extremes(positions, ring)
    z[: edge.size] = edge[:n]
    assert (LocalRelu(ring, positions)(z, 0) == np.maximum(z, 0)).all()


@pytest.mark.parametrize(("ring", "positions"), COMPARED)
def test_plain_relu_of_extremes_under_many_sharings(ring, positions):
    z = np.tile(extremes(positions, ring), 20_000)
    assert (LocalRelu(ring, positions)(z, 0) == np.maximum(z, 0)).all()


def test_a_value_beyond_the_compared_bits_has_another_sign():
    z = np.full(100, 1 << 47)
    assert (LocalRelu(WIDE, 48)(z, 0) == 0).all()
    assert (LocalRelu(WIDE, 64)(z, 0) == z).all()


@pytest.mark.parametrize(("ring", "positions"), COMPARED)
@pytest.mark.parametrize("shift", [1, 8, 16, 18, 32])
@pytest.mark.parametrize("n", [1, 700, 4096])
def test_fused_relu_is_within_one_unit_up_to_the_bound(n, shift, ring, positions):
    if shift > ring.bits // 2:
        pytest.skip("nothing is left of a word")
    bits = min(positions, ring.top + 1)  # |z| < 2^top
    z = words(np.random.default_rng(n), n, bits, ring)
    most = 1 << (bits - 1)
    edge = np.array([most - 1, -most + 1, 0, -1, 1, min(1 << shift, most - 1)], dtype=ring.signed)
    z[: edge.size] = edge[:n]
    z[z == -most] += 1
    got = LocalRelu(ring, positions)(z, shift)
    assert within_one_unit(got[z >= 0], z[z >= 0] >> shift)
    assert (got[z < 0] == 0).all()


@pytest.mark.parametrize(("shift", "positions"), [(12, 32), (14, 32)])
def test_ten_million_values_of_the_ring_of_32_bits_without_a_failure(shift, positions):
    check = check_relu(10_000_000, mean=4.0, shift=shift, ring=SLIM, positions=positions)
    assert (check.elements, check.failures) == (10_000_000, 0)


def test_ten_million_values_of_mean_6000_without_a_failure():
    check = check_relu(10_000_000, mean=6e3)
    assert (check.elements, check.failures) == (10_000_000, 0)


@pytest.mark.parametrize("ring", [WIDE, SLIM])
def test_the_bound_is_needed(ring):
    z = np.full(1000, 3 << (ring.bits - 3), ring.signed)
    assert not within_one_unit(LocalRelu(ring)(z, 8), z >> 8)


@pytest.mark.parametrize("ring", [WIDE, SLIM])
@pytest.mark.parametrize("shift", [4, 14, 16, 20])
def test_truncation_alone_and_of_the_rest_of_a_masked_relu(shift, ring):
    draw = np.random.default_rng(shift)
    z, rest = words(draw, 130, ring.bits, ring) >> 1, words(draw, 77, ring.bits, ring) >> 1
    other, rest_other = words(draw, 130, ring.bits, ring), words(draw, 77, ring.bits, ring)
    shares = [(z - other).view(ring.word), other.view(ring.word)]
    rest_shares = [(rest - rest_other).view(ring.word), rest_other.view(ring.word)]
    bits = ring.bits

    alone = LocalDealer(ring).deal(Truncation(z.size, shift))
    masked = LocalDealer(ring).deal(Rectification(z.size, rest.size, shift, bits))

    def party(rank, exchange):
        space = Workspace()
        t, y, rest_y = (np.empty(n, ring.word) for n in (z.size, z.size, rest.size))
        relu.truncate(rank, exchange, shares[rank], shift, alone[rank].fields, space, t)
        fields = masked[rank].fields
        relu.rectify(rank, exchange, shares[rank], rest_shares[rank], shift, bits, fields, space, y, rest_y)
        return t, y, rest_y

    t, y, rest_y = (a + b for a, b in zip(*run_both(party), strict=True))
    assert within_one_unit(t.view(ring.signed), z >> shift)
    assert within_one_unit(y.view(ring.signed)[z >= 0], z[z >= 0] >> shift)
    assert (y[z < 0] == 0).all()
    assert within_one_unit(rest_y.view(ring.signed), rest >> shift)


@pytest.mark.parametrize(
    ("ring", "positions", "rounds", "block", "word"),
    [
        (WIDE, 64, 5, 8 * 210, 8),
        (WIDE, 48, 5, 8 * 157, 8),
        (SLIM, 32, 5, 8 * 104, 4),
        (SLIM, 16, 4, 8 * 50, 4),
    ],
)
@pytest.mark.parametrize("n", [1, 64, 65, 513, 4096])
@pytest.mark.parametrize("shift", [0, 12])
def test_rounds_and_bytes_of_a_block_and_of_an_element(n, shift, ring, positions, rounds, block, word):
    z = words(np.random.default_rng(n), n, positions, ring) >> 1
    materials = LocalDealer(ring).deal(Rectification(n, 0, shift, positions))
    none = np.empty(0, ring.word)

    def party(rank, exchange):
        sent = []

        def counted(out, into):
            assert out.nbytes == into.nbytes
            sent.append(out.nbytes)
            exchange(out, into)

        x = z.view(ring.word).copy() if rank == 0 else np.zeros(n, ring.word)
        fields, y = materials[rank].fields, np.empty(n, ring.word)
        relu.rectify(rank, counted, x, none, shift, positions, fields, Workspace(), y, none)
        return sent

    for sent in run_both(party):
        assert len(sent) == rounds
        assert sum(sent) == block * -(-n // 64) + word * n


def test_tails_are_packed_and_unpacked():
    tile, rows, live = kernels.TILE, 5, 3
    message = np.arange(2 * rows * tile, dtype=np.uint64)
    kept = message.copy()
    kernels.pack_tail(message, rows, 1, live)
    packed = message[: rows * tile + rows * live].copy()
    tail = kept[rows * tile :].reshape(rows, tile)[:, :live]
    assert (packed == np.concatenate([kept[: rows * tile], tail.ravel()])).all()
    kernels.unpack_tail(message, rows, 1, live)
    assert (message[rows * tile :].reshape(rows, tile)[:, :live] == tail).all()
    assert (message[rows * tile :].reshape(rows, tile)[:, live:] == 0).all()


def test_an_error_at_one_party_reaches_the_caller():
    def party(rank, exchange):
        if rank == 1:
            raise ValueError("no share")
        exchange(np.zeros(1, np.uint64), np.zeros(1, np.uint64))

    with pytest.raises(ValueError, match="no share"):
        run_both(party)
