import pytest
import torch
from networks import SMALL, images, small
from torch import nn
from torch.nn import functional as F

from pibench.measure.count import cost_of
from pibench.models.cost import count_macs, count_relus, relu_shapes
from pibench.models.graph.relu import MaskedReLU
from pibench.models.transforms import fold_batchnorm, linearize_relus


def test_relu_shapes_are_named_as_the_masks_are():
    shapes = relu_shapes(small("resnet18"), images(2))
    assert shapes["relu"] == (4, 32, 32)
    assert shapes["layer4.1.relu2"] == (32, 4, 4)
    assert len(shapes) == 17


def test_relu_shapes_are_those_of_functions_and_methods_too():
    class Called(nn.Module):
        def __init__(self):
            super().__init__()
            self.act = nn.ReLU()

        def forward(self, x):
            return F.relu(self.act(x).flatten(1)) + self.act(x[:, :2]).flatten(1).relu().sum()

    assert list(relu_shapes(Called(), images(1, 4)).items()) == [
        *(("act", (3, 4, 4)), ("relu", (48,)), ("act_1", (2, 4, 4)), ("relu_1", (32,)))
    ]


@pytest.mark.parametrize("name", SMALL)
def test_training_counts_what_the_parties_run(name):
    model = small(name)
    assert count_relus(model, images(2)) == cost_of(model, images(2)).relus
    folded = fold_batchnorm(model)
    cost = cost_of(folded, images(1))
    assert (count_relus(folded, images(3)), count_macs(folded, images(3))) == (cost.relus, cost.macs)


def test_masks_count_what_they_keep():
    masks = {
        "relu": torch.arange(4096).view(4, 32, 32) < 10,
        "layer1.0.relu1": torch.tensor([True, *[False] * 3]),
        "layer1.0.relu2": False,
    }
    model, graph = small("resnet18"), linearize_relus(small("resnet18"), masks)
    assert count_relus(model, images(1)) - count_relus(graph, images(1)) == 4086 + 3 * 1024 + 4096
    nothing = nn.Sequential(MaskedReLU(torch.zeros(3, dtype=torch.bool)))
    assert count_relus(nothing, images(1)) == 0


@pytest.mark.parametrize("shape", [(2, 6), (2, 5, 6)])
def test_vectors_and_sequences_are_counted_as_images_are(shape):
    model = nn.Sequential(nn.Linear(6, 4), nn.ReLU())
    example = torch.zeros(shape)
    assert relu_shapes(model, example) == {"1": (*shape[1:-1], 4)}
    cost = cost_of(model, example)
    assert (count_relus(model, example), count_macs(model, example)) == (cost.relus, cost.macs)


def test_counting_changes_neither_the_model_nor_its_mode():
    model = small("resnet18").train()
    before = model.bn1.running_mean.clone()
    for count in (relu_shapes, count_relus, count_macs):
        count(model, images(2))
    assert model.training
    assert torch.equal(model.bn1.running_mean, before)
