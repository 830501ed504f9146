"""Random networks: a seed repeats them, the module is the program, and lowering the module gives it back."""

from __future__ import annotations

import random
from collections import Counter

import torch
from hypothesis import assume, given, settings
from random_networks import SHAPES, RandomNetwork, networks, random_case, random_images

from pibench.program import ir
from pibench.program.guard import own_answer
from pibench.program.lower import ExportError, Lowered, lower

DRAWN = settings(deadline=None, database=None, derandomize=True)


def images_of(network: RandomNetwork) -> torch.Tensor:
    return random_images(random.Random(1), network.program.input_shape, 2, scale=1.0).double()


@settings(DRAWN, max_examples=100)
@given(network=networks())
def test_the_module_is_the_program(network):
    images = images_of(network)
    found = own_answer(Lowered(network.program, network.weights, {}, 0.0), images)
    expected = network.module()(images)
    assert found.shape == (2, *network.program.steps[-1].shape)
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-12 * expected.abs().max().item())


@settings(DRAWN, max_examples=8)
@given(network=networks())
def test_the_lowered_module_is_the_program(network):
    images, model = images_of(network), network.module()
    try:
        lowered = lower(model, images)
    except ExportError:  # numbers beyond fixed point
        assume(False)
    expected = model(images)
    torch.testing.assert_close(
        own_answer(lowered, images), expected, rtol=1e-9, atol=1e-9 * expected.abs().max().item()
    )


def test_seeds_repeat_and_cover_every_operator():
    kinds: Counter[str] = Counter()
    shapes = set()
    for seed in range(150):
        one, same = (random_case(random.Random(seed)) for _ in range(2))
        assert repr(one) == repr(same)
        assert torch.equal(one.images, same.images)
        kinds.update(step.kind for step in one.network.program.steps)
        shapes.add(one.network.program.input_shape)
    assert kinds.keys() == {each.__name__.lower() for each in ir.Operator.__args__}
    assert shapes == set(SHAPES)
