"""Factored convolutions, held against the singular value decomposition and against brute force."""

import pytest
import torch
from networks import SMALL, difference, images, small
from torch import nn

from pibench.measure.count import cost_of
from pibench.models.decisions import Step
from pibench.models.graph.moves import module_of, trace
from pibench.models.transforms import (
    fold_batchnorm,
    hoist_padding,
    linearize_relus,
    merge_convs,
    merge_linear_stretches,
    shallow_blocks,
)
from pibench.models.transforms.factorize_convs import (
    FORMS,
    Rank,
    factorize_convs,
    factors,
    largest_rank,
    matrix_of,
    rank_of_energy,
)
from pibench.models.weights import apply

TOLERANCE = 1e-10


def kernel(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def composed(parts, form):
    """The kernel [O, C, h, w] that the layers compute together, tap by tap."""
    if form == "channel":
        return torch.einsum("or,rcmn->ocmn", parts[1][:, :, 0, 0], parts[0])
    if form == "spatial":
        return torch.einsum("orn,rcm->ocmn", parts[1][:, :, 0], parts[0][..., 0])
    return torch.einsum("op,pqmn,qc->ocmn", parts[2][:, :, 0, 0], parts[1], parts[0][:, :, 0, 0])


@pytest.mark.parametrize("shape", [(6, 4, 3, 3), (3, 8, 3, 5), (5, 7, 1, 1)])
@pytest.mark.parametrize("form", FORMS)
def test_at_full_rank_the_factors_are_the_kernel(form, shape):
    whole = kernel(*shape)
    parts = factors(whole, form, largest_rank(whole, form))
    assert (composed(parts, form) - whole).abs().max() < 1e-9


@pytest.mark.parametrize("form", ["channel", "spatial"])
@pytest.mark.parametrize("rank", [1, 2, 5])
def test_no_kernel_of_that_rank_is_nearer(form, rank):
    whole = kernel(6, 4, 3, 3)
    near = composed(factors(whole, form, Rank(rank)), form)
    left_over = torch.linalg.svdvals(matrix_of(whole, form))[rank:].square().sum()
    assert (near - whole).square().sum() == pytest.approx(float(left_over), rel=1e-9)
    assert torch.linalg.matrix_rank(matrix_of(near, form)) == rank


def test_tucker_is_no_worse_than_truncated_unfoldings_and_its_core_is_their_projection():
    whole, rank = kernel(6, 5, 3, 3), Rank(3, 2)
    parts = factors(whole, "tucker", rank)
    error = (composed(parts, "tucker") - whole).square().sum()
    out = torch.linalg.svd(whole.flatten(1))[0][:, :3]
    into = torch.linalg.svd(whole.transpose(0, 1).flatten(1))[0][:, :2]
    projected = torch.einsum("ap,op,ocmn,cq,bq->abmn", out, out, whole, into, into)
    assert error <= (projected - whole).square().sum() * (1 + 1e-9)
    a, b = parts[2][:, :, 0, 0], parts[0][:, :, 0, 0]
    core = torch.einsum("op,ocmn,qc->pqmn", a, whole, b)
    assert (core - parts[1]).abs().max() < 1e-9


@pytest.mark.parametrize("form", FORMS)
def test_the_rank_of_an_energy_is_the_smallest(form):
    whole = kernel(8, 6, 3, 3)
    for energy in (0.5, 0.9, 1.0):
        rank = rank_of_energy(whole, form, energy)
        unfoldings = [matrix_of(whole, form)] if form != "tucker" else [whole.flatten(1)]
        squares = torch.linalg.svdvals(unfoldings[0]).square()
        assert squares[: rank.out].sum() >= energy * squares.sum() * (1 - 1e-9)
        assert squares[: rank.out - 1].sum() < energy * squares.sum()
    assert rank_of_energy(whole, form, 1.0) == largest_rank(whole, form)
    with pytest.raises(ValueError, match=r"an energy is above 0 and at most 1, not 1\.5"):
        rank_of_energy(whole, form, 1.5)


def layers(name):
    """The convolutions of a network that are larger than 1 x 1 and have more than three channels."""
    graph = trace(small(name))
    found = {node.target: module_of(graph, node, nn.Conv2d) for node in graph.graph.nodes}
    return {k: c for k, c in found.items() if c is not None and c.in_channels > 3 and c.kernel_size != (1, 1)}


@pytest.mark.parametrize("network", SMALL)
@pytest.mark.parametrize("form", FORMS)
def test_networks_of_full_rank_answer_the_same(form, network):
    model = small(network)
    ranks = {name: largest_rank(conv.weight, form) for name, conv in layers(network).items()}
    assert difference(model, factorize_convs(model, form, ranks), images()) < 1e-9


@pytest.mark.parametrize(("form", "rounds"), [("channel", 1), ("spatial", 1), ("tucker", 2)])
def test_low_rank_costs_layers_and_saves_operations(form, rounds):
    model, found = small("resnet18"), layers("resnet18")
    graph = factorize_convs(
        model, form, {name: max(1, conv.out_channels // 4) for name, conv in found.items()}
    )
    before, after = (cost_of(each, images(1)) for each in (model, graph))
    assert after.linear_layers == before.linear_layers + rounds * len(found)
    assert after.macs < before.macs
    assert after.parameters < before.parameters
    assert after.relus == before.relus
    assert difference(model, graph, images()) > 1e-3


def test_stride_padding_and_bias_go_where_they_belong():
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        conv = nn.Conv2d(4, 6, (3, 5), stride=(2, 1), padding=(1, 2)).double()
    model = nn.Sequential(conv)
    x = kernel(2, 4, 9, 8, seed=3)
    for form in FORMS:
        graph = factorize_convs(model, form, {"0": largest_rank(conv.weight, form)})
        assert (graph(x) - model(x)).abs().max() < 1e-9
        assert "0_0" in dict(graph.named_modules())


def test_what_cannot_be_factored_is_refused():
    model = nn.Sequential(nn.Conv2d(4, 4, 3, groups=2), nn.Conv2d(4, 4, 3, dilation=2), nn.Conv2d(4, 4, 3))
    for name, reason in (("0", "it has 2 groups"), ("1", r"it is dilated by \(2, 2\)")):
        with pytest.raises(ValueError, match=f"cannot factor {name}: {reason}"):
            factorize_convs(model, "channel", {name: 1})
    with pytest.raises(ValueError, match="2 has a rank from 1 to 4 as channel, not 5"):
        factorize_convs(model, "channel", {"2": 5})
    with pytest.raises(ValueError, match="2 has a rank from 1 to 4 and 4 as tucker, not 4 and 9"):
        factorize_convs(model, "tucker", {"2": Rank(4, 9)})
    with pytest.raises(ValueError, match="no convolution named 'fc'"):
        factorize_convs(model, "channel", {"fc": 1})
    with pytest.raises(ValueError, match="unknown form 'svd': known are channel, spatial, tucker"):
        factorize_convs(model, "svd", {})


@pytest.mark.parametrize("form", FORMS)
def test_low_rank_and_merging_are_refused_on_one_pair(form):
    """Merging multiplies factors out; low rank takes merged kernels apart: never both on one pair."""
    model = fold_batchnorm(linearize_relus(small("resnet18"), {"layer1.0.relu1": False}))
    low = factorize_convs(model, form, {"layer1.0.conv1": 0.5, "layer1.0.conv2": 0.5})
    reason = r"layer1\.0\.conv[12] is of low rank, and merging would multiply its factors out: choose one"
    for second in ("layer1.0.conv1_1", "layer1.0.conv2_0"):
        with pytest.raises(ValueError, match=f"cannot merge {second}: {reason}"):
            merge_convs(low, [second])
    assert difference(low, merge_convs(low), images()) == 0
    assert difference(low, merge_linear_stretches(low, "hoisted"), images()) == 0
    merged = merge_convs(hoist_padding(model))
    with pytest.raises(ValueError, match=r"cannot factor layer1\.0\.conv2: it was merged of several"):
        factorize_convs(merged, form, {"layer1.0.conv2": 0.5})
    names = {name for name, _ in factorize_convs(merged, form, 0.5).named_modules()}
    assert "layer1.0.conv2" in names
    assert "layer1.1.conv2_1" in names


def test_low_rank_and_a_shallow_block_are_refused_on_one_branch():
    """Depth is merged into a 3x3 convolution there, whose kernel low rank would take apart again."""
    low = factorize_convs(small("resnet18"), "channel", {"layer1.0.conv2": 0.5})
    reason = r"layer1\.0 cannot become shallow: layer1\.0\.conv2 is of low rank, .*: choose one of the two"
    with pytest.raises(ValueError, match=reason):
        shallow_blocks(low, ["layer1.0"])
    shallow = shallow_blocks(low, ["layer1.1"])
    with pytest.raises(ValueError, match=r"cannot factor layer1\.1\.shallow: it was merged of several"):
        factorize_convs(shallow, "channel", {"layer1.1.shallow": 0.5})
    names = {name for name, _ in factorize_convs(shallow, "channel", 0.5).named_modules()}
    assert {"layer1.1.shallow", "layer1.0.conv2_1", "layer2.0.conv2_1"} <= names


def test_a_recipe_factors_some_layers_and_merges_others():
    model = linearize_relus(small("resnet18"), {"layer1.0.relu1": False})
    steps = (
        Step("factorize_convs", {"form": "channel", "ranks": {"layer2.1.conv1": 2}}),
        *(Step("fold_batchnorm"), Step("hoist_padding"), Step("merge_convs")),
    )
    made = apply(model, steps)
    names = {name for name, module in made.named_modules() if isinstance(module, nn.Conv2d)}
    assert {"layer2.1.conv1_0", "layer2.1.conv1_1", "layer1.0.conv2"} <= names
    assert "layer1.0.conv1" not in names
    again = Step("factorize_convs", {"form": "channel", "ranks": {"layer1.0.conv2": 2}})
    with pytest.raises(ValueError, match="choose one of the two"):
        apply(model, (*steps, again))
