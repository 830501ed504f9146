import pytest
import torch
from torch import nn

from pibench.models.graph.moves import relu_nodes, trace
from pibench.models.graph.relu import MaskedReLU
from pibench.models.training.relus import (
    CutReLU,
    SoftReLU,
    TrainingReLU,
    deployed_relus,
    exchange_relus,
    mask_relus,
    masks_of,
    named_relus,
)
from pibench.models.zoo import resnet18

SHAPE = (4, 6, 5)


def pixel_mask(shape=SHAPE, seed=0):
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed)) < 0.4


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_the_training_form_is_the_masked_relu_with_its_gradient(dtype, memory_format):
    """Zeros are among the values: torch.maximum alone would give them half a gradient."""
    mask = pixel_mask()
    generator = torch.Generator().manual_seed(1)
    x = torch.randint(-2, 3, (8, *SHAPE), generator=generator).to(dtype)
    x = x.contiguous(memory_format=memory_format)
    assert (x == 0).sum() > 100
    gradient = torch.randn(x.shape, generator=generator).to(dtype)
    results = []
    for relu in (TrainingReLU(mask).to(memory_format=memory_format), MaskedReLU(mask)):
        leaf = x.clone().requires_grad_()
        y = relu(leaf)
        y.backward(gradient)
        results.append((y.detach(), leaf.grad))
    assert torch.equal(results[0][0], results[1][0])
    assert torch.equal(results[0][1], results[1][1])
    assert results[0][0].dtype == dtype
    assert results[0][0].is_contiguous(memory_format=memory_format)


def test_no_number_is_not_hidden():
    x = torch.full((1, *SHAPE), torch.nan)
    assert TrainingReLU(pixel_mask())(x).isnan().all()


def test_channel_masks_and_exchanged_masks():
    mask = torch.tensor([True, False, True, False]).view(4, 1, 1)
    x = torch.randn(2, *SHAPE)
    assert torch.equal(TrainingReLU(mask)(x), MaskedReLU(mask)(x))
    relu = TrainingReLU(pixel_mask())
    relu.set_mask(pixel_mask(seed=3))
    assert torch.equal(relu.mask, pixel_mask(seed=3))
    assert torch.equal(relu(x), MaskedReLU(pixel_mask(seed=3))(x))
    other = TrainingReLU(pixel_mask())
    other.load_state_dict(relu.state_dict())
    assert torch.equal(other.mask, relu.mask)


def test_the_soft_relu_is_a_mix_and_learns_its_slopes():
    soft = SoftReLU(SHAPE)
    x = torch.randn(3, *SHAPE)
    assert torch.equal(soft(x), x.relu())
    with torch.no_grad():
        soft.alpha.fill_(0.25)
    torch.testing.assert_close(soft(x), 0.25 * x.relu() + 0.75 * x)
    soft(x).sum().backward()
    torch.testing.assert_close(soft.alpha.grad[0], -x.clamp(max=0).sum(0))


def test_a_network_goes_to_the_training_form_and_back():
    model = resnet18(classes=3, width=2).eval()
    names = list(named_relus(model))
    assert names == list(relu_nodes(trace(model)))
    x = torch.randn(2, 3, 32, 32)
    shapes = {}
    for name in names:
        model.get_submodule(name).register_forward_hook(
            lambda module, args, value, name=name: shapes.__setitem__(name, value.shape[1:])
        )
    model(x)
    masks = {name: pixel_mask(shape) for name, shape in shapes.items()}
    masks["layer4.1.relu1"][:] = False
    masks["layer4.1.relu2"][:] = True
    mask_relus(model, masks)
    assert all(torch.equal(mask, masks[name]) for name, mask in masks_of(model).items())
    before = model(x)
    deployed = deployed_relus(model)
    assert torch.equal(deployed(x), before)
    assert torch.equal(model(x), before)
    found = relu_nodes(deployed)
    assert "layer4.1.relu1" not in found
    assert type(deployed.get_submodule("layer4.1.relu2")) is nn.ReLU
    assert type(deployed.get_submodule("relu")) is MaskedReLU
    exchange_relus(model, {"relu": CutReLU()})
    assert "relu" not in relu_nodes(deployed_relus(model))
    torch.testing.assert_close(deployed_relus(model)(x), model(x))
