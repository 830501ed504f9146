"""Weights that shrink to zero: what training does to them, and that nothing becomes cheaper under MPC."""

import pytest
import torch
from networks import images
from torch import nn
from training_setup import CLASSES, TINY, tiny_images, tiny_run

from pibench.costs.predict import predict
from pibench.measure.count import cost_of
from pibench.models.training.rows import finish_row
from pibench.models.training.tasks.shrinkage import Shrinkage, smallest
from pibench.models.variants import variant
from pibench.models.weights import file_name, load
from pibench.models.zoo import resnet18
from pibench.program.lower import lower


def shrinking(share=0.5, **changes):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model, teacher = (resnet18(classes=CLASSES, width=2) for _ in range(2))
    schedule = TINY.changed({f"shrinkage.{key}": value for key, value in changes.items()})["shrinkage"]
    return Shrinkage(model, schedule, teacher.eval(), ("layer4.1.relu2",), share)


@pytest.mark.parametrize("share", [0.0, 0.3, 0.75, 1.0])
def test_the_smallest_are_those_of_a_sorted_list(share):
    weight = torch.randn(5, 3, 3, 3, generator=torch.Generator().manual_seed(0))
    ranked = sorted(weight.abs().flatten().tolist())
    found = smallest(weight, share)
    count = round(share * len(ranked))
    assert sorted(weight[found].abs().tolist()) == ranked[:count]


def test_small_weights_lose_a_percentage_then_are_zero_for_good():
    task = shrinking(shrink=0.25, settled=0.5)
    before = {name: conv.weight.detach().clone() for name, conv in task.convs.items()}
    assert len(before) == 20
    task.after_step(0.4)
    for name, conv in task.convs.items():
        middle = before[name].abs().flatten().sort().values[round(0.5 * before[name].numel()) - 1]
        wanted = torch.where(before[name].abs() <= middle, 0.75 * before[name], before[name])
        torch.testing.assert_close(conv.weight.detach(), wanted)
    assert task.after_epoch(None, 0) == {"zeros": 0.0}
    task.after_step(0.5)
    zero = {name: conv.weight == 0 for name, conv in task.convs.items()}
    for conv in task.convs.values():
        assert (conv.weight == 0).sum() == round(0.5 * conv.weight.numel())
        conv.weight.data.add_(torch.randn(conv.weight.shape))
    task.after_step(0.75)
    assert all(torch.equal(conv.weight == 0, zero[name]) for name, conv in task.convs.items())
    assert task.after_epoch(None, 1)["zeros"] == pytest.approx(0.5, abs=0.01)


def test_it_is_trained_saved_and_loaded_and_costs_what_the_baseline_costs(tmp_path):
    run = tiny_run(tmp_path)
    trained = run.trained("shrinkage-0.9")
    x = torch.cat(list(tiny_images().sample(20)))
    with torch.no_grad():
        expected = trained.model(x)
    row = finish_row(run, "shrinkage-0.9", trained, None, {}, tmp_path / "weights")
    assert list(row["phases"]) == ["baseline", "shrinkage-0.9"]
    model = load(tmp_path / "weights" / file_name("shrinkage-0.9", 2))
    assert (model(x) - expected).abs().max() < 0.03 * expected.std()
    weights = [module.weight for module in model.modules() if isinstance(module, nn.Conv2d)]
    zeros = sum(int((weight == 0).sum()) for weight in weights)
    assert zeros >= 0.89 * sum(weight.numel() for weight in weights)
    baseline = variant("baseline").build(2, None, classes=CLASSES)
    ours, theirs = cost_of(model, x[:1]), cost_of(baseline, x[:1])
    assert (ours.relus, ours.macs, ours.parameters) == (theirs.relus, theirs.macs, theirs.parameters)
    programs = [lower(network, images(1).float()).program for network in (model, baseline)]
    for engine in ("lean", "stock"):
        shrunk, whole = (predict(program, engine) for program in programs)
        assert (shrunk.rounds, shrunk.bytes_sent) == (whole.rounds, whole.bytes_sent)
