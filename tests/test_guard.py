"""The precision guard: what fixed point spoils is refused by its layer, and the remedy works."""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable
from copy import deepcopy
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from networks import Apply, logits_of
from torch import nn

from pibench.engines import ENGINES
from pibench.models.data import normalised, picture_crops
from pibench.models.variants import VARIANTS
from pibench.models.zoo import ZOO, resnet18
from pibench.parties import judge as judges
from pibench.parties.driver import Parties
from pibench.program.capture import answer_of
from pibench.program.guard import PrecisionWarning, demand_faithful, exact_answer, widest
from pibench.program.lower import ExportError, Lowered, lower

GUARDED = ("stock", "lean", "spu-semi2k")


def noise(*shape: int, seed: int = 1) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def judge(engine: str, lowered: Lowered, images: torch.Tensor) -> None:
    """Does the checks of `Parties.load` before it asks a process."""
    wide = widest(images)
    judges.judge(ENGINES[engine], lowered, wide, exact_answer(lowered, wide))


PICTURES = noise(2, 3, 32, 32)


@pytest.mark.parametrize(("width", "trained"), [(8, False), (16, False), (16, True)])
@pytest.mark.parametrize("name", VARIANTS)
def test_variants_pass_without_a_warning(name, width, trained):
    """Trained ones on pictures, which they have learnt, seeded ones on noise."""
    build = VARIANTS[name].build
    images = normalised(picture_crops(2)) if trained else PICTURES
    lowered = lower(build(width) if trained else build(width, weights=None), images)
    for engine in GUARDED:
        judge(engine, lowered, images)


def test_noise_escapes_from_trained_quadratics_and_is_refused():
    with pytest.raises(
        ExportError, match=r"\(ReLU\) reaches \d.*, beyond the 2\^30 of fixed point; normalise"
    ):
        lower(VARIANTS["poly-0.045"].build(16), PICTURES)


@pytest.mark.parametrize("name", ZOO)
def test_the_zoo_passes_without_a_warning(name):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        lowered = lower(ZOO[name](width=2, classes=10).eval(), PICTURES)
    for engine in GUARDED:
        judge(engine, lowered, PICTURES)


class Net(nn.Module):
    """Convolution, BatchNorm, ReLU, convolution, ReLU, classifier, each with a factor."""

    def __init__(self, first: float = 1, second: float = 1, last: float = 1, variance: float = 1) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            self.conv1 = nn.Conv2d(3, 8, 3, padding=1, bias=False)
            self.norm = nn.BatchNorm2d(8)
            self.conv2 = nn.Conv2d(8, 8, 3, padding=1, bias=False)
            self.fc = nn.Linear(8 * 64, 10, bias=False)
        self.norm.running_var.fill_(variance)
        for layer, factor in ((self.conv1, first), (self.conv2, second), (self.fc, last)):
            layer.weight.data *= factor

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.fc(self.conv2(self.norm(self.conv1(x)).relu()).relu().flatten(1))


IMAGES = noise(3, 3, 8, 8)
PIXELS = 65535 * torch.rand(3, 3, 8, 8, generator=torch.Generator().manual_seed(2))


class Factors(nn.Module):
    """`(x * one) * other`."""

    def __init__(self, one: float, other: float) -> None:
        super().__init__()
        self.one, self.other = one, other

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return (x * self.one) * self.other


def scaled(name: str, factor: float) -> Callable[[Net], None]:
    def scale(model: Net) -> None:
        getattr(model, name).weight.data *= factor

    return scale


def factor(name: str, by: float) -> Callable[[Factors], None]:
    return lambda model: setattr(model, name, getattr(model, name) * by)


@dataclass(frozen=True)
class Spoilt:
    """A network that fixed point spoils: images, the layer where the loss begins, and what the remedy names.

    `up` and `down` do to the network what the remedy says, where it says so of the network.
    """

    make: Callable[[], nn.Module]
    where: str
    remedy: str
    up: Callable[[float], Callable[[Any], None]]
    down: Callable[[float], Callable[[Any], None]] | None = None
    images: torch.Tensor = IMAGES
    dims_images: bool = False


SPOILT = {
    "factors": Spoilt(
        lambda: Factors(1e-6, 1e6),
        "'mul' .scale.",
        "divide the weights of 'mul_1'",
        lambda by: factor("one", by),
        lambda by: factor("other", 1 / by),
    ),
    "convolutions": Spoilt(
        lambda: Net(1e-3, 1e3),
        "'conv1' .convolution.",
        "divide the weights of 'conv2'",
        lambda by: scaled("conv1", by),
        lambda by: scaled("conv2", 1 / by),
    ),
    "variance": Spoilt(
        lambda: Net(variance=1e6),
        "'conv1' .convolution.",
        "divide the answer",
        lambda by: scaled("conv1", by),
    ),
    "all weights": Spoilt(
        lambda: Net(1e-3, 1e-3, 1e-3),
        "'conv1' .convolution.",
        "divide the answer",
        lambda by: lambda model: [scaled(name, by)(model) for name in ("conv1", "conv2", "fc")],
    ),
    "first and last": Spoilt(
        lambda: Net(1e4, 1, 1e-4),
        "'fc' .linear.",
        "divide what goes into it",
        lambda by: scaled("fc", by),
        lambda by: scaled("conv1", 1 / by),
    ),
    "classifier": Spoilt(
        lambda: Net(last=1e-5), "'fc' .linear.", "divide the answer", lambda by: scaled("fc", by)
    ),
    "16-bit pixels": Spoilt(
        lambda: Net(first=1e-5),
        "'conv1' .convolution.",
        "divide what goes into it",
        lambda by: scaled("conv1", by),
        images=PIXELS,
        dims_images=True,
    ),
    "dim images": Spoilt(
        lambda: Net(first=1e5),
        "as the images are at most",
        "multiply them",
        lambda by: scaled("conv1", 1 / by),
        images=IMAGES * 1e-5,
    ),
}


@pytest.mark.parametrize("engine", GUARDED)
@pytest.mark.parametrize("name", SPOILT)
def test_what_fixed_point_spoils_is_refused_by_its_layer_and_the_remedy_works(name, engine):
    spoilt = SPOILT[name]
    model, images = spoilt.make().eval(), spoilt.images
    with pytest.raises(ExportError, match=rf"loses .* %.*{spoilt.where}.*{spoilt.remedy}") as caught:
        judge(engine, lower(model, images), images)
    by = 2.0 ** int(re.search(r"2\^(\d+)", str(caught.value)).group(1))
    expected = model.double()(images.double())
    spoilt.up(by)(model)
    if spoilt.down is not None:
        spoilt.down(by)(model)
    if spoilt.where.startswith("as the images"):
        images = images * by
    elif spoilt.dims_images:
        images = images / by
    judge(engine, lower(model, images), images)
    answer = model.double()(images.double())
    ratio = (answer / expected).detach()
    torch.testing.assert_close(ratio, torch.full_like(ratio, ratio.flatten()[0].item()), rtol=1e-4, atol=0)


@pytest.mark.parametrize("engine", GUARDED)
def test_a_small_loss_is_a_warning(engine):
    lowered = lower(Net(5e-3, 200), IMAGES)
    with pytest.warns(PrecisionWarning, match=r"fixed point loses [01]\.\d+ % .* from 'conv1'"):
        judge(engine, lowered, IMAGES)


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (lambda m, x: 1000 * (torch.sigmoid(x / 1000) - 0.5), "sums of ReLUs that stand for .*'sigmoid'"),
        (lambda m, x: x * next(m.calls), "must depend on its input alone"),
    ],
)
def test_a_program_that_is_not_the_network_is_refused(function, message):
    model = Apply(function)
    model.calls = Calls()
    lowered = lower(model, IMAGES)
    with pytest.raises(ExportError, match=message):
        demand_faithful(lowered, exact_answer(lowered, IMAGES), answer_of(model, IMAGES))


class Calls:
    """Counts the calls of a network, in all of its copies."""

    count = 0

    def __next__(self) -> int:
        Calls.count += 1
        return Calls.count


def test_a_lost_branch_that_matters_to_nobody_is_not_refused():
    for engine in GUARDED:
        judge(engine, lower(Apply(lambda m, x: x + 1e-6 * x.relu()), IMAGES), IMAGES)


BASELINE = VARIANTS["baseline"].build(8, weights=None)


@pytest.mark.parametrize(
    ("model", "images"),
    [
        (Apply(lambda m, x: m.net(1e5 * x), net=BASELINE), PICTURES),
        (Net(1e8), IMAGES),
        (Apply(lambda m, x: x * 0.5), IMAGES / IMAGES.abs().max() * (2.0**30 - 100)),
    ],
)
def test_stock_refuses_what_it_expects_to_truncate_wrongly_and_the_remedy_works(model, images):
    lowered = lower(model.eval(), images)
    with pytest.raises(ExportError, match=r"wrong truncations are expected .*use engine='lean'"):
        judge("stock", lowered, images)
    judge("lean", lowered, images)


def test_only_an_engine_that_can_hold_the_values_is_named():
    """3x3 convolutions up to 2^29: lean holds 2^28 there, and stock expects too many wrong truncations."""
    conv = nn.Conv2d(16, 16, 3, padding=1, bias=False)
    conv.weight.data.fill_(2.0**22)
    ones = torch.ones(1, 16, 8, 8)
    lowered = lower(conv, ones)
    for engine, reason in (("lean", r"beyond the 2\^28 .* its input"), ("stock", "what leads there")):
        with pytest.raises(ExportError, match=rf"{reason}, or use engine='spu-semi2k'$"):
            judge(engine, lowered, ones)
    judge("spu-semi2k", lowered, ones)


@pytest.mark.parametrize("function", [lambda m, x: x + 2.0**40, lambda m, x: x * 2.0**40])
def test_a_constant_beyond_fixed_point_is_refused(function):
    with pytest.raises(ExportError, match=r"beyond the 2\^30 of fixed point; (rescale|normalise)"):
        lower(Apply(function), IMAGES)


def test_the_widest_images_are_judged():
    images = torch.zeros(5, 1, 2, 2)
    images[3, 0, 1, 1], images[1] = -9, 4
    assert widest(images).abs().amax((1, 2, 3)).tolist() == [9, 4]
    assert len(widest(images[:1])) == 1


@pytest.fixture(scope="module", params=["stock", "lean"])
def parties(request):
    with Parties(engine=request.param, timeout_s=120) as running:
        yield running


@pytest.mark.parametrize(
    ("model", "images"),
    [
        (Apply(lambda m, x: x.square().square()), IMAGES),
        (Apply(lambda m, x: x**4), IMAGES),
        (resnet18(width=8, classes=5).eval(), PICTURES),
    ],
)
def test_images_of_every_size_are_answered_right_or_refused(parties, model, images):
    """The parties' answer is within 2 % of the network; the largest images must be refused."""
    parties.load(model, images[:1])
    reference, refused = deepcopy(model).double(), []
    for power in range(9):
        parties.prepare(1)
        wide = images[1:2] * 10.0**power
        try:
            answer = parties.infer(wide).double()
        except (ValueError, PrecisionWarning) as error:
            refused.append(str(error))
            continue
        assert not refused, "a smaller image was refused"
        with torch.no_grad():
            expected = reference(wide.double())
        assert (answer - expected).abs().max() < 0.02 * expected.abs().max()
    assert re.match(r"the images reach .*, where up to .* was checked: ", refused[-1])


def test_the_rehearsal_is_what_the_parties_answer(parties):
    """Weights that lose 1 % of a layer: the rehearsal loses as much, to two units in the last place."""
    conv, images = nn.Conv2d(3, 4, 3, bias=False), 10 * IMAGES
    conv.weight.data = 2e-3 * noise(4, 3, 3, 3)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", PrecisionWarning)  # stock loses more: it rounds toward zero
        parties.load(conv, images)
    parties.prepare(len(images))
    answer, lowered = parties.infer(images).double(), parties.lowered
    found = ENGINES[parties.engine].rehearse(lowered.program, lowered.weights, images.double(), None)
    assert (answer - found).abs().max() <= 2 * 2.0**-16
    assert (answer - logits_of(lowered, images)).abs().max() > 20 * 2.0**-16


def test_a_range_that_was_judged_is_not_judged_again(parties, monkeypatch):
    parties.load(Net(), IMAGES[:1])
    seen = []
    judge = Parties._judge
    monkeypatch.setattr(Parties, "_judge", lambda *given: (seen.append(len(given[2])), judge(*given)))
    for images in (IMAGES[:1], 2 * IMAGES[:1], 2 * IMAGES[:1], IMAGES[:1]):
        parties.prepare(1)
        parties.infer(images)
    assert seen == [1]


@pytest.mark.parametrize("engine", ["stock", "lean"])
def test_a_network_without_a_step_can_be_judged(engine):
    """It has no values of its own that could be too few."""
    lowered = lower(nn.Identity(), torch.ones(1, 3))
    assert not lowered.program.steps
    judges.judge(ENGINES[engine], lowered, torch.ones(1, 3), torch.ones(1, 3, dtype=torch.float64))
