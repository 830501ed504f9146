"""The timm networks that the front door must take, with random weights."""

from __future__ import annotations

import pytest
import timm_networks as networks
import torch
from networks import logits_of

from pibench.costs.predict import predict
from pibench.parties.driver import Parties
from pibench.program.lower import ExportError, lower

APPROXIMATE = {"tinynet_e": 0.01}  # SiLU in every layer; the others are exact
PRIVATE = ("resnet18", "mobilenetv3_small_050", "repvgg_a0", "efficientnet_lite0", "tinynet_e")


@pytest.mark.parametrize("name", networks.CONVOLUTIONAL)
def test_convolutional_networks_run(name):
    model, images = networks.network(name), torch.randn(1, 3, 64, 64)
    logits = logits_of(lower(model, images), images)
    with torch.no_grad():
        expected = model.double()(images.double())
    error = (logits - expected).abs().max() / expected.abs().max()
    assert error <= APPROXIMATE.get(name, 1e-9)


@pytest.fixture(scope="module")
def lean():
    with Parties(engine="lean", timeout_s=300) as parties:
        yield parties


@pytest.mark.parametrize("name", PRIVATE)
def test_answer_and_traffic_on_lean_parties(name, lean):
    """Small images: what the parties answer is the network's, what they send is what was predicted."""
    images = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    model = networks.network(name)
    lean.load(model, images)
    made = predict(lean.lowered.program, "lean", 1)
    lean.prepare(1)
    answer = lean.infer(images[:1]).double()
    assert (lean.sent.rounds, lean.sent.by_party) == (made.rounds, made.by_party)
    with torch.no_grad():
        expected = model.double()(images[:1].double())
    assert (answer - expected).abs().max() <= 0.02 * expected.abs().max()


@pytest.mark.parametrize(("name", "layer"), networks.OUT_OF_SCOPE.items())
def test_others_are_refused_by_their_layer(name, layer):
    size = 224 if name.endswith("224") else 64
    with pytest.raises(ExportError, match=f"out of scope: {layer}"):
        lower(networks.network(name), torch.randn(1, 3, size, size))
