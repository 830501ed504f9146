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
from pibench.program.capture import answer_of
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


def open_field(x: torch.Tensor) -> torch.Tensor:
    return {"a": x}["b"]


def never(x: torch.Tensor) -> torch.Tensor:
    raise LookupError("no such image\nand more")


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (
            lambda m, x: open_field(x),
            r"line \d+ of test_export.py .return .* raises KeyError .'b'.: the network",
        ),
        (
            lambda m, x: never(x),
            r"line \d+ of .* raises LookupError .no such image.: the network does not fit",
        ),
        (lambda m, x: x.undefined, "raises AttributeError .*make it run on such images first"),
        (lambda m, x: x / 0, "'div' .div. divides by 0"),
        (lambda m, x: x + 2**70, r"line \d+ of .* uses a whole number beyond 2\^63"),
        (lambda m, x: x * 2**64, r"line \d+ of .* uses a whole number beyond 2\^63"),
        (lambda m, x: x * 2.0**80, r"'mul' .* (uses the number|reaches) .*beyond the 2\^30"),
        (lambda m, x: (x * 2.0**-60) * 2.0**70, r"'mul' .* uses the number 1.18e\+21, beyond the 2\^30"),
        (lambda m, x: torch.add(x, x * 2.0**-60, alpha=2**40), r"'add' .* uses the number 1.1e\+12"),
        (lambda m, x: x.clamp(min=2.0**31), r"'clamp' .* uses the number 2.15e\+09, beyond the 2\^30"),
        (lambda m, x: F.conv2d(x[:, 0], m.kernel), "reads the batch as channels.*add a dimension"),
        (lambda m, x: m.fc(x.flatten(1)), r"'fc' .Linear. has no elements: its shape is \[0\] an image"),
        (lambda m, x: m.conv(x).relu(), "raises RuntimeError .* at least 1 at dimension 0"),
        (lambda m, x: x[:, :0].relu(), r"has no elements: its shape is \[0, 8, 8\] an image"),
    ],
)
@pytest.mark.filterwarnings("ignore:Initializing zero-element tensors is a no-op")
def test_what_fails_inside_a_network_is_one_sentence(function, message):
    model = Apply(function, fc=nn.Linear(256, 0), conv=nn.Conv2d(4, 0, 1))
    model.kernel = nn.Parameter(torch.ones(3, 5, 3, 3))
    with pytest.raises(ExportError, match=message) as caught:
        lower(model, IMAGES)
    assert "\n" not in str(caught.value)


def test_a_network_that_fails_on_another_batch_is_one_sentence():
    def forward(m, x):
        assert len(x) == 5, "five at once"
        return x

    with pytest.raises(ExportError, match=r"assert .* raises AssertionError .five at once.: the network"):
        answer_of(Apply(forward), IMAGES)
    with pytest.raises(ExportError, match=r"cannot be captured for a batch of 5 .AssertionError: two"):
        lower(Apply(two_at_once), IMAGES)


def two_at_once(m, x):
    if len(x) != 2:
        raise AssertionError("two")
    return x


def test_one_image_without_a_batch_is_told_as_such():
    conv = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(144, 2))
    with pytest.raises(
        ExportError, match=r"one image of shape \[3, 8, 8\] .* give images\[None\], of shape \[1, 3, 8, 8\]"
    ):
        lower(conv, torch.ones(3, 8, 8))
    with pytest.raises(ExportError, match="at least one input"):
        lower(nn.ReLU(), torch.ones(8))
    with pytest.raises(ExportError, match=r"at least one input, not \[2, 0, 8, 8\]"):
        lower(nn.ReLU(), torch.ones(2, 0, 8, 8))


def test_clamps_without_an_end_have_no_knot_there():
    (relu,) = steps(lambda m, x: x.clamp(0.0, float("inf")))
    assert isinstance(relu, ir.Relu)
    (low,) = steps(lambda m, x: F.hardtanh(x, -1.0, 2.0**30))
    assert low == ir.PiecewiseLinear(0.0, (-1.0,), (1.0,), -1.0)
    (high,) = steps(lambda m, x: x.clamp(-1e12, 1.0))
    assert high == ir.PiecewiseLinear(1.0, (1.0,), (-1.0,), 0.0)
    (relu,) = steps(lambda m, x: x.clamp(-1e12, 1e12).relu())
    assert isinstance(relu, ir.Relu)


class Own(torch.Tensor):
    """A tensor with a class of its own."""


class Strange(torch.Tensor):
    """A tensor that computes in its own way."""

    @classmethod
    def __torch_dispatch__(cls, function, types, args=(), kwargs=None):
        raise TypeError("nobody but its own library knows how")


def with_attribute(tensor: torch.Tensor) -> nn.Module:
    model = Apply(lambda m, x: x * m.scale)
    model.scale = tensor
    return nn.Sequential(nn.ReLU(), model)


def with_weight(weight: torch.Tensor) -> nn.Module:
    fc = nn.Linear(8, 8, bias=False)
    fc.weight = nn.Parameter(weight, requires_grad=False)
    return nn.Sequential(nn.ReLU(), fc)


@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")
@pytest.mark.filterwarnings("ignore:.*(Sparse CSR|nested tensors).*:UserWarning")
@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: torch.jit.script(nn.ReLU()), "^the network is TorchScript, .*from which it was made"),
        (lambda: torch.jit.trace(nn.ReLU(), IMAGES), "^the network is TorchScript"),
        (lambda: nn.Sequential(nn.ReLU(), torch.jit.script(nn.ReLU())), "^module '1' is TorchScript"),
        (
            lambda: with_weight(torch.eye(8).to_sparse()),
            "'1.weight' is no dense tensor .sparse_coo.; make it",
        ),
        (lambda: with_weight(torch.eye(8).to_sparse_csr()), "'1.weight' is no dense tensor .sparse_csr."),
        (lambda: with_weight(torch.eye(8, device="meta")), "'1.weight' is on the meta device and holds no"),
        (lambda: nn.Sequential(nn.LazyLinear(3)), "'0.weight' has no shape yet; run the network once"),
        (lambda: with_attribute(torch.ones(8).as_subclass(Strange)), "'1.scale' is a Strange, which comput"),
        (lambda: with_attribute(torch.ones(8, device="meta")), "'1.scale' is on the meta device"),
    ],
)
def test_networks_without_plain_numbers_are_refused(make, message):
    with pytest.raises(ExportError, match=message):
        lower(make(), IMAGES)


@pytest.mark.parametrize(
    ("example", "message"),
    [
        (IMAGES.to("meta"), "the example is on the meta device and holds no numbers"),
        (IMAGES.to_sparse(), "the example is no dense tensor .sparse_coo."),
        (IMAGES.as_subclass(Strange), "the example is a Strange, which computes in its own way"),
    ],
)
def test_examples_without_plain_numbers_are_refused(example, message):
    with pytest.raises(ExportError, match=message):
        lower(nn.ReLU(), example)


def test_a_class_of_tensors_changes_nothing():
    weight = torch.arange(64.0).view(8, 8)
    plain = lower(with_weight(weight), IMAGES)
    own = lower(with_weight(weight.as_subclass(Own)), IMAGES.as_subclass(Own))
    assert torch.equal(logits_of(own, IMAGES), logits_of(plain, IMAGES))
    assert {type(each) for each in own.weights.values()} == {torch.Tensor}


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
    with pytest.raises(ExportError, match=r"'conv' reaches .* beyond the 2\^0 .*; normalise the network"):
        lowered.demand({"conv": 1.0})


def test_limits_hold_for_biases_and_for_differences_to_knots():
    """A bias alone is encoded at the scale of its layer; a comparison subtracts the knot first."""
    conv = nn.Conv2d(4, 3, 1)
    conv.weight.data.fill_(-1.0)
    conv.bias.data.fill_(1000.0)
    ones = torch.full((1, 4, 8, 8), 250.0)
    lowered = lower(Apply(lambda m, x: m.conv(x).clamp(-3000.0, 5.0), conv=conv), ones)
    assert lowered.largest["conv"] == 0
    with pytest.raises(ExportError, match=r"'conv' reaches 3e\+03"):
        lowered.demand({"conv": 2048.0})
    lowered = lower(Apply(lambda m, x: m.conv(x), conv=conv), ones)
    with pytest.raises(ExportError, match=r"'conv' reaches 1e\+03"):
        lowered.demand({"conv": 512.0})
    lowered.demand({"conv": 1024.0})


def test_nan_image_is_found():
    with pytest.raises(ExportError, match="NaN"):
        lower(Apply(lambda m, x: x.relu()), torch.full((1, 4, 8, 8), float("nan")))


def test_last_uses_cover_every_value_but_the_output():
    program = lower(Apply(lambda m, x: (x.relu() + x).relu()), IMAGES).program
    names = {program.input, *(step.name for step in program.steps)}
    assert set(program.last_uses()) == names - {program.output}
