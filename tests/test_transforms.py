from functools import partial

import pytest
import torch
from networks import SMALL, difference, images, randomised, signature, small, state
from torch import nn
from torch.nn import functional as F

from pibench.measure.count import cost_of
from pibench.models.graph.moves import module_of, trace
from pibench.models.graph.relu import MaskedReLU
from pibench.models.transforms import (
    APPROXIMATE,
    EXACT,
    absorb_skips,
    attend_channels,
    average_pools,
    bilinear_layers,
    factorize_convs,
    fold_batchnorm,
    gate_relus,
    hoist_padding,
    linearize_relus,
    mask_pixels,
    merge_convs,
    merge_linear_stretches,
    polynomial_relus,
    prune_channels,
    shallow_blocks,
)

TOLERANCE = 1e-10
MIDS = [f"layer{stage}.{block}.relu1" for stage in (1, 2, 3, 4) for block in (0, 1)]
BLOCKS = [name.removesuffix(".relu1") for name in MIDS]


def modules(graph, kind):
    return [node.target for node in graph.graph.nodes if module_of(graph, node, kind) is not None]


def conv(in_channels, out_channels, kernel_size, seed=0, **arguments):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return nn.Conv2d(in_channels, out_channels, kernel_size, **arguments).double()


def mergeable():
    dropped = linearize_relus(fold_batchnorm(small("resnet18")), dict.fromkeys(MIDS, False))
    return hoist_padding(dropped)


def linear_stretch():
    chain = (conv(3, 8, 3, stride=2), conv(8, 8, 3, seed=1), nn.AvgPool2d(2), conv(8, 2, 2, seed=2))
    return nn.Sequential(*chain, nn.ReLU()).eval()


def absorbable():
    return fold_batchnorm(shallow_blocks(small("resnet18"), BLOCKS))


def masked_pixels():
    return linearize_relus(small("resnet18"), {"relu": torch.eye(32).bool().expand(4, 32, 32)})


EXACT_CASES = [(fold_batchnorm, partial(small, name)) for name in SMALL]
EXACT_CASES += [(merge_convs, mergeable), (absorb_skips, absorbable)]
EXACT_CASES += [(absorb_skips, lambda: merge_convs(mergeable()))]
EXACT_CASES += [(merge_linear_stretches, linear_stretch)]

APPROXIMATE_CASES = [
    (hoist_padding, lambda: linearize_relus(fold_batchnorm(small("resnet18")), dict.fromkeys(MIDS, False))),
    (partial(linearize_relus, keep=dict.fromkeys(MIDS, False)), lambda: small("resnet18")),
    (partial(shallow_blocks, blocks=BLOCKS[:2]), lambda: small("resnet18")),
    (bilinear_layers, lambda: small("resnet18")),
    (mask_pixels, masked_pixels),
    (partial(attend_channels, convs=["layer1.0.conv2"]), lambda: small("resnet18")),
    (partial(gate_relus, convs={"relu": "conv1"}), lambda: small("resnet18")),
    (partial(factorize_convs, form="spatial", ranks=0.25), lambda: small("resnet18")),
    (polynomial_relus, masked_pixels),
    (partial(prune_channels, kept={"layer1.0.conv2": 0.5}), lambda: small("resnet18")),
    (average_pools, lambda: small("vgg16")),
    (average_pools, lambda: small("resnet18-imagenet")),
]


def test_every_transform_is_covered():
    assert {transform for transform, _ in EXACT_CASES} == set(EXACT)
    assert {getattr(transform, "func", transform) for transform, _ in APPROXIMATE_CASES} == set(APPROXIMATE)


@pytest.mark.parametrize(("transform", "network"), EXACT_CASES)
def test_exact_transforms_change_the_graph_and_not_the_function(transform, network):
    model = network()
    graph = transform(model)
    assert signature(graph) != signature(trace(model))
    assert difference(model, graph, images()) < TOLERANCE


@pytest.mark.parametrize(("transform", "network"), APPROXIMATE_CASES)
def test_approximate_transforms_change_the_function(transform, network):
    model = network()
    graph = transform(model)
    assert signature(graph) != signature(trace(model))
    assert difference(model, graph, images()) > 1e-6


@pytest.mark.parametrize(("transform", "network"), EXACT_CASES + APPROXIMATE_CASES)
def test_no_transform_touches_its_input_or_the_global_generator(transform, network):
    model = network()
    before, nodes, generator = state(model), signature(trace(model)), torch.get_rng_state()
    graph = transform(model)
    assert torch.equal(generator, torch.get_rng_state())
    assert signature(trace(model)) == nodes
    assert before.keys() == model.state_dict().keys()
    for tensor in graph.state_dict().values():
        tensor.zero_()
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    assert not graph.training


@pytest.mark.parametrize("transform", [*EXACT, hoist_padding, average_pools])
def test_transforms_without_policy_are_idempotent(transform):
    once = transform(absorbable() if transform is absorb_skips else mergeable())
    assert signature(transform(once)) == signature(once)


def test_folding_leaves_no_batchnorm_and_one_parameter_set():
    graph = fold_batchnorm(small("resnet18"))
    assert not modules(graph, nn.BatchNorm2d)
    assert len(modules(graph, nn.Conv2d)) == 20


def test_a_batchnorm_without_a_convolution_becomes_a_depthwise_one():
    graph = fold_batchnorm(small("wrn_22_8"))
    assert not modules(graph, nn.BatchNorm2d)
    depthwise = [
        name for name in modules(graph, nn.Conv2d) if graph.get_submodule(name).kernel_size == (1, 1)
    ]
    depthwise = [name for name in depthwise if graph.get_submodule(name).groups > 1]
    assert len(depthwise) == 9  # 19 BatchNorms, of which 9 follow a block's convolution and 1 the stem
    assert all(
        graph.get_submodule(name).groups == graph.get_submodule(name).in_channels for name in depthwise
    )


class Branching(nn.Module):
    """A convolution that a BatchNorm and something else read, and one called twice."""

    def __init__(self):
        super().__init__()
        self.conv1, self.conv2 = conv(3, 3, 3, padding="same"), conv(3, 3, 1, seed=1)
        self.bn1, self.bn2 = nn.BatchNorm2d(3).double(), nn.BatchNorm2d(3, affine=False).double()

    def forward(self, x):
        y = self.conv1(x)
        y = self.bn1(y) + y
        return self.bn2(self.conv2(y)) + self.conv2(x)


def test_a_convolution_with_other_users_keeps_its_kernel():
    model = Branching().eval()
    for norm in (model.bn1, model.bn2):
        norm.running_mean.uniform_(-1, 1)
        norm.running_var.uniform_(0.5, 2)
    graph = fold_batchnorm(model)
    assert [graph.get_submodule(name).groups for name in modules(graph, nn.Conv2d)] == [1, 3, 1, 3, 1]
    assert difference(model, graph, images()) < TOLERANCE


def test_a_convolutions_own_bias_is_folded_too():
    norm = nn.BatchNorm2d(4).double()
    model = nn.Sequential(conv(3, 4, 3), norm).eval()
    norm.running_var.uniform_(0.2, 0.5)
    norm.weight.data.uniform_(2, 3)
    assert model[0].bias.abs().max() > 0.05
    assert difference(model, fold_batchnorm(model), images()) < TOLERANCE


def test_folding_refuses_batch_statistics():
    with pytest.raises(ValueError, match=r"bn1 takes its statistics from the batch.*model\.eval\(\)"):
        fold_batchnorm(small("resnet18").train())
    untracked = nn.Sequential(nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3, track_running_stats=False)).eval()
    with pytest.raises(ValueError, match="track_running_stats"):
        fold_batchnorm(untracked)


class Vectors(nn.Module):
    """A classifier of two linear layers with BatchNorm1d."""

    def __init__(self, flat):
        super().__init__()
        self.fc1, self.bn1 = nn.Linear(48, 7, bias=False), nn.BatchNorm1d(7)
        self.relu, self.drop = nn.ReLU(inplace=True), nn.Dropout()
        self.fc2, self.bn2 = nn.Linear(7, 5), nn.BatchNorm1d(5)
        self.flat = flat

    def forward(self, x):
        x = F.dropout(self.relu(self.bn1(self.fc1(self.flat(x)))), training=self.training)
        return self.bn2(self.fc2(self.drop(x)))


@pytest.mark.parametrize(
    "flat",
    [
        nn.Flatten(),
        lambda x: torch.flatten(x, 1),
        lambda x: x.flatten(start_dim=1),
        lambda x: x.view(x.size(0), -1),
        lambda x: torch.flatten(x, start_dim=1, end_dim=-1).relu(),
    ],
)
def test_a_batchnorm_of_vectors_is_folded_into_its_linear_layer(flat):
    model = randomised(Vectors(flat))
    graph = fold_batchnorm(model)
    assert not modules(graph, nn.modules.batchnorm._BatchNorm)
    assert modules(graph, nn.Linear) == ["fc1", "fc2"]
    assert difference(model, graph, images(4, 4)) < TOLERANCE


@pytest.mark.parametrize(
    ("model", "reason"),
    [
        (nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4)), "may scale another axis than the features of _0"),
        (nn.Sequential(nn.Flatten(2), nn.Linear(4, 4), nn.BatchNorm1d(4)), "may scale another axis than"),
        (nn.Sequential(nn.Flatten(), nn.BatchNorm1d(4)), "its input _0 is no linear layer"),
        (nn.Sequential(nn.Flatten(), *[nn.Linear(4, 4)] * 2, nn.BatchNorm1d(4)), "0 is called|1 is called"),
        (nn.Sequential(nn.Conv3d(3, 4, 1), nn.BatchNorm3d(4)), "a BatchNorm3d is no BatchNorm1d or 2d"),
    ],
)
def test_folding_refuses_other_batchnorms_by_name(model, reason):
    with pytest.raises(ValueError, match=rf"cannot fold \d: .*{reason}"):
        fold_batchnorm(model.eval())
    with pytest.raises(ValueError, match="takes its statistics from the batch"):
        fold_batchnorm(model.train())


def test_a_linear_layer_with_other_users_takes_no_batchnorm():
    class Used(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc, self.bn = nn.Linear(12, 4), nn.BatchNorm1d(4)

        def forward(self, x):
            y = self.fc(x.flatten(1))
            return self.bn(y) + y

    with pytest.raises(ValueError, match="cannot fold bn: its input fc has other users"):
        fold_batchnorm(Used().eval())


MERGES = [
    ({"kernel_size": 3, "padding": 1}, {"kernel_size": 3}, (5, 5), (1, 1)),
    ({"kernel_size": 3, "stride": 2, "padding": 3}, {"kernel_size": 3}, (7, 7), (1, 1)),
    ({"kernel_size": 3, "stride": 2}, {"kernel_size": 3, "stride": 3}, (7, 7), (1, 1)),
    ({"kernel_size": 3, "dilation": 2, "padding": 2}, {"kernel_size": 3}, (7, 7), (1, 1)),
    ({"kernel_size": 3, "dilation": 2}, {"kernel_size": 3, "dilation": 2}, (5, 5), (2, 2)),
    ({"kernel_size": 3, "dilation": 3}, {"kernel_size": 3, "dilation": 2, "stride": 2}, (11, 11), (1, 1)),
    ({"kernel_size": 3, "dilation": 4, "stride": 2}, {"kernel_size": 3, "dilation": 3}, (11, 11), (2, 2)),
    ({"kernel_size": (1, 4), "stride": (1, 2)}, {"kernel_size": (5, 2), "dilation": (2, 1)}, (5, 6), (2, 1)),
    ({"kernel_size": 1, "dilation": 5, "stride": 3}, {"kernel_size": 3, "padding": "valid"}, (3, 3), (3, 3)),
    ({"kernel_size": 3, "dilation": 2, "padding": "same"}, {"kernel_size": 1, "stride": 2}, (3, 3), (2, 2)),
    ({"kernel_size": 3, "groups": 2}, {"kernel_size": 2}, (4, 4), (1, 1)),
    ({"kernel_size": 3, "bias": False}, {"kernel_size": 2, "groups": 2, "bias": False}, (4, 4), (1, 1)),
]


@pytest.mark.parametrize(("first", "second", "kernel", "dilation"), MERGES)
def test_merging_is_exact_for_any_kernel_stride_and_dilation(first, second, kernel, dilation):
    model = nn.Sequential(conv(4, 6, **first), conv(6, 8, seed=1, **second)).eval()
    graph = merge_convs(model)
    (name,) = modules(graph, nn.Conv2d)
    merged = graph.get_submodule(name)
    assert (merged.kernel_size, merged.dilation) == (kernel, dilation)
    x = torch.randn(2, 4, 25, 30, dtype=torch.float64)
    with torch.no_grad():
        torch.testing.assert_close(graph(x), model(x), rtol=0, atol=1e-12)


def test_a_chain_merges_into_one():
    model = nn.Sequential(
        conv(3, 4, 3, padding=1), conv(4, 4, 3, padding=1, stride=2), conv(4, 5, 3, padding=1)
    )
    graph = merge_convs(hoist_padding(model.eval()))
    (name,) = modules(graph, nn.Conv2d)
    merged = graph.get_submodule(name)
    assert (merged.kernel_size, merged.stride, merged.padding) == ((9, 9), (2, 2), (4, 4))


def test_merging_names_the_reason_of_a_refusal():
    padded = nn.Sequential(conv(3, 4, 3), conv(4, 4, 3, padding=1)).eval()
    assert signature(merge_convs(padded)) == signature(trace(padded))
    with pytest.raises(ValueError, match=r"cannot merge 1: the second convolution pads by \(1, 1\): hoist"):
        merge_convs(padded, ["1"])
    with pytest.raises(ValueError, match="its input input_1 is no convolution"):
        merge_convs(padded, ["0"])
    grouped = nn.Sequential(conv(4, 4, 3, groups=2), conv(4, 4, 3, groups=4)).eval()
    with pytest.raises(ValueError, match=r"both convolutions are grouped \(2 and 4 groups\)"):
        merge_convs(grouped, ["1"])
    mirrored = nn.Sequential(conv(3, 4, 3, padding=1, padding_mode="reflect"), conv(4, 4, 3)).eval()
    with pytest.raises(ValueError, match="padding mode is 'reflect'"):
        merge_convs(mirrored, ["1"])
    twice = conv(3, 3, 1)
    with pytest.raises(ValueError, match="called more than once"):
        merge_convs(nn.Sequential(twice, conv(3, 3, 1), twice).eval(), ["1"])
    with pytest.raises(ValueError, match=r"no convolution named \['7'\]"):
        merge_convs(padded, ["7"])

    class Forked(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.second = conv(3, 3, 1), conv(3, 3, 1, seed=1)

        def forward(self, x):
            y = self.first(x)
            return y * self.second(y)

    with pytest.raises(ValueError, match="first has other users"):
        merge_convs(Forked().eval(), ["second"])
    with pytest.raises(ValueError, match="first has other users"):
        hoist_padding(Forked().eval(), ["second"])


def test_hoisted_padding_changes_the_border_only():
    model = nn.Sequential(
        conv(3, 4, 3, padding=1, stride=2), conv(4, 5, 3, padding=1, dilation=1, seed=1)
    ).eval()
    graph = hoist_padding(model)
    assert [graph.get_submodule(name).padding for name in ("0", "1")] == [(3, 3), (0, 0)]
    x = images()
    with torch.no_grad():
        expected, found = model(x), graph(x)
    assert found.shape == expected.shape
    torch.testing.assert_close(found[..., 1:-1, 1:-1], expected[..., 1:-1, 1:-1], rtol=0, atol=1e-12)
    assert (found - expected).abs().max() > 1e-3
    with pytest.raises(
        ValueError, match="cannot hoist the padding of 0: its input input_1 is no convolution"
    ):
        hoist_padding(model, ["0"])
    with pytest.raises(ValueError, match=r"no convolution named \['9'\]"):
        hoist_padding(model, ["9"])


class Residual(nn.Module):
    def __init__(self, deep, shortcut=None, swap=False, add=torch.add):
        super().__init__()
        self.deep, self.shortcut, self.swap, self.add = deep, shortcut, swap, add

    def forward(self, x):
        skip = x if self.shortcut is None else self.shortcut(x)
        return self.add(skip, self.deep(x)) if self.swap else self.add(self.deep(x), skip)


ABSORBED = [
    (conv(4, 4, 3, padding=1), None),
    (conv(4, 4, 1), None),
    (conv(4, 4, (3, 5), padding=(1, 2), bias=False), None),
    (conv(4, 4, 3, padding=2, dilation=2), None),
    (conv(4, 4, 3, padding="same", groups=2), None),
    (conv(4, 4, 3, padding=1, groups=4), None),
    (conv(4, 6, 3, padding=1, stride=2), conv(4, 6, 1, stride=2, seed=1)),
    (conv(4, 6, 7, padding=3, stride=2, bias=False), conv(4, 6, 3, padding=1, stride=2, seed=1)),
    (conv(4, 6, 1, stride=2), conv(4, 6, 3, padding=1, stride=2, seed=1, bias=False)),
]


@pytest.mark.parametrize("swap", [False, True])
@pytest.mark.parametrize(
    "add",
    [
        *(torch.add, lambda a, b: a + b, lambda a, b: a.add(b), lambda a, b: a.add(other=b)),
        *(lambda a, b: torch.add(input=a, other=b), lambda a, b: torch.add(a, b, alpha=1)),
    ],
)
@pytest.mark.parametrize(("deep", "shortcut"), ABSORBED)
def test_skips_are_absorbed_exactly(deep, shortcut, add, swap):
    model = Residual(deep, shortcut, swap, add).eval()
    graph = absorb_skips(model)
    assert [node.op for node in graph.graph.nodes] == ["placeholder", "call_module", "output"]
    x = torch.randn(2, 4, 9, 12, dtype=torch.float64)
    with torch.no_grad():
        torch.testing.assert_close(graph(x), model(x), rtol=0, atol=1e-12)


def test_all_skips_of_shallow_blocks_are_absorbed():
    graph = absorb_skips(absorbable())
    assert len(modules(graph, nn.Conv2d)) == 9
    assert "add" not in {str(node.target) for node in graph.graph.nodes}
    assert not [node for node in graph.graph.nodes if node.op == "call_function" and "add" in node.name]


@pytest.mark.parametrize(
    ("deep", "shortcut", "reason"),
    [
        (conv(4, 4, 3, padding=1), conv(4, 4, 1, groups=2), "grouped convolutions"),
        (conv(4, 6, 4, padding=1, stride=2), conv(4, 6, 1, stride=2), "is even"),
        (conv(4, 4, 3, padding=1, padding_mode="circular"), None, "padding mode is 'circular'"),
        (conv(4, 6, 5, padding=1, stride=2), conv(4, 6, 3, stride=2), "is not 'same'"),
        (conv(4, 6, 3, padding=1, stride=(2, 1)), conv(4, 6, 1, stride=(2, 3)), "strides"),
        (conv(4, 4, 5, padding=4, dilation=2), conv(4, 4, 3, padding=1), "dilations"),
        (nn.Sequential(conv(4, 4, 1), conv(4, 4, 1)), None, "neither the input"),
        (conv(1, 4, 3, padding=1), None, "needs equal channels, not 1 -> 4"),
        (nn.ReLU(), None, "is no convolution"),
        (conv(4, 4, (3, 1), padding=(1, 0)), conv(4, 4, (1, 3), padding=(0, 1)), "is larger than"),
    ],
)
def test_skips_that_cannot_be_absorbed_stay_and_say_why(deep, shortcut, reason):
    model = Residual(deep, shortcut).eval()
    assert signature(absorb_skips(model)) == signature(trace(model))
    with pytest.raises(ValueError, match=f"cannot absorb add: .*{reason}"):
        absorb_skips(model, ["add"])


def test_absorbing_leaves_values_with_other_users_and_unknown_names():
    class Used(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = conv(3, 3, 1)

        def forward(self, x):
            y = self.conv(x)
            return (y + x) * y

    with pytest.raises(ValueError, match="conv has other users"):
        absorb_skips(Used().eval(), ["add"])
    with pytest.raises(ValueError, match=r"no addition of two values named \['sum'\]"):
        absorb_skips(Used().eval(), ["sum"])
    scaled = Residual(conv(3, 3, 1), add=lambda a, b: torch.add(a, b, alpha=2)).eval()
    assert signature(absorb_skips(scaled)) == signature(trace(scaled))


def test_linearizing_keeps_what_the_masks_say():
    model = small("resnet18")
    pixels = torch.rand(4, 32, 32) < 0.3
    channels = torch.tensor([True, False, True, False])
    keep = {"relu": pixels, "layer1.0.relu1": channels, "layer1.0.relu2": False, "layer1.1.relu1": True}
    keep |= {"layer1.1.relu2": torch.zeros(4, 32, 32, dtype=torch.bool)}
    keep |= {"layer2.0.relu1": torch.ones(8, 16, 16, dtype=torch.bool)}
    graph = linearize_relus(model, keep)
    assert modules(graph, MaskedReLU) == ["relu", "layer1.0.relu1"]
    assert len(modules(graph, nn.ReLU)) == 13
    masks = {"relu": pixels, "layer1.0.relu1": channels.view(-1, 1, 1)}
    masks |= {"layer1.0.relu2": torch.tensor(False), "layer1.1.relu2": torch.tensor(False)}
    for name, mask in masks.items():
        model.get_submodule(name).register_forward_hook(
            lambda _, inputs, output, mask=mask: torch.where(mask, output, inputs[0])
        )
    assert difference(model, graph, images()) < TOLERANCE


def test_masks_on_masks_keep_what_both_keep():
    model = nn.Sequential(nn.ReLU()).eval()
    pixels = torch.rand(4, 3, 3, generator=torch.Generator().manual_seed(0)) < 0.5
    channels = torch.tensor([True, False, True, True])
    both = pixels & channels.view(-1, 1, 1)
    for first, second in ((pixels, channels), (channels, pixels)):
        graph = linearize_relus(linearize_relus(model, {"0": first}), {"0": second})
        assert torch.equal(graph.get_submodule("0").mask, both)
    again = linearize_relus(linearize_relus(model, {"0": channels}), {"0": torch.ones(4, dtype=torch.bool)})
    assert torch.equal(again.get_submodule("0").mask, channels)
    gone = linearize_relus(linearize_relus(model, {"0": channels}), {"0": ~channels})
    assert not modules(gone, MaskedReLU)


def test_functional_and_repeated_relus_are_linearized_one_by_one():
    class Repeated(nn.Module):
        def __init__(self):
            super().__init__()
            self.relu = nn.ReLU()

        def forward(self, x):
            return F.relu(self.relu(x - 1) + self.relu(x))

    mask = torch.tensor([True, False, False])
    graph = linearize_relus(Repeated().eval(), {"relu_2": mask, "relu": False})
    x = images()
    expected = (x - 1) + x.relu()
    expected = torch.where(mask.view(-1, 1, 1), expected.relu(), expected)
    assert torch.equal(graph(x), expected)


class Keywords(nn.Module):
    """A residual block, every call and sum of it by keyword."""

    def __init__(self, norms=True):
        super().__init__()
        self.conv1, self.conv2 = conv(3, 3, 3, padding=1), conv(3, 3, 3, padding=1, seed=1)
        self.bn = nn.BatchNorm2d(3) if norms else nn.Identity()
        self.relu1, self.relu2 = (MaskedReLU(torch.tensor([True, kept, False])) for kept in (True, False))

    def forward(self, x):
        deep = self.conv2(input=self.relu1(x=self.bn(input=self.conv1(input=x))))
        return self.relu2(x=torch.add(input=deep, other=x))


class Outer(nn.Module):
    def __init__(self):
        super().__init__()
        self.block, self.pool = Keywords(), nn.MaxPool2d(2)

    def forward(self, x):
        return self.pool(input=self.block(x=x))


@pytest.mark.parametrize(
    "transform",
    [
        fold_batchnorm,
        lambda model: hoist_padding(linearize_relus(fold_batchnorm(model), {"block.relu1": False})),
        partial(linearize_relus, keep={"block.relu1": False, "block.relu2": torch.tensor([True] * 3)}),
        partial(linearize_relus, keep={"block.relu1": torch.tensor([False, True, True])}),
        partial(shallow_blocks, blocks=["block"]),
        average_pools,
    ],
)
def test_calls_by_keyword_are_calls(transform):
    model = randomised(Outer())
    graph = transform(model)
    assert signature(graph) != signature(trace(model))
    assert graph(images()).shape == model(images()).shape
    for exact in EXACT:
        assert difference(graph, exact(graph), images()) < TOLERANCE


def test_a_keyword_block_is_merged_and_absorbed_to_one_convolution():
    linear = linearize_relus(fold_batchnorm(randomised(Outer())), {"block.relu1": False})
    graph = absorb_skips(merge_convs(hoist_padding(linear)), ["add"])
    assert len(modules(graph, nn.Conv2d)) == 1
    shallow = fold_batchnorm(shallow_blocks(randomised(Outer()), ["block"]))
    assert modules(absorb_skips(shallow, ["add"]), nn.Conv2d) == ["block.shallow"]


@pytest.mark.parametrize(
    "add",
    [
        *(lambda a, b: a + 1, lambda a, b: torch.add(input=a, other=1), lambda a, b: a.add(other=b, alpha=2)),
        *(lambda a, b: torch.add(a, b, alpha=2), lambda a, b: sum([a]), lambda a, b: a - b),
    ],
)
def test_other_sums_are_no_residual_blocks(add):
    block = nn.Sequential(Residual(nn.Sequential(conv(3, 3, 1), conv(3, 3, 1)), add=add)).eval()
    with pytest.raises(ValueError, match="0 cannot become shallow: it is no sum of its input"):
        shallow_blocks(block, ["0"])
    with pytest.raises(ValueError, match="no addition of two values named"):
        absorb_skips(block, ["add"])


def test_linearizing_refuses_unknown_names_and_other_masks():
    with pytest.raises(
        ValueError, match=r"no ReLU named \['layer9'\] in this network; its ReLUs are \['relu', "
    ):
        linearize_relus(small("resnet18"), {"layer9": False})
    with pytest.raises(TypeError, match=r"mask of relu is torch\.float32, not boolean"):
        linearize_relus(small("resnet18"), {"relu": torch.ones(4)})


@pytest.mark.parametrize("folded", [False, True])
def test_a_shallow_block_is_one_convolution_with_its_skip_and_last_relu(folded):
    model = small("resnet18")
    graph = shallow_blocks(fold_batchnorm(model) if folded else model, ["layer1.0", "layer2.0"])
    inside = [name for name in modules(graph, nn.Module) if name.startswith(("layer1.0.", "layer2.0."))]
    norms = [] if folded else ["bn"]
    assert [name for name in inside if name.startswith("layer1")] == [
        "layer1.0.shallow",
        *(f"layer1.0.shallow_{norm}" for norm in norms),
        "layer1.0.relu2",
    ]
    assert "layer2.0.shortcut.conv" in inside
    straight, strided = graph.get_submodule("layer1.0.shallow"), graph.get_submodule("layer2.0.shallow")
    assert (straight.kernel_size, straight.stride, straight.padding) == ((3, 3), (1, 1), (1, 1))
    assert (strided.in_channels, strided.out_channels, strided.stride) == (4, 8, (2, 2))
    assert (straight.bias is None) != folded
    x = images()
    with torch.no_grad():
        assert graph(x).shape == model(x).shape
    before, after = (cost_of(network, x) for network in (model, graph))
    assert before.relus - after.relus == 4 * 32 * 32 + 8 * 16 * 16


def test_shallow_weights_are_seeded():
    def weight(seed):
        return shallow_blocks(small("resnet18"), ["layer1.0"], seed).get_submodule("layer1.0.shallow").weight

    assert torch.equal(weight(0), weight(0))
    assert not torch.equal(weight(0), weight(1))
    torch.manual_seed(5)
    drawn = weight(None)
    torch.manual_seed(5)
    assert torch.equal(drawn, weight(None))
    assert drawn.dtype == torch.float64
    assert 0.1 < float(drawn.detach().std() * (9 * 4 / 2) ** 0.5) < 2


@pytest.mark.parametrize(
    ("model", "block", "reason"),
    [
        ("resnet18", "layer9.0", "no block named 'layer9.0'"),
        ("resnet18", "conv1", "no block named 'conv1'"),
        ("vgg16", "features", "is no sum of its input"),
    ],
)
def test_what_is_no_residual_block_cannot_become_shallow(model, block, reason):
    with pytest.raises(ValueError, match=reason):
        shallow_blocks(small(model), [block])


@pytest.mark.parametrize("block", ["group1.1", "group2.0"])
def test_a_block_that_activates_first_keeps_what_comes_before_its_convolutions(block):
    """Its convolution reads ReLU(BN(x)), as its shortcut does where there is one, and has a bias."""
    model = small("wrn_22_8")
    shallow = shallow_blocks(model, [block])
    old, new = model.get_submodule(block), shallow.get_submodule(block)
    assert {name for name, _ in new.named_children()} == {
        *("bn1", "relu1", "shallow"),
        *(["shortcut"] if old.shortcut is not None else []),
    }
    values = {}
    hooks = [
        shallow.get_submodule(name).register_forward_hook(
            lambda module, inputs, value, name=name: values.update({name: (inputs[0], value)})
        )
        for name in (f"{block}.bn1", f"{block}.shallow")
    ]
    shallow(torch.randn(2, 3, 32, 32, dtype=torch.float64))
    for hook in hooks:
        hook.remove()
    entered, activated = values[f"{block}.bn1"][0], values[f"{block}.shallow"][0]
    torch.testing.assert_close(activated, torch.relu(old.bn1(entered)))
    assert new.shallow.bias is not None
    assert new.shallow.stride == old.conv1.stride


@pytest.mark.parametrize(
    ("deep", "reason"),
    [
        ([conv(4, 4, 3, padding=1, groups=2), conv(4, 4, 3, padding=1)], "grouped"),
        ([conv(4, 4, 3, padding=2), conv(4, 4, 3)], "is not 'same'"),
        ([conv(4, 4, 3, padding=1, padding_mode="reflect"), conv(4, 4, 1)], "padding mode"),
        ([conv(4, 4, 3, padding=1)], "is no sum of its input"),
    ],
)
def test_blocks_of_other_convolutions_cannot_become_shallow(deep, reason):
    block = nn.Sequential(Residual(nn.Sequential(*deep))).eval()
    with pytest.raises(ValueError, match=f"0 cannot become shallow: .*{reason}"):
        shallow_blocks(block, ["0"])


def test_average_pools_replace_modules_and_functions():
    class Pools(nn.Module):
        def __init__(self):
            super().__init__()
            self.pool = nn.MaxPool2d(3, stride=2, padding=1)

        def forward(self, x):
            return F.max_pool2d(self.pool(x), 2, padding=1, ceil_mode=True)

    graph = average_pools(Pools().eval())
    x = images()
    expected = F.avg_pool2d(F.avg_pool2d(x, 3, 2, 1), 2, padding=1, ceil_mode=True)
    assert torch.equal(graph(x), expected)
    assert not modules(graph, nn.MaxPool2d)
    assert cost_of(average_pools(small("vgg16")), x).comparisons == 0


def test_average_pools_refuse_dilation_and_indices():
    with pytest.raises(ValueError, match=r"cannot average _0: average pooling has no dilation"):
        average_pools(nn.Sequential(nn.MaxPool2d(2, dilation=2)))
    with pytest.raises(ValueError, match="no indices"):
        average_pools(nn.Sequential(nn.MaxPool2d(2, return_indices=True)))


def test_transforms_compose_on_graphs():
    graph = small("resnet18")
    for transform in (
        fold_batchnorm,
        partial(linearize_relus, keep=dict.fromkeys(MIDS, False)),
        hoist_padding,
    ):
        graph = transform(graph)
    merged = absorb_skips(merge_convs(graph))
    assert [merged.get_submodule(name).kernel_size[0] for name in modules(merged, nn.Conv2d)] == [
        *(3, 5, 5),
        *(7, 5) * 3,
    ]
    assert difference(graph, merged, images()) < TOLERANCE
