import copy

import pytest
import torch
from networks import randomised
from torch.nn import functional as F
from training_setup import tiny_images

from pibench.models.training.loop import Setting
from pibench.models.training.schedules import GateSchedule
from pibench.models.training.shallow import GatedBlock, LeastSquares, fit_shallow, put_gate
from pibench.models.training.tasks.gated import Gated
from pibench.models.transforms import shallow_blocks
from pibench.models.variants import VARIANTS
from pibench.models.zoo import layout_of, resnet18, wrn_22_8
from pibench.models.zoo.resnet import BasicBlock

STAGES = layout_of("resnet18").stages
BLOCKS = ("layer1.0", "layer2.0", "layer2.1")


def network():
    torch.manual_seed(0)
    return randomised(resnet18(classes=4, width=2)).float().eval()


def gated(model, blocks=BLOCKS):
    """Returns the network with gated blocks."""
    model = copy.deepcopy(model)
    for name in blocks:
        block = model.get_submodule(name)
        conv = torch.nn.Conv2d(
            block.conv1.in_channels, block.conv2.out_channels, 3, block.conv1.stride, padding=1, bias=False
        )
        model.set_submodule(name, GatedBlock(block, conv, torch.nn.BatchNorm2d(conv.out_channels)))
    return model.eval()


@pytest.mark.parametrize("stride", [1, 2])
def test_the_start_is_the_least_squares_optimum(stride):
    """The residual is orthogonal to every patch entry, and no random step makes it smaller."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(6, 3, 8, 8, generator=generator)
    y = F.conv2d(F.relu(F.conv2d(x, torch.randn(5, 3, 3, 3, generator=generator), padding=1)),
                 torch.randn(4, 5, 3, 3, generator=generator), stride=stride, padding=1)  # fmt: skip
    squares = LeastSquares(3, 4, (stride, stride))
    squares.add(x[:2], y[:2])
    squares.add(x[2:], y[2:])
    kernel, bias = squares.solve()
    x, y = x.double(), y.double()

    def residual(kernel, bias):
        return y - F.conv2d(x, kernel, bias, stride, padding=1)

    rest = residual(kernel, bias)
    patches = F.unfold(x, 3, padding=1, stride=stride)
    products = torch.einsum("npl,nol->po", patches, rest.flatten(2))
    assert products.abs().max() < 1e-8 * patches.abs().sum()
    assert rest.sum((0, 2, 3)).abs().max() < 1e-8 * rest.abs().sum()
    best = rest.square().sum()
    for _ in range(5):
        step = 1e-3 * torch.randn(kernel.shape, generator=generator, dtype=torch.float64)
        assert residual(kernel + step, bias).square().sum() > best
    without = F.conv2d(x, kernel, stride=stride, padding=1)
    mean, variance = squares.statistics(kernel)
    torch.testing.assert_close(mean, without.mean((0, 2, 3)))
    torch.testing.assert_close(variance, without.var((0, 2, 3), unbiased=False))


def test_dead_channels_do_not_spoil_the_fit():
    x = torch.randn(4, 3, 8, 8)
    x[:, 1] = 0
    y = F.conv2d(x, torch.randn(2, 3, 3, 3), padding=1)
    squares = LeastSquares(3, 2, (1, 1))
    squares.add(x, y)
    kernel, bias = squares.solve()
    assert kernel[:, 1].abs().max() < 1e-6
    torch.testing.assert_close(
        F.conv2d(x.double(), kernel, bias, padding=1), y.double(), rtol=1e-4, atol=1e-4
    )


def test_a_linear_deep_branch_is_found_exactly():
    """Without mid ReLU and with a 1x1 first kernel the branch is one 3x3 convolution, borders included."""
    model = network()
    block = model.get_submodule("layer2.1")
    block.relu1 = torch.nn.Identity()
    with torch.no_grad():
        centre = block.conv1.weight[..., 1, 1].clone()
        block.conv1.weight.zero_()
        block.conv1.weight[..., 1, 1] = centre
        block.bn1.bias.zero_()
        block.bn1.running_mean.zero_()
    student = gated(model, ["layer2.1"])
    fit_shallow(model, {"layer2.1": student.get_submodule("layer2.1")}, torch.randn(40, 3, 32, 32).split(8))
    student.get_submodule("layer2.1").gate = 0.0
    x = torch.randn(2, 3, 32, 32)
    torch.testing.assert_close(student(x), model(x), atol=1e-3, rtol=1e-3)


def test_the_fitted_batchnorm_changes_nothing():
    model = network()
    student = gated(model)
    blocks = {name: student.get_submodule(name) for name in BLOCKS}
    x = torch.randn(20, 3, 32, 32)
    fit_shallow(model, blocks, x.split(8))
    for name, block in blocks.items():
        inputs = []
        handle = model.get_submodule(name).register_forward_pre_hook(
            lambda module, args, inputs=inputs: inputs.append(args[0])
        )
        model(x)
        handle.remove()
        plain = block.shallow(inputs[0])
        shift = block.shallow_bn(plain) - plain
        torch.testing.assert_close(
            shift, shift.mean((0, 2, 3), keepdim=True).expand_as(shift), atol=1e-4, rtol=1e-4
        )
        fitted = block.shallow_bn.train()(plain)
        torch.testing.assert_close(fitted, plain + shift, atol=1e-3, rtol=1e-3)


def test_the_gate_goes_from_the_block_to_its_replacement():
    model = network()
    student = gated(model)
    x = torch.randn(2, 3, 32, 32)
    torch.testing.assert_close(student(x), model(x))
    block = BasicBlock(2, 2).eval()
    conv, norm = torch.nn.Conv2d(2, 2, 3, padding=1, bias=False), torch.nn.BatchNorm2d(2).eval()
    mixed = GatedBlock(block, conv, norm).eval()
    value = torch.randn(1, 2, 8, 8)
    deep = block.bn2(block.conv2(block.relu1(block.bn1(block.conv1(value)))))
    for gate in (1.0, 0.3, 0.0):
        mixed.gate = gate
        expected = torch.relu(gate * deep + (1 - gate) * norm(conv(value)) + value)
        torch.testing.assert_close(mixed(value), expected)


def test_the_schedule_ends_exactly_at_the_shallow_network():
    model = network()
    recipe = VARIANTS["joint3-0.052"]
    structured = recipe.structured(2, 4).eval()
    blocks = [
        name for name, _ in model.named_modules() if f"{name}.shallow" in dict(structured.named_modules())
    ]
    assert len(blocks) == 3
    student = gated(model, blocks)
    task = Gated(student, GateSchedule(4, 0.1, fading=0.5), model, STAGES, model)
    assert [task.gate(done) for done in (0, 0.25, 0.5, 0.75, 1)] == [1, 0.5, 0, 0, 0]
    assert task.gate(0.499) > 0
    task.before_step(0.5)
    learnt = student.state_dict()
    structured.load_state_dict({key: learnt[key] for key in structured.state_dict()})
    x = torch.randn(2, 3, 32, 32)
    assert torch.equal(student(x), structured(x))
    student.train()
    task.loss(x, torch.tensor([0, 1])).backward()
    assert student.get_submodule(blocks[0]).conv1.weight.grad is None
    assert student.get_submodule(blocks[0]).shallow.weight.grad.abs().sum() > 0


@pytest.mark.parametrize(("choice", "kept"), [({}, ()), ({"bounded": True}, ("bn2.",))])
def test_the_fading_branch_learns_or_keeps_weights_or_scale(choice, kept):
    model = network()
    student = gated(model)
    schedule = GateSchedule(4, 0.1, weight_decay=0.1, **choice)
    task = Gated(student, schedule, model, STAGES, model)
    (sgd,) = task.optimizers(schedule, 10)
    before = {name: value.clone() for name, value in student.named_parameters()}
    task.before_step(0.1)
    student.train()
    task.loss(torch.randn(4, 3, 32, 32), torch.tensor([0, 1, 2, 3])).backward()
    sgd.step()
    changed = {name for name, value in student.named_parameters() if not torch.equal(value, before[name])}
    deep = {
        f"{block}.{part}"
        for block in BLOCKS
        for part, _ in model.get_submodule(block).named_parameters()
        if not part.startswith("shortcut") and part.startswith(kept)
    }
    assert set(before) - changed == deep


def test_the_shallow_kernel_starts_fitted():
    model = network()
    student = gated(model)
    drawn = {name: student.get_submodule(name).shallow.weight.clone() for name in BLOCKS}
    task = Gated(student, GateSchedule(4, 0.1, images=20), model, STAGES, model)
    task.start(Setting(tiny_images(), precision="float32"))
    assert not any(torch.equal(student.get_submodule(name).shallow.weight, drawn[name]) for name in BLOCKS)


@pytest.mark.parametrize("name", ["group1.1", "group3.2"])
def test_a_block_that_activates_first_is_fitted_from_its_activated_input(name):
    """Without its mid ReLU the branch of a 1x1 first kernel is one 3x3 convolution, found exactly."""
    torch.manual_seed(0)
    model = randomised(wrn_22_8(classes=4, width=1)).float().eval()
    block = model.get_submodule(name)
    block.relu2 = torch.nn.Identity()
    with torch.no_grad():
        centre = block.conv1.weight[..., 1, 1].clone()
        block.conv1.weight.zero_()
        block.conv1.weight[..., 1, 1] = centre
        block.bn2.bias.zero_()
        block.bn2.running_mean.zero_()
    student = copy.deepcopy(model)
    gate = put_gate(student, shallow_blocks(model, [name]), name)
    assert gate.shallow_bn is None
    x = torch.randn(2, 3, 32, 32)
    torch.testing.assert_close(student(x), model(x))
    fit_shallow(model, {name: gate}, torch.randn(16, 3, 32, 32).split(8))
    gate.gate = 0.0
    torch.testing.assert_close(student(x), model(x), atol=1e-3, rtol=1e-3)
