"""Channels that go, held against least squares, brute force, and networks where nothing is lost."""

from itertools import combinations

import pytest
import torch
from networks import difference, images, small
from torch import nn

from pibench.measure.count import cost_of
from pibench.models.transforms import fold_batchnorm, linearize_relus
from pibench.models.transforms.prune_channels import (
    Statistics,
    compensated,
    greedy_channels,
    prune_channels,
)


def draw(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def covariance(channels, seed=0):
    root = draw(channels, 2 * channels, seed=seed)
    return root @ root.T / (2 * channels)


def explained(kernel, sigma, kept):
    rows = kernel.permute(0, 2, 3, 1).reshape(-1, kernel.shape[1])
    known = sigma[:, kept] @ torch.linalg.inv(sigma[kept][:, kept]) @ sigma[kept]
    return float(torch.einsum("rc,cd,rd->", rows, known, rows))


def test_every_greedy_step_takes_what_explains_most():
    kernel, sigma = draw(5, 7, 3, 3), covariance(7, seed=1)
    before = []
    for count in range(1, 8):
        chosen = greedy_channels(kernel, sigma, count)
        assert len(chosen) == count
        assert set(before) <= set(chosen)
        best = max(explained(kernel, sigma, sorted([*before, c])) for c in range(7) if c not in before)
        assert explained(kernel, sigma, chosen) == pytest.approx(best, rel=1e-9)
        before = chosen


def test_where_channels_are_independent_the_greedy_choice_is_the_best_of_all():
    kernel, sigma = draw(4, 6, 1, 1), torch.diag(draw(6, seed=2).square() + 0.1)
    best = max(combinations(range(6), 3), key=lambda kept: explained(kernel, sigma, list(kept)))
    assert greedy_channels(kernel, sigma, 3) == list(best)


def test_channels_that_add_nothing_are_taken_last():
    kernel, sigma = draw(4, 4, 1, 1), covariance(4)
    doubled = torch.cat([kernel, draw(4, 1, 1, 1, seed=5)], 1)
    copy = torch.cat([torch.eye(4), torch.eye(4)[:1]]).double()  # channel 4 is channel 0
    assert greedy_channels(doubled, copy @ sigma @ copy.T, 4) in ([0, 1, 2, 3], [1, 2, 3, 4])
    with pytest.raises(ValueError, match="1 to 4 channels can be kept, not 0"):
        greedy_channels(kernel, sigma, 0)


def test_compensation_is_the_least_squares_prediction_of_the_outputs_up_to_the_scale():
    kernel, bias = draw(3, 5, 1, 1, seed=3), draw(3, seed=4)
    x = draw(20_000, 5, seed=6) @ draw(5, 5, seed=7) + draw(5, seed=8)
    statistics = Statistics(x.mean(0), torch.cov(x.T, correction=0))
    kept = [0, 2, 3]
    new, new_bias = compensated(kernel, bias, kept, statistics)
    wanted = x @ kernel[:, :, 0, 0].T + bias
    regressors = torch.cat([x[:, kept], torch.ones(len(x), 1, dtype=torch.float64)], 1)
    fit = torch.linalg.lstsq(regressors, wanted).solution
    given = x[:, kept] @ new[:, :, 0, 0].T + new_bias
    predicted = regressors @ fit
    scale = wanted.std(0) / predicted.std(0)
    assert (given - ((predicted - predicted.mean(0)) * scale + predicted.mean(0))).abs().max() < 1e-8
    assert given.mean(0) == pytest.approx(wanted.mean(0), abs=1e-9)
    assert given.var(0) == pytest.approx(wanted.var(0), rel=1e-9)


@pytest.mark.parametrize("norm", [False, True])
def test_nothing_is_lost_where_the_removed_channels_follow_from_the_kept_ones(norm):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        layers = [nn.Conv2d(3, 6, 3, padding=1), nn.BatchNorm2d(6), nn.ReLU(), nn.Conv2d(6, 4, 3)]
        layers = layers if norm else [layers[0], *layers[2:]]
        model = nn.Sequential(*layers).double().eval()
    with torch.no_grad():  # channels 3, 4, 5 are multiples of 0, 1, 2, also after the ReLU
        model[0].weight[3:] = 2 * model[0].weight[:3]
        model[0].bias[3:] = 2 * model[0].bias[:3]
    x = images(4, 12)
    with torch.no_grad():
        inside = model[:-1](x).transpose(0, 1).flatten(1)
    statistics = Statistics(inside.mean(1), torch.cov(inside, correction=0))
    name = str(len(model) - 1)
    graph = prune_channels(model, {name: [0, 1, 2]}, {name: statistics})
    if norm:  # eps keeps BatchNorm from commuting with a factor
        assert difference(model, graph, x) < 1e-4
    else:
        assert difference(model, graph, x) < 1e-10
    assert dict(graph.named_modules())["0"].out_channels == 3


def test_channels_masks_and_norms_go_and_every_count_falls():
    model = small("resnet18")
    mask = torch.rand(4, 32, 32, generator=torch.Generator().manual_seed(0)) < 0.5
    model = linearize_relus(model, {"layer1.0.relu1": mask})
    kept = {f"layer{stage}.{block}.conv2": [0, 2] for stage in (1, 2, 3, 4) for block in (0, 1)}
    graph = prune_channels(model, kept)
    assert graph.get_submodule("layer1.0.relu1").mask.equal(mask[[0, 2]])
    assert graph.get_submodule("layer4.1.bn1").num_features == 2
    before, after = (cost_of(fold_batchnorm(each), images(1)) for each in (model, graph))
    assert after.relus < before.relus
    assert after.macs < before.macs
    assert after.parameters < before.parameters
    assert after.relu_layers == before.relu_layers
    assert graph(images()).shape == model(images()).shape
    assert model.get_submodule("layer1.0.conv1").out_channels == 4


@pytest.mark.parametrize("whole", [False, True])
def test_a_mask_of_which_nothing_or_everything_is_left_is_no_mask(whole):
    mask = torch.zeros(4, 32, 32, dtype=torch.bool)
    mask[1] = True
    model = linearize_relus(small("resnet18"), {"layer1.0.relu1": mask})
    graph = prune_channels(model, {"layer1.0.conv2": [1] if whole else [0, 2]})
    kinds = {type(module) for name, module in graph.named_modules() if name == "layer1.0.relu1"}
    assert kinds == ({nn.ReLU} if whole else set())


def test_what_cannot_lose_channels_is_refused():
    model = small("resnet18")
    for name, reason in (
        ("layer1.0.conv1", "has other users"),  # the skip reads it too
        ("conv1", "is no layer of channels"),
        ("fc", "no convolution named 'fc'"),
    ):
        with pytest.raises(ValueError, match=reason):
            prune_channels(model, {name: [0]})
    for wrong in ([], [0, 0], [3, 1], [4]):
        with pytest.raises(ValueError, match=r"layer1\.0\.conv2 has the input channels 0 to 3"):
            prune_channels(model, {"layer1.0.conv2": wrong})
    grouped = nn.Sequential(nn.Conv2d(4, 4, 3, groups=2), nn.ReLU(), nn.Conv2d(4, 4, 3))
    with pytest.raises(ValueError, match="cannot prune the input of 2: 0 is grouped"):
        prune_channels(grouped, {"2": [0]})
    pooled = nn.Sequential(nn.Conv2d(4, 4, 3), nn.AvgPool2d(2), nn.Conv2d(4, 4, 3))
    with pytest.raises(ValueError, match="1 mixes channels or pixels"):
        prune_channels(pooled, {"2": [0]})
