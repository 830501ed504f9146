"""Channel attention, held against timm's definition written out, and the price of its rounds."""

from dataclasses import replace

import pytest
import torch
from networks import difference, images, logits_of, small
from torch import nn

from pibench.costs.predict import predict
from pibench.models import variants
from pibench.models.graph.attention import EfficientAttention, span
from pibench.models.transforms import attend_channels, fold_batchnorm
from pibench.models.variants import variant
from pibench.models.zoo import layout_of
from pibench.program.lower import lower

CONVS = [block.conv2 for block in layout_of("resnet18").blocks]
GATES = {"sigmoid": torch.sigmoid, "hardsigmoid": lambda x: (x / 6 + 0.5).clamp(0, 1)}


def draw(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("gate", GATES)
@pytest.mark.parametrize("channels", [1, 4, 16, 128])
def test_each_channel_is_weighed_by_the_means_around_it(gate, channels):
    layer, x = EfficientAttention(channels, gate, dtype=torch.float64), draw(2, channels, 3, 5)
    window = layer.conv.weight[0, 0]
    reach = len(window) // 2
    means = x.mean((2, 3))
    expected = torch.empty_like(x)
    for c in range(channels):
        near = range(max(0, c - reach), min(channels, c + reach + 1))
        total = sum(window[j - c + reach] * means[:, j] for j in near)
        expected[:, c] = x[:, c] * GATES[gate](total)[:, None, None]
    assert (layer(x) - expected).abs().max() < 1e-10


def test_the_window_grows_with_the_channels_and_is_odd():
    assert [span(channels) for channels in (1, 2, 16, 64, 128, 256, 512, 4096)] == [1, 1, 3, 3, 5, 5, 5, 7]
    with pytest.raises(ValueError, match="unknown gate 'tanh': known are sigmoid, hardsigmoid"):
        EfficientAttention(4, "tanh")


@pytest.mark.parametrize("gate", GATES)
def test_it_folds_exactly_and_parties_run_it(gate):
    model = attend_channels(small("resnet18"), CONVS, gate)
    assert difference(small("resnet18"), model, images()) > 1e-3
    folded = fold_batchnorm(model)
    assert not [each for each in folded.modules() if isinstance(each, nn.BatchNorm2d)]
    assert difference(model, folded, images()) < 1e-10
    with torch.no_grad():
        expected, found = model(images()), logits_of(lower(folded, images()), images())
    near = 1e-9 if gate == "hardsigmoid" else 0.01  # the sigmoid is a sum of ReLUs
    assert (found - expected).abs().max() < near * expected.abs().max()


def test_attention_stands_before_the_sum_also_without_a_batchnorm():
    for network, norm in (("resnet18", "bn2"), ("wrn_22_8", "conv2")):
        blocks = layout_of(network).blocks
        graph = attend_channels(small(network), [block.conv2 for block in blocks])
        found = [node for node in graph.graph.nodes if str(node.target).endswith("_attention")]
        assert len(found) == len(blocks)
        for block, node in zip(blocks, found, strict=True):
            assert node.args[0].target == f"{block.name}.{norm}"
            assert next(iter(node.users)).name.startswith("add")
    with pytest.raises(ValueError, match="no convolution named 'fc' that is called once"):
        attend_channels(small("resnet18"), ["fc"])
    with pytest.raises(ValueError, match="eca cannot be made of vgg16: the network has no residual blocks"):
        _ = replace(variant("eca"), network="vgg16").steps


@pytest.mark.parametrize(("name", "knots"), [("eca", 10), ("eca-hard", 2)])
def test_rounds_come_where_no_count_changes(name, knots, monkeypatch):
    """MACs and weights stay, bytes hardly rise: the rounds are the price."""
    monkeypatch.setattr(variants, "calibrate", lambda *_: None)  # costs do not depend on statistics
    program = lower(variant(name).build(64, None), images(1)).program
    before = lower(variant("baseline").build(64, None), images(1)).program
    channels, outputs, windows = 1920, 245_760, 36  # of all eight blocks
    one, other = predict(before, "stock"), predict(program, "stock")
    assert other.rounds - one.rounds == 8 * (1 + 9 + 1)
    products = 8 * (channels + windows) + 8 * (outputs + channels)
    assert other.bytes_sent - one.bytes_sent == products + 232 * knots * channels
    assert other.bytes_sent < 1.03 * one.bytes_sent
    one, other = predict(before, "lean"), predict(program, "lean")
    assert other.rounds - one.rounds == 8 * 10 - 2  # the means of 16 x 16 pixels need no truncation
