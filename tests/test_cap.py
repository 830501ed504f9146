"""Channels that a search removes under a floor of accuracy, with and without tuning."""

import json

import pytest
import torch
from networks import images, small
from torch import nn
from training_setup import tiny_images, tiny_run

from pibench.measure.count import cost_of
from pibench.models.training.channels import GRAIN, channel_statistics, search_channels
from pibench.models.training.rows import finish_row
from pibench.models.transforms import prune_channels
from pibench.models.variants import variant
from pibench.models.weights import file_name, load
from pibench.models.zoo import layout_of

CONVS = [block.conv2 for block in layout_of("resnet18").blocks]


def test_statistics_are_those_of_the_inputs_over_images_and_pixels():
    model, seen = small("resnet18").eval(), []
    model.get_submodule(CONVS[1]).register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    batches = [images(3), images(2)]
    found = channel_statistics(model, CONVS[:2], batches)[CONVS[1]]
    rows = torch.cat([each.double().permute(0, 2, 3, 1).flatten(0, 2) for each in seen])
    torch.testing.assert_close(found.mean, rows.mean(0))
    torch.testing.assert_close(found.covariance, torch.cov(rows.T, correction=0))


def test_the_search_finds_the_fewest_channels_above_a_falling_floor():
    model = small("resnet18").eval()
    statistics = channel_statistics(model, CONVS, [images(4)])
    whole = {name: model.get_submodule(name).in_channels for name in CONVS}
    asked = []

    def accuracy(pruned):
        """Falls by 0.01 for each channel that is missing."""
        missing = sum(whole[name] - pruned.get_submodule(name).in_channels for name in CONVS)
        asked.append(missing)
        return 0.9 - 0.01 * missing

    kept = search_channels(model, CONVS, statistics, accuracy, drop=0.085)
    missing = [whole[name] - len(kept.get(name, range(whole[name]))) for name in CONVS]
    wanted = []
    for place, name in enumerate(CONVS, start=1):  # every size, the smallest first, instead of bisection
        step = max(1, whole[name] // GRAIN)
        sizes = [*range(step, whole[name], step), whole[name]]
        room = 0.085 * place / len(CONVS) / 0.01 - sum(wanted)
        wanted.append(whole[name] - next(size for size in sizes if whole[name] - size <= room))
    assert missing == wanted
    assert sum(missing) == 8
    assert search_channels(model, CONVS, statistics, lambda _: 0.5, drop=0.0).keys() == set(CONVS)
    refuses = iter([0.9] + [0.0] * 100)
    assert search_channels(model, CONVS, statistics, lambda _: next(refuses), drop=0.5) == {}


def test_a_share_keeps_the_first_channels():
    model = small("resnet18")
    thin = prune_channels(model, dict.fromkeys(CONVS, 0.5))
    for name in CONVS:
        whole = model.get_submodule(name).in_channels
        assert thin.get_submodule(name).in_channels == whole // 2
        assert torch.equal(thin.get_submodule(name).weight, model.get_submodule(name).weight[:, : whole // 2])


@pytest.mark.parametrize("name", ["cap-10", "cap-untuned-10"])
def test_what_the_search_chose_is_trained_deployed_saved_and_loaded(name, tmp_path):
    run = tiny_run(tmp_path)
    trained = run.trained(name)
    x = torch.cat(list(tiny_images().sample(20)))
    with torch.no_grad():
        expected = trained.model(x)
    row = finish_row(run, name, trained, None, {}, tmp_path / "weights")
    first = ["baseline", "cap-untuned-10"]
    assert list(row["phases"]) == ([*first, name] if name == "cap-10" else first)
    noted = json.loads((run.logs / "cap-untuned-10.json").read_text())
    (step,) = trained.chosen
    assert step.arguments["kept"] == noted["kept"]
    model = load(tmp_path / "weights" / file_name(name, 2))
    assert (model(x) - expected).abs().max() < 0.03 * expected.std()
    assert row["macs"] == cost_of(model, x[:1]).macs
    assert not [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]


def test_without_tuning_no_weight_moves(tmp_path):
    run = tiny_run(tmp_path)
    trained = run.trained("cap-untuned-3")
    phase = run.phase("cap-untuned-3")
    fresh = phase.task(run, run.trained("baseline")).model
    for name, value in trained.model.named_parameters():
        torch.testing.assert_close(value, dict(fresh.named_parameters())[name], rtol=1e-4, atol=1e-6)


def test_until_it_is_trained_a_share_of_the_channels_stays():
    thin, whole = (cost_of(variant(name).build(8, None), images(1)) for name in ("cap-10", "baseline"))
    assert thin.relus < whole.relus
    assert thin.macs < 0.7 * whole.macs
