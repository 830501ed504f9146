from math import prod

import pytest
import torch
from torch import nn

from pibench.measure.count import cost_of
from pibench.models.cost import count_macs, relu_shapes
from pibench.models.zoo import ZOO, resnet18, resnet20, resnet32, resnet34, vgg16, wrn_22_8
from pibench.models.zoo.wide_resnet import WideResNet

COUNTS = [
    (resnet18, {}, 557_056, 17),
    (resnet34, {}, 966_656, 33),
    (resnet20, {}, 188_416, 19),
    (resnet32, {}, 303_104, 31),
    (wrn_22_8, {}, 1_392_640, 19),
    (vgg16, {}, 276_480, 13),
    (vgg16, {"hidden": True}, 284_672, 15),
]


def activations(network, size, **arguments):
    """Returns the elements of each ReLU's activation; the network has no weights, shapes alone."""
    with torch.device("meta"):
        shapes = relu_shapes(network(**arguments), torch.zeros(1, 3, size, size))
    return [prod(shape) for shape in shapes.values()]


@pytest.mark.parametrize(("network", "arguments", "relus", "layers"), COUNTS)
def test_relu_counts_are_those_of_the_field(network, arguments, relus, layers):
    counted = activations(network, 32, **arguments)
    assert sum(counted) == relus
    assert len(counted) == layers
    hidden = 8192 if arguments else 0  # its two linear layers do not grow with the image
    assert sum(activations(network, 64, **arguments)) == 4 * (relus - hidden) + hidden


@pytest.mark.parametrize("name", ZOO)
def test_width_and_classes_are_free_and_every_relu_is_a_module_of_its_own(name):
    model = ZOO[name](classes=7, width=2).eval()
    calls = []
    for module in model.modules():
        if isinstance(module, nn.ReLU):
            module.register_forward_hook(lambda called, *_: calls.append(called))
    with torch.no_grad():
        assert model(torch.randn(2, 3, 32, 32)).shape == (2, 7)
        assert len(calls) == len(set(calls)) == sum(isinstance(module, nn.ReLU) for module in model.modules())
        assert model(torch.randn(1, 3, 48, 64)).shape == (1, 7)


def test_relus_scale_with_the_width():
    assert sum(activations(resnet18, 32, width=16)) == 557_056 // 4


def test_imagenet_stem_halves_twice_and_compares_in_its_max_pooling():
    # 802,816 in the stem, then 200,704 a layer in stage 1, halving
    assert sum(activations(resnet18, 224, stem="imagenet")) == 2_308_096
    with torch.device("meta"):
        model, image = resnet18(stem="imagenet", classes=1000), torch.zeros(1, 3, 224, 224)
    assert count_macs(model, image) == 1_814_073_344  # torchvision's resnet18: 1.81 GMAC
    assert sum(each.numel() for each in model.parameters()) == 11_689_512  # as torchvision's
    narrow = cost_of(resnet18(width=2, stem="imagenet"), torch.zeros(1, 3, 224, 224))
    assert 32 * narrow.comparisons == 8 * 64 * 56 * 56


def test_shortcuts_are_convolutions_only_where_the_shape_changes():
    blocks = [getattr(resnet20(width=2), f"layer{stage}") for stage in (1, 2, 3)]
    assert [[block.shortcut is not None for block in stage] for stage in blocks] == [
        [False, False, False],
        [True, False, False],
        [True, False, False],
    ]


def test_wide_resnet_activates_before_it_convolves():
    block = wrn_22_8(width=1).group1[1].double().eval()
    x = torch.randn(1, 8, 4, 4, dtype=torch.float64)
    with torch.no_grad():
        block.conv2.weight.zero_()
        assert torch.equal(block(x), x)  # no ReLU after the sum


@pytest.mark.parametrize("bad", [{"width": 0}, {"width": 1.5}, {"classes": 0}])
@pytest.mark.parametrize("name", ZOO)
def test_bad_sizes_are_named(name, bad):
    with pytest.raises(ValueError, match=f"{next(iter(bad))} must be a positive whole number"):
        ZOO[name](**bad)


def test_unknown_stem_and_depth_are_named():
    with pytest.raises(ValueError, match="unknown stem 'tiny'"):
        resnet18(width=1, stem="tiny")
    with pytest.raises(ValueError, match="depth 6 n \\+ 4, not 20"):
        WideResNet(20, 1, 10, 1)
