"""Benchmarks operators alone, the idle harness, and the suite against a network written by hand.

An operator's time and traffic are those of its step in a profiled inference, so that sharing and opening do
not blur it. Rows go to results/operators.json.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy import stats
from torch import nn

from pibench.engines import ENGINES
from pibench.engines.lean.local import check_relu
from pibench.measure.row import context
from pibench.measure.session import TIMEOUT_S, images
from pibench.measure.subject import Subject
from pibench.models.files import demand_room, writing
from pibench.models.variants import variant
from pibench.parties.driver import Parties, Traffic
from pibench.store.operators import put_operators, read_operators
from pibench.store.results import ResultsError
from pibench.store.settings import TRAINED_WIDTH, WIDTH

ROUNDS = 15
PAIRS = 30
OVERHEAD = 1.03  # what the suite may cost over the same network by hand


def _image(channels: int, size: int) -> torch.Tensor:
    return torch.randn(2, channels, size, size, generator=torch.Generator().manual_seed(0))


def _conv(channels: int) -> nn.Module:
    return nn.Conv2d(channels, channels, 3, padding=1, bias=False)


# name -> (module from channels, channels of stage 1 as a multiple of the width, size, stock and lean traffic)
# Traffic of x elements in, y out and w weights is exact: facts (stock) and pibench.engines.lean (lean).
Expected = Callable[[int, int, int], tuple[int, int]]


def _opened(x: int, y: int, w: int) -> tuple[int, int]:
    return 1, 8 * (x + w)


def _masked(x: int, y: int, w: int) -> tuple[int, int]:
    return 1, 8 * x


def _nothing(x: int, y: int, w: int) -> tuple[int, int]:
    return 0, 0


def _stock_relu(x: int, y: int, w: int) -> tuple[int, int]:
    return 9, 232 * x


def _lean_relu(x: int, y: int, w: int) -> tuple[int, int]:
    return 5, 1680 * -(-x // 64) + 8 * x


def _stock_max_pool(x: int, y: int, w: int) -> tuple[int, int]:
    return 46, 2960 * y


def _lean_max_pool(x: int, y: int, w: int) -> tuple[int, int]:
    """Returns the cost of two levels of b + ReLU(a - b): two comparisons an output, then one."""
    levels = [_lean_relu(n, n, 0) for n in (2 * y, y)]
    return sum(rounds for rounds, _ in levels), sum(sent for _, sent in levels)


OPERATORS: dict[str, tuple[Callable[[int], nn.Module], int, int, dict[str, Expected]]] = {
    **{
        f"convolution {size}x{size}": (_conv, multiple, size, {"stock": _opened, "lean": _masked})
        for multiple, size in ((1, 32), (2, 16), (4, 8), (8, 4))
    },
    "relu": (lambda _: nn.ReLU(), 1, 32, {"stock": _stock_relu, "lean": _lean_relu}),
    "average pool 2x2": (lambda _: nn.AvgPool2d(2), 1, 32, {"stock": _nothing, "lean": _nothing}),
    "max pool 2x2": (lambda _: nn.MaxPool2d(2), 1, 32, {"stock": _stock_max_pool, "lean": _lean_max_pool}),
}


@pytest.fixture(scope="module")
def parties() -> Iterator[Callable[[str], Parties]]:
    """Returns running parties of an engine, one group for each engine."""
    running: dict[str, Parties] = {}

    def of(engine: str) -> Parties:
        if engine not in running or not running[engine].pids:
            running[engine] = Parties(engine=engine, timeout_s=TIMEOUT_S, check=False).__enter__()
        return running[engine]

    yield of
    for group in running.values():
        group.__exit__(None, None, None)


@pytest.fixture(scope="module")
def write(results: Path) -> Callable[[dict[str, Any]], None]:
    """Writes a row to results/operators.json at once, in the place of the row of the same name."""
    path = results / "operators.json"
    where = context()
    try:
        read_operators(path)
        with writing(path, ResultsError, "make room or allow writing there, or choose another --results"):
            demand_room(path)
    except ResultsError as error:
        pytest.exit(str(error), returncode=1)
    return lambda row: put_operators(path, [row | where])


@pytest.mark.parametrize("engine", ["stock", "lean"])
@pytest.mark.parametrize("name", OPERATORS)
def bench_operator(
    name: str,
    engine: str,
    parties: Callable[[str], Parties],
    benchmark: Any,
    smoke: bool,
    write: Callable[[dict[str, Any]], None],
    announce: Callable[[str], None],
) -> None:
    """Times one operator and asserts its rounds and bytes."""
    build, multiple, size, expected = OPERATORS[name]
    channels = multiple * (8 if smoke else WIDTH)
    module, image = build(channels), _image(channels, size)
    group = parties(engine)
    subject = Subject(module, image, 1, group)
    steps: list[Any] = []

    def profile() -> None:
        steps.append(group.profile(subject.images)[0])

    subject.prepare()
    assert subject.right(subject.infer()), f"{name} gives a wrong answer on the {engine} engine"
    profile()  # warm-up
    steps.clear()
    benchmark.pedantic(profile, rounds=1 if smoke else ROUNDS)
    x, y = image[0].numel(), subject.truth.logits.numel()
    weights = sum(p.numel() for p in module.parameters())
    traffic = expected[engine](x, y, weights)
    assert (steps[0].rounds, steps[0].bytes_sent) == traffic
    seconds = [step.seconds for step in steps]
    row = {
        "name": name,
        "engine": engine,
        "input": [channels, size, size],
        "outputs": y,
        "weights": weights,
        "online_s": seconds,
        "rounds": traffic[0],
        "bytes_sent": traffic[1],
        "max_error": subject.max_error,
    }
    write(row)
    benchmark.extra_info.update({key: row[key] for key in ("rounds", "bytes_sent", "input")})
    announce(
        f"{name}, {engine}: {statistics.median(seconds) * 1e3:.2f} ms, {traffic[1]:,} B, {traffic[0]} rounds"
    )


def local_truncation_failures(elements: int, mean: float, chunk: int = 1 << 22) -> int:
    """Counts wrong results of the local truncation of two parties (SecureML, S&P 2017; CrypTen's `div_`).

    Values are two-sided exponential with mean |v| = `mean`, at 32 fractional bits, shared afresh; both shares
    are divided by 2^16. The law says mean / 2^32 an element.
    """
    draw = np.random.default_rng(1)
    failures = 0
    for start in range(0, elements, chunk):
        n = min(chunk, elements - start)
        v = draw.exponential(mean, n) * draw.choice((-1.0, 1.0), n)
        z = (v * 2.0**32).astype(np.int64)
        share = draw.integers(-(2**63), 2**63, n, dtype=np.int64)
        parts = (torch.from_numpy(part).div(1 << 16, rounding_mode="trunc") for part in (share, z - share))
        failures += int((sum(parts) - torch.from_numpy(z >> 16)).abs().gt(2).sum())
    return failures


def bench_exact_relu(benchmark: Any, smoke: bool, write: Any, announce: Callable[[str], None]) -> None:
    """Evaluates 1e8 ReLUs of mean |v| = 6e3 on the lean engine: no element is off by more than one unit.

    The row also holds the result of a local truncation of as many values, and the number that its law
    expects.
    """
    elements, mean = 10**5 if smoke else 10**8, 6e3
    check = benchmark.pedantic(lambda: check_relu(elements, mean), rounds=1)
    assert (check.elements, check.failures) == (elements, 0)
    assert check.worst <= 1
    local, law = local_truncation_failures(elements, mean), elements * mean / 2**32
    assert stats.poisson.sf(local - 1, law) > 1e-6
    assert stats.poisson.cdf(local, law) > 1e-6
    write(
        {
            "name": "exact truncation",
            "engine": "lean",
            "elements": elements,
            "mean": mean,
            "failures": check.failures,
            "worst_units": check.worst,
            "local_truncation_failures": local,
            "local_truncation_law": law,
        }
    )
    announce(f"{elements:.0e} ReLUs: 0 failures; local truncation {local}, its law {law:.3g}")


@pytest.mark.parametrize("engine", ["stock", "lean"])
def bench_idle(engine: str, parties: Callable[[str], Parties], benchmark: Any, write: Any) -> None:
    """Times an empty command: the harness's part of the driver's clock."""
    group = parties(engine)
    seconds: list[float] = []
    benchmark.pedantic(lambda: seconds.append(group.idle()), rounds=200, warmup_rounds=20)
    write({"name": "idle harness", "engine": engine, "online_s": seconds, "rounds": 0, "bytes_sent": 0})


# engine -> (its twin by hand, width, whether the twin is metered). Under SPU fixed costs weigh more at a
# small width: the stricter test. SPU by hand is not metered: tests/test_spu.py compares what a script sends.
BY_HAND = {"stock": ("byhand", WIDTH, True), "spu-semi2k": ("spu-byhand", TRAINED_WIDTH, False)}


@pytest.mark.parametrize("engine", BY_HAND)
def bench_by_hand(
    engine: str, benchmark: Any, smoke: bool, write: Any, announce: Callable[[str], None]
) -> None:
    """Holds the suite against the same ResNet-18 written by hand, on CrypTen tensors or for SPU.

    Rounds of the two alternate. The 95 % interval of the median paired ratio must reach below 1.03.
    """
    known, (twin, width, metered) = ENGINES[engine], BY_HAND[engine]
    if (missing := known.missing()) is not None:
        pytest.skip(missing)
    model, pictures = variant("baseline").build(width=8 if smoke else width), images()[0]
    with (
        Parties(engine=engine, timeout_s=TIMEOUT_S, check=False) as suite,
        Parties(engine=twin, timeout_s=TIMEOUT_S, check=False) as hand,
    ):
        subjects = {"suite": Subject(model, pictures, 1, suite), "hand": Subject(model, pictures, 1, hand)}
        traffic: dict[str, Traffic] = {
            name: subject.parties.traffic(subject.images) for name, subject in subjects.items()
        }
        if metered:
            assert traffic["suite"] == traffic["hand"]
        seconds: dict[str, list[float]] = {"suite": [], "hand": []}
        right: dict[str, list[bool]] = {"suite": [], "hand": []}

        def pair() -> None:
            order = ["suite", "hand"] if len(seconds["suite"]) % 2 else ["hand", "suite"]
            for name in order:
                subjects[name].prepare()
                right[name].append(subjects[name].right(subjects[name].infer()))
                seconds[name].append(subjects[name].parties.online_s)

        benchmark.pedantic(pair, rounds=1 if smoke else PAIRS, warmup_rounds=0)
        for subject in subjects.values():
            subject.demand_explanation()
    both = np.array(right["suite"]) & np.array(right["hand"])
    ratios = (np.array(seconds["suite"]) / np.array(seconds["hand"]))[both]
    row = {
        "name": "resnet18, suite against by hand",
        "engine": engine,
        f"{known.clocks[-1]}_s": seconds["suite"],
        f"by_hand_{known.clocks[-1]}_s": seconds["hand"],
        "rounds": traffic["suite"].rounds,
        "bytes_sent": traffic["suite"].bytes_sent,
        "ratio_median": float(np.median(ratios)),
    }
    if len(ratios) > 1:
        interval = stats.bootstrap(
            (ratios,), np.median, method="percentile", rng=np.random.default_rng(0)
        ).confidence_interval
        row |= {"ratio_low": float(interval.low), "ratio_high": float(interval.high)}
        assert interval.low < OVERHEAD
        between = f"{interval.low:.3f} to {interval.high:.3f}"
        announce(f"{engine}, suite / by hand: {row['ratio_median']:.3f} ({between})")
    write(row)
