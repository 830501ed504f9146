"""Kernels that are products of three while they learn."""

import copy

import pytest
import torch
from test_training_shallow import BLOCKS, STAGES, gated, network
from training_setup import tiny_images

from pibench.models.training.expanded import expand, multiplied_out, set_kernel
from pibench.models.training.loop import Setting
from pibench.models.training.schedules import GateSchedule
from pibench.models.training.tasks.gated import Gated


@pytest.mark.parametrize("factor", [1, 2, 4])
@pytest.mark.parametrize(("inputs", "outputs", "stride"), [(3, 5, 1), (6, 4, 2)])
def test_an_expanded_convolution_computes_the_same(factor, inputs, outputs, stride):
    torch.manual_seed(0)
    plain = torch.nn.Conv2d(inputs, outputs, 3, stride, 1).double()
    expanded = copy.deepcopy(plain)
    expand(expanded, factor)
    factors = expanded.parametrizations.weight
    assert factors.original1.shape == (factor * outputs, factor * inputs, 3, 3)
    x = torch.randn(2, inputs, 8, 8, dtype=torch.float64)
    torch.testing.assert_close(expanded(x), plain(x), rtol=0, atol=1e-10)


def test_three_convolutions_in_a_row_are_the_product():
    torch.manual_seed(0)
    conv = torch.nn.Conv2d(3, 5, 3, 2, 1, bias=False).double()
    expand(conv, 2)
    factors = conv.parametrizations.weight
    with torch.no_grad():
        for factor in factors.parameters():  # of any values, not only those of the start
            factor.copy_(torch.randn_like(factor))
    x = torch.randn(2, 3, 8, 8, dtype=torch.float64)
    y = torch.nn.functional.conv2d(x, factors.original2[:, :, None, None])
    y = torch.nn.functional.conv2d(y, factors.original1, None, 2, 1)
    y = torch.nn.functional.conv2d(y, factors.original0[:, :, None, None])
    torch.testing.assert_close(conv(x), y, rtol=0, atol=1e-10)
    plain = torch.nn.Sequential(torch.nn.Conv2d(3, 5, 3, 2, 1, bias=False)).double()
    plain.load_state_dict(multiplied_out(torch.nn.Sequential(conv).state_dict()))
    torch.testing.assert_close(plain(x), y, rtol=0, atol=1e-10)


def test_a_kernel_is_set_whether_it_is_a_product_or_not():
    plain, product = (torch.nn.Conv2d(3, 4, 3) for _ in range(2))
    expand(product, 2)
    kernel = torch.randn(4, 3, 3, 3)
    with torch.no_grad():
        for conv in (plain, product):
            set_kernel(conv, kernel)
            torch.testing.assert_close(conv.weight, kernel, rtol=0, atol=1e-6)


def test_what_cannot_be_expanded_is_named():
    with pytest.raises(ValueError, match="by a factor of 1 or more, not by 0"):
        expand(torch.nn.Conv2d(2, 2, 3), 0)
    with pytest.raises(ValueError, match="a kernel of 2 groups"):
        expand(torch.nn.Conv2d(2, 2, 3, groups=2), 2)


def test_expanded_blocks_start_fitted_learn_and_end_as_plain_ones():
    model = network()
    schedule = GateSchedule(4, 0.1, images=20)
    ends = []
    for factor in (1, 3):
        student = gated(model)
        task = Gated(student, GateSchedule(4, 0.1, images=20, expanded=factor), model, STAGES, model)
        task.start(Setting(tiny_images(), precision="float32"))
        ends.append((student, task))
    x, labels = torch.randn(4, 3, 32, 32), torch.tensor([0, 1, 2, 3])
    for done in (0.2, 0.6):
        for _, task in ends:
            task.before_step(done)
        plain, expanded = (student(x) for student, _ in ends)
        torch.testing.assert_close(expanded, plain, rtol=1e-4, atol=1e-4)
    student, task = ends[1]
    (sgd,) = task.optimizers(schedule, 10)
    before = {name: value.clone() for name, value in student.named_parameters()}
    student.train()
    task.loss(x, labels).backward()
    sgd.step()
    factors = [name for name in before if "shallow.parametrizations" in name]
    assert len(factors) == 3 * len(BLOCKS)
    assert not any(torch.equal(student.get_parameter(name), before[name]) for name in factors)
    student.eval()
    copied, _ = ends[0]
    copied.load_state_dict(multiplied_out(student.state_dict()))
    torch.testing.assert_close(copied.eval()(x), student(x), rtol=1e-4, atol=1e-4)


def test_outputs_of_blocks_are_matched_while_the_gate_falls():
    from pibench.models.training.taps import run_tapped

    model, student = network(), gated(network())
    plain = Gated(student, GateSchedule(4, 0.1), model, STAGES, model)
    matching = Gated(student, GateSchedule(4, 0.1, matched=2.0), model, STAGES, model)
    x, labels = torch.randn(4, 3, 32, 32), torch.tensor([0, 1, 2, 3])
    for done, gate in ((0.25, 0.5), (0.5, 0.0), (1.0, 0.0)):
        losses = []
        for task in (plain, matching):
            task.before_step(done)
            losses.append(task.loss(x, labels))
        _, ours, _ = run_tapped(student, x, BLOCKS)
        _, theirs, _ = run_tapped(model, x, BLOCKS)
        apart = sum(
            (ours[name] - theirs[name]).square().sum() / theirs[name].square().sum() for name in BLOCKS
        )
        assert apart > 0
        torch.testing.assert_close(losses[1] - losses[0], 2.0 * gate * apart, rtol=1e-3, atol=1e-4)
