"""Ranks that training prunes: truncations held against the SVD and autograd, and what is made of them."""

import json
from dataclasses import replace

import pytest
import torch
from networks import difference, images, small
from torch import nn
from training_setup import CLASSES, TINY, tiny_images, tiny_run

from pibench.costs.predict import predict
from pibench.measure.count import cost_of
from pibench.models import variants
from pibench.models.reductions.low_rank import QUICKEST
from pibench.models.training.rows import finish_row
from pibench.models.training.tasks.rank_pruning import RankPruning
from pibench.models.training.tasks.supervised import Supervised
from pibench.models.transforms import factorize_convs
from pibench.models.transforms.factorize_convs import (
    FORMS,
    Rank,
    factors,
    largest_rank,
    matrix_of,
    rank_of_energy,
    rank_of_share,
    suitable,
    truncated,
)
from pibench.models.variants import variant
from pibench.models.weights import file_name, load, read_weights
from pibench.models.zoo import resnet18
from pibench.program.lower import lower

TOLERANCE = 1e-10
X, LABELS = next(tiny_images().epoch(8, 0, 0))
X = X.contiguous()  # as the narrow networks have it in training


def draw(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("form", ["channel", "spatial"])
def test_a_truncation_is_the_nearest_kernel_of_its_rank(form):
    kernel = draw(6, 4, 3, 3)
    near, _ = truncated(kernel, form, Rank(2))
    values = torch.linalg.svdvals(matrix_of(kernel, form))
    assert torch.linalg.matrix_rank(matrix_of(near, form)) == 2
    assert (near - kernel).square().sum() == pytest.approx(float(values[2:].square().sum()), rel=TOLERANCE)
    again, _ = truncated(near, form, Rank(2))
    assert (again - near).abs().max() < TOLERANCE


def test_a_tucker_truncation_has_both_ranks_and_factors_exactly():
    kernel, rank = draw(6, 4, 3, 3), Rank(3, 2)
    near, _ = truncated(kernel, "tucker", rank)
    unfoldings = near.flatten(1), near.transpose(0, 1).flatten(1)
    assert [int(torch.linalg.matrix_rank(each)) for each in unfoldings] == [3, 2]
    into, core, out = factors(near, "tucker", rank)
    whole = torch.einsum("op,pqmn,qc->ocmn", out[:, :, 0, 0], core, into[:, :, 0, 0])
    assert (whole - near).abs().max() < TOLERANCE
    best = factors(kernel, "tucker", rank)
    whole = torch.einsum("op,pqmn,qc->ocmn", best[2][:, :, 0, 0], best[1], best[0][:, :, 0, 0])
    assert (near - kernel).norm() < 1.1 * (whole - kernel).norm()  # no best one, but near it


@pytest.mark.parametrize("form", FORMS)
def test_the_direction_is_the_gradient_of_the_nuclear_norm(form):
    kernel = draw(5, 4, 3, 3).requires_grad_()
    near, direction = truncated(kernel.detach(), form, largest_rank(kernel, form))
    assert (near - kernel).abs().max() < TOLERANCE
    if form == "tucker":
        matrices = [kernel.flatten(1), kernel.transpose(0, 1).flatten(1)]
    else:
        matrices = [matrix_of(kernel, form)]
    sum(torch.linalg.matrix_norm(each, "nuc") for each in matrices).div(len(matrices)).backward()
    assert (direction - kernel.grad).abs().max() < TOLERANCE


def test_a_share_is_of_outputs_and_for_tucker_of_inputs_too():
    kernel = draw(16, 8, 3, 3)
    assert rank_of_share(kernel, "channel", 0.25) == Rank(4)
    assert rank_of_share(kernel, "tucker", 0.25) == Rank(4, 2)
    assert rank_of_share(draw(2, 3, 3, 3), "spatial", 0.1) == Rank(1)
    assert rank_of_share(draw(64, 1, 1, 1), "spatial", 0.5) == Rank(1)  # no larger one
    with pytest.raises(ValueError, match="a share of channels is above 0 and at most 1, not 0"):
        rank_of_share(kernel, "channel", 0)


def test_what_is_factored_is_neither_of_the_image_nor_1x1_nor_strided_unless_by_tucker():
    strided = [f"layer{stage}.0.conv1" for stage in (2, 3, 4)]
    for form in FORMS:
        names = suitable(small("resnet18"), form)
        assert len(names) == (16 if form == "tucker" else 13)
        assert "conv1" not in names
        assert set(strided) & set(names) == (set(strided) if form == "tucker" else set())


@pytest.mark.parametrize("form", FORMS)
def test_a_structure_without_fit_has_the_shapes_of_a_fitted_one(form):
    model = small("resnet18")
    torch.manual_seed(5)
    drawn, fitted = (factorize_convs(model, form, 0.25, fit) for fit in (False, True))
    shapes = {name: tensor.shape for name, tensor in fitted.state_dict().items()}
    assert {name: tensor.shape for name, tensor in drawn.state_dict().items()} == shapes
    kernels = {name: model.get_submodule(name).weight for name in suitable(model, form)}
    ranks = {name: list(rank_of_share(kernel, form, 0.25)) for name, kernel in kernels.items()}
    named = factorize_convs(model, form, json.loads(json.dumps(ranks)))  # as a weights file keeps them
    assert difference(fitted, named, images()) < TOLERANCE
    assert difference(fitted, drawn, images()) > 1e-3


@pytest.mark.parametrize(
    ("name", "sent", "rounds", "on_lean"),
    [
        ("trp-channel-4", 170_600_736, 175 + 13, 108 + 2 * 13),
        ("trp-spatial-4", 162_212_128, 175 + 13, 108 + 2 * 13),
        ("tucker-4", 149_002_528, 175 + 32, 108 + 4 * 16),
        ("trp-quickest-4", 150_903_072, 175 + 12 + 2 * 4, 108 + 2 * 12 + 4 * 4),
    ],
)
def test_weights_go_and_rounds_come(name, sent, rounds, on_lean, monkeypatch):
    """Each further layer costs a round, and on lean a truncation before it."""
    monkeypatch.setattr(variants, "calibrate", lambda *_: None)  # costs do not depend on statistics
    program = lower(variant(name).build(64, None), images(1)).program
    stock, lean = (predict(program, engine) for engine in ("stock", "lean"))
    assert (stock.bytes_sent, stock.rounds, lean.rounds) == (sent, rounds, on_lean)  # dense: 224,258,336


def pruning(form="channel", energy=0.9, **changes):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = resnet18(classes=CLASSES, width=4)
    schedule = TINY.changed({f"ranks.{key}": value for key, value in changes.items()})["ranks"]

    def rank(kernel, form):
        return rank_of_energy(kernel, form, energy)

    return RankPruning(model, schedule, dict.fromkeys(suitable(model, form), form), rank)


@pytest.mark.parametrize("form", FORMS)
def test_kernels_are_truncated_at_regular_steps_and_pulled_between_them(form):
    task = pruning(form, every=3)
    task.optimizers(task.schedule, 8)
    conv = task.convs["layer1.0.conv2"]
    before = conv.weight.detach().clone()
    plain = Supervised(task.model, task.schedule).loss(X, LABELS)
    torch.testing.assert_close(task.loss(X, LABELS), plain)  # no direction yet
    task.after_step(2 / 8)
    assert torch.equal(conv.weight, before)
    assert task.after_epoch(None, 0) == {"ranks": 0}
    task.after_step(3 / 8)
    rank = rank_of_energy(before, form, 0.9)
    assert task.ranks()["layer1.0.conv2"] == rank
    near, direction = truncated(before, form, rank)
    torch.testing.assert_close(conv.weight.detach(), near)
    gradients = []
    for loss in (Supervised(task.model, task.schedule).loss, task.loss):
        task.model.zero_grad()
        loss(X, LABELS).backward()
        gradients.append(conv.weight.grad.clone())
    torch.testing.assert_close(gradients[1] - gradients[0], 3e-4 * direction, rtol=1e-2, atol=1e-6)
    task.after_step(7 / 8)
    torch.testing.assert_close(conv.weight.detach(), near)
    task.after_step(1.0)  # the last step, whatever its number
    assert task.ranks()["layer1.0.conv2"] == rank_of_energy(near, form, 0.9)


@pytest.mark.parametrize("name", ["trp-channel-0.9", "trp-spatial-0.9", "tucker-0.9"])
def test_what_training_chose_is_factored_tuned_saved_and_loaded(name, tmp_path):
    run = tiny_run(tmp_path)
    trained = run.trained(name)
    (step,) = trained.chosen
    assert step.transform == "factorize_convs"
    assert list(step.arguments["ranks"]) == suitable(run.original(), step.arguments["form"])
    x = torch.cat(list(tiny_images().sample(20)))
    with torch.no_grad():
        expected = trained.model(x)
    row = finish_row(run, name, trained, None, {}, tmp_path / "weights")
    assert row["phases"] == {"baseline": 2, f"{name}-ranks": 2, name: 1}
    path = tmp_path / "weights" / file_name(name, 2)
    assert read_weights(path).decisions.steps[0] == step
    model = load(path)
    assert (model(x) - expected).abs().max() < 0.03 * expected.std()
    assert not [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]
    assert row["macs"] == cost_of(model, x[:1]).macs


def test_the_factored_network_is_the_truncated_one(tmp_path):
    run = tiny_run(tmp_path, precision="float32")
    phase = next(before for before in run.phase("trp-spatial-4").after if before.name.endswith("-ranks"))
    learnt = []
    factored = phase.settle

    def settle(run, task):
        learnt.append(task.model)
        return factored(run, task)

    model = run.train(type(phase)(phase.name, phase.schedule, phase.task, phase.after, settle)).model
    x = torch.cat(list(tiny_images().sample(20)))
    with torch.no_grad():
        torch.testing.assert_close(model(x), learnt[0](x), rtol=1e-3, atol=1e-3)


def test_each_convolution_has_its_own_form_trained_saved_and_loaded(tmp_path):
    run = tiny_run(tmp_path)
    trained = run.trained("trp-quickest-4")
    assert {
        name: step.arguments["form"] for step in trained.chosen for name in step.arguments["ranks"]
    } == QUICKEST
    x = torch.cat(list(tiny_images().sample(20)))
    with torch.no_grad():
        expected = trained.model(x)
    row = finish_row(run, "trp-quickest-4", trained, None, {}, tmp_path / "weights")
    assert row["phases"] == {"baseline": 2, "trp-quickest-4-ranks": 2, "trp-quickest-4": 1}
    model = load(tmp_path / "weights" / file_name("trp-quickest-4", 2))
    assert (model(x) - expected).abs().max() < 0.03 * expected.std()
    factors = [name for name, module in model.named_modules() if isinstance(module, nn.Conv2d)]
    for name, form in QUICKEST.items():
        assert sum(factor.startswith(f"{name}_") for factor in factors) == {"spatial": 2, "tucker": 3}[form]


def test_a_network_whose_layers_have_not_been_measured_is_refused():
    for network in ("vgg16", "resnet34"):
        with pytest.raises(ValueError, match="give all layers one form"):
            _ = replace(variant("trp-quickest-4"), network=network).steps


@pytest.mark.parametrize("name", ["trp-channel-0.9", "trp-channel-4", "tucker-4"])
def test_other_networks_have_nominal_ranks_until_they_are_trained(name):
    for network in ("vgg16", "resnet34"):
        (step,) = replace(variant(name), network=network).steps
        assert step.arguments["ranks"] == 0.25
