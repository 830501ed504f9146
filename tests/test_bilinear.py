"""Bilinear projections, held against the Kronecker product of their factors."""

import pytest
import torch
from networks import SMALL, difference, images, logits_of, randomised, small
from torch import nn
from torch.nn import functional as F

from pibench.costs.predict import predict
from pibench.measure.count import cost_of
from pibench.models import variants
from pibench.models.graph.bilinear import BilinearLinear, ColumnsConv2d, RowsConv2d
from pibench.models.transforms import bilinear_layers, fold_batchnorm
from pibench.models.transforms.bilinear_layers import pair_of
from pibench.models.variants import variant
from pibench.program.lower import lower

TOLERANCE = 1e-10


def draw(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def kronecker(left, right):
    """The kernel [u1 u2, c1 c2, k, k] of both factors, place by place."""
    (u1, c1, height, width), (u2, c2) = left.shape, right.shape
    kernel = torch.empty(u1 * u2, c1 * c2, height, width, dtype=torch.float64)
    for a in range(u1):
        for b in range(u2):
            for d in range(c1):
                for e in range(c2):
                    kernel[a * u2 + b, d * c2 + e] = left[a, d] * right[b, e]
    return kernel


@pytest.mark.parametrize(
    ("kernel", "stride", "padding", "size"),
    [
        *((3, 1, 1, 6), (3, 2, 1, 6), (3, 2, 1, 5), (1, 1, 0, 4), (1, 2, 0, 5), (5, 1, 2, 4)),
        *((3, 1, 0, 5), (3, 2, 0, 7), (1, 1, 1, 3), (5, 3, 2, 8), (2, 2, 0, 4), (3, 1, 2, 1)),
    ],
)
def test_two_convolutions_are_the_one_of_the_kronecker_product(kernel, stride, padding, size):
    left, right, x = draw(4, 2, kernel, kernel), draw(5, 3, seed=1), draw(2, 6, size, size + 1, seed=2)
    rows = RowsConv2d(left, 3, (stride, stride), (padding, padding))
    columns = ColumnsConv2d(right[:, :, None, None], 4, draw(20, seed=3))
    expected = F.conv2d(x, kronecker(left, right), columns.bias, stride, padding)
    for mode in (True, False):  # training has another way to the same values
        found = columns(rows.train(mode)(x))
        assert found.shape == expected.shape
        assert (found - expected).abs().max() < TOLERANCE


def test_a_vector_is_multiplied_from_both_sides():
    left, right, bias, x = draw(2, 3), draw(5, 4, seed=1), draw(10, seed=2), draw(6, 12, seed=3)
    expected = torch.stack([(left @ each.view(3, 4) @ right.T).flatten() + bias for each in x])
    assert (BilinearLinear(left, right, bias)(x) - expected).abs().max() < TOLERANCE


@pytest.mark.parametrize("network", SMALL)
@pytest.mark.parametrize("scale", [1, 2])
def test_every_network_becomes_bilinear_and_folds_exactly(network, scale):
    model = randomised(bilinear_layers(small(network), scale), 3)
    folded = fold_batchnorm(model)
    assert not [each for each in folded.modules() if isinstance(each, nn.BatchNorm2d)]
    assert difference(model, folded, images()) < TOLERANCE
    convs = {name: each for name, each in folded.named_modules() if isinstance(each, nn.Conv2d)}
    dense = [conv for name, conv in convs.items() if not name.endswith("_columns") and conv.groups == 1]
    assert [conv.in_channels for conv in dense] == [3]  # the stem alone


@pytest.mark.parametrize("network", ["resnet18", "wrn_22_8", "vgg16-hidden"])
def test_parties_run_the_network_that_torch_runs(network):
    model = randomised(bilinear_layers(small(network)), 3)
    lowered = lower(fold_batchnorm(model), images())
    expected = model(images())
    assert (logits_of(lowered, images()) - expected).abs().max() < TOLERANCE * expected.abs().max()


def test_the_first_weights_have_the_variance_of_dense_ones():
    model = nn.Sequential(nn.Conv2d(3, 32, 3), nn.Conv2d(32, 32, 3))
    products = []
    for seed in range(20):
        made = bilinear_layers(model, seed=seed).state_dict()
        left, right = made["1_rows.weight"], made["1_columns.weight"]
        products.append(float(left.square().mean() * right.square().mean()))
    assert sum(products) / len(products) == pytest.approx(2 / (32 * 9), rel=0.15)


def test_a_scale_widens_everything_but_the_classes():
    plain, wide = (cost_of(bilinear_layers(small("resnet18"), scale), images(1)) for scale in (1, 2))
    assert wide.relus == 4 * plain.relus == 4 * cost_of(small("resnet18"), images(1)).relus
    assert wide.linear_layers == plain.linear_layers
    assert bilinear_layers(small("resnet18"), 2)(images()).shape == (2, 5)


def test_parameters_go_and_rounds_come(monkeypatch):
    """Few weights are left to open. The second factor costs a round, and on lean a truncation before it."""
    monkeypatch.setattr(variants, "calibrate", lambda *_: None)  # costs do not depend on statistics
    program = lower(variant("bilinear-1").build(64, None), images(1)).program
    stock, lean = (predict(program, engine) for engine in ("stock", "lean"))
    assert stock.bytes_sent == 139_894_304  # 224,258,336 with dense layers
    assert (stock.rounds, lean.rounds) == (175 + 20, 108 + 40)


def test_what_cannot_be_bilinear_is_refused():
    first = nn.Conv2d(3, 4, 3)
    cases = [
        (nn.Sequential(first, nn.Conv2d(4, 4, 3, groups=2)), "cannot make 1 bilinear: it has 2 groups"),
        (nn.Sequential(first, nn.Conv2d(4, 4, 3, dilation=2)), r"1 bilinear: it is dilated by \(2, 2\)"),
        (nn.Sequential(first, nn.PReLU(4)), "1 bilinear: a PReLU depends on the number of channels"),
        (nn.Sequential(nn.Flatten(), nn.Linear(12, 4)), "its first layer is no convolution of the image"),
        (nn.Sequential(nn.ReLU()), "its first layer is no convolution of the image"),
    ]
    for model, reason in cases:
        with pytest.raises(ValueError, match=reason):
            bilinear_layers(model)
    twice = nn.Conv2d(4, 4, 1)
    with pytest.raises(ValueError, match="cannot make 1 bilinear: it is called more than once"):
        bilinear_layers(nn.Sequential(first, twice, twice))
    with pytest.raises(ValueError, match="a scale of channels is 1 or more, not 0"):
        bilinear_layers(small("resnet18"), 0)


def test_factors_are_as_near_as_they_can_be():
    assert [pair_of(each) for each in (1, 2, 64, 100, 512, 7)] == [
        *((1, 1), (1, 2), (8, 8), (10, 10), (16, 32), (1, 7)),
    ]
