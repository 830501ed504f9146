"""Channels, shallow blocks and masks composed in one recipe."""

import json

import torch
from torch import nn
from training_setup import tiny_images, tiny_run

from pibench.measure.count import cost_of
from pibench.models.reductions.cap_joint import FOUND, deep_blocks
from pibench.models.training.rows import finish_row
from pibench.models.variants import variant
from pibench.models.weights import file_name, load, read_weights
from pibench.models.zoo import layout_of

NAME = "cap-joint-0.052"
DEEP = ["layer3.1", "layer4.0", "layer4.1"]


def test_channels_go_where_blocks_stay_deep():
    layout = layout_of("resnet18")
    assert [block.name for block in deep_blocks(layout)] == DEEP
    thin, whole = (variant(name).build(8, None) for name in (NAME, "joint-0.052"))
    x = torch.zeros(1, 3, 32, 32)
    ours, theirs = cost_of(thin, x), cost_of(whole, x)
    assert ours.relus == theirs.relus
    saved = 0
    for block, share in zip(DEEP, FOUND, strict=True):
        one, other = whole.get_submodule(f"{block}.conv1"), whole.get_submodule(f"{block}.conv2")
        pixels = 8 * 8 if block.startswith("layer3") else 4 * 4
        saved += pixels * (one.weight.numel() + other.weight.numel()) * (1 - share)
        assert thin.get_submodule(f"{block}.conv2").in_channels == other.in_channels * share
    assert ours.macs == theirs.macs - saved
    assert (ours.relu_layers, ours.linear_layers) == (theirs.relu_layers, theirs.linear_layers)


def test_all_three_are_trained_deployed_saved_and_loaded(tmp_path):
    run = tiny_run(tmp_path)
    trained = run.trained(NAME)
    x = torch.cat(list(tiny_images().sample(20)))
    with torch.no_grad():
        expected = trained.model(x)
    row = finish_row(run, NAME, trained, None, {}, tmp_path / "weights")
    assert list(row["phases"]) == ["baseline", "cap-joint-channels", "cap-joint-gated", "sensitivity", NAME]
    assert row["relus"] == variant(NAME).budget(2)
    kept = json.loads((run.logs / "cap-joint-channels.json").read_text())["kept"]
    assert {name.rpartition(".")[0] for name in kept} <= set(DEEP)
    path = tmp_path / "weights" / file_name(NAME, 2)
    steps = read_weights(path).decisions.steps
    order = [step.transform for step in steps]
    assert order[:3] == ["prune_channels", "shallow_blocks", "linearize_relus"]
    assert steps[0].arguments["kept"] == kept
    model = load(path)
    assert (model(x) - expected).abs().max() < 0.03 * expected.std()
    assert row["macs"] == cost_of(model, x[:1]).macs
    for name, channels in kept.items():
        assert model.get_submodule(name).in_channels == len(channels)
    assert not [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]


def test_the_gates_open_on_the_pruned_network(tmp_path):
    """Before the first step the gated network computes what the pruned one does."""
    run = tiny_run(tmp_path)
    last = run.phase(NAME)
    phase = next(before for before in last.after if before.name == "cap-joint-gated")
    teacher, pruned = (run.train(before) for before in phase.after)
    task = phase.task(run, teacher, pruned)
    x = torch.cat(list(tiny_images().sample(8)))
    pruned.model.eval()
    task.model.eval()
    with torch.no_grad():
        torch.testing.assert_close(task.model(x), pruned.model(x), rtol=1e-4, atol=1e-5)
    assert len(task.blocks) == 5
