import copy
import json
import re
from dataclasses import replace
from math import prod

import pytest
import torch
from networks import randomised
from torch import nn
from training_setup import CLASSES, banded, tiny_images, tiny_run

from pibench.measure.count import cost_of
from pibench.models.allocation import allocate
from pibench.models.cost import relu_shapes
from pibench.models.published import SENET_SENSITIVITY
from pibench.models.reductions.joint import gated
from pibench.models.reductions.merged import blocks, hoist_in_training
from pibench.models.training import loop, rows
from pibench.models.training.command import remaining
from pibench.models.training.files import TrainingError, digest
from pibench.models.training.phases import phases, plan_named, planned
from pibench.models.training.relus import masks_of
from pibench.models.training.rows import finish_row
from pibench.models.variants import VARIANTS, variant
from pibench.models.weights import file_name, load, save_weights
from pibench.models.zoo import layout_of

ONE_OF_A_FAMILY = [
    name for name in VARIANTS if name.count("-0.") == 0 or name.endswith(("-0.09", "-0.045", "3-0.052"))
]
X = torch.cat(list(tiny_images().sample(20)))


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """One run whose phases the tests share."""
    return tiny_run(tmp_path_factory.mktemp("run"))


@torch.no_grad()
def logits(model):
    return copy.deepcopy(model).eval()(X)


@pytest.mark.parametrize("name", ONE_OF_A_FAMILY)
def test_what_is_finished_is_loaded_and_not_trained_again(name, run, monkeypatch):
    """A process that was stopped between two phases finds the earlier ones as they ended."""
    expected = digest(run.trained(name).model.state_dict())
    monkeypatch.setattr(loop, "_epoch", None)
    again = tiny_run(run.checkpoints.parent)
    assert digest(again.trained(name).model.state_dict()) == expected


@pytest.mark.parametrize("name", ONE_OF_A_FAMILY)
def test_what_was_trained_is_what_is_deployed_and_what_is_loaded(name, run, tmp_path):
    """Training form, folded form and the network from the half-precision file answer alike."""
    trained = run.trained(name)
    expected = logits(trained.model)
    scale = expected.std()
    final, _ = run.deployed(variant(name), trained)
    assert not [module for module in final.modules() if isinstance(module, nn.BatchNorm2d)]
    assert (logits(final) - expected).abs().max() < 1e-3 * scale
    row = finish_row(run, name, trained, banded(40, seed=9), {"plan": "tiny"}, tmp_path)
    loaded = load(tmp_path / file_name(name, 2))
    halved = copy.deepcopy(final)
    with torch.no_grad():
        for value in halved.parameters():
            value.copy_(value.half())
    assert (logits(loaded) - logits(halved)).abs().max() < 1e-3 * scale
    assert (logits(loaded) - expected).abs().max() > 0
    if not name.startswith(
        ("poly-", "gated")
    ):  # two channels magnify what rounding changes (gated: test_gated)
        assert (logits(loaded) - expected).abs().max() < 0.03 * scale
    found = variant(name)
    if name.startswith("folding-"):  # this training says which blocks are merged
        found = replace(found, structure=lambda layout: trained.chosen)
    shapes = relu_shapes(found.structured(2, CLASSES), X[:1])
    budget = variant(name).budget(2)
    cost = cost_of(loaded, X[:1])
    gates = sum(layer.relus for layer in cost.layers if layer.kind == "piecewiselinear")
    assert row["relus"] == cost.relus - gates == (row["relus"] if budget is None else budget)
    if name.startswith("cap-"):  # this training says which channels are left
        assert (
            row["macs"]
            == cost.macs
            < cost_of(variant("baseline").build(2, None, classes=CLASSES), X[:1]).macs
        )
    elif found.source is None:
        assert row["macs"] == cost.macs == cost_of(found.build(2, None, classes=CLASSES), X[:1]).macs
    else:  # the masks of this training say what is merged
        untuned, _ = run.deployed(variant(name), run.trained(variant(name).source))
        assert row["macs"] == cost.macs == cost_of(untuned, X[:1]).macs
    assert row["relus"] <= sum(prod(shape) for shape in shapes.values())
    assert 0 <= row["accuracy_heldout"] <= 1
    assert row["epochs"] == sum(row["phases"].values())
    assert next(iter(row["phases"])) == "baseline" or list(row["phases"]) == [name]  # or from scratch
    assert json.loads(json.dumps(row)) == row


def test_joint_alone_is_tuned_where_the_plan_says_so():
    long, scored = (planned(variant("joint"), plan_named(name)) for name in ("long", "scored"))
    assert long == {"baseline": 40, "gated-5": 24}
    assert scored == long | {"joint": 40}


def test_shared_phases_are_trained_once(run):
    for name in ("joint-0.09", "joint-0.052", "joint3-0.052", "senet-0.09"):
        run.trained(name)
    assert (
        len(
            {id(run.train(gated(variant(name), run.plan, 5)).model) for name in ("joint-0.09", "joint-0.052")}
        )
        == 1
    )
    phases = [outcome.name for outcome in run.trained("joint-0.052").phases]
    assert phases == ["baseline", "gated-5", "sensitivity", "joint-0.052"]
    assert (run.checkpoints / "gated-3.pt").exists()
    assert (run.logs / "gated-5.jsonl").exists()
    measured = json.loads((run.logs / "sensitivity.json").read_text())
    assert list(measured["sensitivity"]) == list(layout_of("resnet18").relus)
    assert len(measured["least_sensitive_blocks"]["5"]) == 5


@pytest.mark.parametrize("name", ["senet-0.09", "joint-0.052"])
def test_masks_have_exactly_the_allocated_sizes(name, run):
    model = run.trained(name).model
    masks = masks_of(model)
    measured = json.loads((run.logs / "sensitivity.json").read_text())["sensitivity"]
    sensitivity = [measured[relu] for relu in masks]
    sizes = [mask.numel() for mask in masks.values()]
    assert [int(mask.sum()) for mask in masks.values()] == allocate(
        sizes, sensitivity, variant(name).budget(2)
    )


@pytest.mark.parametrize("name", ONE_OF_A_FAMILY)
def test_the_planned_phases_are_those_that_are_trained(name, run):
    trained = run.trained(name)
    assert planned(variant(name), run.plan) == {phase.name: len(phase.history) for phase in trained.phases}
    assert planned(variant("senet-0.09"), plan_named("quick")) == {"baseline": 14, "senet-0.09": 6}


def test_what_is_left_is_told_in_epochs_and_time(run, tmp_path):
    other = tiny_run(tmp_path)
    assert remaining(other, ["senet-0.09", "senet-0.18"]) == "8 epochs to go"
    other.done["baseline"] = run.trained("baseline")
    for names, epochs in ((["senet-0.09", "senet-0.18", "joint-0.09"], 10), (["baseline"], 0)):
        assert re.fullmatch(rf"{epochs} epochs to go, about 0:0\d h", remaining(other, names))
    fresh = tiny_run(tmp_path)  # as after a restart: what is finished lies in checkpoints alone
    fresh.checkpoints, fresh.shared = tmp_path / "own", [run.checkpoints]
    assert remaining(fresh, ["baseline", "senet-0.09"]).startswith("0 epochs to go")
    fresh.shared, fresh.checkpoints = [], run.checkpoints
    assert remaining(fresh, ["baseline", "senet-0.09"]).startswith("0 epochs to go")
    fresh.setting = replace(fresh.setting, seed=1)
    assert remaining(fresh, ["baseline", "senet-0.09"]) == "6 epochs to go"


def test_published_sensitivity_is_taken_when_none_is_measured(run, tmp_path):
    other = tiny_run(tmp_path, plan=run.plan.changed({"sensitivity": None}))
    other.done["baseline"] = run.trained("baseline")
    masks = masks_of(other.trained("senet-0.09").model)
    sizes = [mask.numel() for mask in masks.values()]
    budget = variant("senet-0.09").budget(2)
    assert [int(mask.sum()) for mask in masks.values()] == allocate(sizes, SENET_SENSITIVITY, budget)
    assert not (tmp_path / "logs" / "sensitivity.json").exists()


def test_merging_is_exact_for_the_network_that_is_trained():
    """The deployed 5x5 and 7x7 kernels with hoisted padding compute what is trained, borders included."""
    torch.manual_seed(0)
    recipe = VARIANTS["merged-exact"]
    model = recipe.structured(2, 4)
    randomised(model)
    merged = blocks(layout_of("resnet18"))
    assert [block.name for block in merged] == ["layer1.0", "layer1.1", "layer2.0", "layer2.1", "layer3.0"]
    plain = copy.deepcopy(model)
    hoist_in_training(model, merged)
    x = X.double()
    expected = model(x)
    final = recipe.finished(copy.deepcopy(model))
    torch.testing.assert_close(final(x), expected, rtol=1e-9, atol=1e-9)
    assert final.get_submodule("layer3.0.conv2").kernel_size == (7, 7)
    assert (plain(x) - expected).abs().max() > 1e-3  # without hoisting the border would differ


OTHERS = [
    (name, row) for name in ("resnet20", "wrn_22_8") for row in ("baseline", "senet-0.09", "joint-0.052")
]


@pytest.fixture(scope="module")
def other_runs(tmp_path_factory):
    """A run of each other network, whose phases the tests share."""
    return {
        name: tiny_run(tmp_path_factory.mktemp(name), network=name, width=width)
        for name, width in (("resnet20", 2), ("wrn_22_8", 1))
    }


@pytest.mark.parametrize(("network", "name"), OTHERS)
def test_other_networks_are_trained_deployed_saved_and_loaded(network, name, other_runs, tmp_path):
    run = other_runs[network]
    trained = run.trained(name)
    expected = logits(trained.model)
    final, decisions = run.deployed(run.variant(name), trained)
    scale = expected.std()
    assert (logits(final) - expected).abs().max() < 1e-3 * scale
    path = tmp_path / file_name(name, run.width, network)
    save_weights(final, path, decisions, dtype=torch.float32)
    assert torch.equal(logits(load(path)), logits(final))
    assert load(path).meta["decisions"] == decisions
    row = finish_row(run, name, trained, None, {}, tmp_path / "half")
    budget = run.variant(name).budget(run.width)
    assert row["relus"] == (cost_of(final, X[:1]).relus if budget is None else budget)
    built = run.variant(name).build(run.width, path, classes=CLASSES)
    assert torch.equal(logits(built), logits(final))
    if name == "joint-0.052":
        assert sum(module.endswith("shallow") for module, _ in final.named_modules()) == 5


def test_a_lasso_chooses_on_the_shallow_network(tmp_path):
    """SNL starts from the network whose gates have fallen, and keeps the budget exactly."""
    run, name = tiny_run(tmp_path), "joint-snl-0.09"
    gated = next(phase for phase in phases(run.phase(name)) if phase.name == "gated-5")
    before = {key: value.clone() for key, value in run.train(gated).model.state_dict().items()}
    selection = next(phase for phase in phases(run.phase(name)) if phase.name == f"{name}-lasso")
    task = selection.task(run, run.train(gated))
    begun = task.model.state_dict()
    assert all(torch.equal(begun[key], value) for key, value in before.items())
    assert {tuple(soft.alpha.unique().tolist()) for soft in task.softs.values()} == {(1.0,)}
    row = finish_row(run, name, run.trained(name), None, {}, tmp_path / "weights")
    assert list(row["phases"]) == ["baseline", "gated-5", f"{name}-lasso", name]
    assert row["relus"] == variant(name).budget(2)
    assert row["macs"] == cost_of(variant("joint").build(2, None, classes=CLASSES), X[:1]).macs


@pytest.mark.parametrize("name", ["deepreduce", "merged-exact", "snl-0.09"])
def test_every_reduction_trains_a_network_that_activates_first(name, other_runs):
    run = other_runs["wrn_22_8"]
    trained = run.trained(name)
    final, _ = run.deployed(run.variant(name), trained)
    expected = logits(trained.model)
    assert (logits(final) - expected).abs().max() < 1e-3 * expected.std()


def test_a_network_without_blocks_is_trained_where_no_block_is_needed(tmp_path):
    run = tiny_run(tmp_path, network="vgg16", width=1)
    trained = run.trained("senet-0.09")
    assert sum(int(mask.sum()) for mask in masks_of(trained.model).values()) == run.budget(
        run.variant("senet-0.09")
    )
    for name in ("joint-0.052", "merged-exact", "deepreduce"):
        with pytest.raises(ValueError, match=f"{name} cannot be made of vgg16: .*no residual blocks"):
            run.trained(name)


def test_an_unknown_row_is_named():
    with pytest.raises(ValueError, match="unknown variant"):
        variant("senet-0.5")


def test_a_full_disk_at_the_end_is_clear(run, tmp_path, monkeypatch):
    def full(*args, **kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(rows, "save_weights", full)
    trained = run.trained("baseline")
    with pytest.raises(TrainingError, match=r"baseline-w2\.safetensors cannot be written .*No space left"):
        finish_row(run, "baseline", trained, banded(8), {}, tmp_path)
