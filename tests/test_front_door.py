"""The front door on both engines: answer, rounds and bytes of what users write in their forward."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from networks import Apply, logits_of
from torch import nn
from torch.nn.utils import prune

from pibench.costs.predict import predict
from pibench.program.lower import lower

IMAGES = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(1))
MASK = torch.arange(256).view(1, 4, 8, 8) % 3 == 0


def norm(kind, *arguments):
    made = kind(*arguments)
    with torch.no_grad():
        made.running_mean.uniform_(-1, 1)
        made.running_var.uniform_(0.5, 2)
        made.weight.uniform_(0.5, 2)
        made.bias.uniform_(-1, 1)
    return made


class FrozenNorm(nn.Module):
    """BatchNorm of four buffers, as detection networks freeze it."""

    def __init__(self, features: int) -> None:
        super().__init__()
        draw = torch.Generator().manual_seed(3)
        for name in ("weight", "bias", "running_mean", "running_var"):
            self.register_buffer(name, torch.rand(features, generator=draw) + 0.5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        weight, bias, mean, variance = (
            each.reshape(1, -1, 1, 1)
            for each in (self.weight, self.bias, self.running_mean, self.running_var)
        )
        scale = weight * (variance + 1e-5).rsqrt()
        return x * scale + (bias - mean * scale)


class NormAct(nn.BatchNorm2d):
    """BatchNorm and its activation in one module that calls the function itself."""

    def __init__(self, features: int) -> None:
        super().__init__(features)
        self.drop, self.act = nn.Identity(), nn.ReLU(inplace=True)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        training = self.training or (self.running_mean is None and self.running_var is None)
        mean = self.running_mean if not self.training or self.track_running_stats else None
        x = F.batch_norm(
            x, mean, self.running_var, self.weight, self.bias, training, self.momentum or 0.0, self.eps
        )
        return self.act(self.drop(x))


class Polynomial(nn.Module):
    """`a x^2 + b x + c` with trained coefficients of each channel."""

    def __init__(self) -> None:
        super().__init__()
        draw = torch.Generator().manual_seed(4)
        self.a, self.b, self.c = (nn.Parameter(torch.randn(4, 1, 1, generator=draw) / 2) for _ in range(3))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.a * x**2 + self.b * x + self.c


def hooked(module: nn.Module) -> nn.Module:
    """Doubles what goes in and adds one to what comes out, by hooks."""
    module.register_forward_pre_hook(lambda module, inputs: (2 * inputs[0],))
    module.register_forward_hook(lambda module, inputs, output: output + 1)
    return module


CASES = {  # name -> (forward, modules, largest error against torch in float64)
    "view": (lambda m, x: m.fc(x.view(x.size(0), -1)), {"fc": nn.Linear(256, 3)}, 1e-9),
    "channel shuffle": (
        lambda m, x: x.view(x.shape[0], 2, 2, 8, 8).transpose(1, 2).reshape(x.shape).relu(),
        {},
        1e-9,
    ),
    "option A": (lambda m, x: F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, 2, 2)).relu(), {}, 1e-9),
    "split and stack": (lambda m, x: torch.stack(x.chunk(2, 1), 1).select(1, 0).relu(), {}, 1e-9),
    "shift and scale": (lambda m, x: ((x - m.c) / m.d + 1.5).relu(), {}, 1e-9),
    "stored tensor": (lambda m, x: (m.p * x - m.p).relu(), {}, 1e-9),
    "relu6": (lambda m, x: F.relu6(4 * x), {}, 1e-9),
    "hardtanh": (lambda m, x: F.hardtanh(x), {}, 1e-9),
    "leaky": (lambda m, x: F.leaky_relu(x, 0.2), {}, 1e-9),
    "prelu": (lambda m, x: m.act(x), {"act": nn.PReLU(4)}, 1e-9),
    "hard swish": (lambda m, x: F.hardswish(2 * x), {}, 1e-9),
    "sigmoid": (lambda m, x: torch.sigmoid(3 * x), {}, 0.0036),
    "tanh": (lambda m, x: torch.tanh(2 * x), {}, 0.0071),
    "silu": (lambda m, x: F.silu(3 * x), {}, 0.0017),
    "gelu": (lambda m, x: F.gelu(2 * x), {}, 0.0050),
    "squeeze and excitation": (lambda m, x: x * F.hardsigmoid(x.mean((2, 3), keepdim=True)), {}, 1e-9),
    "sum": (lambda m, x: x.sum((2, 3)), {}, 1e-9),
    "global max": (lambda m, x: x.amax((2, 3)), {}, 1e-9),
    "ceil mode": (lambda m, x: F.max_pool2d(x, 3, 2, ceil_mode=True), {}, 1e-9),
    "padding left out": (lambda m, x: F.avg_pool2d(x, 3, 2, 1, count_include_pad=False), {}, 1e-9),
    "uneven pooling": (lambda m, x: F.adaptive_avg_pool2d(x, 3), {}, 1e-9),
    "uneven max pooling": (lambda m, x: F.adaptive_max_pool2d(x, 3), {}, 1e-9),
    "pools of one map": (lambda m, x: F.max_pool2d(F.avg_pool2d(x[:, 0], 2), 3, 2, 1), {}, 1e-9),
    "adaptive pool of one map": (lambda m, x: F.adaptive_avg_pool2d(x[:, 1], (3, 4)).relu(), {}, 1e-9),
    "half-open clamp": (lambda m, x: x.clamp(-0.5, float("inf")), {}, 1e-9),
    "upsampling": (lambda m, x: F.interpolate(x, scale_factor=2).relu(), {}, 1e-9),
    "pixel shuffle": (lambda m, x: F.pixel_shuffle(x, 2).relu(), {}, 1e-9),
    "conv1d": (lambda m, x: m.c1(x.flatten(2)).relu(), {"c1": nn.Conv1d(4, 3, 3, padding=1)}, 1e-9),
    "folded norm": (
        lambda m, x: m.bn(m.conv(x)).relu(),
        {"conv": nn.Conv2d(4, 6, 3, bias=False), "bn": norm(nn.BatchNorm2d, 6)},
        1e-9,
    ),
    "norm of the input": (lambda m, x: m.bn(x).relu(), {"bn": norm(nn.BatchNorm2d, 4)}, 1e-9),
    "norm of vectors": (
        lambda m, x: m.bn(m.fc(x.flatten(1)).relu()),
        {"fc": nn.Linear(256, 5), "bn": norm(nn.BatchNorm1d, 5)},
        1e-9,
    ),
    "subtraction and negation": (lambda m, x: torch.sub(-x, x.relu(), alpha=2), {}, 1e-9),
    "frozen norm": (
        lambda m, x: m.bn(m.conv(x)).relu(),
        {"conv": nn.Conv2d(4, 6, 3, bias=False), "bn": FrozenNorm(6)},
        1e-9,
    ),
    "norm with its activation": (
        lambda m, x: m.bn(m.conv(x)),
        {"conv": nn.Conv2d(4, 6, 3, bias=False), "bn": norm(NormAct, 6)},
        1e-9,
    ),
    "synchronised norm": (
        lambda m, x: m.bn(m.conv(x)).relu(),
        {"conv": nn.Conv2d(4, 6, 3), "bn": norm(nn.SyncBatchNorm, 6)},
        1e-9,
    ),
    "norm after linear": (
        lambda m, x: m.bn(m.fc(x.flatten(1))).relu(),
        {"fc": nn.Linear(256, 5, bias=False), "bn": norm(nn.BatchNorm1d, 5)},
        1e-9,
    ),
    "identity branch": (
        lambda m, x: (m.f(m.conv3(x)) + m.g(m.conv1(x)) + m.h(x)).relu(),
        {
            "conv3": nn.Conv2d(4, 4, 3, padding=1, bias=False),
            "conv1": nn.Conv2d(4, 4, 1, bias=False),
            **{name: norm(nn.BatchNorm2d, 4) for name in "fgh"},
        },
        1e-9,
    ),
    "hooks": (
        lambda m, x: m.conv(x).relu(),
        {"conv": hooked(nn.Conv2d(4, 3, 3))},
        1e-9,
    ),
    "gelu by tanh": (lambda m, x: F.gelu(2 * x, approximate="tanh"), {}, 0.0055),
    "masked fill": (lambda m, x: x.masked_fill(m.mask > 0, 0.0).relu(), {}, 1e-9),
    "reflection": (
        lambda m, x: m.conv(F.pad(x, (1, 2, 1, 1), mode="reflect")),
        {"conv": nn.Conv2d(4, 2, 3)},
        1e-9,
    ),
    "replication": (lambda m, x: m.pad(x).relu(), {"pad": nn.ReplicationPad2d(1)}, 1e-9),
    "polynomial": (lambda m, x: m.act(x), {"act": Polynomial()}, 1e-9),
    "masked relu": (lambda m, x: m.mask * x.relu() + (1 - m.mask) * x, {}, 1e-9),
}


def model_of(name: str) -> nn.Module:
    function, modules, _ = CASES[name]
    model = Apply(function, **modules).eval()
    draw = torch.Generator().manual_seed(2)
    model.p = nn.Parameter(torch.randn(4, 8, 8, generator=draw))
    model.register_buffer("c", torch.randn(1, 4, 1, 1, generator=draw))
    model.register_buffer("d", torch.rand(1, 4, 1, 1, generator=draw) + 0.5)
    model.register_buffer("mask", MASK.float())
    return model


@pytest.mark.parametrize("name", CASES)
def test_the_program_is_the_network(name):
    model = model_of(name)
    lowered = lower(model, IMAGES)
    with torch.no_grad():
        expected = model.double()(IMAGES.double())
    assert (logits_of(lowered, IMAGES) - expected).abs().max() <= CASES[name][2]


@pytest.mark.parametrize("engine", ["stock", "lean"])
@pytest.mark.parametrize("name", CASES)
def test_answer_rounds_and_bytes(name, engine, request):
    parties, model = request.getfixturevalue(engine), model_of(name)
    parties.load(model, IMAGES)
    made = predict(parties.lowered.program, engine, len(IMAGES))
    counted = parties.profile(IMAGES)
    assert [(step.name, step.rounds, step.bytes_sent) for step in made.steps] == [
        (cost.name, cost.rounds, cost.bytes_sent) for cost in counted
    ]
    parties.prepare(len(IMAGES))
    answer = torch.as_tensor(parties.infer(IMAGES)).double()
    torch.testing.assert_close(answer, logits_of(parties.lowered, IMAGES), atol=5e-3, rtol=2e-3)


@pytest.mark.parametrize("mask", [MASK, MASK[0], MASK.float(), MASK[0].float()])
@pytest.mark.parametrize(
    "function",
    [
        lambda m, x: m.m * x.relu() + (1 - m.m) * x,
        lambda m, x: x * (1 - m.m) + x.relu() * m.m,
        lambda m, x: x + m.m * (x.relu() - x),
        lambda m, x: torch.where(m.m > 0, torch.relu(x), x),
    ],
)
def test_masks_as_papers_write_them(function, mask):
    model = Apply(function)
    model.register_buffer("m", mask if function.__code__.co_names.count("where") else mask.float())
    (step,) = lower(model, IMAGES).program.steps
    assert step.operator.kept.tolist() == MASK.flatten().nonzero().flatten().tolist()


@pytest.mark.filterwarnings("ignore:.*script_method.*:DeprecationWarning")
@pytest.mark.filterwarnings("ignore:.*weight_norm.*deprecated:FutureWarning")
@pytest.mark.parametrize(
    "wrap",
    [
        nn.DataParallel,
        torch.compile,
        nn.utils.weight_norm,
        nn.utils.spectral_norm,
        nn.utils.parametrizations.weight_norm,
        nn.utils.parametrizations.spectral_norm,
        lambda conv: prune.random_unstructured(conv, "weight", 0.5),
        lambda conv: prune.ln_structured(conv, "weight", 0.5, 2, 0),
        lambda conv: nn.DataParallel(torch.compile(prune.l1_unstructured(conv, "bias", 1))),
    ],
)
def test_wrapped_and_pruned_networks_run(wrap):
    """What is wrapped answers as its own forward does, and stays as it is."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(5)
        model = wrap(nn.Conv2d(4, 3, 3)).eval()
    inner = model.module if isinstance(model, nn.DataParallel) else model
    inner = getattr(inner, "_orig_mod", inner)
    keys = list(inner.state_dict())
    with torch.no_grad():
        lowered = lower(model, IMAGES)
        torch.testing.assert_close(logits_of(lowered, IMAGES).float(), inner(IMAGES), atol=1e-5, rtol=1e-5)
    assert [type(step.operator).__name__ for step in lowered.program.steps] == ["Convolution"]
    assert list(inner.state_dict()) == keys


def test_parts_of_a_network_may_be_wrapped():
    """Compiled and parallel layers inside a network are looked through, and keep the names of their steps."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(6)
        conv, act, fc = nn.Conv2d(4, 3, 3), nn.ReLU(), nn.Linear(108, 2)
    network = nn.Sequential(conv, act, nn.Flatten(), fc).eval()
    parts = nn.Sequential(torch.compile(conv), nn.DataParallel(act), nn.Flatten(), torch.compile(fc)).eval()
    fc.compile()
    one, other = lower(network, IMAGES), lower(parts, IMAGES)
    assert [step.name for step in one.program.steps] == [step.name for step in other.program.steps]
    assert torch.equal(logits_of(one, IMAGES), logits_of(other, IMAGES))
    assert isinstance(parts[1], nn.DataParallel)


def test_whole_networks_may_be_wrapped():
    """A network of several layers in torch.compile and DataParallel keeps the names of its steps."""
    network = nn.Sequential(nn.Conv2d(4, 3, 3), nn.BatchNorm2d(3), nn.ReLU(), nn.Flatten(), nn.Linear(108, 2))
    names = [step.name for step in lower(network.eval(), IMAGES).program.steps]
    for wrapped in (torch.compile(network), nn.DataParallel(network)):
        assert [step.name for step in lower(wrapped, IMAGES).program.steps] == names
