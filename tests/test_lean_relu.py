"""The ReLU's protocol and the exact truncation, both parties in one process."""

import numpy as np
import pytest

from pibench.engines.lean import kernels, relu
from pibench.engines.lean.local import LocalDealer, LocalRelu, check_relu, run_both
from pibench.engines.lean.memory import Workspace
from pibench.engines.lean.plan import Rectification, Truncation

EXTREMES = np.array([-(2**63), -(2**63) + 1, -1, 0, 1, 2**63 - 1], dtype=np.int64)
SIZES = (1, 2, 63, 64, 65, 511, 512, 513, 1000, 5000)


def words(draw: np.random.Generator, n: int) -> np.ndarray:
    return draw.integers(-(2**63), 2**63, n, dtype=np.int64)


def within_one_unit(got: np.ndarray, exact: np.ndarray) -> bool:
    difference = got - exact
    return bool(((difference == 0) | (difference == 1)).all())


@pytest.mark.parametrize("n", SIZES)
def test_plain_relu_is_bit_exact_over_the_whole_ring(n):
    draw = np.random.default_rng(n)
    z = words(draw, n)
    z[: EXTREMES.size] = EXTREMES[:n]
    assert (LocalRelu()(z, 0) == np.maximum(z, 0)).all()


def test_plain_relu_of_extremes_under_many_sharings():
    z = np.tile(EXTREMES, 20_000)
    assert (LocalRelu()(z, 0) == np.maximum(z, 0)).all()


@pytest.mark.parametrize("shift", [1, 8, 16, 18, 32])
@pytest.mark.parametrize("n", [1, 700, 4096])
def test_fused_relu_is_within_one_unit_up_to_the_bound(n, shift):
    z = words(np.random.default_rng(n), n) >> 1
    edge = np.array([2**62 - 1, -(2**62) + 1, 0, -1, 1, 2**shift, -(2**shift), 2**shift - 1], dtype=np.int64)
    z[: edge.size] = edge[:n]
    got = LocalRelu()(z, shift)
    assert within_one_unit(got[z >= 0], z[z >= 0] >> shift)
    assert (got[z < 0] == 0).all()


def test_ten_million_values_of_mean_6000_without_a_failure():
    check = check_relu(10_000_000, mean=6e3)
    assert (check.elements, check.failures) == (10_000_000, 0)


def test_the_bound_is_needed():
    z = np.full(1000, 2**62 + 2**61)
    assert not within_one_unit(LocalRelu()(z, 16), z >> 16)


@pytest.mark.parametrize("shift", [4, 16, 20])
def test_truncation_alone_and_of_the_rest_of_a_masked_relu(shift):
    draw = np.random.default_rng(shift)
    z, rest = words(draw, 130) >> 1, words(draw, 77) >> 1
    other, rest_other = words(draw, 130), words(draw, 77)
    shares = [(z - other).view(np.uint64), other.view(np.uint64)]
    rest_shares = [(rest - rest_other).view(np.uint64), rest_other.view(np.uint64)]

    alone = LocalDealer().deal(Truncation(z.size, shift))
    masked = LocalDealer().deal(Rectification(z.size, rest.size, shift))

    def party(rank, exchange):
        space = Workspace()
        t, y, rest_y = (np.empty(n, np.uint64) for n in (z.size, z.size, rest.size))
        relu.truncate(rank, exchange, shares[rank], shift, alone[rank].fields, space, t)
        relu.rectify(
            rank, exchange, shares[rank], rest_shares[rank], shift, masked[rank].fields, space, y, rest_y
        )
        return t, y, rest_y

    t, y, rest_y = (a + b for a, b in zip(*run_both(party), strict=True))
    assert within_one_unit(t.view(np.int64), z >> shift)
    assert within_one_unit(y.view(np.int64)[z >= 0], z[z >= 0] >> shift)
    assert (y[z < 0] == 0).all()
    assert within_one_unit(rest_y.view(np.int64), rest >> shift)


@pytest.mark.parametrize("n", [1, 64, 65, 513, 4096])
@pytest.mark.parametrize("shift", [0, 16])
def test_five_rounds_and_1680_bytes_a_block_and_8_an_element(n, shift):
    z = words(np.random.default_rng(n), n) >> 1
    materials = LocalDealer().deal(Rectification(n, 0, shift))
    none = np.empty(0, np.uint64)

    def party(rank, exchange):
        sent = []

        def counted(out, into):
            assert out.nbytes == into.nbytes
            sent.append(out.nbytes)
            exchange(out, into)

        x = z.view(np.uint64).copy() if rank == 0 else np.zeros(n, np.uint64)
        fields, y = materials[rank].fields, np.empty(n, np.uint64)
        relu.rectify(rank, counted, x, none, shift, fields, Workspace(), y, none)
        return sent

    for sent in run_both(party):
        assert len(sent) == 5
        assert sum(sent) == 1680 * -(-n // 64) + 8 * n


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
