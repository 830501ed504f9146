from math import prod

import pytest
import torch

from pibench.models.allocation import (
    Stretch,
    allocate,
    allocate_layers,
    allocate_merging,
    least_sensitive_blocks,
    published_sensitivity,
)
from pibench.models.cost import relu_shapes
from pibench.models.masks import largest_masks, largest_network_masks, random_masks, random_network_masks
from pibench.models.published import SENET_SENSITIVITY
from pibench.models.zoo import layout_of, resnet18

SIZES = [65_536] * 5 + [32_768] * 4 + [16_384] * 4 + [8_192] * 4


@pytest.mark.parametrize("budget", [0, 1, 7, 24_600, 50_135, 100_000, 120_000, 300_000, 557_055, 557_056])
def test_the_allocation_is_exact_and_follows_the_rule(budget):
    counts = allocate(SIZES, SENET_SENSITIVITY, budget)
    assert sum(counts) == budget
    assert all(0 <= count <= size for count, size in zip(counts, SIZES, strict=True))
    layers = list(zip(counts, SIZES, SENET_SENSITIVITY, strict=True))
    partial = [(count, eta) for count, size, eta in layers if count < size]
    if partial and budget:
        c = sum(count for count, _ in partial) / sum(eta for _, eta in partial)
        assert all(abs(count - c * eta) < 1.5 for count, eta in partial)
        assert all(c * eta >= size - 1.5 for count, size, eta in layers if count == size)


def test_overflow_of_full_layers_goes_to_the_others():
    assert allocate([10, 100, 100], [1.0, 1.0, 2.0], 70) == [10, 20, 40]
    assert allocate([10, 100], [1.0, 0.0], 5) == [5, 0]
    assert allocate([10, 30, 10], [1.0, 0.0, 0.0], 30) == [10, 15, 5]
    assert allocate([3, 3, 3], [1.0, 1.0, 1.0], 4) == [2, 1, 1]


def test_the_largest_fractions_are_rounded_up():
    assert allocate([100, 100, 100], [1.1, 2.2, 2.7], 6) == [1, 2, 3]  # shares 1.1, 2.2, 2.7
    assert allocate([100, 100, 100], [1.3, 1.9, 1.8], 5) == [1, 2, 2]


def test_bad_allocations_are_refused():
    with pytest.raises(ValueError, match="2 layers but 1 sensitivities"):
        allocate([1, 2], [1.0], 1)
    with pytest.raises(ValueError, match="budget of 4 ReLUs is not between 0 and all 3"):
        allocate([1, 2], [1.0, 1.0], 4)
    with pytest.raises(ValueError, match="budget of -1"):
        allocate([1, 2], [1.0, 1.0], -1)
    for bad in (-1.0, float("nan"), float("inf")):
        with pytest.raises(ValueError, match="finite and not negative"):
            allocate([1, 2], [1.0, bad], 1)


FULL_WIDTH = {name: (size,) for name, size in zip(layout_of("resnet18").relus, SIZES, strict=True)}
SHORT, LONG = (Stretch(tuple(FULL_WIDTH)[:count], saved) for count, saved in ((3, 69e6), (5, 145_227_776)))
"""The stem with one block or two, and the multiplications that merging them saves at width 64."""


def test_a_stretch_is_emptied_where_merging_saves_more_than_its_relus_cost():
    eta = published_sensitivity(layout_of("resnet18"))
    plain = allocate_layers(FULL_WIDTH, eta, 50_135)
    assert 0 < plain["relu"] < sum(plain[name] for name in LONG.relus) < 6_000
    others = {name: shape for name, shape in FULL_WIDTH.items() if name not in LONG.relus}
    expected = dict.fromkeys(LONG.relus, 0) | allocate_layers(others, eta, 50_135)
    for stretches in ([LONG], [SHORT, LONG], [LONG, SHORT]):
        assert allocate_merging(FULL_WIDTH, eta, 50_135, stretches, price=2_500) == expected
    assert list(expected) == list(FULL_WIDTH)
    assert sum(expected.values()) == 50_135
    held = [sum(plain[name] for name in each.relus) for each in (SHORT, LONG)]
    price = 0.99 * SHORT.saved / held[0]  # the short stretch just pays, the long one does not
    dear = Stretch(LONG.relus, 0.9 * price * held[1])
    short = allocate_merging(FULL_WIDTH, eta, 50_135, [SHORT, dear], price)
    assert [name for name, count in short.items() if count == 0] == list(SHORT.relus)
    assert allocate_merging(FULL_WIDTH, eta, 50_135, [SHORT, LONG], price=1e6) == plain
    assert allocate_merging(FULL_WIDTH, eta, 50_135, [], price=1) == plain


def test_a_stretch_stays_where_the_other_layers_have_no_room():
    eta = published_sensitivity(layout_of("resnet18"))
    room = sum(SIZES[5:])
    for budget, merged in ((room, True), (room + 1, False)):
        found = allocate_merging(FULL_WIDTH, eta, budget, [LONG], price=100)
        assert (found["relu"] == 0) == merged
        assert sum(found.values()) == budget


def test_the_sensitivities_are_those_of_the_network():
    shapes = relu_shapes(resnet18(width=2), torch.zeros(1, 3, 32, 32))
    published = published_sensitivity(layout_of("resnet18"))
    assert tuple(published) == tuple(shapes)
    assert tuple(published.values()) == SENET_SENSITIVITY
    assert [32 * prod(shape) for shape in shapes.values()] == SIZES


@pytest.mark.parametrize("name", ["resnet20", "resnet34", "wrn_22_8", "vgg16"])
def test_another_network_takes_the_published_sensitivity_of_the_same_depth(name):
    layout = layout_of(name)
    values = list(published_sensitivity(layout).values())
    assert len(values) == len(layout.relus)
    assert (values[0], values[-1]) == (SENET_SENSITIVITY[0], SENET_SENSITIVITY[-1])
    assert values == sorted(values)
    if len(values) == 33:  # twice as many steps: every other value is a published one
        assert values[::2] == pytest.approx(SENET_SENSITIVITY)
        assert values[1] == pytest.approx((SENET_SENSITIVITY[0] + SENET_SENSITIVITY[1]) / 2)


def test_least_sensitive_blocks():
    layout = layout_of("resnet18")
    names = tuple(block.name for block in layout.blocks)
    assert least_sensitive_blocks(5, layout) == names[:5]
    assert least_sensitive_blocks(0, layout) == ()
    falling = {block.mid: -float(index) for index, block in enumerate(layout.blocks)}
    assert least_sensitive_blocks(2, layout, falling) == names[-2:]
    with pytest.raises(ValueError, match="9 blocks asked for, the network has 8"):
        least_sensitive_blocks(9, layout)
    with pytest.raises(ValueError, match="no residual blocks"):
        least_sensitive_blocks(1, layout_of("vgg16"))


def test_random_masks_have_exact_counts_and_a_seed_of_their_own():
    shapes, counts = {"a": (2, 3, 4), "b": (5,)}, {"a": 7, "b": 0}
    before = torch.get_rng_state()
    masks = random_masks(shapes, counts, seed=3)
    assert torch.equal(before, torch.get_rng_state())
    assert {name: int(mask.sum()) for name, mask in masks.items()} == counts
    assert {name: tuple(mask.shape) for name, mask in masks.items()} == shapes
    assert torch.equal(masks["a"], random_masks(shapes, counts, seed=3)["a"])
    assert not torch.equal(masks["a"], random_masks(shapes, counts, seed=4)["a"])
    with pytest.raises(ValueError, match="a has 24 ReLUs, 25 cannot be kept"):
        random_masks(shapes, {"a": 25, "b": 0})
    with pytest.raises(ValueError, match=r"\['b'\] have only one"):
        random_masks(shapes, {"a": 1})


def test_masks_over_the_network_are_even():
    shapes = {"a": (10, 30, 30), "b": (1, 10, 100)}
    masks = random_network_masks(shapes, 5_000, seed=1)
    assert sum(int(mask.sum()) for mask in masks.values()) == 5_000
    assert abs(int(masks["a"].sum()) - 4_500) < 100
    assert tuple(masks["b"].shape) == shapes["b"]
    with pytest.raises(ValueError, match="budget of 10001"):
        random_network_masks(shapes, 10_001)


def test_largest_masks_keep_the_largest_and_of_equals_the_first():
    scores = {"a": torch.tensor([[[1.0, 3.0], [3.0, 3.0]]]), "b": torch.tensor([2.0, 5.0])}
    masks = largest_masks(scores, {"a": 2, "b": 0})
    assert masks["a"].tolist() == [[[False, True], [True, False]]]
    assert masks["b"].tolist() == [False, False]
    together = largest_network_masks(scores, 4)
    assert together["a"].tolist() == [[[False, True], [True, True]]]
    assert together["b"].tolist() == [False, True]
    with pytest.raises(ValueError, match="b has 2 ReLUs, 3 cannot be kept"):
        largest_masks(scores, {"a": 1, "b": 3})
