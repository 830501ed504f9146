"""Words of 32 bits from end to end: calibration, what it reveals, headroom, refusals, real parties."""

from __future__ import annotations

import pickle
from collections.abc import Iterator
from dataclasses import replace

import pytest
import torch
from networks import Apply
from torch import nn

from pibench.costs.predict import predict
from pibench.engines import ENGINES
from pibench.engines.lean.plan import make_plan
from pibench.engines.lean.ring import SLIM, arithmetic
from pibench.models.data import default_images
from pibench.models.variants import variant
from pibench.parties.driver import Parties
from pibench.program.lower import ExportError, Lowered, lower

IMAGES = default_images(4)[0]
CALIBRATED = [name for name, engine in ENGINES.items() if engine.calibrated]


@pytest.fixture(scope="module")
def slim() -> Iterator[Parties]:
    with Parties(engine="lean32") as parties:
        yield parties


def network(factor: float = 1.0) -> nn.Module:
    torch.manual_seed(5)
    body = nn.Sequential(
        nn.Conv2d(3, 16, 3, padding=1), nn.ReLU(), nn.Conv2d(16, 16, 3, padding=1), nn.ReLU()
    )
    model = Apply(lambda m, x: m.fc(m.body(x).mean((2, 3))), body=body, fc=nn.Linear(16, 5)).eval()
    with torch.no_grad():  # every value and the answer become `factor` times as large
        body[0].weight *= factor
        body[0].bias *= factor
        body[2].bias *= factor
        model.fc.bias *= factor
    return model


def lowered(model: nn.Module, images: torch.Tensor = IMAGES) -> Lowered:
    return lower(model, images).calibrated()


def test_the_engines_that_are_calibrated():
    assert CALIBRATED == ["lean-k", "lean32"]
    assert ENGINES["lean32"].options == {
        "ring_bits": 32,
        "fraction_bits": SLIM.fraction,
        "weight_fraction_bits": SLIM.weights,
    }


def test_parties_answer_and_say_their_headroom(slim):
    model = network()
    slim.load(model, IMAGES)
    limits = ENGINES["lean32"].value_limits(slim.lowered.program)
    free = [(limits[name] / value) for name, value in slim.lowered.largest.items() if value > 0]
    assert slim.headroom_bits == pytest.approx(torch.tensor(min(free)).log2().item(), abs=1e-5)
    assert slim.headroom_bits >= SLIM.headroom
    for image in IMAGES.split(1):
        slim.prepare(1)
        with torch.no_grad():
            assert (slim.infer(image) - model(image)).abs().max() < 0.01 * model(IMAGES).abs().max()


def test_an_engine_that_is_not_calibrated_has_no_headroom():
    with Parties(engine="lean") as parties:
        assert parties.headroom_bits is None
        parties.load(network(), IMAGES)
        assert parties.headroom_bits is None


def check_that_ones_are_refused(parties, total, weight):
    """Calibrates a sum of windows by an image of plus and minus 1; returns that image."""
    nn.init.constant_(total.conv.weight, weight)
    places = torch.arange(8)
    board = (1.0 - 2.0 * ((places[:, None] + places) % 2)).expand(1, 3, 8, 8)  # windows sum to 3 at most
    parties.load(total, board)
    parties.prepare(1)
    with pytest.raises(ValueError, match=r"the images leave the range of the calibration: .*'conv'"):
        parties.infer(torch.ones_like(board))
    return board


def test_an_image_beyond_the_calibrated_range_is_refused_and_the_next_one_is_answered(slim):
    """An image of ordinary size is refused as well if a value inside the network becomes too large."""
    model = network()
    slim.load(model, IMAGES)
    slim.prepare(1)
    with pytest.raises(
        ValueError, match=r"images reach .* where up to .* was checked|range of the calibration"
    ):
        slim.infer(2.0**12 * IMAGES[:1])
    total = Apply(lambda m, x: m.conv(x).flatten(1), conv=nn.Conv2d(3, 1, 3, bias=False)).eval()
    board = check_that_ones_are_refused(slim, total, 4.0)
    with torch.no_grad():
        assert (slim.infer(board) - total(board)).abs().max() < 0.05


def test_large_values_get_fewer_fractional_bits_and_larger_ones_are_refused(slim):
    """The plan takes the most fractional bits that leave the headroom, and names the remedy when none do."""
    fractions = {}
    for factor in (1.0, 2.0**6, 2.0**7, 2.0**8):
        plan = make_plan(lowered(network(factor)).program, *arithmetic("lean32"))
        fractions[factor] = plan.ring.fraction
        room = plan.ring.top - plan.ring.headroom
        for name, entry in plan.steps.items():
            assert entry.scale + plan.program.bounds[name] <= room
    assert list(fractions.values()) == [10, 10, 9, 8]
    with pytest.raises(ValueError, match=r"'body_2' has values that need 1 more bits than a ring of 32 bits"):
        make_plan(lowered(network(2.0**9)).program, *arithmetic("lean32"))
    with pytest.raises(ExportError, match=r"'body_2' .* scale the network down .* engine='lean'"):
        slim.load(network(2.0**9), IMAGES)
    slim.load(network(2.0**7), IMAGES)
    slim.prepare(1)
    slim.infer(IMAGES[:1])  # judged by the driver


def test_the_program_of_a_calibrated_engine_reveals_exponents_alone():
    """What docs/threat_model.md says: one power of two a value, and no other number of weights or images."""
    plain = lower(network(), IMAGES)
    program = plain.calibrated().program
    for name, bound in program.bounds.items():
        assert isinstance(bound, int)
        assert plain.largest[name] < 2.0**bound
        assert bound == 0 or plain.largest[name] >= 2.0 ** (bound - 1)
    assert pickle.dumps(replace(program, bounds={}).steps) == pickle.dumps(plain.program.steps)
    assert not plain.program.bounds


@pytest.mark.parametrize("name", ["baseline", "joint-0.052", "senet-0.09"])
def test_bytes_are_half_of_those_of_64_bits_and_rounds_are_equal(name):
    program = lower(variant(name).build(64), IMAGES[:1])
    wide, slim = predict(program.program, "lean"), predict(program.calibrated().program, "lean32")
    assert slim.rounds == wide.rounds
    assert slim.bytes_sent < 0.5 * wide.bytes_sent
    if name == "baseline":
        assert (slim.rounds, slim.bytes_sent, wide.bytes_sent) == (108, 12_139_296, 24_417_856)


def test_a_tree_looks_only_at_the_bits_that_calibrated_values_need():
    """A value below 2^b at scale s has its sign in s + b + 3 bits: of 16, a tree has a level less."""
    small = Apply(lambda m, x: m.relu(x).flatten(1), relu=nn.ReLU())
    for factor, positions, rounds in ((1.0, 16, 4), (2.0**9, 32, 5)):
        program = lowered(small, factor * IMAGES).program
        (relu,) = (step.name for step in program.steps if step.kind == "relu")
        plan = make_plan(program, *arithmetic("lean32"))
        assert plan.steps[relu].positions == positions
        assert predict(program, "lean32").rounds == rounds + 1


@pytest.fixture(scope="module")
def short() -> Iterator[Parties]:
    with Parties(engine="lean-k") as parties:
        yield parties


@pytest.mark.parametrize(("exponent", "positions", "masks"), [(-9, 32, 104), (12, 32, 104), (13, 48, 157)])
def test_the_sign_of_a_value_that_fits_in_k_bits_is_exact_in_words_of_64_bits(
    short, exponent, positions, masks
):
    """With 16 fractional bits a value below 2^b has its sign in b + 19 bits; the answer is exact."""
    images = torch.rand(3, 1, 5, 13, generator=torch.Generator().manual_seed(0)) * 2 - 1
    images[0, 0, 0, :4] = torch.tensor([2.0**-16, -(2.0**-16), 0.0, -1.0])
    images *= 2.0**exponent
    short.load(Apply(lambda m, x: m.relu(x).flatten(1), relu=nn.ReLU()), images)
    plan = make_plan(short.lowered.program, *arithmetic("lean-k"))
    assert [entry.positions for entry in plan.steps.values() if entry.gadgets] == [positions]
    short.prepare(3)
    in_ring = (images.double() * 2.0**16).round() / 2.0**16
    assert torch.equal(short.infer(images).double(), in_ring.relu().flatten(1))
    words = 195  # in 4 blocks of 64
    opened = 8 * words
    assert short.sent.rounds == 5 + 1
    assert short.sent.by_party == (8 * masks * 4 + 8 * words + opened, 8 * masks * 4 + 8 * words)


@pytest.mark.parametrize("name", ["senet-0.09", "merged-exact"])
def test_short_signs_send_what_the_law_says_and_less_than_whole_ones(short, name):
    model = variant(name).build(8, weights=None)
    short.load(model, IMAGES)
    program = short.lowered.program
    made, whole = predict(program, "lean-k"), predict(program, "lean")
    for image in IMAGES.split(1):
        short.prepare(1)
        with torch.no_grad():
            assert (short.infer(image) - model(image)).abs().max() < 0.005 * model(IMAGES).abs().max()
        assert (short.sent.rounds, short.sent.by_party) == (made.rounds, made.by_party)
    assert [(step.name, step.rounds, step.bytes_sent) for step in made.steps] == [
        (cost.name, cost.rounds, cost.bytes_sent) for cost in short.profile(IMAGES[:1])
    ]
    assert made.rounds == whole.rounds
    kept = {step.name: step.relus for step in program.steps if step.relus}
    steps = make_plan(program, *arithmetic("lean-k")).steps
    bits = {name: {32: 104, 48: 157, 64: 210}[steps[name].positions] for name in kept}
    saved = sum(8 * (210 - bits[name]) * -(-count // 64) for name, count in kept.items())
    assert whole.bytes_sent - made.bytes_sent == saved > 0


def test_an_image_beyond_the_bits_that_are_compared_is_refused(short, monkeypatch):
    """Also where the driver does not check the answers."""
    monkeypatch.setattr(short, "_check", False)
    short.load(network(), IMAGES)
    short.prepare(1)
    with pytest.raises(ValueError, match=r"beyond the 2\^15 that this engine can hold there"):
        short.infer(2.0**24 * IMAGES[:1])
    total = Apply(lambda m, x: m.conv(x).relu().flatten(1), conv=nn.Conv2d(3, 1, 3, bias=False)).eval()
    check_that_ones_are_refused(short, total, 2048.0)


def test_short_signs_need_bounds():
    program = lower(network(), IMAGES).program
    with pytest.raises(ValueError, match="a comparison of few bits needs a program with calibrated bounds"):
        make_plan(program, *arithmetic("lean-k"))
