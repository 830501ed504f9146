"""Merging stretches without ReLUs, held against the same stretch computed step by step on a padded input."""

import pytest
import torch
from networks import difference, images
from torch import nn
from torch.nn import functional as F

from pibench.measure.count import cost_of
from pibench.models.graph.moves import module_of, trace
from pibench.models.transforms.merge_linear_stretches import merge_linear_stretches
from pibench.models.variants import variant

TOLERANCE = 1e-10


def conv(inputs, outputs, kernel, seed, **options):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return nn.Conv2d(inputs, outputs, kernel, **options).double()


class Stretch(nn.Module):
    """A stem, a residual block and a strided block with a shortcut, all linear, then a ReLU and a head."""

    def __init__(self, padded=True):
        super().__init__()
        p = int(padded)
        self.padded = padded
        self.stem = conv(3, 4, 3, 1, padding=p)
        self.first = conv(4, 4, 3, 2, padding=p)
        self.second = conv(4, 4, 3, 3, padding=p)
        self.down = conv(4, 6, 3, 4, padding=p, stride=2)
        self.shortcut = conv(4, 6, 1, 5, stride=2)
        self.relu = nn.ReLU()
        self.head = conv(6, 5, 3, 6, padding=1)

    def forward(self, x):
        x = self.stem(x)
        x = x + self.second(self.first(x))
        return self.head(self.relu(self.down(x) + self.shortcut(x)))


def on_a_frame(model, x):
    """The padding of all convolutions of the stretch is added to the image at once: 1 + 1 + 1 + 1 zeros."""
    y = F.pad(x, (4, 4, 4, 4))
    y = F.conv2d(y, model.stem.weight, model.stem.bias)
    inner = F.conv2d(y, model.first.weight, model.first.bias)
    inner = F.conv2d(inner, model.second.weight, model.second.bias)
    y = y[..., 2:-2, 2:-2] + inner
    deep = F.conv2d(y, model.down.weight, model.down.bias, stride=2)
    skip = F.conv2d(y[..., 1:-1, 1:-1], model.shortcut.weight, model.shortcut.bias, stride=2)
    return model.head(model.relu(deep + skip))


def convolutions(graph):
    found = (module_of(graph, node, nn.Conv2d) for node in graph.graph.nodes)
    return [each for each in found if each is not None]


@pytest.mark.parametrize("size", [16, 17])
def test_a_stretch_with_skips_is_one_convolution_of_the_image_with_its_frame(size):
    model, x = Stretch().eval(), images(2, size)
    graph = merge_linear_stretches(model, borders="hoisted", price=lambda conv, area: 1.0)
    first, head = convolutions(graph)
    assert first.weight.shape == (6, 3, 9, 9)
    assert (first.stride, first.padding) == ((2, 2), (4, 4))
    assert head.weight.equal(model.head.weight)
    with torch.no_grad():
        expected = on_a_frame(model, x)
        assert (graph(x) - expected).abs().max() < TOLERANCE * expected.abs().max()
        # Only the border differs from the network itself.
        assert (graph(x) - model(x))[..., 3:-3, 3:-3].abs().max() < TOLERANCE
        assert (graph(x) - model(x)).abs().max() > 1e-3


def test_exact_borders_leave_what_pads_inside():
    model, x = Stretch().eval(), images(2, 16)
    graph = merge_linear_stretches(model, price=lambda conv, area: 1.0)
    assert difference(model, graph, x) < TOLERANCE
    # Sum and shortcut are one convolution, and nothing else is.
    assert len(convolutions(graph)) == len(convolutions(trace(model))) - 1


def test_a_chain_that_does_not_pad_is_merged_exactly_with_its_average_pool():
    model = nn.Sequential(
        *(conv(3, 8, 3, 1, stride=2), conv(8, 8, 3, 2), nn.AvgPool2d(2), conv(8, 2, 2, 3), nn.ReLU())
    ).eval()
    graph = merge_linear_stretches(model)
    (only,) = convolutions(graph)
    assert only.weight.shape == (2, 3, 13, 13)
    assert only.stride == (4, 4)
    assert difference(model, graph, images(2, 32)) < TOLERANCE
    before, after = (cost_of(net, images(1, 32)).macs for net in (model, graph))
    assert after < before


def test_zeros_that_stay_zeros_may_be_padded_after():
    model = nn.Sequential(conv(3, 2, 1, 1, bias=False), conv(2, 3, 3, 2, padding=1)).eval()
    graph = merge_linear_stretches(model, price=lambda conv, area: 1.0)
    assert len(convolutions(graph)) == 1
    assert difference(model, graph, images(2, 8)) < TOLERANCE
    biased = nn.Sequential(conv(3, 2, 1, 1), conv(2, 3, 3, 2, padding=1)).eval()
    assert len(convolutions(merge_linear_stretches(biased, price=lambda conv, area: 1.0))) == 2


class Shared(nn.Module):
    """A value with two linear users that end in different ReLUs, and a sum of two stretches."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.c = (conv(3, 3, 1, seed) for seed in (1, 2, 3))
        self.d = conv(3, 3, 1, 4)

    def forward(self, x):
        y = self.a(x)
        left, right = torch.relu(self.b(y)), torch.relu(self.c(y))
        return torch.relu(self.d(left) + y) + right


def test_values_with_users_elsewhere_end_a_stretch():
    model = Shared().eval()
    graph = merge_linear_stretches(model, price=lambda conv, area: 1.0)
    assert len(convolutions(graph)) == 4
    assert difference(model, graph, images(2, 8)) < TOLERANCE


class Forked(nn.Module):
    """A value that the deep branch and the shortcut of a block read."""

    def __init__(self, padding):
        super().__init__()
        self.a = conv(3, 8, 3, 1, padding=1)
        self.b = conv(8, 4, 3, 2, stride=2, padding=padding)
        self.c = conv(8, 4, 1, 3, stride=2)

    def forward(self, x):
        y = self.a(x)
        return torch.relu(self.b(y)).mean((2, 3)) + self.c(y).mean((2, 3))


def test_a_convolution_that_convolutions_alone_read_goes_into_each_of_them():
    model, x = Forked(padding=0).eval(), images(2, 16)
    graph = merge_linear_stretches(model)
    assert [each.kernel_size for each in convolutions(graph)] == [(5, 5), (3, 3)]
    assert difference(model, graph, x) < TOLERANCE
    assert cost_of(graph, x[:1]).macs < cost_of(model, x[:1]).macs
    padded = Forked(padding=1).eval()
    assert len(convolutions(merge_linear_stretches(padded))) == 3
    hoisted = merge_linear_stretches(padded, borders="hoisted")
    assert [each.padding for each in convolutions(hoisted)] == [(2, 2), (1, 1)]
    dear = merge_linear_stretches(model, price=lambda conv, area: conv.kernel_size[0] ** 4)
    assert len(convolutions(dear)) == 3


@pytest.mark.parametrize(
    "options", [{"groups": 3}, {"dilation": 2}, {"padding": 1, "padding_mode": "reflect"}]
)
def test_other_convolutions_end_a_stretch(options):
    model = nn.Sequential(conv(3, 3, 1, 1), conv(3, 3, 3, 2, **options), conv(3, 3, 1, 3)).eval()
    graph = merge_linear_stretches(model, borders="hoisted", price=lambda conv, area: 1.0)
    assert len(convolutions(graph)) == 3
    assert difference(model, graph, images(2, 12)) < TOLERANCE


def test_the_price_decides():
    model = Stretch().eval()
    dear = merge_linear_stretches(model, borders="hoisted", price=lambda conv, area: conv.kernel_size[0] ** 4)
    assert max(each.kernel_size[0] for each in convolutions(dear)) == 3
    cheap = merge_linear_stretches(model, borders="hoisted")
    x = images(1, 16)
    assert cost_of(cheap, x).macs <= cost_of(model, x).macs
    with pytest.raises(ValueError, match="borders are exact or hoisted, not 'none'"):
        merge_linear_stretches(model, borders="none")


@pytest.mark.parametrize(
    ("name", "macs", "layers"),
    [
        ("baseline", 35_058_176, 21),  # every layer keeps ReLUs
        ("senet-0.09", 30_994_944, 16),
        ("joint-0.208", 18_649_600, 11),
    ],
)
def test_trained_networks_lose_the_layers_before_their_first_relu(name, macs, layers):
    model = variant(name).build(16)
    cost = cost_of(merge_linear_stretches(model, borders="hoisted"), torch.zeros(1, 3, 32, 32))
    assert (cost.macs, cost.linear_layers) == (macs, layers)
    assert cost.relus == cost_of(model, torch.zeros(1, 3, 32, 32)).relus
