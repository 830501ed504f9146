import pytest
import torch
from networks import images, randomised, small
from torch import nn
from torch.nn import functional as F

from pibench.measure.count import cost_of
from pibench.models.graph.relu import MaskedReLU
from pibench.models.transforms import average_pools, fold_batchnorm, linearize_relus
from pibench.models.zoo import resnet18
from pibench.program.lower import ExportError, lower


def test_the_folded_resnet18_costs_what_the_project_says():
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        cost = cost_of(fold_batchnorm(resnet18().eval()), torch.zeros(1, 3, 32, 32))
    assert (cost.relus, cost.comparisons, cost.relu_layers, cost.linear_layers) == (557_056, 0, 17, 21)
    assert (cost.macs, cost.parameters) == (555_468_800, 11_215_332)
    # 8 (|x| + |w|) bytes for each linear layer and 232 for each ReLU: the traffic that CrypTen counts
    linear = sum(8 * (layer.input_size + layer.weight_size) for layer in cost.layers if layer.weight_size)
    logits = 8 * 100
    assert linear + 232 * cost.relus + logits == 224_258_336


def test_counts_are_for_one_image_and_names_are_those_of_the_graph():
    graph = fold_batchnorm(small("resnet18"))
    one, three = cost_of(graph, images(1)), cost_of(graph, images(3))
    assert one == three
    names = [node.name for node in graph.graph.nodes if node.op.startswith("call_")]
    assert [layer.name for layer in one.layers] == names
    for total in ("relus", "comparisons", "macs", "parameters"):
        assert getattr(one, total) == sum(getattr(layer, total) for layer in one.layers)
    assert one.parameters == sum(parameter.numel() for parameter in graph.parameters())


def test_a_layers_sizes():
    layers = {layer.name: layer for layer in cost_of(fold_batchnorm(small("resnet18")), images(2)).layers}
    conv = layers["layer2_0_conv1"]
    assert (conv.kind, conv.input_size, conv.weight_size) == ("convolution", 4 * 32 * 32, 8 * 4 * 9)
    assert (conv.macs, conv.parameters) == (8 * 4 * 9 * 16 * 16, 8 * 4 * 9 + 8)
    fc = layers["fc"]
    assert (fc.kind, fc.input_size, fc.weight_size, fc.macs, fc.parameters) == ("linear", 32, 160, 160, 165)
    relu = layers["relu"]
    assert (relu.kind, relu.input_size, relu.relus, relu.parameters) == ("relu", 4096, 4096, 0)
    assert {layer.kind for layer in layers.values()} == {
        *("convolution", "linear", "relu", "add", "averagepool", "flatten")
    }


def test_masks_count_what_they_keep_and_an_empty_layer_is_no_layer():
    graph = linearize_relus(
        small("resnet18"),
        {
            "relu": torch.arange(4096).view(4, 32, 32) < 10,
            "layer1.0.relu1": torch.tensor([True, *[False] * 3]),
        },
    )
    layers = {layer.name: layer.relus for layer in cost_of(graph, images(1)).layers}
    assert (layers["relu"], layers["layer1_0_relu1"]) == (10, 1024)
    nothing = nn.Sequential(MaskedReLU(torch.zeros(3, dtype=torch.bool)), nn.ReLU())
    assert cost_of(nothing, images(1)).relu_layers == 1


def test_batchnorm_is_counted_as_it_is_run():
    """Folded into a convolution before it, or a depthwise convolution of its own where there is none."""
    model = small("wrn_22_8")
    cost, folded = cost_of(model, images(1)), cost_of(fold_batchnorm(model), images(1))
    assert cost.linear_layers == folded.linear_layers == 32
    assert (cost.macs, cost.parameters) == (folded.macs, folded.parameters)
    assert "batchnorm" not in {layer.kind for layer in cost.layers}


def test_max_pooling_compares_apart_from_relus():
    cost = cost_of(small("vgg16"), images(1))
    outputs = [4 * 256, 8 * 64, 16 * 16, 32 * 4, 32]
    assert cost.comparisons == 3 * sum(outputs)
    assert cost_of(average_pools(small("vgg16")), images(1)).comparisons == 0


class Pooled(nn.Module):
    def __init__(self, pool):
        super().__init__()
        self.pool = pool

    def forward(self, x):
        return self.pool(x)


@pytest.mark.parametrize("size", [1, 2, 3, (2, None), 5])
@pytest.mark.parametrize("function", [False, True])
def test_adaptive_max_pooling_compares_what_its_windows_hold(size, function):
    pool = nn.AdaptiveMaxPool2d(size)
    x = images(2, 8)
    # Average pooling has the same windows: an output's derivative is not zero where its window reads.
    read = torch.autograd.functional.jacobian(lambda y: F.adaptive_avg_pool2d(y, size), x[:1, :1])
    windows = read[0, 0].flatten(0, 1).flatten(1).count_nonzero(1)
    cost = cost_of(Pooled((lambda y: F.adaptive_max_pool2d(y, output_size=size)) if function else pool), x)
    # Windows of several sizes are all filled up to the largest, so that one pooling computes them all.
    assert cost.comparisons == 3 * len(windows) * int(windows.max() - 1)
    assert {layer.kind for layer in cost.layers if layer.comparisons} == {"maxpool"}
    if len(set(windows.tolist())) == 1:
        assert [layer.kind for layer in cost.layers] == ["maxpool"]


def test_operators_by_every_name_and_keyword():
    class Names(nn.Module):
        def forward(self, x):
            x = (
                torch.multiply(input=x, other=x)
                + x.multiply(2)
                + torch.pow(x, exponent=2)
                + x.pow(exponent=2)
            )
            x += torch.mul(x, other=x.relu_())
            return torch.concat([torch.concatenate([x, x], 1), F.dropout2d(x, training=False)], 1)

    kinds = [layer.kind for layer in cost_of(Names(), images(1, 4)).layers]
    assert [kinds.count(kind) for kind in ("square", "scale", "multiply", "concatenate")] == [4, 1, 0, 2]
    assert kinds.count("relu") == 1


def test_a_batchnorm_of_vectors_costs_its_parameters():
    model = randomised(nn.Sequential(nn.Flatten(), nn.Linear(12, 5), nn.BatchNorm1d(5)))
    cost = cost_of(model, images(1, 2))
    assert [layer.kind for layer in cost.layers] == ["flatten", "linear"]
    assert cost.parameters == 5 * 12 + 5


class Functional(nn.Module):
    """Uses most operators as functions and methods."""

    def __init__(self):
        super().__init__()
        self.kernel = nn.Parameter(torch.randn(4, 3, 3, 3).double())
        self.bias = nn.Parameter(torch.randn(4).double())
        self.matrix = nn.Parameter(torch.randn(5, 8).double())

    def forward(self, x):
        x = F.conv2d(x, self.kernel, self.bias, padding=1).relu()
        x = torch.relu(F.max_pool2d(x, kernel_size=(2, 4)))
        x = F.relu(x * 2) + x * x + x.pow(2) + x * (x + x)
        x = torch.cat([x, x / 2], 1)
        x = F.adaptive_avg_pool2d(F.dropout(x, training=False), 1)
        return F.linear(x.view(x.size(0), -1), self.matrix)


def test_functional_networks_are_counted_too():
    cost = cost_of(Functional(), images(2, 8))
    kinds = [layer.kind for layer in cost.layers]
    pooled = 4 * 4 * 2
    assert cost.relus == 4 * 64 + 2 * pooled
    assert cost.comparisons == 7 * pooled
    assert cost.macs == 4 * 3 * 9 * 64 + 40
    assert cost.parameters == 108 + 4 + 40
    assert [layer.weight_size for layer in cost.layers if layer.kind in ("convolution", "linear")] == [
        108,
        40,
    ]
    assert [layer.parameters for layer in cost.layers if layer.kind in ("convolution", "linear")] == [112, 40]
    assert [kinds.count(kind) for kind in ("scale", "square", "multiply", "concatenate")] == [2, 2, 1, 1]
    assert cost.layers[0].input_size == 192


def test_vectors_and_sequences_are_counted_as_images_are():
    """Inputs [N, F] and [N, T, C]: a linear layer acts on the last dimension, once for each of T places."""
    net = nn.Sequential(nn.Linear(6, 4), nn.ReLU(), nn.Linear(4, 3, bias=False))
    cost = cost_of(net, torch.zeros(2, 6))
    assert (cost.relus, cost.macs, cost.parameters, cost.linear_layers) == (4, 6 * 4 + 4 * 3, 28 + 12, 2)
    of_five = cost_of(net, torch.zeros(2, 5, 6))
    assert (of_five.relus, of_five.macs) == (5 * cost.relus, 5 * cost.macs)
    assert (of_five.parameters, of_five.relu_layers) == (cost.parameters, 1)
    assert [layer.input_size for layer in of_five.layers] == [30, 20, 20]


def test_what_two_steps_share_is_stored_once():
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(3, 3, 3, padding=1)

        def forward(self, x):
            return self.conv(torch.relu(self.conv(x)))

    cost = cost_of(Twice(), images(1, 4))
    assert [layer.parameters for layer in cost.layers] == [84, 0, 84]
    assert (cost.parameters, cost.macs) == (84, 2 * 81 * 16)


def test_piecewise_linear_activations_count_their_knots():
    cost = cost_of(nn.Sequential(nn.ReLU6(), nn.LeakyReLU()), images(1, 4))
    assert [layer.relus for layer in cost.layers] == [2 * 48, 48]


def test_counting_changes_neither_the_model_nor_its_mode():
    model = small("resnet18").train()
    before = model.bn1.running_mean.clone()
    cost_of(model, images(2))
    assert model.training
    assert torch.equal(model.bn1.running_mean, before)


@pytest.mark.parametrize("layer", [nn.Softmax(1), nn.LPPool2d(3, 2), nn.LayerNorm(8)])
def test_what_cannot_be_run_is_not_counted(layer):
    """Counting accepts exactly what lowering does, and says the same of the rest."""
    model = nn.Sequential(layer).double()
    with pytest.raises(ExportError, match=type(layer).__name__) as lowering:
        lower(model, images(1, 8))
    with pytest.raises(ExportError) as counting:
        cost_of(model, images(1, 8))
    assert str(counting.value) == str(lowering.value)


def test_an_example_is_a_batch():
    with pytest.raises(ExportError):
        cost_of(small("resnet18"), images(1)[0])
    with pytest.raises(ExportError, match=r"must be a batch \[N, ...\] of at least one input"):
        cost_of(small("resnet18"), images(1)[:0])
