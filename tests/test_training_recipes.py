import copy
import io
import json
import pickle
import re
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from math import prod

import numpy as np
import pytest
import torch
from networks import randomised
from torch import nn
from training_setup import CLASSES, TINY, banded, tiny_images, tiny_run

from pibench.models import weights as checkpoint
from pibench.models.allocation import (
    RESNET18_RELUS,
    SENET_SENSITIVITY,
    allocate,
    largest_masks,
    largest_network_masks,
)
from pibench.models.cost import count_cost, relu_shapes
from pibench.models.data import FOLDER, load_cifar100
from pibench.models.graph.relu import MaskedReLU
from pibench.models.rows import ResultsError, read_rows
from pibench.models.training import __main__ as command
from pibench.models.training import recipes, rows, tasks
from pibench.models.training.files import TrainingError
from pibench.models.training.images import Images, accuracy
from pibench.models.training.recipes import ROWS, Run, deployed, hoist_in_training, planned, recipe_of
from pibench.models.training.relus import mask_relus, masks_of, named_relus
from pibench.models.training.rows import finish_row, put_row, update_row
from pibench.models.training.schedules import PLANS
from pibench.models.training.tasks import linearisation_error
from pibench.models.variants import VARIANTS, variant
from pibench.models.weights import WeightsError, file_name
from pibench.models.zoo import resnet18

ONE_OF_A_FAMILY = [
    name for name in ROWS if name.count("-0.") == 0 or name.endswith(("-0.09", "-0.045", "3-0.052"))
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
def test_what_was_trained_is_what_is_deployed_and_what_is_loaded(name, run, tmp_path):
    """Training form, folded form and the network from the half-precision file answer alike."""
    trained = recipe_of(name)(run, name)
    expected = logits(trained.model)
    scale = expected.std()
    final = deployed(name, trained.model)
    assert not [module for module in final.modules() if isinstance(module, nn.BatchNorm2d)]
    assert (logits(final) - expected).abs().max() < 1e-3 * scale
    row = finish_row(run, name, trained, banded(40, seed=9), {"plan": "tiny"}, tmp_path)
    loaded = variant(name).build(2, tmp_path / file_name(name, 2), classes=CLASSES)
    assert (logits(loaded) - expected).abs().max() < 0.03 * scale
    assert (logits(loaded) - expected).abs().max() > 0
    shapes = relu_shapes(resnet18(CLASSES, 2), X[:1])
    budget = variant(name).budget(2)
    cost = count_cost(loaded, X[:1])
    assert row["relus"] == cost.relus == (cost.relus if budget is None else budget)
    assert row["macs"] == count_cost(variant(name).build(2, None, classes=CLASSES), X[:1]).macs
    assert row["relus"] <= sum(prod(shape) for shape in shapes.values())
    assert 0 <= row["accuracy_heldout"] <= 1
    assert row["epochs"] == sum(row["phases"].values())
    assert next(iter(row["phases"])) == "baseline"
    assert json.loads(json.dumps(row)) == row


def test_shared_phases_are_trained_once(run):
    for name in ("joint-0.09", "joint-0.052", "joint3-0.052", "senet-0.09"):
        recipe_of(name)(run, name)
    assert len({id(recipes.gated(run, name).model) for name in ("joint-0.09", "joint-0.052")}) == 1
    phases = [outcome.name for outcome in recipe_of("joint-0.052")(run, "joint-0.052").phases]
    assert phases == ["baseline", "gated-5", "sensitivity", "joint-0.052"]
    assert (run.checkpoints / "gated-3.pt").exists()
    assert (run.logs / "gated-5.jsonl").exists()
    measured = json.loads((run.logs / "sensitivity.json").read_text())
    assert list(measured["sensitivity"]) == list(RESNET18_RELUS)
    assert len(measured["least_sensitive_blocks"]["5"]) == 5


@pytest.mark.parametrize("name", ["senet-0.09", "joint-0.052"])
def test_masks_have_exactly_the_allocated_sizes(name, run):
    model = recipe_of(name)(run, name).model
    masks = masks_of(model)
    sensitivity = [run.sensitivity[relu] for relu in masks]
    sizes = [mask.numel() for mask in masks.values()]
    assert [int(mask.sum()) for mask in masks.values()] == allocate(
        sizes, sensitivity, variant(name).budget(2)
    )


@pytest.mark.parametrize("name", ONE_OF_A_FAMILY)
def test_the_planned_phases_are_those_that_are_trained(name, run):
    trained = recipe_of(name)(run, name)
    assert planned(name, run.plan) == {phase.name: len(phase.history) for phase in trained.phases}
    assert planned("senet-0.09", PLANS["quick"]) == {"baseline": 14, "senet-0.09": 6}


def test_what_is_left_is_told_in_epochs_and_time(run, tmp_path):
    other = tiny_run(tmp_path)
    assert command.remaining(other, ["senet-0.09", "senet-0.18"]) == "8 epochs to go"
    other.done["baseline"] = recipe_of("baseline")(run, "baseline")
    for names, epochs in ((["senet-0.09", "senet-0.18", "joint-0.09"], 10), (["baseline"], 0)):
        assert re.fullmatch(rf"{epochs} epochs to go, about 0:0\d h", command.remaining(other, names))
    fresh = tiny_run(tmp_path)  # as after a restart: what is finished lies in checkpoints alone
    fresh.checkpoints, fresh.shared = tmp_path / "own", [run.checkpoints]
    assert command.remaining(fresh, ["baseline", "senet-0.09"]).startswith("0 epochs to go")
    fresh.shared, fresh.checkpoints = [], run.checkpoints
    assert command.remaining(fresh, ["baseline", "senet-0.09"]).startswith("0 epochs to go")
    fresh.setting = replace(fresh.setting, seed=1)
    assert command.remaining(fresh, ["baseline", "senet-0.09"]) == "6 epochs to go"


def test_published_sensitivity_is_taken_when_none_is_measured(tmp_path):
    other = tiny_run(tmp_path, plan=PLANS["quick"])
    assert list(other.sensitivity.values()) == list(SENET_SENSITIVITY)
    assert not (tmp_path / "logs").exists()


def test_the_first_masks_are_where_most_is_cut_off():
    """|a_AR - x_PR| of a network against itself is |min(x, 0)|, summed over the images."""
    torch.manual_seed(0)
    model = randomised(resnet18(classes=4, width=2)).float()
    inputs = []
    handle = model.relu.register_forward_pre_hook(lambda module, args: inputs.append(args[0]))
    error = linearisation_error(model, model, X.split(7))
    handle.remove()
    torch.testing.assert_close(error["relu"], torch.cat(inputs).clamp(max=0).abs().sum(0))
    masks = largest_masks(error, {name: 5 for name in error})
    assert error["relu"][masks["relu"]].min() >= error["relu"][~masks["relu"]].max()
    student = copy.deepcopy(model)
    mask_relus(student, masks)
    scores = ("own", "reference", "published")
    own, ours, published = (linearisation_error(model, student, [X], score) for score in scores)
    torch.testing.assert_close(own["relu"], error["relu"])
    torch.testing.assert_close(ours["relu"], error["relu"])
    assert not published["relu"][masks["relu"]].any()
    torch.testing.assert_close(published["relu"][~masks["relu"]], ours["relu"][~masks["relu"]])
    with pytest.raises(ValueError, match="unknown score 'other'"):
        linearisation_error(model, student, [X], "other")


def test_largest_masks_keep_the_largest_and_of_equals_the_first():
    scores = {"a": torch.tensor([[[1.0, 3.0], [3.0, 3.0]]]), "b": torch.tensor([2.0, 5.0])}
    masks = largest_masks(scores, {"a": 2, "b": 0})
    assert masks["a"].tolist() == [[[False, True], [True, False]]]
    assert masks["b"].tolist() == [False, False]
    together = largest_network_masks(scores, 4)
    assert together["a"].tolist() == [[[False, True], [True, True]]]
    assert together["b"].tolist() == [False, True]
    with pytest.raises(ValueError, match="b has 2 ReLUs, 3 cannot be kept"):
        largest_masks(scores, {"a": 1, "b": 3})


def test_merging_is_exact_for_the_network_that_is_trained():
    """With hoisted padding the deployed 5x5 and 7x7 kernels compute what is trained, borders included."""
    torch.manual_seed(0)
    recipe = VARIANTS["merged-exact"]
    model = recipe.structured(2, 4)
    randomised(model)
    blocks = [f"{name[:8]}" for name in ("layer1.0", "layer1.1", "layer2.0", "layer2.1", "layer3.0")]
    plain = copy.deepcopy(model)
    hoist_in_training(model, blocks)
    x = X.double()
    expected = model(x)
    final = recipe.finished(copy.deepcopy(model))
    torch.testing.assert_close(final(x), expected, rtol=1e-9, atol=1e-9)
    assert final.get_submodule("layer3.0.conv2").kernel_size == (7, 7)
    assert (plain(x) - expected).abs().max() > 1e-3  # without hoisting the border would differ


def tried(run, folder, **changes):
    """Returns a run of a changed plan that takes the phases it shares from `run`."""
    plan = run.plan.changed({key.replace("__", "."): value for key, value in changes.items()})
    logs = folder / "logs"
    return Run(
        run.setting, plan, run.width, folder, logs, io.StringIO(), shared=[run.checkpoints], tried=True
    )


def chosen_by_lasso(run, name):
    """Trains a joint variant; returns it, the network that the lasso left, and what its slopes choose."""
    trained = recipe_of(name)(run, name)
    selected = run.done[f"{name}-lasso"].model
    slopes = {relu: module.alpha[0].detach() for relu, module in named_relus(selected).items()}
    return trained, selected, largest_network_masks(slopes, variant(name).budget(2))


def test_a_lasso_may_choose_the_relus_of_a_joint_network(run, tmp_path):
    other = tried(run, tmp_path, masks__search=0.0, masks__allocation="lasso")
    trained, _, chosen = chosen_by_lasso(other, "joint-0.052")
    phases = {phase.name: len(phase.history) for phase in trained.phases}
    assert phases == planned("joint-0.052", other.plan)
    assert list(phases) == ["baseline", "gated-5", "joint-0.052-lasso", "joint-0.052"]
    masks = masks_of(trained.model)
    assert masks.keys() == chosen.keys()
    assert all(torch.equal(mask, chosen[name]) for name, mask in masks.items())
    row = finish_row(other, "joint-0.052", trained, None, {}, tmp_path)
    assert row["relus"] == variant("joint-0.052").budget(2)


def test_the_weights_may_go_back_to_those_before_the_lasso(run, tmp_path):
    """With a rate of almost 0 what is tuned stays where it starts."""
    still = {"masks__peak": 1e-12, "masks__weight_decay": 0.0, "masks__search": 0.0}
    for rewind in (False, True):
        other = tried(run, tmp_path / str(rewind), masks__allocation="lasso", masks__rewind=rewind, **still)
        trained, selected, chosen = chosen_by_lasso(other, "joint-0.052")
        start = (recipes.gated(run, "joint-0.052").model if rewind else selected).state_dict()
        away = (recipes.gated(run, "joint-0.052").model if not rewind else selected).state_dict()
        learnt = trained.model.state_dict()
        torch.testing.assert_close(learnt["conv1.weight"], start["conv1.weight"])
        assert not torch.allclose(learnt["conv1.weight"], away["conv1.weight"])
        assert all(torch.equal(mask, chosen[name]) for name, mask in masks_of(trained.model).items())


def test_scores_may_allocate_the_relus_of_the_entire_network(run, tmp_path):
    changes = {"masks__allocation": "network", "masks__score": "taylor", "masks__shrinking": 0.5}
    other = tried(run, tmp_path, **changes, masks__search=0.0)
    trained = recipe_of("joint-0.052")(other, "joint-0.052")
    phases = {phase.name: len(phase.history) for phase in trained.phases}
    assert phases == planned("joint-0.052", other.plan)
    assert list(phases) == ["baseline", "gated-5", "joint-0.052"]
    row = finish_row(other, "joint-0.052", trained, None, {}, tmp_path)
    assert row["relus"] == variant("joint-0.052").budget(2)
    (falling, kept) = (line.get("relus") for line in trained.phases[-1].history)
    assert (falling, kept) == (row["relus"], None)  # from one epoch of more ReLUs to the budget


def test_a_budget_may_descend_from_the_larger_ones(run, tmp_path):
    assert [recipes.next_larger(name) for name in ("senet-0.045", "senet-0.18", "senet-0.36")] == [
        "senet-0.09",
        "senet-0.36",
        None,
    ]
    assert [recipes.next_larger(name) for name in ("joint-0.052", "joint-0.09", "joint3-0.052")] == [
        "joint-0.104",
        "joint-0.208",
        None,
    ]
    other = tried(run, tmp_path, masks__descending=True, masks__search=0.0)
    trained = recipe_of("joint-0.104")(other, "joint-0.104")
    phases = {phase.name: len(phase.history) for phase in trained.phases}
    assert phases == planned("joint-0.104", other.plan)
    assert phases.keys() == {"baseline", "gated-5", "sensitivity", "joint-0.208", "joint-0.104"}
    kept, before = masks_of(trained.model), masks_of(recipe_of("joint-0.208")(other, "joint-0.208").model)
    assert sum(int(mask.sum()) for mask in kept.values()) == variant("joint-0.104").budget(2)
    assert sum(int(mask.sum()) for mask in before.values()) == variant("joint-0.208").budget(2)
    assert not any((mask & ~before[name]).any() for name, mask in kept.items())
    alone = recipe_of("joint-0.104")(run, "joint-0.104")
    assert trained.epochs == alone.epochs + other.plan.masks.epochs
    changes = {"masks__descending": True, "masks__search": 0.0, "masks__shrinking": 0.5}
    shrunk = tried(run, tmp_path / "shrunk", **changes)
    gradual = recipe_of("joint-0.104")(shrunk, "joint-0.104")
    larger, budget = (variant(name).budget(2) for name in ("joint-0.208", "joint-0.104"))
    assert [line.get("relus") for line in gradual.phases[-1].history] == [budget, None]
    start = shrunk.done["joint-0.208"].model
    task = tasks.MaskTuning(copy.deepcopy(start), shrunk.plan.masks, shrunk.teacher(), start, budget)
    assert task.budgets == [round((larger * budget) ** 0.5), budget]  # from the larger one, not from all


def test_other_blocks_may_be_shallow(run, tmp_path):
    names = ["layer1.1", "layer2.1", "layer3.1", "layer4.0", "layer4.1"]
    other = tried(run, tmp_path, gated__blocks=",".join(reversed(names)), masks__search=0.0)
    trained = recipe_of("joint-0.052")(other, "joint-0.052")
    assert recipes.shallow_of(trained.model) == names
    row = finish_row(other, "joint-0.052", trained, None, {}, tmp_path)
    assert row["relus"] == variant("joint-0.052").budget(2)
    own = variant("joint-0.052").build(2, None, classes=CLASSES)
    absorbed = 2 * 4 * 16 * 16  # a 1x1 skip: own blocks have two that are strided, these one
    assert row["macs"] == count_cost(own, X[:1]).macs + absorbed
    for wrong in ("layer1.0", "layer1.0,layer1.0,layer2.0,layer2.1,layer3.0", "a,b,c,d,e"):
        with pytest.raises(ValueError, match=r"joint-0\.052 has 5 shallow blocks, which .* does not name"):
            tried(run, tmp_path, gated__blocks=wrong).variant("joint-0.052")
    assert tried(run, tmp_path, gated__blocks=wrong).variant("senet-0.09") is variant("senet-0.09")


def test_the_cheapest_blocks_lose_least_for_what_they_save(run, tmp_path):
    other = tried(run, tmp_path, gated__blocks="cheapest")
    blocks = recipes.shallow_of(other.variant("joint-0.052").structured(2, CLASSES))
    content = json.loads((tmp_path / "logs" / "blocks.json").read_text())
    table = content["blocks"]
    assert len(table) == 8
    assert set(blocks) == set(list(table)[:5])
    rates = [entry["accuracy_lost"] / entry["macs_saved"] for entry in table.values()]
    assert rates == sorted(rates)
    images = run.setting.images
    whole = copy.deepcopy(run.baseline.model).eval()
    assert content["accuracy_heldout"] == accuracy(whole, images.heldout, images.heldout_labels)
    convolution, skip = 9 * 8 * 8 * 8 * 8, 4 * 8 * 8 * 8
    assert table["layer3.0"]["macs_saved"] == convolution + skip
    assert table["layer3.1"]["macs_saved"] == convolution


def test_unknown_choices_are_named(run):
    for key, known in (
        ("gated.start", "least-squares, random"),
        ("masks.score", "own, reference, published, taylor"),
        ("masks.allocation", "sensitivity, network, lasso"),
    ):
        with pytest.raises(ValueError, match=f"'other': known are {known}"):
            run.plan.changed({key: "other"})
    for changes in ({}, {"masks.search": 0.0, "masks.score": "taylor"}):
        with pytest.raises(ValueError, match="neither scored nor searched nor shrunk"):
            run.plan.changed({"masks.allocation": "lasso"} | changes)
    with pytest.raises(ValueError, match="rewind is for masks that a lasso chooses"):
        run.plan.changed({"masks.rewind": True})
    with pytest.raises(ValueError, match="'published' is for masks that are searched or shrink"):
        run.plan.changed({"masks.search": 0.0, "masks.score": "published"})
    with pytest.raises(ValueError, match="fractions of the epochs"):
        run.plan.changed({"masks.shrinking": 1.5})
    with pytest.raises(ValueError, match="descending masks are neither chosen by a lasso nor searched"):
        run.plan.changed({"masks.descending": True})


def test_an_unknown_row_is_named():
    with pytest.raises(ValueError, match="unknown variant"):
        recipe_of("senet-0.5")


def test_a_full_disk_at_the_end_is_clear(run, tmp_path, monkeypatch):
    def full(*args, **kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(rows, "save_weights", full)
    trained = recipe_of("baseline")(run, "baseline")
    with pytest.raises(TrainingError, match=r"baseline-w2\.safetensors cannot be written .*No space left"):
        finish_row(run, "baseline", trained, banded(8), {}, tmp_path)


def test_rows_are_replaced_and_kept_in_order(tmp_path):
    path = tmp_path / "accuracy.json"
    assert read_rows(path) == []
    for name, seed, value in (
        ("senet-0.09", 1, 0.1),
        ("senet-0.09", 0, 0.2),
        ("baseline", 0, 0.3),
        ("senet-0.09", 1, 0.4),
    ):
        put_row(path, {"variant": name, "width": 16, "seed": seed, "accuracy_test": value})
    assert [(row["variant"], row["seed"], row["accuracy_test"]) for row in read_rows(path)] == [
        ("baseline", 0, 0.3),
        ("senet-0.09", 0, 0.2),
        ("senet-0.09", 1, 0.4),
    ]
    update_row(path, "senet-0.09", 16, 1, {"more": 5})
    assert [row.get("more") for row in read_rows(path)] == [None, None, 5]
    with pytest.raises(TrainingError, match=r"no row of joint-0.09, width 16, seed 1: train it first"):
        update_row(path, "joint-0.09", 16, 1, {"more": 5})
    put_row(path, {"variant": "senet-0.09", "width": 16, "seed": 1, "accuracy_test": 0.6})
    assert "more" not in read_rows(path)[-1]
    with ThreadPoolExecutor(8) as pool:
        list(
            pool.map(lambda seed: put_row(path, {"variant": "snl-0.09", "width": 8, "seed": seed}), range(32))
        )
    assert [row["seed"] for row in read_rows(path) if row["width"] == 8] == list(range(32))
    before = path.read_bytes()
    with pytest.raises(ResultsError, match="`accuracy_test` is 60 where a share from 0 to 1"):
        put_row(path, {"variant": "baseline", "width": 16, "seed": 0, "accuracy_test": 60})
    with pytest.raises(ResultsError, match=r"`relus` is 1\.5 where a whole number"):
        update_row(path, "baseline", 16, 0, {"relus": 1.5})
    assert path.read_bytes() == before
    for content, reason in (
        ("{", r"accuracy\.json cannot be read"),
        ("[1]", r"Row 0 of .*accuracy\.json is unusable, `the row` is 1 where an object"),
        ('[{"variant": "baseline"}]', r"Row 0 of .*accuracy\.json is unusable, the row lacks `width`"),
    ):
        path.write_text(content)
        with pytest.raises(ResultsError, match=reason):
            put_row(path, {"variant": "baseline", "width": 16, "seed": 0})
        assert path.read_text() == content


@pytest.fixture
def cifar(tmp_path, monkeypatch):
    """Tiny files in CIFAR's format, and the command made to take them; returns common options."""
    folder = tmp_path / "data" / FOLDER
    folder.mkdir(parents=True)
    for seed, (split, count) in enumerate((("train", 100), ("test", 40))):
        images, labels = banded(count, seed)
        entries = {b"data": np.asarray(images.view(count, -1)), b"fine_labels": labels.tolist()}
        (folder / split).write_bytes(pickle.dumps(entries, protocol=4))
    monkeypatch.setattr(Images, "cifar100", partial(Images.cifar100, heldout=20, checksums=None))
    monkeypatch.setattr(command, "load_cifar100", partial(load_cifar100, checksums=None))
    monkeypatch.setitem(PLANS, "long", TINY)
    options = ["--width", "2", "--device", "cpu", "--data", str(tmp_path / "data")]
    for name in ("results", "checkpoints", "weights"):
        options += [f"--{name}", str(tmp_path / name)]
    return tmp_path, options


def test_one_command_trains_what_is_missing(cifar, monkeypatch, capsys):
    folder, options = cifar
    assert command.main([*options, "--rows", "senet-0.09", "baseline"]) == 0
    found = read_rows(folder / "results" / "accuracy.json")
    assert [row["variant"] for row in found] == ["baseline", "senet-0.09"]
    assert (folder / "results" / "training" / "w2-s0-long" / "senet-0.09.jsonl").exists()
    monkeypatch.setattr(checkpoint, "FOLDER", folder / "weights")
    loaded = VARIANTS["senet-0.09"].build(width=2)
    assert loaded.meta["trained"]
    assert any(isinstance(module, MaskedReLU) for module in loaded.modules())
    capsys.readouterr()
    assert command.main([*options, "--rows", "baseline", "--list"]) == 0
    assert capsys.readouterr().out == "baseline         finished\n"
    monkeypatch.setattr(recipes, "train", None)
    assert command.main([*options, "--rows", "baseline", "senet-0.09"]) == 0
    assert "baseline: finished before" in capsys.readouterr().err
    older = found[1] | {"phases": found[1]["phases"] | {"sensitivity": 1}}
    put_row(folder / "results" / "accuracy.json", older)  # by another recipe, or other lengths
    assert command.main([*options, "--rows", "baseline", "senet-0.09", "--list"]) == 0
    assert capsys.readouterr().out.split() == ["baseline", "finished", "senet-0.09", "to", "be", "trained"]
    path = folder / "weights" / "baseline-w2.safetensors"
    path.write_bytes(path.read_bytes()[:-1] + b"x")
    with pytest.raises(WeightsError, match="is damaged"):
        VARIANTS["baseline"].build(width=2)


def test_every_row_has_its_plan_and_takes_what_the_usual_one_has_trained(cifar, monkeypatch, capsys):
    folder, options = cifar
    monkeypatch.setitem(PLANS, "extended", TINY.changed({"gated.bounded": True, "gated.epochs": 3}))
    monkeypatch.setattr(checkpoint, "FOLDER", folder / "weights")
    read, decoded = Images.cifar100, []
    monkeypatch.setattr(Images, "cifar100", lambda *args: decoded.append(args) or read(*args))
    assert command.main([*options, "--rows", "joint", "baseline"]) == 0
    assert len(decoded) == 1  # for both plans
    rows = {row["variant"]: row for row in read_rows(folder / "results" / "accuracy.json")}
    assert {name: row["plan"] for name, row in rows.items()} == {"baseline": "long", "joint": "extended"}
    assert rows["joint"]["phases"] == {"baseline": 2, "gated-5": 3}
    assert capsys.readouterr().err.count("baseline  epoch") == 2
    assert VARIANTS["joint"].build(width=2).meta["trained"]
    assert command.main([*options, "--rows", "joint", "baseline", "--list"]) == 0
    assert capsys.readouterr().out.count("finished") == 2
    assert command.main([*options, "--rows", "joint", "--plan", "long", "--list"]) == 0
    assert "to be trained" in capsys.readouterr().out
    assert command.main([*options, "--rows", "joint", "--plan", "extended", "--try"]) == 1
    assert "no try: nothing differs from what joint is trained with" in capsys.readouterr().err
    assert command.main([*options, "--rows", "joint", "--plan", "long", "--try"]) == 0
    assert command.main([*options, "--rows", "joint", "--set", "gated.fading=0.9"]) == 0
    changes = [row["changes"] for row in json.loads((folder / "results" / "tries.json").read_text())]
    assert {"plan": "long"} in changes
    assert {"plan": "long", "gated.fading": 0.9} in changes


def test_a_try_of_a_plan_takes_what_that_plan_has_taken(cifar, monkeypatch, capsys):
    """The baseline is the usual plan's: the other plan takes it from there, and so must its tries."""
    folder, options = cifar
    monkeypatch.setitem(PLANS, "extended", TINY.changed({"gated.bounded": True, "gated.epochs": 3}))
    assert command.main([*options, "--rows", "joint", "baseline"]) == 0
    assert not (folder / "checkpoints" / "w2-s0-extended" / "baseline.pt").exists()
    capsys.readouterr()
    tried = [*options, "--rows", "joint", "--plan", "extended", "--set", "gated.start=random"]
    assert command.main(tried) == 0
    said = capsys.readouterr().err
    assert "gated-5  epoch" in said
    assert "baseline  epoch" not in said


def test_a_row_is_finished_by_whatever_plan_has_the_same_phases(cifar, monkeypatch, capsys):
    folder, options = cifar
    monkeypatch.setitem(PLANS, "extended", TINY.changed({"gated.bounded": True}))
    assert command.main([*options, "--rows", "baseline", "joint", "--plan", "long"]) == 0
    capsys.readouterr()
    for plan, state in (("long", "finished"), ("extended", "to be trained")):
        assert command.main([*options, "--rows", "baseline", "joint", "--plan", plan, "--list"]) == 0
        lines = dict(line.split(maxsplit=1) for line in capsys.readouterr().out.splitlines())
        assert lines == {"baseline": "finished", "joint": state}
    path = folder / "results" / "accuracy.json"
    put_row(path, read_rows(path)[0] | {"plan": "forgotten"})
    assert command.main([*options, "--rows", "baseline", "--list"]) == 0
    assert "to be trained" in capsys.readouterr().out


def test_wide_networks_are_finished_without_published_weights(cifar, monkeypatch, capsys):
    folder, options = cifar
    monkeypatch.setattr(rows, "PUBLISHED_WIDTH", 1)
    assert command.main([*options, "--rows", "baseline"]) == 0
    assert not (folder / "weights").exists()
    assert (folder / "checkpoints" / "w2-s0-long" / "baseline-w2.safetensors").exists()
    capsys.readouterr()
    assert command.main([*options, "--rows", "baseline", "--list"]) == 0
    assert capsys.readouterr().out == "baseline         finished\n"


def test_another_seed_has_its_row_but_no_published_weights(cifar):
    folder, options = cifar
    assert command.main([*options, "--rows", "baseline", "--seed", "3", "--epochs-scale", "0.5"]) == 0
    (row,) = read_rows(folder / "results" / "accuracy.json")
    assert (row["seed"], row["epochs"], row["epochs_scale"]) == (3, 1, 0.5)
    assert not (folder / "weights").exists()
    assert (folder / "checkpoints" / "w2-s3-long-x0.5" / "baseline-w2.safetensors").exists()


def test_a_try_shares_phases_and_stays_apart(cifar, monkeypatch, capsys):
    folder, options = cifar
    options = [*options, "--rows", "senet-0.09"]
    assert command.main(options) == 0
    weights = (folder / "weights" / "senet-0.09-w2.safetensors").read_bytes()
    capsys.readouterr()
    for _ in range(2):
        assert command.main([*options, "--set", "masks.peak=0.2", "masks.search=0"]) == 0
    lines = capsys.readouterr().err
    assert "senet-0.09  epoch 1/" in lines
    assert "baseline  epoch" not in lines
    assert "% test" not in lines
    assert lines.count("% held out") == 1
    (row,) = json.loads((folder / "results" / "tries.json").read_text())
    assert row["changes"] == {"masks.peak": 0.2, "masks.search": 0}
    assert "accuracy_test" not in row
    assert [row["variant"] for row in read_rows(folder / "results" / "accuracy.json")] == ["senet-0.09"]
    assert (folder / "weights" / "senet-0.09-w2.safetensors").read_bytes() == weights
    monkeypatch.setitem(PLANS, "standard", TINY)
    for _ in range(2):
        assert command.main([*options, "--plan", "standard", "--try"]) == 0
        assert command.main([*options, "--plan", "standard", "--set", "masks.peak=0.2"]) == 0
    assert capsys.readouterr().err.count("% held out") == 2
    changes = [row["changes"] for row in json.loads((folder / "results" / "tries.json").read_text())]
    assert {"plan": "standard"} in changes
    assert {"plan": "standard", "masks.peak": 0.2} in changes
    assert len(changes) == 3
    assert (folder / "weights" / "senet-0.09-w2.safetensors").read_bytes() == weights
    assert [row["plan"] for row in read_rows(folder / "results" / "accuracy.json")] == ["long"]
    assert (folder / "results" / "training" / "w2-s0-standard-try" / "senet-0.09.jsonl").exists()
    assert not (folder / "results" / "training" / "w2-s0-standard").exists()
    assert command.main([*options, "--epochs-scale", "0.5", "--set", "masks.peak=0.2"]) == 0
    scaled = json.loads((folder / "results" / "tries.json").read_text())
    assert {"epochs_scale": 0.5, "masks.peak": 0.2} in [row["changes"] for row in scaled]
    assert len(scaled) == 4
    capsys.readouterr()
    assert command.main([*options, "--try"]) == 1
    assert "no try: nothing differs" in capsys.readouterr().err
    assert command.main([*options[:-2], "--rows", "baseline", "joint-0.09", "--set", "gated.blocks=a"]) == 1
    said = capsys.readouterr().err
    assert "joint-0.09 has 5 shallow blocks, which 'a' does not name" in said
    assert "epoch" not in said  # nothing is trained before it is said
    assert command.main([*options, "--set", "masks.nonsense=1"]) == 1
    assert "the plan has no 'masks.nonsense'" in capsys.readouterr().err


def test_missing_data_and_devices_are_one_clear_line(cifar, capsys):
    folder, options = cifar
    (folder / "data" / FOLDER / "train").unlink()
    assert command.main(options) == 1
    assert "train cannot be read" in capsys.readouterr().err
    assert command.main([*options, "--device", "nonsense"]) == 1
    assert "the device 'nonsense' cannot be used" in capsys.readouterr().err
    assert command.main([*options, "--epochs-scale", "0"]) == 1
    assert "positive factor" in capsys.readouterr().err
    assert command.main([*options, "--epochs-scale", "inf"]) == 1
    assert "positive factor" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        command.main(["--rows", "nonsense"])


def test_files_that_cannot_be_read_or_written_are_one_clear_line(cifar, capsys):
    folder, options = cifar
    (folder / "checkpoints").write_text("a file where a folder is wanted")
    assert command.main([*options, "--rows", "baseline"]) == 1
    said = capsys.readouterr().err
    assert "cannot be written (Not a directory): make room or allow writing there" in said
    (folder / "weights").mkdir()
    (folder / "weights" / "manifest.json").write_text("{")
    assert command.main([*options, "--rows", "baseline"]) == 1
    assert "manifest.json is no JSON" in capsys.readouterr().err.splitlines()[-1]


def test_an_interrupt_says_how_to_go_on(cifar, monkeypatch, capsys):
    _, options = cifar

    def stop(*args, **kwargs):
        raise KeyboardInterrupt

    monkeypatch.setattr(recipes, "train", stop)
    assert command.main([*options, "--rows", "baseline"]) == 130
    assert "run the same command to go on" in capsys.readouterr().err
