"""The traffic laws of SPU's protocols: they give what the reference's rows and SPU's own counters hold."""

from __future__ import annotations

import statistics
import subprocess
import sys
from collections.abc import Iterator
from itertools import product
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from networks import Apply
from test_spu import SPU, needs_spu
from torch import Tensor, nn

from pibench.costs.compute import pace_of
from pibench.costs.predict import Prediction, predict
from pibench.engines import ENGINES
from pibench.engines.spu import OPERATORS, cheetah
from pibench.engines.spu.primitives import (
    MatrixProduct,
    Truncation,
    ValueProduct,
    WeightProduct,
    primitives,
)
from pibench.links.link import LINKS
from pibench.models.graph.relu import MaskedReLU
from pibench.models.variants import VARIANTS
from pibench.parties.driver import Parties
from pibench.program import ir
from pibench.program.lower import lower
from pibench.store.results import Row, read_rows

REFERENCE = Path(__file__).parent.parent / "results" / "reference" / "bench.json"
ROWS = [row for row in read_rows(REFERENCE) if row["engine"] in SPU]
NAMES = sorted({row["variant"] for row in ROWS})
SPREAD_BYTES = 400
"""How far the bytes of one of CHEETAH's compressed ciphertexts may be from their mean."""
KEY_BYTES = 161_000
"""The key that a party of CHEETAH sends before the first elementwise product of a session."""


@pytest.fixture(scope="module")
def programs() -> dict[str, ir.Program]:
    """The programs of the reference's rows, at width 64."""
    image = torch.zeros(1, 3, 32, 32)
    return {name: lower(VARIANTS[name].build(64, weights=None), image).program for name in NAMES}


def rows_of(engine: str) -> list[Row]:
    found = [row for row in ROWS if row["engine"] == engine]
    assert len(found) == 12
    assert {(row["width"], row["batch"], row["parties"]) for row in found} == {
        (64, 1, ENGINES[engine].parties[0])
    }
    return found


def predicted(row: Row, programs: dict[str, ir.Program]) -> Prediction:
    return predict(programs[row["variant"]], row["engine"], row["batch"], row["parties"])


def rounds_of(row: Row) -> list[tuple[int, list[int]]]:
    """Lists the messages and the bytes by party of every repetition."""
    found = row.get("traffic_of_rounds") or [row["traffic"]]
    return [(each["rounds"], each["bytes_sent_by_party"]) for each in found]


def test_semi2k_is_the_rows_exactly(programs):
    for row in rows_of("spu-semi2k"):
        made = predicted(row, programs)
        assert rounds_of(row) == [(made.rounds, list(made.by_party))]
        assert made.hops == made.rounds == row["traffic"]["hops"], "every message is a round of both"
        for step, layer in zip(made.steps, row["layers"] or (), strict=False):
            found = tuple(layer[name] for name in ("name", "kind", "rounds", "bytes_sent"))
            assert (step.name, step.kind, step.rounds, step.bytes_sent) == found


def truncated(program: ir.Program, batch: int = 1) -> list[int]:
    made = [each for _, found in primitives(program, batch) for each in found]
    return [each.count for each in made if isinstance(each, Truncation)]


def test_aby3_is_the_rows_exactly_but_for_who_is_the_third_in_a_truncation(programs):
    """All parties together send what the law says; the third sends 8 bytes and 1 message less."""
    for row in rows_of("spu-aby3"):
        made, counts = predicted(row, programs), truncated(programs[row["variant"]])
        for messages, by_party in rounds_of(row):
            assert sum(by_party) == made.bytes_total
            assert abs(messages - made.rounds) <= len(counts)
            for sent, law in zip(by_party, made.by_party, strict=True):
                assert abs(sent - law) <= 8 * sum(counts)
        for step, layer in zip(made.steps, row["layers"] or (), strict=False):
            if step.kind == "relu":
                assert (step.rounds, step.bytes_sent) == (layer["rounds"], layer["bytes_sent"])


def ciphertexts(program: ir.Program, batch: int = 1) -> list[int]:
    """Counts the messages that each party sends for products in an inference: nearly all are ciphertexts."""
    made = [each for _, found in primitives(program, batch) for each in found]
    products = [each for each in made if isinstance(each, MatrixProduct | WeightProduct | ValueProduct)]
    prices = cheetah.prices(products, refills=False)
    return [round(sum(price.messages[rank] for price in prices)) for rank in range(2)]


def test_cheetah_is_the_rows_but_for_one_refill_and_the_spread_of_ciphertexts(programs):
    """A repetition refills a stock of transfers as often as the mean says, rounded down or up."""
    for row in rows_of("spu-cheetah"):
        made, sent = predicted(row, programs), ciphertexts(programs[row["variant"]])
        for messages, by_party in rounds_of(row):
            for rank in range(2):
                refill = sum(each.sent[rank] for each in cheetah.REFILL)
                assert abs(by_party[rank] - made.by_party[rank]) <= refill + SPREAD_BYTES * sent[rank]
            assert abs(messages - made.rounds) <= max(cheetah.REFILL[0].messages)


def test_cheetahs_layers_are_whole_refills_away(programs):
    """A layer's bytes without the stock are exact for comparisons, and near for ciphertexts."""
    compared = 0
    for row in rows_of("spu-cheetah"):
        for (step, made), layer in zip(
            primitives(programs[row["variant"]], 1), row["layers"] or (), strict=False
        ):
            assert step.name == layer["name"]
            bare = cheetah.prices(made, refills=False)
            by_party = [sum(price.sent[rank] for price in bare) for rank in range(2)]
            refills = {0.0, *(each.sent[rank] for each in cheetah.REFILL for rank in range(2))}
            sent = sum(max(price.messages) for price in bare) if step.kind in ("convolution", "linear") else 0
            most = SPREAD_BYTES * sent
            assert any(
                abs(max(by_party[0] + own, by_party[1] + other) - layer["bytes_sent"]) <= most
                for own in refills
                for other in refills
            ), step.name
            compared += 1
    assert compared == 237


def test_modelled_seconds_are_within_a_sixth_of_the_measured_ones(programs):
    """Computing as the profiled layers of the reference, the link by the law: measured and emulated rows."""
    every = read_rows(REFERENCE)
    paces = {engine: pace_of(engine, every) for engine in SPU}
    errors = {}
    for row in ROWS:
        made, link = predicted(row, programs), LINKS[row["link"]]
        modelled = paces[row["engine"]].seconds(programs[row["variant"]], made.steps, 1)
        modelled += made.least_s(link) if link.shaped else 0
        errors[row["case"]] = modelled / statistics.median(row["times"]["all_phases_s"]) - 1
    assert len(errors) == 36
    assert max(map(abs, errors.values())) < 1 / 6, errors
    assert abs(statistics.mean(errors.values())) < 0.05, errors


def test_the_laws_import_neither_spu_nor_torch():
    code = (
        "import sys, pibench.engines.spu.cost\n"
        "assert not [m for m in sys.modules if m.split('.')[0] in ('spu', 'jax', 'torch')]\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


# With SPU.


def first(channels: int = 4) -> nn.Module:
    return nn.Conv2d(channels, channels, 1)


def joined(*values: Tensor) -> Tensor:
    return torch.cat([value.flatten(1) for value in values], 1)


def products(m: nn.Module, x: Tensor) -> Tensor:
    y = m.first(x)
    return joined(*(getattr(m, name)(y) for name in ("a", "b", "c", "d", "e", "f")), m.g(y.flatten(1)))


def comparisons(m: nn.Module, x: Tensor) -> Tensor:
    y = m.first(x)
    leaky = F.leaky_relu(-y, 0.1)  # of y it would hold the ReLU of y, which SPU computes once
    activated = F.relu(x), F.relu(y), m.masked(y), F.relu6(y), F.hardswish(y), F.silu(y)
    return joined(*activated, leaky, F.max_pool2d(y, 2), F.max_pool2d(y, 3, 2, 1), y.amax((2, 3)))


def elementwise(m: nn.Module, x: Tensor) -> Tensor:
    y = m.first(x)
    z = y + m.b
    sums = 0.5 * y - 0.25 * z, y - z, y + y, 2 * y, -y, m.s + y
    pools = F.avg_pool2d(y, 2), F.avg_pool2d(y, 3, 2, 1), F.avg_pool2d(y, 3, 2, 1, count_include_pad=False)
    means = y.mean((2, 3)), y.sum((2, 3)), F.avg_pool2d(x, 2), F.pad(y, (1, 1))
    factors = m.s * y, y * m.b, y * y, y * z, x * z, x * x, x * m.b, y * F.adaptive_avg_pool2d(z, 1)
    return joined(*sums, *pools, *means, *factors)


FAMILIES = {
    "products": lambda: Apply(
        products,
        first=first(),
        a=nn.Conv2d(4, 8, 3, padding=1),
        b=nn.Conv2d(4, 5, 3, stride=2, dilation=2),
        c=nn.Conv2d(4, 8, 3, padding=1, groups=4),
        d=nn.Conv2d(4, 6, (1, 3), groups=2),
        e=nn.Conv2d(4, 3, 1, stride=2, bias=False),
        f=nn.Linear(8, 5),
        g=nn.Linear(256, 7),
    ),
    "comparisons": lambda: Apply(
        comparisons, first=first(), masked=MaskedReLU(torch.arange(256).view(4, 8, 8) % 3 == 0)
    ),
    "elementwise": lambda: Apply(
        elementwise, first=first(), s=nn.Parameter(torch.rand(4, 1, 1)), b=nn.Parameter(torch.rand(4, 8, 8))
    ),
}
IMAGES = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(5))


def test_the_families_have_every_operator():
    found = {
        type(step.operator) for make in FAMILIES.values() for step in lower(make(), IMAGES).program.steps
    }
    assert found == set(OPERATORS) - {ir.Flatten} | ({ir.Flatten} & found)


@pytest.fixture(scope="module")
def running() -> Iterator[dict[str, Parties]]:
    running: dict[str, Parties] = {}
    yield running
    for parties in running.values():
        parties.__exit__(None, None, None)


@needs_spu
@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("engine", SPU)
def test_the_law_is_what_spu_counts(engine, family, running):
    """One inference of one image and of two: the answer, and the bytes that every party sends."""
    if engine not in running:
        running[engine] = Parties(engine=engine, timeout_s=120).__enter__()
    parties, model = running[engine], FAMILIES[family]().eval()
    parties.load(model, IMAGES)
    program = parties.lowered.program
    for batch in (1, 2):
        parties.prepare(batch)
        logits = parties.infer(IMAGES[:batch])
        with torch.no_grad():
            torch.testing.assert_close(logits, model(IMAGES[:batch]), atol=5e-3, rtol=2e-3)
        made, sent = predict(program, engine, batch, parties.count), parties.sent
        if parties.steady_traffic:
            assert (made.rounds, made.by_party) == (sent.rounds, sent.by_party)
            assert [(step.name, step.rounds, step.bytes_sent) for step in made.steps] == [
                (cost.name, cost.rounds, cost.bytes_sent) for cost in parties.profile(IMAGES[:batch])
            ]
            continue
        made_of = [each for _, found in primitives(program, batch) for each in found]
        if engine == "spu-aby3":
            counts = truncated(program, batch)
            assert made.bytes_total == sent.bytes_total
            assert abs(made.rounds - sent.rounds) <= len(counts)
            for law, counted in zip(made.by_party, sent.by_party, strict=True):
                assert abs(law - counted) <= 8 * sum(counts)
            continue
        bare = made.steps[-1], cheetah.prices(made_of, refills=False)
        for rank, counted in enumerate(sent.by_party):
            least = bare[0].by_party[rank] + sum(price.sent[rank] for price in bare[1])
            stocks = [cheetah.REFILL[rank].sent[rank], cheetah.TRIPLES.sent[rank], KEY_BYTES]
            filled = [sum(each) for each in product(*((0, stock) for stock in stocks))]
            spread = SPREAD_BYTES * ciphertexts(program, batch)[rank] + 4 * SPREAD_BYTES
            assert min(abs(least + each - counted) for each in filled) <= spread, counted - least


def test_large_products_are_cut_as_spu_cuts_them():
    """Below 256 MiB of factors nothing; above, both ways of SPU's formula, and nothing is lost."""
    assert MatrixProduct(1000, 1000, 1000).tiles(8) == [MatrixProduct(1000, 1000, 1000)]
    for whole in (
        MatrixProduct(100_352, 576, 64),
        MatrixProduct(40, 1_000_000, 30),
        MatrixProduct(9000, 8000, 7000),
    ):
        tiles = whole.tiles(8)
        assert len(tiles) > 1
        assert sum(tile.rows * tile.inner * tile.columns for tile in tiles) == (
            whole.rows * whole.inner * whole.columns
        )
        assert all((tile.rows + tile.columns) * tile.inner * 8 < 1.01 * (256 << 20) for tile in tiles)
    assert MatrixProduct(100_352, 576, 64).tiles(8) == [
        MatrixProduct(58_217, 576, 37),
        MatrixProduct(58_217, 576, 27),
        MatrixProduct(42_135, 576, 37),
        MatrixProduct(42_135, 576, 27),
    ]
