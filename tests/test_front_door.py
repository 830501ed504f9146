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
    "silu": (lambda m, x: F.silu(3 * x), {}, 0.0086),
    "gelu": (lambda m, x: F.gelu(2 * x), {}, 0.0050),
    "squeeze and excitation": (lambda m, x: x * F.hardsigmoid(x.mean((2, 3), keepdim=True)), {}, 1e-9),
    "sum": (lambda m, x: x.sum((2, 3)), {}, 1e-9),
    "global max": (lambda m, x: x.amax((2, 3)), {}, 1e-9),
    "ceil mode": (lambda m, x: F.max_pool2d(x, 3, 2, ceil_mode=True), {}, 1e-9),
    "padding left out": (lambda m, x: F.avg_pool2d(x, 3, 2, 1, count_include_pad=False), {}, 1e-9),
    "uneven pooling": (lambda m, x: F.adaptive_avg_pool2d(x, 3), {}, 1e-9),
    "uneven max pooling": (lambda m, x: F.adaptive_max_pool2d(x, 3), {}, 1e-9),
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
def test_wrapped_and_pruned_networks_run():
    conv = nn.Conv2d(4, 3, 3)
    expected = conv.double()(IMAGES.double()).detach()
    torch.testing.assert_close(logits_of(lower(nn.DataParallel(conv), IMAGES), IMAGES), expected)
    torch.testing.assert_close(logits_of(lower(torch.compile(conv), IMAGES), IMAGES), expected)
    normed = nn.utils.parametrizations.weight_norm(nn.Conv2d(4, 3, 3))
    pruned = prune.random_unstructured(nn.Conv2d(4, 3, 3), "weight", 0.5)
    for model in (normed, pruned):
        with torch.no_grad():
            logits = logits_of(lower(model, IMAGES), IMAGES)
            torch.testing.assert_close(logits, model.double()(IMAGES.double()))
