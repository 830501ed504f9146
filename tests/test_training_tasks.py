import copy
import dataclasses
from math import prod

import pytest
import torch
from networks import randomised
from training_setup import CLASSES, TINY, tiny_images, tiny_run

from pibench.models.allocation import allocate
from pibench.models.training import loop
from pibench.models.training.files import digest
from pibench.models.training.loop import Setting
from pibench.models.training.losses import cross_entropy, distillation, pram
from pibench.models.training.recipes import recipe_of
from pibench.models.training.relus import SoftReLU, exchange_relus, mask_relus, masks_of, named_relus
from pibench.models.training.schedules import LassoSchedule
from pibench.models.training.taps import STAGE_OUTPUTS, run_tapped
from pibench.models.training.tasks import (
    SEARCH,
    TUNING,
    Distilled,
    Lasso,
    MaskTuning,
    Supervised,
    linearisation_error,
    taylor_error,
)
from pibench.models.zoo import resnet18

SETTING = Setting(tiny_images(), precision="float32")
X, LABELS = next(SETTING.images.epoch(8, 0, 0))


def network(seed=0):
    torch.manual_seed(seed)
    return randomised(resnet18(classes=CLASSES, width=2), seed).float()


def shapes(model):
    _, values, _ = run_tapped(model, X, list(named_relus(model)))
    return {name: tuple(value.shape[1:]) for name, value in values.items()}


def test_tapping_reads_inputs_and_outputs_and_leaves_no_hook():
    model = network()
    answer, outputs, inputs = run_tapped(model, X, STAGE_OUTPUTS, ["layer2", "fc"])
    assert torch.equal(answer, model(X))
    assert list(outputs) == [f"layer{stage}.1.relu2" for stage in (1, 2, 3, 4)]
    assert torch.equal(inputs["layer2"], outputs["layer1.1.relu2"])
    assert torch.equal(model.fc(inputs["fc"]), answer)
    with pytest.raises(RuntimeError):
        run_tapped(model, X[:, :2], STAGE_OUTPUTS)
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


def test_the_distilled_loss_is_the_weighted_sum_and_teaches_the_student_only():
    student, teacher = network(0), network(1)
    task = Distilled(student, TINY.tune, teacher)
    logits, ours, _ = run_tapped(student, X, STAGE_OUTPUTS)
    wanted, theirs, _ = run_tapped(teacher, X, STAGE_OUTPUTS)
    parts = [
        cross_entropy(logits, LABELS),
        distillation(logits, wanted),
        pram(list(ours.values()), list(theirs.values())),
    ]
    for weights in (TUNING, SEARCH):
        task.weights = weights
        expected = sum(weight * part for weight, part in zip(weights, parts, strict=True))
        torch.testing.assert_close(task.loss(X, LABELS), expected)
    assert TUNING == (0.1, 0.9, 1000.0)
    task.loss(X, LABELS).backward()
    assert all(parameter.grad is None for parameter in teacher.parameters())
    assert all(parameter.grad is not None for parameter in student.parameters())


def evenly(budget):
    """Shares a budget among the layers of `network`, as far as its small layers hold it, in equal parts."""
    sizes = shapes(network())
    return dict(
        zip(sizes, allocate(list(map(prod, sizes.values())), [1.0] * len(sizes), budget), strict=True)
    )


def tuning(schedule=TINY.masks, budget=None, share=evenly):
    """Returns the task of masks of `budget` ReLUs (25 a layer) for a network that is its own reference."""
    model = network().eval()
    sizes = shapes(model)
    student = copy.deepcopy(model)
    mask_relus(student, {name: torch.ones(shape, dtype=torch.bool) for name, shape in sizes.items()})
    return MaskTuning(student, schedule, network(1), model, budget or 25 * len(sizes), share)


def test_masks_start_at_the_reference_move_in_the_search_and_then_stay():
    schedule = dataclasses.replace(TINY.masks, epochs=4, search=0.5, epsilon=0)
    task = tuning(schedule)
    task.start(SETTING)
    assert {int(mask.sum()) for mask in masks_of(task.model).values()} == {25}
    for done, weights in ((0, SEARCH), (0.49, SEARCH), (0.5, TUNING), (1, TUNING)):
        task.before_step(done)
        assert task.weights == weights
    first = masks_of(task.model)
    with torch.no_grad():
        for parameter in task.model.parameters():
            parameter += 0.1 * torch.randn(parameter.shape)
    noted = task.after_epoch(SETTING, 1)
    second = masks_of(task.model)
    changed = sum(int((second[name] & ~first[name]).sum()) for name in first)
    assert noted == {"masks_changed": changed / (25 * len(first)), "relus": 25 * len(first)}
    assert changed
    assert {int(mask.sum()) for mask in second.values()} == {25}
    assert task.after_epoch(SETTING, 2) == {}
    assert all(torch.equal(mask, second[name]) for name, mask in masks_of(task.model).items())


def test_masks_that_stay_are_frozen_early():
    task = tuning(dataclasses.replace(TINY.masks, epochs=4, search=1.0, epsilon=0.01))
    task.start(SETTING)
    masks = masks_of(task.model)
    task._choose = lambda *arguments: masks
    kept = sum(int(mask.sum()) for mask in masks.values())
    assert task.after_epoch(SETTING, 0) == {"masks_changed": 0, "relus": kept}
    task.before_step(0.5)
    assert task.weights == TUNING
    assert task.after_epoch(SETTING, 1) == {}


def test_a_shrinking_budget_falls_by_one_factor_and_ends_at_the_variants():
    schedule = dataclasses.replace(TINY.masks, epochs=6, search=0.0, shrinking=0.5)
    assert schedule.budgets(10_000, 625) == [5000, 2500, 1250]
    assert dataclasses.replace(schedule, shrinking=0.0).budgets(10_000, 625) == []
    total = sum(map(prod, shapes(network()).values()))
    task = tuning(schedule, total // 16)
    task.start(SETTING)
    budgets = [*schedule.budgets(total, total // 16), *[total // 16] * 3]
    for epoch, budget in enumerate(budgets):
        assert sum(int(mask.sum()) for mask in masks_of(task.model).values()) == budget
        task.before_step(epoch / 6)
        assert task.weights == TUNING
        noted = task.after_epoch(SETTING, epoch)
        assert noted.get("relus") == (budgets[epoch + 1] if epoch < 3 else None)


@pytest.mark.parametrize("score", ["own", "taylor"])
def test_masks_of_the_entire_network_keep_the_best_scores(score):
    schedule = dataclasses.replace(TINY.masks, search=0.0, allocation="network", score=score)
    task = tuning(schedule, 300, share=None)
    task.start(SETTING)
    model = task.reference
    images = SETTING.images.sample(schedule.images)
    own = score == "own"
    error = linearisation_error(model, model, images) if own else taylor_error(network(1), model, images)
    masks = masks_of(task.model)
    kept = torch.cat([error[name][mask] for name, mask in masks.items()])
    cut = torch.cat([error[name][~mask] for name, mask in masks.items()])
    assert len(kept) == 300
    assert kept.min() >= cut.max()
    assert len({int(mask.sum()) for mask in masks.values()}) > 2


def test_taylors_error_is_the_first_order_change_of_the_loss():
    """For one image and a position that moves by so little that the loss is linear in it."""
    model, teacher = network(0).double(), network(1).double()
    image = X[:1].double()
    classes = teacher(image).argmax(1)
    error = taylor_error(teacher, model, [image.clone()])
    assert list(error) == list(named_relus(model))
    _, _, before = run_tapped(model, image, (), list(error))

    def loss(name, position, step):
        shift = torch.zeros_like(before[name][0]).flatten()
        shift[position] = step * before[name].flatten()[position].clamp(max=0)
        handle = model.get_submodule(name).register_forward_hook(
            lambda module, args, value: value + shift.view_as(value)
        )
        value = torch.nn.functional.cross_entropy(model(image), classes)
        handle.remove()
        return value

    for name in ("relu", "layer2.0.relu1", "layer4.1.relu2"):
        position = int(error[name].flatten().argmax())
        slope = (loss(name, position, 1e-6) - loss(name, position, -1e-6)) / 2e-6
        torch.testing.assert_close(error[name].flatten()[position], slope.abs().float(), rtol=1e-4, atol=1e-9)
        assert error[name].min() >= 0
    two = taylor_error(teacher, model, [X[:2].double()])
    apart = [taylor_error(teacher, model, [x.double().clone()]) for x in X[:2].split(1)]
    torch.testing.assert_close(two["layer1.0.relu1"], apart[0]["layer1.0.relu1"] + apart[1]["layer1.0.relu1"])
    masked = copy.deepcopy(model)
    mask_relus(masked, {name: torch.zeros(value.shape, dtype=torch.bool) for name, value in error.items()})
    assert taylor_error(teacher, masked, [image.clone()])["relu"].max() > 0
    assert all(parameter.grad is None for parameter in model.parameters())


def test_a_search_of_no_epoch_keeps_the_first_masks():
    task = tuning(dataclasses.replace(TINY.masks, search=0.0))
    task.before_step(0)
    assert task.weights == TUNING
    assert task.after_epoch(SETTING, 0) == {}


def soft(budget=100, **changes):
    model = network()
    exchange_relus(model, {name: SoftReLU(shape) for name, shape in shapes(model).items()})
    schedule = dataclasses.replace(LassoSchedule(1, 0.01, checks=10, growth=1.1), **changes)
    return Lasso(model, schedule, network(1).eval(), budget)


def test_the_lasso_grows_when_the_count_stalls_and_ends_at_the_budget():
    task = soft(weight=1e-3)
    task.optimizers(task.schedule, 100)
    full = task.count()
    assert full == sum(soft.alpha.numel() for soft in task.softs.values())
    task.before_step(0.0)
    plain = Supervised(task.model, task.schedule).loss(X, LABELS)
    torch.testing.assert_close(task.loss(X, LABELS), plain + 1e-3 * full)
    task.after_step(0.05)
    assert float(task.extra["weight"]) == 1e-3
    task.after_step(0.10)
    assert float(task.extra["weight"]) == pytest.approx(1.1e-3)
    with torch.no_grad():
        for relu in task.softs.values():
            relu.alpha[:, :, 4:] = -3.0
    task.after_step(0.20)
    assert float(task.extra["weight"]) == pytest.approx(1.1e-3)  # it fell fast enough
    assert min(float(relu.alpha.detach().min()) for relu in task.softs.values()) == 0
    assert not task.extra["full"]
    with torch.no_grad():
        for relu in task.softs.values():
            relu.alpha.zero_()
    task.after_step(0.30)
    assert task.extra["full"]
    task.before_step(0.30)
    torch.testing.assert_close(task.loss(X, LABELS), Supervised(task.model, task.schedule).loss(X, LABELS))
    task.after_step(0.31)
    assert task.adam.param_groups[0]["lr"] == 0
    assert task.after_epoch(SETTING, 0)["relus"] == 0


def test_a_lasso_may_learn_from_the_teacher():
    task = soft(weight=1e-3, distilled=True)
    task.optimizers(task.schedule, 100)
    task.before_step(0.0)
    learnt = Distilled(task.model, task.schedule, task.teacher).loss(X, LABELS)
    assert learnt.item() != Supervised(task.model, task.schedule).loss(X, LABELS).item()
    torch.testing.assert_close(task.loss(X, LABELS), learnt + 1e-3 * task.count())


def test_slopes_have_an_optimizer_of_their_own():
    task = soft()
    sgd, adam = task.optimizers(task.schedule, 100)
    slopes = {id(relu.alpha) for relu in task.softs.values()}
    assert {id(parameter) for group in adam.param_groups for parameter in group["params"]} == slopes
    others = {id(parameter) for group in sgd.param_groups for parameter in group["params"]}
    assert not others & slopes
    assert len(others) + len(slopes) == len(list(task.model.parameters()))


@pytest.mark.parametrize(
    ("row", "phase"),
    [
        ("snl-0.09", "snl-0.09-lasso"),
        ("senet-0.09", "sensitivity"),
        ("senet-0.09", "senet-0.09"),
        ("joint-0.09", "gated-5"),
    ],
)
def test_every_kind_of_phase_goes_on_after_an_interrupt(tmp_path, monkeypatch, row, phase):
    expected = digest(recipe_of(row)(tiny_run(tmp_path / "whole"), row).model.state_dict())
    original = loop._epoch

    def stopped(task, schedule, setting, optimizers, epoch, progress):
        if progress.name == phase and epoch == 1:
            raise KeyboardInterrupt
        return original(task, schedule, setting, optimizers, epoch, progress)

    with monkeypatch.context() as patch:
        patch.setattr(loop, "_epoch", stopped)
        with pytest.raises(KeyboardInterrupt):
            recipe_of(row)(tiny_run(tmp_path / "part"), row)
    resumed = recipe_of(row)(tiny_run(tmp_path / "part"), row)
    assert digest(resumed.model.state_dict()) == expected
