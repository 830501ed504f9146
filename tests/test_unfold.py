import copy

import pytest
import torch
from torch import nn

from pibench.models.training.unfold import unfolded
from pibench.models.transforms import fold_batchnorm
from pibench.models.zoo import ZOO


def published(network, width=4):
    """Returns a network whose BatchNorm has seen something, in float64, and the same one folded."""
    torch.manual_seed(0)
    model = ZOO[network](classes=10, width=width).double()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.2, 2)
            nn.init.normal_(module.bias)
            module.running_mean.normal_()
            module.running_var.uniform_(0.5, 2)
    return model.eval(), fold_batchnorm(copy.deepcopy(model).eval())


@pytest.mark.parametrize("network", ["resnet18", "resnet20", "wrn_22_8", "vgg16"])
def test_the_network_trains_again_and_computes_the_same(network):
    original, folded = published(network)
    images = torch.randn(8, 3, 32, 32, dtype=torch.float64)
    wanted = folded(images)
    torch.manual_seed(1)
    model = unfolded(ZOO[network](classes=10, width=4).double(), folded, iter(images.split(3)))
    assert model.state_dict().keys() == original.state_dict().keys()
    assert (model(images) - wanted).abs().max() < 1e-10 * wanted.abs().max()
    # On just the images of the statistics a training step sees the same network too.
    assert (model.train()(images) - wanted).abs().max() < 1e-8 * wanted.abs().max()
    assert (folded(images) == wanted).all()
    assert not any(module._forward_hooks for module in folded.modules())


def test_filters_have_the_norm_of_random_ones_and_an_empty_one_stays_empty():
    _, folded = published("resnet20")
    folded.get_submodule("conv1").weight.data[2] = 0
    model = unfolded(
        ZOO["resnet20"](classes=10, width=4).double(), folded, [torch.randn(4, 3, 32, 32).double()]
    )
    norms = model.conv1.weight.flatten(1).norm(dim=1)
    wanted = torch.full((4,), (2 * 3 / 4) ** 0.5, dtype=torch.float64)
    wanted[2] = 0
    assert torch.allclose(norms, wanted, rtol=1e-12)
    assert all(parameter.isfinite().all() for parameter in model.state_dict().values())


def test_another_structure_is_refused_by_its_first_layer_that_differs():
    _, folded = published("resnet18")
    with pytest.raises(ValueError, match="of another structure: its conv1 does not fit"):
        unfolded(ZOO["resnet18"](classes=10, width=8), folded, [])
    with pytest.raises(ValueError, match=r"of another structure: its .* does not fit"):
        unfolded(ZOO["resnet20"](classes=10, width=4), folded, [])
