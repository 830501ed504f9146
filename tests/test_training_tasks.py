import copy
import dataclasses
from math import prod

import pytest
import torch
from networks import randomised
from training_setup import CLASSES, TINY, tiny_images, tiny_run

from pibench.models.allocation import allocate
from pibench.models.masks import all_kept
from pibench.models.training import loop
from pibench.models.training.files import digest
from pibench.models.training.loop import Setting
from pibench.models.training.losses import cross_entropy, distillation, pram, standardized_distillation
from pibench.models.training.relus import SoftReLU, exchange_relus, mask_relus, masks_of, named_relus
from pibench.models.training.schedules import LassoSchedule
from pibench.models.training.taps import run_tapped
from pibench.models.training.tasks.distilled import STANDARDIZED, TUNING, Distilled
from pibench.models.training.tasks.lasso import Lasso
from pibench.models.training.tasks.mask_tuning import MaskTuning, linearisation_error
from pibench.models.training.tasks.supervised import Supervised
from pibench.models.zoo import layout_of, resnet18

STAGE_OUTPUTS = layout_of("resnet18").stages

SETTING = Setting(tiny_images(), precision="float32")
X, LABELS = next(SETTING.images.epoch(8, 0, 0))
X = X.contiguous()  # as the narrow networks have it in training


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
    task = Distilled(student, TINY["tune"], teacher, STAGE_OUTPUTS)
    logits, ours, _ = run_tapped(student, X, STAGE_OUTPUTS)
    wanted, theirs, _ = run_tapped(teacher, X, STAGE_OUTPUTS)
    parts = [
        cross_entropy(logits, LABELS),
        distillation(logits, wanted),
        pram(list(ours.values()), list(theirs.values())),
    ]
    expected = sum(weight * part for weight, part in zip(TUNING, parts, strict=True))
    torch.testing.assert_close(task.loss(X, LABELS), expected)
    assert TUNING == (0.1, 0.9, 1000.0)
    standardized = Distilled(
        student, dataclasses.replace(TINY["tune"], standardized=True), teacher, STAGE_OUTPUTS
    )
    parts[1] = standardized_distillation(logits, wanted)
    expected = sum(weight * part for weight, part in zip(STANDARDIZED, parts, strict=True))
    torch.testing.assert_close(standardized.loss(X, LABELS), expected)
    task.loss(X, LABELS).backward()
    assert all(parameter.grad is None for parameter in teacher.parameters())
    assert all(parameter.grad is not None for parameter in student.parameters())


def evenly(budget):
    """Shares a budget among the layers of `network`, as far as its small layers hold it, in equal parts."""
    sizes = shapes(network())
    return dict(
        zip(sizes, allocate(list(map(prod, sizes.values())), [1.0] * len(sizes), budget), strict=True)
    )


def tuning():
    """Returns the task of 25 ReLUs a layer for a network that is its own reference."""
    model = network().eval()
    sizes = shapes(model)
    student = copy.deepcopy(model)
    mask_relus(student, all_kept(sizes))
    return MaskTuning(student, TINY["masks"], network(1), STAGE_OUTPUTS, model, evenly(25 * len(sizes)))


def test_masks_are_where_the_reference_cuts_most_and_stay():
    task = tuning()
    task.start(SETTING)
    masks = masks_of(task.model)
    error = linearisation_error(task.reference, SETTING.images.sample(TINY["masks"].images))
    for name, mask in masks.items():
        assert int(mask.sum()) == 25
        assert error[name][mask].min() >= error[name][~mask].max()
    assert task.after_epoch(SETTING, 0) == {}
    assert all(torch.equal(mask, masks[name]) for name, mask in masks_of(task.model).items())


def test_the_linearisation_error_is_what_is_cut_off():
    model, inputs = network().eval(), []
    handle = model.relu.register_forward_pre_hook(lambda module, args: inputs.append(args[0]))
    error = linearisation_error(model, X.split(7))
    handle.remove()
    torch.testing.assert_close(error["relu"], torch.cat(inputs).clamp(max=0).abs().sum(0))


def soft(budget=100, **changes):
    model = network()
    exchange_relus(model, {name: SoftReLU(shape) for name, shape in shapes(model).items()})
    schedule = dataclasses.replace(LassoSchedule(1, 0.01, checks=10, growth=1.1), **changes)
    return Lasso(model, schedule, budget)


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
        ("bilinear-1", "bilinear-1"),
        ("trp-channel-0.9", "trp-channel-0.9-ranks"),
    ],
)
def test_every_kind_of_phase_goes_on_after_an_interrupt(tmp_path, monkeypatch, row, phase):
    expected = digest(tiny_run(tmp_path / "whole").trained(row).model.state_dict())
    original = loop._epoch

    def stopped(task, schedule, setting, optimizers, epoch, progress):
        if progress.name == phase and epoch == 1:
            raise KeyboardInterrupt
        return original(task, schedule, setting, optimizers, epoch, progress)

    with monkeypatch.context() as patch:
        patch.setattr(loop, "_epoch", stopped)
        with pytest.raises(KeyboardInterrupt):
            tiny_run(tmp_path / "part").trained(row)
    resumed = tiny_run(tmp_path / "part").trained(row)
    assert digest(resumed.model.state_dict()) == expected
