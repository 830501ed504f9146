"""The lowering: every operator and form, the plaintext walk, and the refusals."""

from __future__ import annotations

import operator
import random

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from networks import Apply, logits_of
from torch import nn

from pibench.models.graph.relu import MaskedReLU
from pibench.program import ir
from pibench.program.lower import ExportError, lower

IMAGES = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(0))


def steps(function, **modules: nn.Module) -> list[ir.Operator]:
    return [step.operator for step in lower(Apply(function, **modules), IMAGES).program.steps]


KERNEL = torch.randn(6, 2, 3, 3, generator=torch.Generator().manual_seed(2))


class Functional(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.kernel = nn.Parameter(KERNEL)
        self.bias = nn.Parameter(torch.arange(6.0))
        self.matrix = nn.Parameter(torch.randn(5, 6))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = F.conv2d(x, self.kernel, self.bias, stride=2, padding=(1, 0), dilation=1, groups=2)
        return F.linear(y.mean((2, 3)), self.matrix)


def test_modules_and_functions_lower_alike():
    conv = nn.Conv2d(4, 6, 3, stride=2, padding=(1, 0), groups=2)
    (op,) = steps(lambda m, x: m.conv(x), conv=conv)
    assert op == ir.Convolution("conv.weight", "conv.bias", (6, 2, 3, 3), (2, 2), (1, 0), (1, 1), 2)
    lowered = lower(Functional(), IMAGES)
    first, mean, last = (step.operator for step in lowered.program.steps)
    assert first == ir.Convolution("kernel", "bias", (6, 2, 3, 3), (2, 2), (1, 0), (1, 1), 2)
    assert mean == ir.Mean((2, 3), False)
    assert last == ir.Linear("matrix", None, (5, 6))
    assert set(lowered.weights) == {"kernel", "bias", "matrix"}


@pytest.mark.parametrize(
    ("function", "expected"),
    [
        (lambda m, x: torch.relu(x), [ir.Relu]),
        (lambda m, x: x.relu(), [ir.Relu]),
        (lambda m, x: F.relu(x), [ir.Relu]),
        (lambda m, x: F.avg_pool2d(x, 2), [ir.AveragePool]),
        (lambda m, x: F.adaptive_avg_pool2d(x, (2, None)), [ir.AveragePool]),
        (lambda m, x: F.max_pool2d(x, 3, 2, 1), [ir.MaxPool]),
        (lambda m, x: F.adaptive_max_pool2d(x, 4), [ir.MaxPool]),
        (lambda m, x: x + x, [ir.Add]),
        (lambda m, x: torch.add(x, x), [ir.Add]),
        (lambda m, x: operator.add(x, x.relu()), [ir.Relu, ir.Add]),
        (lambda m, x: x * 0.5, [ir.Scale]),
        (lambda m, x: 2 * x, [ir.Scale]),
        (lambda m, x: x * x, [ir.Square]),
        (lambda m, x: torch.mul(x, x.relu()), [ir.Relu, ir.Multiply]),
        (lambda m, x: torch.square(x), [ir.Square]),
        (lambda m, x: x**2, [ir.Square]),
        (lambda m, x: torch.cat([x, x], 1), [ir.Concatenate]),
        (lambda m, x: torch.cat((x, x), dim=-1), [ir.Concatenate]),
        (lambda m, x: x.flatten(1), [ir.Flatten]),
        (lambda m, x: torch.mean(x, dim=(-2, -1), keepdim=True), [ir.Mean]),
        (lambda m, x: F.dropout(x, training=m.training).relu(), [ir.Relu]),
    ],
)
def test_forms(function, expected):
    assert [type(op) for op in steps(function)] == expected


def test_dropout_and_identity_leave_no_step():
    ops = steps(lambda m, x: m.a(m.b(x)).relu(), a=nn.Dropout(0.5), b=nn.Identity())
    assert [type(op) for op in ops] == [ir.Relu]


def test_shapes_and_names_follow_the_values():
    model = Apply(
        lambda m, x: m.fc(m.flat(m.pool(x) + m.pool(x))),
        pool=nn.AdaptiveAvgPool2d(2),
        flat=nn.Flatten(),
        fc=nn.Linear(16, 3),
    )
    program = lower(model, IMAGES).program
    assert [step.shape for step in program.steps] == [(4, 2, 2), (4, 2, 2), (4, 2, 2), (16,), (3,)]
    assert program.steps[2].inputs == (program.steps[0].name, program.steps[1].name)
    assert program.steps[0].input_size == 4 * 8 * 8
    assert program.steps[0].operator == ir.AveragePool((4, 4), (4, 4), (0, 0))


def test_in_place_relu_changes_every_later_use():
    """torch's `x + relu_(x)` adds the changed x to itself; so must the program."""
    model = Apply(lambda m, x: m.conv(x), conv=nn.Conv2d(4, 4, 1))

    def forward(m, x):
        y = m.conv(x)
        return torch.add(F.relu(y, inplace=True), y)

    model.function = forward
    program = lower(model, IMAGES).program
    relu, add = program.steps[1:]
    assert add.inputs == (relu.name, relu.name)


def test_plaintext_walk_leaves_model_and_example_alone():
    model = Apply(lambda m, x: m.relu(x), relu=nn.ReLU(inplace=True)).train()
    example = IMAGES.double()
    before = example.clone()
    lowered = lower(model, example)
    assert torch.equal(example, before)
    assert model.training
    torch.testing.assert_close(logits_of(lowered, before), before.relu())


def test_masked_relu_positions():
    mask = torch.zeros(4, 8, 8, dtype=torch.bool)
    mask[1, 2, 3] = mask[0, 0, 5] = True
    (op,) = steps(lambda m, x: m.relu(x), relu=MaskedReLU(mask))
    assert op.kept.tolist() == [5, 64 + 2 * 8 + 3]
    (op,) = steps(lambda m, x: m.relu(x), relu=MaskedReLU(torch.ones(4, 1, 1, dtype=torch.bool)))
    assert op.kept is None
    none = MaskedReLU(torch.zeros(4, 1, 1, dtype=torch.bool))
    assert [type(op) for op in steps(lambda m, x: m.relu(x).relu(), relu=none)] == [ir.Relu]


def test_truncation_law_counts_products_without_bias():
    """Probability |v| / 2^32 a product; the bias is added after the truncation."""
    conv = nn.Conv2d(4, 3, 1)
    conv.bias.data.fill_(1000.0)
    lowered = lower(Apply(lambda m, x: m.conv(x), conv=conv), IMAGES)
    products = F.conv2d(IMAGES.double(), conv.weight.double()).abs().sum().item() / len(IMAGES)
    assert lowered.truncation_failures == pytest.approx(products / 2**32, rel=1e-6)


def test_truncation_law_of_an_average():
    """The sum of a window is divided at single scale: probability |sum| 2^16 / 2^64."""
    lowered = lower(Apply(lambda m, x: F.avg_pool2d(x, 2)), IMAGES)
    sums = F.avg_pool2d(IMAGES.double(), 2).abs().sum().item() * 4 / len(IMAGES)
    assert lowered.truncation_failures == pytest.approx(sums / 2**48, rel=1e-6)


@pytest.mark.parametrize(
    ("function", "modules", "message"),
    [
        (lambda m, x: torch.erfinv(x), {}, "'erfinv' .erfinv. has no lowering.*add a rule"),
        (lambda m, x: m.norm(x), {"norm": nn.GroupNorm(2, 4)}, "'norm' .GroupNorm. is out of scope"),
        (lambda m, x: x.flatten(1).softmax(1), {}, "'softmax' .softmax. is out of scope.*logits"),
        (lambda m, x: m.conv(x), {"conv": nn.Conv2d(3, 4, 3)}, "conv.*does not fit its input"),
        (lambda m, x: x**5, {}, "power 5"),
        (lambda m, x: 1 / x, {}, "out of scope on a secret value"),
        (lambda m, x: torch.cat([x, x]), {}, "along the batch"),
        (lambda m, x: torch.flatten(x), {}, "batch"),
        (lambda m, x: x.mean(), {}, "averages over the batch"),
        (lambda m, x: F.dropout(x, training=True), {}, "draws random numbers"),
        (lambda m, x: x * torch.rand(8), {}, r"'rand' .* draws random numbers"),
        (lambda m, x: x + 0.1 * torch.randn_like(x), {}, r"'randn_like' .* draws random numbers"),
        (lambda m, x: F.dropout2d(x, 0.5), {}, "draws random numbers"),
        (lambda m, x: x * np.random.rand(), {}, "draws random numbers"),
        (lambda m, x: x * random.random(), {}, "draws random numbers"),
        (lambda m, x: torch.where(x > 0, x, 0 * x), {}, "chooses by a secret value"),
        (lambda m, x: (x, x.relu()), {}, "returns 2 tensors .0, 1.; choose one, such as output=0"),
    ],
)
@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel")
def test_refusals_name_the_node_and_the_remedy(function, modules, message):
    with pytest.raises(ExportError, match=message):
        lower(Apply(function, **modules), IMAGES)


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (lambda m, x: x.flatten(5), "does not fit its input"),
        (lambda m, x: m.p * m.p, "depends on its input"),
        (lambda m, x: F.conv2d(x, x), "computed kernel|does not fit"),
        (lambda m, x: m.p, "depends on its input"),
        (lambda m, x: x if x.sum() > 0 else -x, r"line \d+ of test_export.py .*depends on values"),
    ],
)
def test_odd_forms_are_refused_by_name(function, message):
    model = Apply(function)
    model.p = nn.Parameter(torch.ones(2, 4, 8, 8))
    with pytest.raises(ExportError, match=message):
        lower(model, IMAGES)


def test_not_a_model_or_not_an_example():
    with pytest.raises(ExportError, match="not str and Tensor"):
        lower("resnet18", IMAGES)
    with pytest.raises(ExportError, match=r"torch\.int64"):
        lower(nn.ReLU(), IMAGES.long())
    with pytest.raises(ExportError, match="at least one input"):
        lower(nn.ReLU(), IMAGES[:0])


def test_axis_is_dim():
    assert steps(lambda m, x: torch.cat([x, x], axis=1)) == [ir.Concatenate(1)]
    assert steps(lambda m, x: x.mean(axis=(2, 3))) == [ir.Mean((2, 3), False)]


def test_huge_weights_are_refused_even_if_their_products_are_small():
    conv = nn.Conv2d(4, 3, 1, bias=False)
    conv.weight.data.fill_(2.0**40)
    with pytest.raises(ExportError, match=r"conv.weight holds 1.1e\+12, beyond the 2\^30"):
        lower(Apply(lambda m, x: m.conv(x), conv=conv), IMAGES * 2.0**-30)


def test_values_out_of_range_are_found_before_anything_runs():
    conv = nn.Conv2d(4, 3, 1)
    conv.weight.data.fill_(2.0**29.9)
    with pytest.raises(ExportError, match=r"'conv' \(Conv2d\) reaches .* beyond the 2\^30"):
        lower(Apply(lambda m, x: m.conv(x), conv=conv), IMAGES)
    conv.weight.data.fill_(float("nan"))
    with pytest.raises(ExportError, match="NaN"):
        lower(Apply(lambda m, x: m.conv(x), conv=conv), IMAGES)


def test_limits_of_an_engine_are_checked_on_the_plaintext_values():
    conv = nn.Conv2d(4, 3, 1)
    lowered = lower(Apply(lambda m, x: m.conv(x).relu(), conv=conv), IMAGES)
    largest = F.conv2d(IMAGES.double(), conv.weight.double(), conv.bias.double()).abs().max().item()
    assert lowered.largest["conv"] == pytest.approx(largest)
    assert lowered.largest["x"] == pytest.approx(IMAGES.abs().max().item())
    lowered.demand({"conv": 2 * largest, "x": 100.0})
    with pytest.raises(ExportError, match=r"'conv' reaches .* beyond the 2\^0 .* engine='stock'"):
        lowered.demand({"conv": 1.0})


def test_nan_image_is_found():
    with pytest.raises(ExportError, match="NaN"):
        lower(Apply(lambda m, x: x.relu()), torch.full((1, 4, 8, 8), float("nan")))


def test_last_uses_cover_every_value_but_the_output():
    program = lower(Apply(lambda m, x: (x.relu() + x).relu()), IMAGES).program
    names = {program.input, *(step.name for step in program.steps)}
    assert set(program.last_uses()) == names - {program.output}
