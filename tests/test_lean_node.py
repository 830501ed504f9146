"""Programs on the lean engine: answers, traffic, single use, and the messages of failures."""

from __future__ import annotations

import multiprocessing
import os
import signal
import socket
import tempfile
import threading
from itertools import pairwise

import numpy as np
import pytest
import torch
from lean_harness import Trio, calibrated, plaintext, program, random_weights, settings

from pibench.engines import NotPrepared, Setting
from pibench.engines.lean import ENGINE, cost, gemm, grouped, make_node, winograd
from pibench.engines.lean.channel import Channel, Wire
from pibench.engines.lean.keystream import KEY_BYTES, Keystream
from pibench.engines.lean.linear import lowering
from pibench.engines.lean.plan import OPENING, make_plan, value_limits
from pibench.engines.lean.ring import arithmetic
from pibench.program.ir import (
    Add,
    Affine,
    AveragePool,
    Combine,
    Concatenate,
    Convolution,
    Flatten,
    Linear,
    MaxPool,
    Mean,
    Multiply,
    PiecewiseLinear,
    Rearrange,
    Relu,
    Scale,
    Shift,
    Square,
    Step,
    Sum,
    Weigh,
)

C = (3, 8, 8)


def conv(out=4, c=3, k=3, name="conv", bias=True, **options) -> Convolution:
    options = {"padding": (k // 2, k // 2)} | options
    shape = (out, c // options.get("groups", 1), k, k)
    return Convolution(f"{name}.weight", f"{name}.bias" if bias else None, shape, **options)


def fc(out: int, c: int, name: str = "fc", bias: bool = True) -> Linear:
    return Linear(f"{name}.weight", f"{name}.bias" if bias else None, (out, c))


KEPT = np.array([0, 3, 5, 64, 100, 191])

PROGRAMS = {
    "convolution": program(C, ("a", conv(), ["input"], (4, 8, 8))),
    "strided without bias": program(C, ("a", conv(stride=(2, 2), bias=False), ["input"], (4, 4, 4))),
    "few pixels": program(C, ("a", conv(stride=(3, 2), padding=(0, 1)), ["input"], (4, 2, 4))),
    "few pixels dilated": program(C, ("a", conv(dilation=(2, 3), padding=(0, 1)), ["input"], (4, 4, 4))),
    "dilated": program(C, ("a", conv(dilation=(2, 2), padding=(2, 2)), ["input"], (4, 8, 8))),
    "grouped": program(C, ("a", conv(6, groups=3), ["input"], (6, 8, 8))),
    "depthwise 1x1": program(C, ("a", conv(3, k=1, groups=3), ["input"], C)),
    "uneven kernel": program(
        C, ("a", Convolution("w", None, (2, 3, 1, 3), padding=(0, 1)), ["input"], (2, 8, 8))
    ),
    "winograd of few tiles": program(
        (16, 9, 7),
        ("a", conv(18, 16), ["input"], (18, 9, 7)),
        ("b", Relu(), ["a"], (18, 9, 7)),
        ("c", conv(16, 18, name="d", padding=(0, 1)), ["b"], (16, 7, 7)),
        ("d", conv(16, 16, name="e", bias=False), ["c"], (16, 7, 7)),
        ("e", Add(), ["d", "c"], (16, 7, 7)),
    ),
    "winograd of many tiles": program(
        (16, 16, 17),
        ("a", conv(16, 16), ["input"], (16, 16, 17)),
        ("b", Add(), ["a", "input"], (16, 16, 17)),
        ("c", Relu(np.array([5, 700])), ["b"], (16, 16, 17)),
    ),
    "winograd of a large kernel": program(
        (64, 16, 17),
        ("a", conv(64, 64, 5), ["input"], (64, 16, 17)),
        ("b", Relu(), ["a"], (64, 16, 17)),
        ("c", conv(4, 64, 5, name="d", stride=(2, 2)), ["b"], (4, 8, 9)),
    ),
    "linear": program((7,), ("a", fc(5, 7), ["input"], (5,))),
    "linear on the last dimension": program((3, 7), ("a", fc(5, 7, bias=False), ["input"], (3, 5))),
    "relu of the input": program(C, ("a", Relu(), ["input"], C)),
    "fused relu": program(C, ("a", conv(), ["input"], (4, 8, 8)), ("b", Relu(), ["a"], (4, 8, 8))),
    "masked relu": program(C, ("a", Relu(KEPT), ["input"], C)),
    "fused masked relu": program(
        C, ("a", conv(3), ["input"], C), ("b", Relu(KEPT), ["a"], C), ("c", conv(3, name="d"), ["b"], C)
    ),
    "nothing kept": program(
        C, ("a", conv(3), ["input"], C), ("b", Relu(KEPT[:0]), ["a"], C), ("c", conv(3, name="d"), ["b"], C)
    ),
    "everything kept": program(C, ("a", conv(3), ["input"], C), ("b", Relu(np.arange(192)), ["a"], C)),
    "convolutions in a row": program(
        C, ("a", conv(), ["input"], (4, 8, 8)), ("b", conv(4, 4, name="d"), ["a"], (4, 8, 8))
    ),
    "residual": program(
        C,
        ("a", conv(3), ["input"], C),
        ("b", Add(), ["input", "a"], C),
        ("c", Relu(), ["b"], C),
    ),
    "used twice at double scale": program(
        C,
        ("a", conv(3), ["input"], C),
        ("b", conv(3, name="d"), ["a"], C),
        ("c", Add(), ["a", "b"], C),
        ("d", conv(3, name="e"), ["a"], C),
        ("e", Add(), ["c", "d"], C),
    ),
    "twice itself": program(C, ("a", Add(), ["input", "input"], C)),
    "average pool": program(C, ("a", AveragePool((2, 2), (2, 2)), ["input"], (3, 4, 4))),
    "average pool, padded": program(C, ("a", AveragePool((3, 3), (2, 2), (1, 1)), ["input"], (3, 4, 4))),
    "pool and classifier": program(
        C,
        ("a", conv(), ["input"], (4, 8, 8)),
        ("b", Relu(), ["a"], (4, 8, 8)),
        ("c", AveragePool((8, 8), (8, 8)), ["b"], (4, 1, 1)),
        ("d", Flatten(1, -1), ["c"], (4,)),
        ("e", fc(3, 4), ["d"], (3,)),
    ),
    "pool between convolution and relu": program(
        C,
        ("a", conv(), ["input"], (4, 8, 8)),
        ("b", AveragePool((2, 2), (2, 2)), ["a"], (4, 4, 4)),
        ("c", Relu(), ["b"], (4, 4, 4)),
    ),
    "pools upon pools": program(
        (2, 16, 16),
        ("a", conv(2, 2), ["input"], (2, 16, 16)),
        ("b", AveragePool((4, 4), (4, 4)), ["a"], (2, 4, 4)),
        ("c", AveragePool((2, 2), (2, 2)), ["b"], (2, 2, 2)),
        ("d", AveragePool((2, 2), (2, 2)), ["c"], (2, 1, 1)),
        ("e", AveragePool((1, 1), (1, 1)), ["d"], (2, 1, 1)),
    ),
    "mean": program(C, ("a", Mean((2, 3), False), ["input"], (3,))),
    "mean of seven": program((3, 7), ("a", Mean((-1,), True), ["input"], (3, 1))),
    "max pool": program(C, ("a", MaxPool((2, 2), (2, 2)), ["input"], (3, 4, 4))),
    "max pool, padded and overlapping": program(
        C, ("a", MaxPool((3, 3), (2, 2), (1, 1)), ["input"], (3, 4, 4))
    ),
    "max pool at double scale": program(
        C,
        ("a", conv(), ["input"], (4, 8, 8)),
        ("b", MaxPool((2, 2), (2, 2)), ["a"], (4, 4, 4)),
        ("c", Relu(), ["b"], (4, 4, 4)),
    ),
    "max pool, dilated": program(C, ("a", MaxPool((2, 2), (1, 1), (0, 0), (2, 2)), ["input"], (3, 6, 6))),
    "square": program(C, ("a", Square(), ["input"], C)),
    "square of a product": program(
        C, ("a", conv(3), ["input"], C), ("b", Square(), ["a"], C), ("c", Square(), ["b"], C)
    ),
    "multiply": program(
        C,
        ("a", conv(3), ["input"], C),
        ("b", conv(3, name="d"), ["input"], C),
        ("c", Multiply(), ["a", "b"], C),
    ),
    "scale": program(
        C, ("a", Scale(-0.3), ["input"], C), ("b", Scale(1.7), ["a"], C), ("c", conv(3), ["b"], C)
    ),
    "concatenate": program(
        C,
        ("a", conv(2), ["input"], (2, 8, 8)),
        ("b", Concatenate(1), ["input", "a"], (5, 8, 8)),
        ("c", Relu(), ["b"], (5, 8, 8)),
    ),
    "affine": program(C, ("a", Affine("w", "b", C), ["input"], C), ("b", Affine("v", None, (8,)), ["a"], C)),
    "shift": program(C, ("a", conv(3), ["input"], C), ("b", Shift("s", (3, 1, 1)), ["a"], C)),
    "shift of the input": program((7,), ("a", Shift("s", (7,)), ["input"], (7,))),
    "combine": program(
        C,
        ("a", conv(3), ["input"], C),
        ("b", Combine((2.0, -1.0)), ["input", "a"], C),
        ("c", Combine((0.3, -0.25, 1.0)), ["b", "a", "input"], C),
    ),
    "weigh": program(
        C,
        ("a", Weigh(np.linspace(-1, 1, 8)), ["input"], C),
        ("b", Weigh(np.arange(3.0).reshape(3, 1, 1)), ["a"], C),
    ),
    "rearrange": program(
        C,
        ("a", conv(3), ["input"], C),
        ("b", Rearrange((2, 7), np.array([5, -1, 0, 191, 7, 7, -1, *range(60, 67)])), ["a"], (2, 7)),
        ("c", Rearrange((14,)), ["b"], (14,)),
    ),
    "sum": program(C, ("a", Sum((2, 3), False), ["input"], (3,)), ("b", Sum((1,), True), ["a"], (1,))),
    "multiply by one of each channel": program(
        C,
        ("a", conv(3), ["input"], C),
        ("b", AveragePool((8, 8), (8, 8)), ["a"], (3, 1, 1)),
        ("c", Multiply(), ["a", "b"], C),
    ),
    "clamp": program(C, ("a", PiecewiseLinear(0.0, (0.0, 1.5), (1.0, -1.0), 0.5), ["input"], C)),
    "clamp of a product": program(
        C,
        ("a", conv(3), ["input"], C),
        ("b", PiecewiseLinear(0.0, (-0.5, 0.5), (1.0, -1.0)), ["a"], C),
        ("c", Relu(), ["b"], C),
    ),
    "leaky relu of a product": program(
        C,
        ("a", conv(3), ["input"], C),
        ("b", PiecewiseLinear(0.1, (0.0,), (0.9,)), ["a"], C),
        ("c", Add(), ["b", "a"], C),
    ),
    "five knots": program(
        C,
        (
            "a",
            PiecewiseLinear(-0.2, (-2.0, -1.0, 0.0, 1.0, 2.0), (0.1, 0.2, -0.7, 0.4, 0.3), -1.0),
            ["input"],
            C,
        ),
    ),
    "flatten": program(C, ("a", Flatten(2, 3), ["input"], (3, 64)), ("b", fc(2, 64), ["a"], (3, 2))),
}


def in_ring(shape, seed: int) -> torch.Tensor:
    """Uniform words of 64 bits."""
    return torch.randint(-(2**63), 2**63 - 1, shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("word", [torch.int64, torch.int32])
@pytest.mark.parametrize("batch", [1, 3, 70])
@pytest.mark.parametrize(("size", "padding"), [((4, 4), 1), ((8, 5), 0), ((16, 16), 1), ((19, 22), 2)])
def test_winograd_is_four_times_the_convolution_in_the_ring(size, padding, batch, word):
    x, kernel = in_ring((batch, 3, *size), batch), in_ring((4, 3, 3, 3), 0)
    expected = (4 * torch.nn.functional.conv2d(x, kernel, padding=padding)).to(word)
    x, kernel = x.to(word), kernel.to(word)
    u = winograd.arrange(kernel, tuple(expected.shape[2:]))
    got = winograd.convolve(x, u, (padding, padding), tuple(expected.shape[1:]))
    assert torch.equal(got, expected)


@pytest.mark.parametrize("word", [torch.int64, torch.int32])
@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize(
    ("kernel", "stride", "padding", "size"),
    [
        ((5, 5), (1, 1), (2, 2), (32, 32)),
        ((5, 5), (2, 2), (2, 1), (33, 40)),
        ((7, 7), (2, 2), (3, 3), (32, 32)),
        ((7, 7), (2, 2), (3, 3), (16, 15)),
        ((9, 9), (2, 2), (4, 4), (35, 32)),
        ((6, 4), (2, 1), (0, 5), (19, 17)),
        ((4, 3), (1, 1), (1, 1), (17, 18)),
        ((11, 7), (3, 3), (1, 9), (40, 20)),
        ((8, 10), (1, 1), (0, 0), (8, 10)),
    ],
)
def test_winograd_of_larger_kernels_in_the_ring(kernel, stride, padding, size, batch, word):
    x, w = in_ring((batch, 3, *size), batch), in_ring((4, 3, *kernel), 0)
    expected = (4 * torch.nn.functional.conv2d(x, w, None, stride, padding)).to(word)
    u = winograd.arrange(w.to(word), tuple(expected.shape[2:]), stride)
    got = winograd.convolve(x.to(word), u, padding, tuple(expected.shape[1:]), kernel, stride)
    assert torch.equal(got, expected)


@pytest.mark.parametrize(
    ("size", "stride", "points"),
    [(3, 1, 4), (4, 1, 6), (5, 1, 7), (7, 1, 10), (5, 2, 7), (7, 2, 10), (9, 2, 13)],
)
def test_pieces_of_larger_kernels_save_products(size, stride, points):
    """Each tap belongs to one piece, and two outputs need `points` products instead of twice the taps."""
    found = winograd.pieces(size, stride)
    taps = sorted(piece.phase + stride * (2 * piece.shift + tap) for piece in found for tap in piece.taps)
    assert taps == list(range(size))
    assert sum(piece.last - piece.first for piece in found) == points
    pixels = (16, 16)
    assert (
        winograd.arrange(torch.ones(1, 2, size, size).long(), pixels, (stride, stride)).shape[0] == points**2
    )


def test_a_kernel_that_saves_nothing_has_no_pieces():
    assert not winograd.suits((3, 3), (2, 2))
    with pytest.raises(ValueError, match=r"a kernel of \(3, 3\) taps is too small for the stride \(2, 2\)"):
        winograd.arrange(torch.ones(1, 1, 3, 3).long(), (16, 16), (2, 2))


@pytest.mark.parametrize("word", [torch.int64, torch.int32])
@pytest.mark.parametrize(
    ("operator", "size", "gain"),
    [
        (conv(64, 64, 5, bias=False), (16, 16), 2),
        (conv(65, 64, 7, bias=False, stride=(2, 2)), (32, 31), 2),
        (conv(64, 64, 7, bias=False, stride=(2, 2)), (16, 16), 0),  # few tiles
        (conv(64, 63, 5, bias=False), (16, 16), 0),  # few channels
        (conv(5, 3, 5, bias=False), (32, 32), 0),  # panels of one row
        (conv(5, 3, 9, bias=False, stride=(2, 1)), (20, 64), 0),  # parts of rows
        (conv(5, 3, 5, bias=False, dilation=(2, 1), padding=(4, 2)), (24, 16), 0),  # several rows
        (conv(5, 3, 5, bias=False), (17, 19), 0),  # no panels
    ],
)
def test_every_lowering_of_a_convolution_in_the_ring(operator, size, gain, word):
    o = operator
    x, w = in_ring((2, o.weight_shape[1], *size), 1), in_ring(o.weight_shape, 2)
    expected = torch.nn.functional.conv2d(x, w, None, o.stride, o.padding, o.dilation)
    step = Step("s", o, ("input",), (tuple(x.shape[1:]),), tuple(expected.shape[1:]))
    how = lowering(step)
    assert how.gain == gain
    got = how.apply(x.to(word), how.arrange(w.to(word)))
    assert torch.equal(got, (expected << gain).to(word))


@pytest.mark.parametrize("word", [torch.int64, torch.int32])
@pytest.mark.parametrize(
    ("m", "k", "n"), [(1, 1, 1), (5, 7, 9), (4, 16, 32), (9, 33, 75), (6, 8, 64), (3, 5, 128)]
)
def test_products_in_the_ring(m, k, n, word):
    a, b, c = (in_ring(shape, n).to(word) for shape in ((3, m, k), (3, k, n), (m, n)))
    expected = torch.stack([x.long() @ y.long() for x, y in zip(a, b, strict=True)]).to(word)
    out = torch.empty_like(expected)
    turned = a.transpose(1, 2).contiguous().transpose(1, 2)
    assert torch.equal(gemm.multiply(turned, b, out), expected)
    assert torch.equal(gemm.multiply(a, gemm.pack(b), out, packed=True), expected)
    total = c.clone()
    gemm.multiply(a, b, total.expand(3, m, n), add=True)
    assert torch.equal(total, c + expected.sum(0).to(word))
    with pytest.raises(ValueError, match="no product of"):
        gemm.multiply(a, b[:, :, : n - 1], out)
    with pytest.raises(ValueError, match=r"no product of .* torch\.int"):
        gemm.multiply(a, b, out.to(torch.int16))


@pytest.mark.parametrize("word", [torch.int64, torch.int32])
@pytest.mark.parametrize(
    "operator",
    [
        conv(6, 4, groups=2, bias=False),
        conv(8, 4, groups=4, bias=False, stride=(2, 1), padding=(0, 2)),
        conv(4, 4, groups=4, bias=False, dilation=(2, 3)),
        Convolution("w", None, (4, 1, 5, 2), groups=4, padding=(1, 0), stride=(2, 3)),
        Convolution("w", None, (4, 1, 3, 3), groups=4, padding=(1, 1)),
        Convolution("w", None, (4, 1, 3, 3), groups=4, padding=(3, 2), stride=(3, 2), dilation=(3, 2)),
    ],
)
def test_grouped_convolutions_in_the_ring(operator, word):
    for size in ((9, 8), (16, 37)):  # a few words, and whole blocks of vectors
        x, w = in_ring((2, 4, *size), 1), in_ring(operator.weight_shape, 2)
        o = operator
        expected = torch.nn.functional.conv2d(x, w, None, o.stride, o.padding, o.dilation, o.groups)
        assert torch.equal(grouped.convolve(o, x.to(word), w.to(word)), expected.to(word))


@pytest.fixture(scope="module")
def trio():
    with Trio() as made:
        yield made


def images(made, batch: int, seed: int = 0) -> torch.Tensor:
    return torch.randn((batch, *made.input_shape), generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("name", PROGRAMS)
def test_answers_and_traffic(trio, name):
    made = PROGRAMS[name]
    weights = random_weights(made)
    trio.load(made, weights)
    for batch in (1, 3):
        x = images(made, batch)
        expected = plaintext(made, weights, x)
        torch.testing.assert_close(trio.infer(x).double(), expected, atol=2e-3, rtol=1e-3)
        trio.prepare(batch)
        for rank, costs in enumerate(trio.online(x, "profile")):
            predicted = cost.step_traffic(make_plan(made), batch, rank)
            for step in costs[:-1]:
                assert (step.rounds, step.bytes_sent) == predicted[step.name], step.name
            assert (costs[-1].rounds, costs[-1].bytes_sent) == predicted[OPENING]
            listed = [(s.rounds, s.by_party[rank]) for s in cost.traffic("lean", made, batch, 2)]
            assert listed == [(s.rounds, s.bytes_sent) for s in costs]


@pytest.fixture(scope="module", params=["lean32", "lean-k"])
def calibrated_trio(request):
    with Trio(engine=request.param) as made:
        yield request.param, made


@pytest.mark.parametrize("name", PROGRAMS)
def test_answers_and_traffic_with_calibrated_bounds(calibrated_trio, name):
    """The same with the bounds of these images: in words of 32 bits, and with the signs of few bits."""
    engine, trio = calibrated_trio
    weights = random_weights(PROGRAMS[name])
    x = images(PROGRAMS[name], 3)
    made = calibrated(PROGRAMS[name], weights, x)
    expected = plaintext(made, weights, x)
    trio.load(made, weights)
    largest = max(1.0, expected.abs().max().item())
    error = 0.05 if engine == "lean32" else 0.002
    assert (trio.infer(x).double() - expected).abs().max() < error * largest
    trio.prepare(3)
    plan = make_plan(made, *arithmetic(engine))
    for rank, costs in enumerate(trio.online(x, "profile")):
        predicted = cost.step_traffic(plan, 3, rank)
        assert [(s.rounds, s.bytes_sent) for s in costs[:-1]] == [predicted[s.name] for s in costs[:-1]]
        assert (costs[-1].rounds, costs[-1].bytes_sent) == predicted[OPENING]
        listed = [(s.rounds, s.by_party[rank]) for s in cost.traffic(engine, made, 3, 2)]
        assert listed == [(s.rounds, s.bytes_sent) for s in costs]


def layers(name: str, batch: int = 1, rank: int = 0):
    return cost.step_traffic(make_plan(PROGRAMS[name]), batch, rank)


def test_the_cost_of_layers_in_numbers():
    steps = layers("fused masked relu", batch=3)
    n, linear = 3 * 6, 3 * (192 - 6)
    assert steps["a"] == (1, 8 * 3 * 192)
    assert steps["b"] == (5, 1680 * 1 + 8 * n + 8 * linear)
    assert layers("masked relu", batch=3)["a"] == (5, 1680 + 8 * n)
    assert layers("nothing kept")["b"] == (0, 0)
    pool = layers("max pool")["a"]
    assert pool == (10, (1680 * 2 + 8 * 96) + (1680 * 1 + 8 * 48))
    assert layers("multiply")["c"] == (3, (8 + 8 + 16) * 192)
    assert layers("square")["a"] == (1, 8 * 192)
    gated = layers("multiply by one of each channel")["c"]
    assert gated == (3, 8 * (192 + 3) + 8 * (192 + 3))  # both are truncated first
    assert layers("five knots")["a"] == (5, 1680 * 5 * 3 + 8 * 5 * 192)
    leaky = layers("leaky relu of a product")["b"]
    assert leaky == (5, 1680 * 3 + 8 * 192 + 8 * 192)
    for name in ("shift", "rearrange", "combine"):
        assert layers(name)["b"] == (0, 0), name
    pooled = layers("pool and classifier")
    assert [pooled[name] for name in "cde"] == [(0, 0), (0, 0), (1, 8 * 4)]
    assert pooled[OPENING] == (2, 8 * 3 + 8 * 3)
    assert layers("pool and classifier", rank=1)[OPENING] == (2, 8 * 3)


def test_a_value_at_double_scale_is_truncated_once():
    plan = make_plan(PROGRAMS["used twice at double scale"])
    assert {name: entry.truncate for name, entry in plan.steps.items() if entry.truncate} == {"b": ("a",)}


def test_scales_bound_the_values():
    limits = value_limits(PROGRAMS["pool and classifier"])
    assert limits["a"] == 2.0**30
    assert limits["e"] == 2.0 ** (62 - 38)
    for made in PROGRAMS.values():
        assert min(value_limits(made).values()) >= 2.0**22


def test_an_unknown_operator_is_named():
    with pytest.raises(NotImplementedError, match=r"'str' \(step 'odd'\).*stock"):
        make_plan(program(C, ("odd", "softmax", ["input"], C)))


def test_load_opens_the_weights_once(trio):
    made = PROGRAMS["pool and classifier"]
    before = [(node.meter.rounds, node.meter.bytes_sent) for node in trio.nodes[:2]]
    trio.load(made, random_weights(made))
    size = 4 * 3 * 9 + 3 * 4
    for rank, node in enumerate(trio.nodes[:2]):
        rounds, sent = before[rank]
        assert node.meter.rounds - rounds == 2
        assert node.meter.bytes_sent - sent == 8 * size + (KEY_BYTES if rank == 1 else 0)


def test_prepare_tells_the_bytes_of_randomness(trio):
    made = program((8, 64), ("a", Relu(), ["input"], (8, 64)))
    trio.load(made, {})
    held0, held1, dealt = trio.prepare(2)
    tile = 8 * 8
    assert held0 == held1 == 2 * tile * (210 + 518) + 1024 * (8 + 16)
    assert dealt == 2 * tile * 518 + 1024 * 16


def test_nothing_is_consumed_twice():
    made = PROGRAMS["pool between convolution and relu"]
    weights = random_weights(made)
    x = images(made, 2)
    with Trio() as trio:
        p0, p1, dealer = trio.nodes
        names = set()
        for seed in range(2):
            trio.load(made, weights)
            names |= {stream.name for stream in (*dealer.streams, p0._pair)}
            trio.prepare(2)
            trio.prepare(2)  # replaces the first
            trio.online(x)
            trio.prepare(2)
            trio.online(x, "profile")
            trio.prepare(1)
            with pytest.raises(NotPrepared, match=r"batch 1 is prepared, batch 2 is asked for"):
                trio.online(x)
            trio.online(x[:1])
            for party, stream in zip((p0, p1), dealer.streams, strict=True):
                assert party._stream.name == stream.name
                assert party._stream.position == stream.position
            trio.prepare(2 + seed)
        assert len(names) == 6  # every load has keys of its own
        for party in (p0, p1):
            assert {name for name, _, _ in party.consumed} < names
            for name in names:
                ranges = sorted((a, b) for stream, a, b in party.consumed if stream == name)
                assert all(stop <= start for (_, stop), (start, _) in pairwise(ranges))
            total = [a for _, a, _ in party.consumed]
            assert len(total) == len(party.consumed) > 2 * 3 * 2


def test_what_is_taken_is_gone(trio):
    made = PROGRAMS["fused relu"]
    trio.load(made, random_weights(made))
    x = images(made, 1)
    with pytest.raises(NotPrepared, match="nothing is prepared"):
        trio.online(x)
    trio.prepare(1)
    trio.online(x)
    with pytest.raises(NotPrepared, match="nothing is prepared"):
        trio.online(x)
    with pytest.raises(NotPrepared, match="then start"):
        trio.nodes[0]._take("a")
    trio.prepare(1)
    trio.online(x)
    for party in trio.nodes[:2]:
        with pytest.raises(NotPrepared, match="'b' was used already"):
            party._take("b")
    trio.prepare(1)
    trio.load(made, random_weights(made))
    with pytest.raises(NotPrepared):
        trio.online(x)


def test_wrong_calls_say_what_is_expected(trio):
    made = PROGRAMS["relu of the input"]
    trio.load(made, {})
    trio.prepare(1)
    with pytest.raises(ValueError, match=r"expected shape \(1, 3, 8, 8\), got \(1, 3, 4, 4\)"):
        trio.nodes[1].share(torch.zeros(1, 3, 4, 4), 1)
    with pytest.raises(ValueError, match="party 0 holds the weights"):
        trio.nodes[0].load(made, None)


def test_keystreams_advance_and_agree():
    one, two = Keystream(b"k" * KEY_BYTES), Keystream(b"k" * KEY_BYTES)
    whole = one.words(100_000)
    parts = np.concatenate([two.words(n) for n in (1, 99, 65_536, 34_364)])
    assert (whole == parts).all()
    assert one.position == two.position == 800_000
    assert len(np.unique(whole)) == whole.size
    assert Keystream(b"K" * KEY_BYTES).name != one.name


def test_three_parties_are_refused():
    with pytest.raises(ValueError, match=r"2 parties, not 3.*engine='stock'"):
        make_node(Setting("lean", "party", 0, 3, "file:///nowhere", "dealer", 1.0))
    assert ENGINE.helpers("dealer") == ("dealer",)


def pair(timeout_s: float) -> tuple[Channel, Channel]:
    ends = socket.socketpair()
    return tuple(Channel(Wire(end), f"party {1 - i}", timeout_s) for i, end in enumerate(ends))


def test_large_exchanges_pass_both_ways_at_once():
    ends = pair(10)
    data = [np.random.default_rng(rank).integers(0, 2**63, 500_000) for rank in (0, 1)]
    got = [np.empty_like(one) for one in data]
    thread = threading.Thread(target=ends[1].exchange, args=(data[1], got[1]))
    thread.start()
    ends[0].exchange(data[0], got[0])
    thread.join()
    assert (got[0] == data[1]).all()
    assert (got[1] == data[0]).all()
    for end in ends:
        end.close()


def test_arrays_are_opened_in_place():
    ends = pair(10)
    data = [np.random.default_rng(rank).integers(0, 2**62, 700_001) for rank in (0, 1)]
    expected = data[0] + data[1]
    thread = threading.Thread(target=ends[1].open, args=(data[1],))
    thread.start()
    ends[0].open(data[0])
    thread.join()
    assert (data[0] == expected).all()
    assert (data[1] == expected).all()
    for end in ends:
        end.open(data[0][:0])
        end.close()


def test_a_silent_peer_and_a_dead_one():
    here, there = pair(0.1)
    with pytest.raises(TimeoutError, match=r"party 1 was silent for 0\.1 s"):
        here.receive(bytearray(8))
    there.close()
    with pytest.raises(ConnectionError, match="party 1 closed the connection"):
        here.receive(bytearray(8))
    with pytest.raises(ConnectionError, match="party 1 closed the connection"):
        here.send(np.zeros(1 << 20))
    here.close()


def test_a_group_that_does_not_come_together_says_so():
    with tempfile.TemporaryDirectory() as folder, pytest.raises(Exception, match=r"(?i)time|0\.2 s|wait"):
        make_node(settings(folder, timeout_s=0.2)[0])


def _play(setting, connection) -> None:
    made = PROGRAMS["pool between convolution and relu"]
    try:
        node = make_node(setting)
        if setting.role == "dealer":
            node.load(made)
            connection.send(node.prepare(2))
        else:
            node.load(made, random_weights(made) if setting.rank == 0 else None)
            node.prepare(2)
            node.start(2)
            shared = node.share(images(made, 2) if setting.rank == 1 else None, 2)
            node.barrier()
            connection.send(node.run(shared))
            if setting.rank == 0:
                node.barrier()
        connection.recv()
    except Exception as error:
        connection.send(f"{type(error).__name__}: {error}")


def test_three_processes_and_the_death_of_one():
    made = PROGRAMS["pool between convolution and relu"]
    context = multiprocessing.get_context("spawn")
    with tempfile.TemporaryDirectory() as folder:
        ends, processes = [], []
        for setting in settings(folder, timeout_s=50):
            here, there = context.Pipe()
            process = context.Process(target=_play, args=(setting, there), daemon=True)
            process.start()
            there.close()
            ends.append(here)
            processes.append(process)
        try:
            replies = [end.recv() for end in ends]
            assert replies[0] is None
            expected = plaintext(made, random_weights(made), images(made, 2))
            torch.testing.assert_close(replies[1].double(), expected, atol=2e-3, rtol=1e-3)
            assert replies[2] > 0
            os.kill(processes[1].pid, signal.SIGKILL)
            assert ends[0].poll(10)
            assert ends[0].recv().startswith("ConnectionError: party 1 closed the connection")
        finally:
            for process in processes:
                process.kill()
                process.join()
            for end in ends:
                end.close()
