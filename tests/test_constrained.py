"""Gates that training opens and closes under a budget."""

import csv
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch
from torch import nn
from training_setup import CLASSES, TINY, tiny_images, tiny_run

from pibench.measure.count import cost_of
from pibench.models.reductions.constrained import SECONDS, SECONDS_WHOLE, costs, structure
from pibench.models.training.gates import FIRST, GatedReLU, affordable
from pibench.models.training.relus import exchange_relus
from pibench.models.training.rows import finish_row
from pibench.models.training.tasks.constrained import Constrained
from pibench.models.training.tasks.supervised import Supervised
from pibench.models.variants import variant
from pibench.models.weights import file_name, load
from pibench.models.zoo import layout_of, resnet18

ROOT = Path(__file__).parent.parent
BLOCKS = layout_of("resnet18").blocks
X, LABELS = next(tiny_images().epoch(8, 0, 0))


def test_a_gate_is_the_paper_s_formula_and_its_chance_that_of_many_draws():
    gate = GatedReLU((2000, 1, 1), linear=False).train()
    gate.odds.data.copy_(torch.linspace(-4, 4, 2000).view(1, -1, 1, 1))
    generator = torch.Generator().manual_seed(0)
    opened = torch.zeros(1, 2000, 1, 1)
    for _ in range(400):
        gate.draw(generator)
        u = gate.noise
        s = torch.sigmoid((torch.log(u) - torch.log(1 - u) + gate.odds) / (2 / 3))
        torch.testing.assert_close(gate.gates(), (s * 1.2 - 0.1).clamp(0, 1), rtol=1e-4, atol=1e-5)
        opened += gate.gates() > 0
    assert (opened / 400 - gate.open()).abs().mean() < 0.02
    x = torch.randn(1, 2000, 2, 2)
    gate.eval()
    torch.testing.assert_close(gate(x), gate.gates() * x.relu())
    other = GatedReLU((3, 2, 2), linear=True).eval()
    x = torch.randn(4, 3, 2, 2)
    z = other.gates()
    torch.testing.assert_close(other(x), z * x.relu() + (1 - z) * x)


def test_gates_open_in_order_until_the_budget_is_spent():
    odds = {"a": torch.tensor([3.0, -5.0, 1.0]), "b": torch.tensor([0.5, 2.0])}
    unit = {"a": 2.0, "b": 3.0}
    masks = affordable(odds, unit, 7.0)  # the first of each: 5; then a[2]
    assert masks["a"].tolist() == [True, False, True]
    assert masks["b"].tolist() == [False, True]
    assert [mask.sum().item() for mask in affordable(odds, unit, 0.0).values()] == [1, 1]
    assert all(mask.all() for mask in affordable(odds, unit, 12.0).values())


def constrained(target=0.5, **changes):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = resnet18(classes=CLASSES, width=2)
    mids = [block.mid for block in layout_of("resnet18").blocks]
    exchange_relus(model, {mid: GatedReLU((2, 1, 1), linear=False) for mid in mids[:2]})
    schedule = TINY.changed({f"gates.{key}": value for key, value in changes.items()})["gates"]
    return Constrained(model, schedule, dict.fromkeys(mids[:2], 5.0), 20.0, target, seed=3)


def test_the_lagrangian_and_its_two_players():
    task = constrained(target=0.6, dual=10.0)
    sgd, adam = task.optimizers(task.schedule, 10)
    odds = {id(gate.odds) for gate in task.gates.values()}
    assert odds == {id(each) for group in adam.param_groups for each in group["params"]}
    assert not odds & {id(each) for group in sgd.param_groups for each in group["params"]}
    chance = next(iter(task.gates.values())).open()[0, 0, 0, 0].item()
    violation = (20 + 4 * 5 * chance) / 40 - 0.6
    assert task.violation().item() == pytest.approx(violation, rel=1e-5)
    task.model.eval()
    plain = Supervised(task.model, task.schedule).loss(X, LABELS)
    torch.testing.assert_close(task.loss(X, LABELS), plain)  # the multiplier is 0 yet
    task.after_step(0.1)
    assert task.extra["multiplier"].item() == pytest.approx(10.0 / 10 * violation, rel=1e-4)
    assert (task.loss(X, LABELS) - plain).item() == pytest.approx(violation**2, rel=1e-3)
    for gate in task.gates.values():
        gate.odds.data.fill_(-10)
    task.after_step(0.2)
    assert task.extra["multiplier"].item() == 0.0  # it holds: start again


def test_the_noise_is_the_step_s_own():
    task = constrained()
    task.optimizers(task.schedule, 10)
    drawn = []
    for done in (0.0, 0.1, 0.0):
        task.before_step(done)
        drawn.append(torch.cat([gate.noise.flatten() for gate in task.gates.values()]))
    assert torch.equal(drawn[0], drawn[2])
    assert not torch.equal(drawn[0], drawn[1])
    assert next(iter(task.gates.values())).odds[0, 0].flatten()[0].item() == FIRST


@pytest.mark.parametrize("what", ["relus", "macs"])
def test_the_cost_of_a_channel_is_what_its_removal_saves(what, tmp_path):
    run = tiny_run(tmp_path)
    model = run.original()
    unit, fixed = costs(run, model, what)
    shapes = run.shapes(model)
    whole = cost_of(model.eval(), X[:1])
    total = fixed + sum(unit[name] * shapes[name][0] for name in unit)
    assert total == getattr(whole, what)
    half = replace(variant("constrained-macs-0.5"), structure=partial(structure, what=what, shares=(0.5,)))
    thin = cost_of(half.build(2, None, classes=CLASSES), X[:1])
    saved = sum(unit[name] * (shapes[name][0] // 2) for name in unit)
    assert total - saved == getattr(thin, what)


@pytest.mark.parametrize(
    "name", ["constrained-relus-0.75", "constrained-macs-0.5", "constrained-seconds-0.75"]
)
def test_a_budget_of_channels_is_met_trained_saved_and_loaded(name, tmp_path):
    run = tiny_run(tmp_path, width=8)
    trained = run.trained(name)
    x = torch.cat(list(tiny_images().sample(20)))
    with torch.no_grad():
        expected = trained.model(x)
    row = finish_row(run, name, trained, None, {}, tmp_path / "weights")
    assert list(row["phases"]) == ["baseline", f"{name}-gates", name]
    model = load(tmp_path / "weights" / file_name(name, 8))
    assert (model(x) - expected).abs().max() < 0.03 * expected.std()
    assert not [module for module in model.modules() if isinstance(module, nn.BatchNorm2d | GatedReLU)]
    _, what, target = name.split("-")
    whole = run.original()
    unit, fixed = costs(run, whole, what)
    total = fixed + sum(unit[relu] * run.shapes(whole)[relu][0] for relu in unit)
    left = fixed + sum(unit[block.mid] * model.get_submodule(block.conv2).in_channels for block in BLOCKS)
    assert 0.99 * float(target) <= left / total <= float(target) + 1e-9
    if what != "seconds":
        assert row[what] == left


def test_the_seconds_are_those_of_the_reference():
    """Of the reference's seconds for a block's inner layers, channels are the larger part, but not all."""
    rows = csv.DictReader((ROOT / "results" / "reference" / "layers.csv").read_text().splitlines())
    seconds = {
        row["layer"]: 1000 * float(row["seconds"])
        for row in rows
        if row["case"] == "lean/baseline/w64/b1/2p/loopback"
    }
    whole = sum(seconds.values())
    assert list(SECONDS) == [block.name for block in BLOCKS]
    for name, noted in SECONDS.items():
        layers = [f"{name.replace('.', '_')}_{layer}" for layer in ("conv1", "relu1", "conv2")]
        found = sum(seconds[layer] for layer in layers) / whole
        assert 0.5 * found < noted / SECONDS_WHOLE < 1.1 * found


def test_a_network_whose_channels_or_seconds_are_not_known_is_refused():
    wide = replace(variant("constrained-seconds-0.75"), network="wrn_22_8")
    with pytest.raises(ValueError, match="only the layers of ResNet-18 have been measured"):
        _ = wide.steps
    assert replace(variant("constrained-macs-0.5"), network="wrn_22_8").steps
    with pytest.raises(ValueError, match="no residual blocks, inside which channels can be removed"):
        _ = replace(variant("constrained-macs-0.5"), network="vgg16").steps


def test_a_budget_of_positions_is_met_exactly(tmp_path):
    run = tiny_run(tmp_path)
    trained = run.trained("constrained-masks-0.09")
    row = finish_row(run, "constrained-masks-0.09", trained, None, {}, tmp_path / "weights")
    assert row["relus"] == variant("constrained-masks-0.09").budget(2)
    assert list(row["phases"]) == ["baseline", "constrained-masks-0.09-gates", "constrained-masks-0.09"]
