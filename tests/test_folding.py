"""Slopes that training learns for whole layers, and the blocks that become one convolution."""

import pytest
import torch
from torch import nn
from training_setup import CLASSES, TINY, tiny_images, tiny_run

from pibench.models.allocation import least_sensitive_blocks
from pibench.models.training.relus import CutReLU, SoftReLU, exchange_relus, named_relus
from pibench.models.training.rows import finish_row
from pibench.models.training.tasks.folding import Folding
from pibench.models.training.tasks.supervised import Supervised
from pibench.models.variants import variant
from pibench.models.weights import file_name, load
from pibench.models.zoo import layout_of, resnet18

X, LABELS = next(tiny_images().epoch(8, 0, 0))


def folding():
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = resnet18(classes=CLASSES, width=2)
    exchange_relus(model, {block.mid: SoftReLU((1, 1, 1)) for block in layout_of("resnet18").blocks})
    return Folding(model, TINY["slopes"])


def test_one_slope_a_layer_and_its_penalty():
    task = folding()
    task.start(None)
    assert len(task.softs) == 8
    shares = [soft.alpha.item() for soft in task.softs.values()]
    assert shares == pytest.approx([0.5] * 8)
    task.model.eval()
    plain = Supervised(task.model, task.schedule).loss(X, LABELS)
    penalty = task.schedule.weight * 8 * (1 - 0.5**2)
    assert (task.loss(X, LABELS) - plain).item() == pytest.approx(penalty, rel=1e-4)
    soft = next(iter(task.softs.values()))
    x = torch.randn(2, 3, 4, 4)
    torch.testing.assert_close(soft(x), 0.5 * x + 0.5 * x.relu())
    sgd, adam = task.optimizers(task.schedule, 10)
    slopes = {id(each) for group in adam.param_groups for each in group["params"]}
    assert slopes == {id(each.alpha) for each in task.softs.values()}
    assert not slopes & {id(each) for group in sgd.param_groups for each in group["params"]}
    soft.alpha.data.fill_(1.5)
    task.after_step(0.5)
    assert soft.alpha.item() == 1.0
    soft.alpha.data.fill_(0.25)
    task.after_step(1.0)
    first, *others = task.extra.values()
    assert first.item() == pytest.approx(0.0 + 0.75)
    assert [each.item() for each in others] == pytest.approx([1.0] * 7)
    assert task.after_epoch(None, 0)["slopes"].popitem()[1] == pytest.approx(0.5)


@pytest.mark.parametrize("count", [5, 3])
def test_the_layers_nearest_to_the_identity_are_cut_and_merged(count, tmp_path):
    run = tiny_run(tmp_path)
    name = f"folding-{count}"
    phase = next(before for before in run.phase(name).after if before.name == "folding-slopes")
    start = run.train(phase)
    blocks = run.layout.blocks
    slopes = {block.mid: start.phases[-1].extra[block.mid].item() for block in blocks}
    assert len(set(slopes.values())) == 8
    trained = run.trained(name)
    cut = {relu for relu, module in named_relus(trained.model).items() if isinstance(module, CutReLU)}
    assert cut == set(sorted(slopes, key=slopes.get)[-count:])
    (step,) = trained.chosen
    assert step.arguments["keep"].keys() == cut
    x = torch.cat(list(tiny_images().sample(20)))
    with torch.no_grad():
        expected = trained.model(x)
    row = finish_row(run, name, trained, None, {}, tmp_path / "weights")
    assert list(row["phases"]) == ["baseline", "folding-slopes", name]
    model = load(tmp_path / "weights" / file_name(name, 2))
    assert (model(x) - expected).abs().max() < 0.03 * expected.std()
    convolutions = sum(isinstance(module, nn.Conv2d) for module in model.modules())
    assert convolutions <= 20 - count  # and the skips that are absorbed
    assert row["relus"] == sum(
        prod_of(run, trained.model, relu) for relu in named_relus(trained.model) if relu not in cut
    )


def prod_of(run, model, relu):
    return torch.Size(run.shapes(model)[relu]).numel()


@pytest.mark.parametrize("count", [3, 5])
@pytest.mark.parametrize("network", ["resnet18", "resnet34", "resnet20"])
def test_seeded_networks_merge_the_blocks_that_training_has_found_where_it_has(network, count):
    layout = layout_of(network)
    (step,) = variant(f"folding-{count}").structure(layout)
    found = {
        3: ("layer1.0", "layer1.1", "layer3.0"),
        5: ("layer1.0", "layer1.1", "layer2.0", "layer2.1", "layer3.0"),
    }
    names = found[count] if network == "resnet18" else least_sensitive_blocks(count, layout)
    assert set(step.arguments["keep"]) == {f"{name}.relu1" for name in names}
