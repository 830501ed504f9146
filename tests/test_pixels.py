"""Masks of pixels, held against the network with zeros put in by hand."""

from math import prod

import pytest
import torch
from networks import difference, images, small
from torch import nn
from training_setup import tiny_images, tiny_run

from pibench.costs.predict import predict
from pibench.measure.count import cost_of
from pibench.models import variants
from pibench.models.cost import relu_shapes
from pibench.models.graph.pixels import PixelMask
from pibench.models.graph.relu import MaskedReLU
from pibench.models.masks import pixel_masks
from pibench.models.training.rows import finish_row
from pibench.models.transforms import fold_batchnorm, linearize_relus, mask_pixels
from pibench.models.variants import variant
from pibench.models.weights import file_name, load
from pibench.program import ir
from pibench.program.lower import lower

SHAPES = {"a": (3, 8, 8), "b": (5, 8, 8), "c": (4, 4, 4), "d": (2, 1, 1), "e": (7,)}


def masked(name="resnet18", share=0.5):
    """A small network with masks of pixels, before and after `mask_pixels`, and the masks."""
    model = small(name)
    shapes = relu_shapes(model, images(1))
    masks = pixel_masks(shapes, round(share * sum(map(prod, shapes.values()))), 0)
    linear = linearize_relus(model, masks)
    return linear, mask_pixels(linear), masks


def test_one_map_of_scores_masks_all_channels_of_all_layers():
    masks = pixel_masks(SHAPES, sum(map(prod, SHAPES.values())) // 2, 0)
    assert {name: tuple(mask.shape) for name, mask in masks.items()} == SHAPES
    assert all((mask == mask[:1]).all() for mask in masks.values() if mask.dim() == 3)
    assert torch.equal(masks["a"][0], masks["b"][0])
    kept = [int(masks[name][0].sum()) for name in "abcd"]
    assert kept == [32, 32, 8, 1]  # one pixel at least
    assert masks["e"].all()  # a vector has no pixels
    scores = torch.rand(1, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    pooled = scores.view(4, 2, 4, 2).mean((1, 3))
    assert pooled[masks["c"][0]].min() > pooled[~masks["c"][0]].max()
    other = pixel_masks(SHAPES, 200, 1)
    assert not torch.equal(other["a"], pixel_masks(SHAPES, 200, 0)["a"])
    for budget in (-1, 10_000):
        with pytest.raises(ValueError, match=f"a budget of {budget} ReLUs is not between 0 and all"):
            pixel_masks(SHAPES, budget, 0)


@pytest.mark.parametrize("name", ["resnet18", "wrn_22_8", "vgg16-hidden"])
def test_masked_pixels_are_zero_as_if_put_in_by_hand(name):
    _, graph, masks = masked(name)
    byhand = small(name)
    for relu, mask in masks.items():
        byhand.get_submodule(relu).register_forward_hook(lambda module, args, y, mask=mask: y * mask)
    assert difference(byhand, graph, images()) < 1e-10
    assert difference(graph, fold_batchnorm(graph), images()) < 1e-10


def test_parties_evaluate_the_kept_pixels_alone_and_send_nothing_for_zeros():
    linear, graph, masks = masked()
    kept = sum(int(mask.sum()) for mask in masks.values())
    whole, cost = cost_of(small("resnet18"), images(1)), cost_of(graph, images(1))
    assert cost.relus == kept == whole.relus // 2
    assert (cost.macs, cost.linear_layers, cost.parameters) == (
        *(whole.macs, whole.linear_layers, whole.parameters),
    )
    program, before = (lower(fold_batchnorm(each), images()).program for each in (graph, linear))
    relus = [step.operator for step in program.steps if isinstance(step.operator, ir.Relu)]
    assert [relu.kept for relu in relus] == [None] * 17  # of the kept pixels, which lie side by side
    for engine, spared in (("stock", 0), ("lean", 8 * (whole.relus - kept))):
        one, other = predict(program, engine), predict(before, engine)
        assert one.rounds == other.rounds
        assert one.bytes_sent == other.bytes_sent - spared  # lean truncates what a mask leaves linear


def test_without_the_shortcuts_a_fifth_of_the_relus_would_stay():
    """Masks on the convolutions of the deep branch leave the sums with a 1x1 shortcut without zeros."""
    _, _, masks = masked()
    model = small("resnet18")
    masked_norms = {"bn1": "relu"} | {
        f"{name}.bn{place}": f"{name}.relu{place}"
        for name in (f"layer{stage}.{block}" for stage in (1, 2, 3, 4) for block in (0, 1))
        for place in (1, 2)
    }
    zeros = {}

    def note(relu):
        def count(module, args):
            zeros[relu] = args[0].shape[1] * int((args[0] == 0).all(1).all(0).sum())

        return count

    for norm, relu in masked_norms.items():
        model.get_submodule(norm).register_forward_hook(lambda module, args, y, m=masks[relu]: y * m)
        model.get_submodule(relu).register_forward_pre_hook(note(relu))
    with torch.no_grad():
        model(images(8))
    gone = sum(int((~mask).sum()) for mask in masks.values())
    assert sum(zeros.values()) / gone == pytest.approx(0.794, abs=0.001)


@pytest.mark.parametrize("name", ["pixels-0.75", "pixels-0.5"])
def test_the_traffic_of_relus_falls_with_the_pixels(name, monkeypatch):
    monkeypatch.setattr(variants, "calibrate", lambda *_: None)  # costs do not depend on statistics
    model = variant(name).build(64, None)
    program = lower(model, images(1)).program
    fraction = variant(name).fraction
    relus = 557_056
    assert cost_of(model, images(1)).relus == fraction * relus
    sent = predict(program, "stock")
    assert sent.bytes_sent == 224_258_336 - 232 * relus * (1 - fraction)
    assert sent.rounds == 175


def test_what_is_no_mask_of_pixels_is_refused():
    model = small("resnet18")
    mask = torch.rand(4, 32, 32, generator=torch.Generator().manual_seed(0)) < 0.5
    for each, reason in ((mask, "differs between channels"), (mask[:, 0, 0], "is one of channels")):
        with pytest.raises(ValueError, match=f"cannot mask the pixels of relu: its mask {reason}"):
            mask_pixels(linearize_relus(model, {"relu": each}))


def test_it_is_trained_deployed_saved_and_loaded(tmp_path):
    run = tiny_run(tmp_path)
    trained = run.trained("pixels-0.5")
    x = torch.cat(list(tiny_images().sample(20)))
    with torch.no_grad():
        expected = trained.model(x)
    row = finish_row(run, "pixels-0.5", trained, None, {}, tmp_path / "weights")
    assert row["relus"] == variant("pixels-0.5").budget(2)
    assert row["phases"] == {"baseline": 2, "pixels-0.5": 2}
    model = load(tmp_path / "weights" / file_name("pixels-0.5", 2))
    assert (model(x) - expected).abs().max() < 0.03 * expected.std()
    kinds = [type(module) for module in model.modules()]
    assert kinds.count(MaskedReLU) == kinds.count(PixelMask) == 17
    assert kinds.count(nn.ReLU) == 0
