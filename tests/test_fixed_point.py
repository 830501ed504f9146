"""The evaluation in fixed point against the lean engine's own parties, on every kind of step."""

from __future__ import annotations

from math import prod

import pytest
import torch
from lean_harness import Trio, plaintext, program, random_weights
from networks import logits_of
from test_lean_node import PROGRAMS

from pibench.engines.lean import plaintext as fixed_point
from pibench.engines.lean.plaintext import FixedPoint, PrecisionError
from pibench.engines.lean.ring import WIDE
from pibench.models.data import normalised, picture_crops
from pibench.models.variants import variant
from pibench.program.fixed_point import nearest, truncated
from pibench.program.ir import AveragePool, Combine, Linear, Mean, PiecewiseLinear, Scale, Weigh
from pibench.program.lower import lower

UNIT = 2.0**-WIDE.fraction
COPIES = 256
SIX_SIGMA = 6 * (2 * 0.25 / COPIES) ** 0.5  # of the difference of two means of COPIES draws, in units


@pytest.fixture(scope="module")
def trio():
    with Trio() as made:
        yield made


def evaluate(made, weights, images, seed=0):
    network = FixedPoint.of(made, weights)
    return network.logits(images, torch.Generator().manual_seed(seed))


def small_integers(shape, seed):
    return torch.randint(-2, 3, shape, generator=torch.Generator().manual_seed(seed)).double()


def is_rounded(step):
    """Tells whether a step's public factor, and so its value, is no short binary fraction."""
    if isinstance(step.operator, Scale):
        return True
    if isinstance(step.operator, Combine | Weigh | PiecewiseLinear):
        return not step.operator.integer
    if isinstance(step.operator, AveragePool):
        window = prod(step.operator.kernel)
    elif isinstance(step.operator, Mean):
        window = step.input_size // step.size
    else:
        return False
    return window & (window - 1) != 0


@pytest.mark.parametrize("name", PROGRAMS)
def test_it_is_exactly_the_engines_where_nothing_is_cut_off(trio, name):
    """Small integers stay whole, or fractions of few bits: every truncation then cuts zeros off."""
    made = PROGRAMS[name]
    weights = {
        key: small_integers(w.shape, seed) for seed, (key, w) in enumerate(random_weights(made).items())
    }
    images = small_integers((2, *made.input_shape), 100)
    found = evaluate(made, weights, images)
    trio.load(made, weights)
    private = trio.infer(images.float()).double()
    if any(map(is_rounded, made.steps)):  # a unit for each input of the convolution after it
        assert (private - found).abs().max() <= 2 * 27 * UNIT
    else:
        assert torch.equal(private, found)
        assert torch.equal(found, plaintext(made, weights, images))


@pytest.mark.parametrize("name", PROGRAMS)
def test_it_is_within_the_rounding_of_plaintext(name):
    made = PROGRAMS[name]
    weights = random_weights(made)
    images = torch.randn(3, *made.input_shape, generator=torch.Generator().manual_seed(5))
    expected = plaintext(made, weights, images)
    torch.testing.assert_close(evaluate(made, weights, images), expected, atol=2e-3, rtol=1e-3)


def test_one_layer_is_the_engines_to_the_last_unit_but_for_the_draw(trio):
    """The parties open the exact product of rounded factors, rounded down or up."""
    made = PROGRAMS["convolution"]
    weights = random_weights(made)
    images = torch.randn(8, *made.input_shape, generator=torch.Generator().manual_seed(6))
    weights["conv.weight"] = nearest(weights["conv.weight"])
    exact = plaintext(made, weights, nearest(images)) / UNIT
    trio.load(made, weights)
    for found in (trio.infer(images).double(), evaluate(made, weights, images)):
        units = found / UNIT
        assert torch.equal(units, units.round())
        assert ((units >= exact.floor()) & (units <= exact.ceil())).all()


@pytest.mark.parametrize(
    "name", ["fused relu", "fused masked relu", "residual", "used twice at double scale"]
)
def test_draws_have_the_odds_of_the_engines(trio, name, monkeypatch):
    made = PROGRAMS[name]
    weights = random_weights(made)
    image = torch.randn(1, *made.input_shape, generator=torch.Generator().manual_seed(7))
    copies = image.expand(COPIES, *made.input_shape).contiguous()
    trio.load(made, weights)
    private = trio.infer(copies).double().mean(0) / UNIT
    # The spread of a logit is that of its last truncation and of those before it, which the kernels pass on.
    found = evaluate(made, weights, copies)
    sigma = (found / UNIT).std(0).clamp(min=0.5) / 0.5
    assert ((private - found.mean(0) / UNIT).abs() < SIX_SIGMA * sigma).all()
    monkeypatch.setattr(fixed_point, "truncated", lambda values, *_: (values / UNIT).floor() * UNIT)
    down = evaluate(made, weights, copies[:1])[0] / UNIT
    assert ((private - down).abs() >= SIX_SIGMA * sigma).any(), "the test tells no rules apart"


def test_a_variant_is_the_engines_within_rounding(trio):
    """Masks, skips, Winograd and pooling together, at a width that takes all of the engine's lowerings."""
    model = variant("joint-0.052").build(16, None, classes=10)
    images = normalised(picture_crops(4))
    lowered = lower(model, images)
    trio.load(lowered.program, lowered.weights)
    private = trio.infer(images).double()
    found = FixedPoint.of(lowered.program, lowered.weights).logits(images, torch.Generator().manual_seed(0))
    plain = logits_of(lowered, images)
    spread = (plain.max(0).values - plain.min(0).values).max()
    assert (private - found).abs().max() < 1e-3 * spread
    assert (found - plain).abs().max() < 1e-3 * spread
    assert not torch.equal(found, plain)


def test_truncation_is_down_or_up_with_the_odds_of_what_is_cut_off():
    generator = torch.Generator().manual_seed(0)
    values = torch.tensor([0.0, 3.0, -3.0, 0.25, -0.25]).double().repeat(40_000, 1) * UNIT
    found = truncated(values, generator) / UNIT
    assert torch.equal(found[:, :3], values[:, :3] / UNIT)
    assert set(found[:, 3].tolist()) == {0.0, 1.0}
    assert set(found[:, 4].tolist()) == {-1.0, 0.0}
    assert found[:, 3].mean().item() == pytest.approx(0.25, abs=0.02)
    assert found[:, 4].mean().item() == pytest.approx(-0.25, abs=0.02)


def test_a_seed_gives_the_same_logits_again():
    made = PROGRAMS["fused relu"]
    images = torch.randn(4, *made.input_shape, generator=torch.Generator().manual_seed(8))
    one, same, other = (evaluate(made, random_weights(made), images, seed) for seed in (1, 1, 2))
    assert torch.equal(one, same)
    assert not torch.equal(one, other)


def test_two_layers_may_share_a_bias_at_different_scales():
    made = program(
        (4, 2, 2),
        ("pool", AveragePool((2, 2), (2, 2)), ["input"], (4, 1, 1)),
        ("mean", Mean((2, 3), False), ["pool"], (4,)),
        ("a", Linear("v", "b", (4, 4)), ["mean"], (4,)),
        ("c", Linear("w", "b", (4, 4)), ["a"], (4,)),
    )
    eye = torch.eye(4, dtype=torch.float64)
    bias = torch.full((4,), 1.25 * 2.0**-32, dtype=torch.float64)
    network = FixedPoint.of(made, {"v": eye, "w": eye, "b": bias})
    assert [network.plan.steps[name].scale for name in "ac"] == [34, 32]
    assert [b[0].item() for key, b in network.weights.items() if key.startswith("b ")] == [bias[0], 2.0**-32]


@pytest.mark.parametrize("name", ["convolution", "pool and classifier", "square", "residual"])
def test_sums_beyond_float64_are_refused_by_name(name):
    made = PROGRAMS[name]
    weights = random_weights(made)
    images = torch.ones(1, *made.input_shape)
    evaluate(made, weights, images)
    with pytest.raises(PrecisionError, match=r"sums of '\w+' may reach .* normalise"):
        evaluate(made, weights, images * 2.0**24)
