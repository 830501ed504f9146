"""Quadratics in place of ReLUs, held against numerical integration, and what training makes of them."""

from math import prod

import numpy as np
import pytest
import torch
from networks import difference, images, small
from scipy import integrate
from torch import nn
from training_setup import tiny_images, tiny_run

from pibench.costs.predict import predict
from pibench.measure.count import cost_of
from pibench.models.cost import relu_shapes
from pibench.models.graph.polynomial import SPREAD, PolynomialReLU, fitted
from pibench.models.graph.relu import MaskedReLU
from pibench.models.masks import random_network_masks
from pibench.models.training.relus import EDGE, FittedReLU, HysteresisReLU, Quadratic
from pibench.models.training.rows import finish_row
from pibench.models.training.schedules import HysteresisSchedule, Schedule
from pibench.models.training.tasks.distilled import Distilled
from pibench.models.training.tasks.hysteresis import ESCAPED, Hysteresis, QuadraticTuning
from pibench.models.transforms import fold_batchnorm, linearize_relus, polynomial_relus
from pibench.models.variants import buildable, variant
from pibench.models.weights import file_name, load, read_weights
from pibench.program.lower import lower


@pytest.mark.parametrize(("mean", "std"), [(0.0, 1.0), (0.7, 0.4), (-2.0, 1.5)])
def test_the_quadratic_is_the_nearest_in_the_mean_square(mean, std):
    """At the least-squares fit the error is orthogonal to 1, x and x^2 under the normal distribution."""
    c0, c1, c2 = fitted(mean, std)

    def error(x, power):
        density = np.exp(-(((x - mean) / std) ** 2) / 2) / (std * np.sqrt(2 * np.pi))
        return (max(x, 0) - c0 - c1 * x - c2 * x * x) * x**power * density

    for power in (0, 1, 2):
        low, high = mean - 12 * std, mean + 12 * std
        value, _ = integrate.quad(error, low, high, args=(power,), points=[0.0], limit=200)
        assert abs(value) < 1e-7


def test_kept_positions_are_relus_and_the_others_the_quadratic():
    mask = torch.rand(3, 4, 5, generator=torch.Generator().manual_seed(0)) < 0.4
    x = torch.randn(2, 3, 4, 5, dtype=torch.float64)
    y = PolynomialReLU(mask, (0.1, 0.5, 0.3))(x)
    assert torch.equal(y[:, mask], x[:, mask].relu())
    torch.testing.assert_close(y[:, ~mask], (0.1 + 0.5 * x + 0.3 * x * x)[:, ~mask])
    with pytest.raises(TypeError, match="a ReLU mask is boolean"):
        PolynomialReLU(mask.float(), (0, 1, 0))


def masked():
    model = small("resnet18")
    shapes = relu_shapes(model, images(1))
    masks = random_network_masks(shapes, sum(map(prod, shapes.values())) // 4, 0)
    return linearize_relus(fold_batchnorm(model), masks), masks


def test_the_transform_is_the_network_by_hand():
    linear, masks = masked()
    coefficients = {name: (0.1, 0.6, 0.01 * place) for place, name in enumerate(masks)}
    graph = polynomial_relus(linear, coefficients)
    byhand = fold_batchnorm(small("resnet18"))
    for name, mask in masks.items():
        byhand.set_submodule(name, PolynomialReLU(mask, coefficients[name]))
    assert difference(byhand, graph, images()) < 1e-10
    whole = cost_of(linear, images(1))
    assert cost_of(graph, images(1)).relus == whole.relus == sum(int(m.sum()) for m in masks.values())
    identity = polynomial_relus(linear, dict.fromkeys(masks, (0.0, 1.0, 0.0)))
    assert difference(linear, identity, images()) < 1e-10


def test_what_cannot_have_a_quadratic_is_refused():
    linear, _ = masked()
    with pytest.raises(ValueError, match=r"no ReLU named \['relus'\] in this network"):
        polynomial_relus(linear, {"relus": (0, 1, 0)})
    channels = linearize_relus(small("resnet18"), {"relu": torch.tensor([True, False, True, False])})
    with pytest.raises(ValueError, match="beside relu: its mask is one of channels"):
        polynomial_relus(channels)


def test_running_values_give_the_coefficients():
    layer = Quadratic(momentum=1.0).train()
    x = 0.5 + 2 * torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    y = layer(x)
    wanted = fitted(x.mean().item(), SPREAD * x.std(correction=0).item())
    assert layer.coefficients() == pytest.approx(wanted, rel=1e-4)
    c0, c1, c2 = wanted
    torch.testing.assert_close(y, c0 + c1 * x + c2 * x * x, rtol=1e-3, atol=1e-3)
    layer.eval()(x + 100)
    assert layer.coefficients() == pytest.approx(wanted, rel=1e-4)


def test_what_escapes_from_a_quadratic_is_counted_and_drawn_back():
    layer = Quadratic(momentum=0.0).train()  # mean 0, deviation 1
    x = torch.tensor([[0.5, -SPREAD * EDGE], [SPREAD * (EDGE + 3), -SPREAD * (EDGE + 1)]], requires_grad=True)
    layer(x)
    assert layer.escaped.item() == pytest.approx((3**2 + 1**2) / 2)
    layer.escaped.backward()
    torch.testing.assert_close(x.grad, torch.tensor([[0.0, 0.0], [3 / SPREAD, -1 / SPREAD]]))
    before = layer.escaped
    layer.eval()(100 * x)
    assert layer.escaped is before


def test_the_tuning_pays_for_what_escapes():
    quadratic = FittedReLU(torch.zeros(1, 2, 2, dtype=torch.bool))
    model = nn.Sequential(quadratic, nn.Flatten(), nn.Linear(4, 3)).train()
    teacher = nn.Sequential(nn.Flatten(), nn.Linear(4, 3)).eval()
    task = QuadraticTuning(model, Schedule(1, 0.1), teacher, ())
    x, labels = 30 * torch.randn(2, 1, 2, 2, generator=torch.Generator().manual_seed(0)), torch.tensor([0, 2])
    relu = quadratic.quadratic
    relu.momentum = 0.0
    loss = task.loss(x, labels)
    assert relu.escaped > 1
    torch.testing.assert_close(loss - Distilled.loss(task, x, labels), ESCAPED * relu.escaped)


def selection_of(budget, epochs=4, steps=40, sides=(4, 2)):
    """A selection over two layers of 16 and 4 positions that has an optimizer, checked after every step."""
    model = nn.Sequential(*(HysteresisReLU((1, side, side), threshold=0.1) for side in sides))
    model.append(nn.Conv2d(1, 1, 1))
    task = Hysteresis(model, HysteresisSchedule(epochs, 0.1, checks=steps // epochs), model, (), budget)
    return task, task.optimizers(task.schedule, steps)


def test_the_number_of_relus_falls_by_equal_factors_to_the_budget_and_stays():
    task, _ = selection_of(budget=5)
    counts = []
    for step in range(1, 41):
        task.after_step(step / 40)
        counts.append(sum(int(relu.kept.sum()) for relu in task.softs.values()))
    assert counts[:30] == [round(20 * 4 ** (-step / 30)) for step in range(1, 31)]
    assert counts[30:] == 10 * [5]


def test_a_relu_comes_back_only_when_its_score_is_twice_the_threshold_higher():
    task, _ = selection_of(budget=10)
    first, second = task.softs.values()
    first.alpha.data.copy_(torch.arange(16.0).view_as(first.alpha))
    second.alpha.data.fill_(-1.0)
    task.after_step(1.0)
    assert first.kept.flatten().tolist() == 6 * [0] + 10 * [1]
    assert not second.kept.any()
    for rise, states in ((0.15, [0, 1]), (0.25, [1, 0])):  # of position 5, over position 6
        first.alpha.data.view(-1)[5] = 6 + rise
        task.after_step(1.0)
        assert first.kept.flatten()[5:7].tolist() == states
    first.alpha.data.view(-1)[5] = 6 - 0.15
    task.after_step(1.0)
    assert first.kept.flatten()[5:7].tolist() == [1, 0]


def test_large_gradients_are_scaled_down_before_the_step():
    task, (weights, scores) = selection_of(budget=10)
    weight, bias = task.model[2].weight, task.model[2].bias
    weights.param_groups[0].update(momentum=0.0, nesterov=False, weight_decay=0.0)
    before = torch.cat([weight.detach().flatten(), bias.detach()])
    weight.grad, bias.grad = torch.full_like(weight, 30.0), torch.full_like(bias, -40.0)
    weights.step()
    moved = (torch.cat([weight.detach().flatten(), bias.detach()]) - before) / 0.1
    torch.testing.assert_close(moved, torch.tensor([-0.6, 0.8]), rtol=1e-5, atol=1e-6)
    assert {id(relu.alpha) for relu in task.softs.values()} == {
        id(parameter) for parameter in scores.param_groups[0]["params"]
    }


def test_a_score_gets_the_difference_that_its_relu_makes():
    relu = HysteresisReLU((1, 2, 2))
    x = torch.randn(3, 1, 2, 2, requires_grad=True)
    y = relu(x)
    torch.testing.assert_close(y, x.relu())
    y.sum().backward()
    gap = (x.relu() - relu.quadratic.eval()(x)).detach().sum(0)
    torch.testing.assert_close(relu.alpha.grad[0], gap)


def test_it_is_trained_deployed_saved_and_loaded(tmp_path):
    run = tiny_run(tmp_path)
    trained = run.trained("poly-0.09")
    x = torch.cat(list(tiny_images().sample(20)))
    with torch.no_grad():
        expected = trained.model(x)
    row = finish_row(run, "poly-0.09", trained, None, {}, tmp_path / "weights")
    assert row["relus"] == variant("poly-0.09").budget(2)
    assert list(row["phases"]) == ["baseline", "poly-0.09-scores", "poly-0.09"]
    path = tmp_path / "weights" / file_name("poly-0.09", 2)
    model = load(path)
    deployed, _ = run.deployed(buildable(variant("poly-0.09")), trained)
    with torch.no_grad():
        assert (deployed(x) - expected).abs().max() < 1e-3 * expected.std()
        for weight in deployed.parameters():
            weight.copy_(weight.half())  # as it is stored: a quadratic magnifies what that changes
        torch.testing.assert_close(model(x), deployed(x), rtol=1e-4, atol=1e-4)
    fitted_relus = [m for m in trained.model.modules() if isinstance(m, FittedReLU)]
    quadratics = [m for m in model.modules() if isinstance(m, PolynomialReLU)]
    assert len(fitted_relus) == len(quadratics) == 17
    for ours, theirs in zip(quadratics, fitted_relus, strict=True):
        assert ours.coefficients == pytest.approx(theirs.quadratic.coefficients())
        assert torch.equal(ours.mask, theirs.mask)
    assert read_weights(path).decisions.steps[-2].transform == "polynomial_relus"
    assert not [m for m in model.modules() if isinstance(m, nn.BatchNorm2d)]


def test_a_quadratic_is_priced_as_a_square_at_every_position():
    """On stock a square opens one value of 8 bytes in one round; lean also truncates the products."""
    mask = torch.rand(4, 8, 8, generator=torch.Generator().manual_seed(0)) < 0.1
    x, prices = images(1, 8).float(), {}
    for kind, relu in (("linear", MaskedReLU(mask)), ("quadratic", PolynomialReLU(mask, (0.1, 0.5, 0.3)))):
        model = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), relu, nn.Conv2d(4, 2, 3)).eval()
        program = lower(model, x).program
        prices[kind] = {engine: predict(program, engine) for engine in ("stock", "lean")}
    ours, theirs = prices["quadratic"]["stock"], prices["linear"]["stock"]
    assert (ours.rounds - theirs.rounds, ours.bytes_sent - theirs.bytes_sent) == (1, 8 * mask.numel())
    ours, theirs = prices["quadratic"]["lean"], prices["linear"]["lean"]
    assert ours.rounds > theirs.rounds + 1
    assert ours.bytes_sent > theirs.bytes_sent + 8 * mask.numel()
