"""Merged stretches as a reduction: what they take from their sources, and what they compute."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from networks import difference, images
from torch import nn
from torch.nn import functional as F

from pibench.measure.count import cost_of
from pibench.models.allocation import at_depth, published_sensitivity
from pibench.models.graph.relu import MaskedReLU
from pibench.models.reductions.merged_stretches import MEASURED_SENSITIVITY, MERGE, SOURCES
from pibench.models.training.taps import run_tapped
from pibench.models.transforms import hoist_padding, merge_linear_stretches
from pibench.models.variants import VARIANTS, variant
from pibench.models.zoo import layout_of

ROOT = Path(__file__).resolve().parent.parent
MERGED = [name for name, recipe in VARIANTS.items() if recipe.source is not None]
EXAMPLE = torch.zeros(1, 3, 32, 32)
TOLERANCE = 1e-10


def kept(model):
    """The number of kept positions of each ReLU layer; None of a whole one."""
    return {
        name: int(module.mask.sum()) if isinstance(module, MaskedReLU) else None
        for name, module in model.named_modules()
        if isinstance(module, (MaskedReLU, nn.ReLU))
    }


def convolutions(model):
    return [module for module in model.modules() if isinstance(module, nn.Conv2d)]


def test_every_trained_source_has_a_merged_variant_of_its_budget():
    assert [VARIANTS[name].source for name in MERGED] == list(SOURCES)
    for name in MERGED:
        source = variant(VARIANTS[name].source)
        assert VARIANTS[name].finish == (*source.finish, MERGE)
        assert VARIANTS[name].budget(16) == source.budget(16)
        assert VARIANTS[name].steps == source.steps


def in_one(steps):
    """Puts neighbouring choices of ReLUs into one: training notes those of its stretches first."""
    joined = []
    for step in steps:
        if joined and step.transform == joined[-1].transform == "linearize_relus":
            step = replace(step, arguments={"keep": joined.pop().arguments["keep"] | step.arguments["keep"]})
        joined.append(step)
    return joined


@pytest.mark.parametrize("name", MERGED)
def test_masks_and_decisions_are_those_of_the_trained_source(name):
    source, merged = variant(VARIANTS[name].source).build(16), VARIANTS[name].build(16)
    assert merged.meta["trained"]
    assert merged.meta["variant"] == merged.meta["decisions"].variant == name
    assert in_one(merged.meta["decisions"].steps) == in_one((*source.meta["decisions"].steps, MERGE))
    masks = {key: mask for key, mask in source.state_dict().items() if key.endswith(".mask")}
    assert masks
    assert all(torch.equal(merged.state_dict()[key], mask) for key, mask in masks.items())
    before, after = (cost_of(model, EXAMPLE) for model in (source, merged))
    assert (after.relus, after.relu_layers) == (before.relus, before.relu_layers)
    assert after.macs < before.macs
    assert before.linear_layers - after.linear_layers == (5 if name.startswith("senet") else 3)


@pytest.mark.parametrize("name", MERGED)
def test_a_seeded_network_has_the_counts_of_the_trained_source_in_every_layer(name):
    trained, seeded = variant(VARIANTS[name].source).build(16), VARIANTS[name].build(16, weights=None)
    assert kept(seeded) == kept(trained)
    assert cost_of(seeded, EXAMPLE).macs == cost_of(VARIANTS[name].build(16), EXAMPLE).macs


def test_the_measured_sensitivity_is_that_of_the_committed_training():
    path = ROOT / "results" / "reference" / "training" / "w16-s0-long" / "sensitivity.json"
    measured = json.loads(path.read_text())["sensitivity"]
    assert at_depth(MEASURED_SENSITIVITY, layout_of("resnet18").relus) == measured
    other = layout_of("resnet20")
    assert (
        list(at_depth(MEASURED_SENSITIVITY, other.relus))
        == list(published_sensitivity(other))
        == list(other.relus)
    )


@pytest.mark.parametrize("name", ["senet-0.09", "joint-0.052"])
def test_exact_borders_keep_the_function_and_merge_nothing_here(name):
    source = variant(name).build(16).double()
    graph = merge_linear_stretches(source)
    assert difference(source, graph, images()) < TOLERANCE
    assert len(convolutions(graph)) == len(convolutions(source))


def test_merged_joint_is_the_source_with_its_padding_at_the_head():
    source, x = variant("joint-0.052").build(16).double(), images()
    merged = merge_linear_stretches(source, borders="hoisted")
    assert difference(hoist_padding(source), merged, x) < TOLERANCE
    assert difference(source, merged, x) > 1e-3  # the border is another one
    (wide,) = [conv for conv in convolutions(merged) if conv.kernel_size == (9, 9)]
    assert (wide.in_channels, wide.out_channels, wide.stride, wide.padding) == (3, 32, (2, 2), (4, 4))
    values = [run_tapped(model, x, ["layer2.0.relu2"])[1]["layer2.0.relu2"] for model in (source, merged)]
    inside = [value[..., 3:-3, 3:-3] for value in values]
    torch.testing.assert_close(*inside, rtol=0, atol=TOLERANCE * float(inside[0].abs().max()))


def test_merged_senet_is_the_source_on_an_image_with_a_frame():
    """Both readers of the last linear value get the whole stretch, skips included."""
    source, x = variant("senet-0.09").build(16).double(), images()
    merged = merge_linear_stretches(source, borders="hoisted")
    conv = dict(source.named_modules())

    def apply(name, value):
        return F.conv2d(value, conv[name].weight, conv[name].bias, conv[name].stride)

    with torch.no_grad():
        y = apply("conv1", F.pad(x, (6, 6, 6, 6)))
        for block in ("layer1.0", "layer1.1"):
            y = y[..., 2:-2, 2:-2] + apply(f"{block}.conv2", apply(f"{block}.conv1", y))
        expected = {
            "layer2.0.conv1": apply("layer2.0.conv1", y),
            "layer2.0.shortcut.conv": apply("layer2.0.shortcut.conv", y[..., 1:-1, 1:-1]),
        }
        _, found, _ = run_tapped(merged, x, list(expected))
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=0, atol=TOLERANCE * float(value.abs().max()))
    assert [merged.get_submodule(name).kernel_size for name in expected] == [(13, 13), (11, 11)]


def test_nothing_is_merged_where_it_saves_nothing():
    """At width 4 the kernel of SENet costs more than the layers that it replaces; joint merges two layers."""
    for name, fewer in (("senet-merged-0.09", 0), ("joint-merged-0.052", 1)):
        finish = variant(VARIANTS[name].source).finish
        merged, apart = (
            replace(variant(name), finish=f).build(4, None) for f in (VARIANTS[name].finish, finish)
        )
        assert len(convolutions(apart)) - len(convolutions(merged)) == fewer
        assert (cost_of(merged, EXAMPLE).macs < cost_of(apart, EXAMPLE).macs) == bool(fewer)


def test_another_budget_does_not_take_the_weights_of_the_source():
    other = replace(variant("joint-merged-0.052"), name="joint-merged-0.06", fraction=0.06)
    assert not other.build(16).meta["trained"]
    assert cost_of(other.build(16), EXAMPLE).relus == other.budget(16)
    assert not variant("joint-merged-0.052").build(16, classes=10).meta["trained"]
