"""The timm networks that the front door must take, with random weights."""

from __future__ import annotations

import pytest
import torch
from networks import logits_of

from pibench.program.lower import ExportError, lower

networks = pytest.importorskip("timm_networks", exc_type=ImportError)
APPROXIMATE = {"tinynet_e": 0.2}  # SiLU in every layer; the others are exact


@pytest.mark.parametrize("name", networks.CONVOLUTIONAL)
def test_convolutional_networks_run(name):
    model, images = networks.network(name), torch.randn(1, 3, 64, 64)
    logits = logits_of(lower(model, images), images)
    with torch.no_grad():
        expected = model.double()(images.double())
    error = (logits - expected).abs().max() / expected.abs().max()
    assert error <= APPROXIMATE.get(name, 1e-9)


@pytest.mark.parametrize(("name", "layer"), networks.OUT_OF_SCOPE.items())
def test_others_are_refused_by_their_layer(name, layer):
    size = 224 if name.endswith("224") else 64
    with pytest.raises(ExportError, match=f"out of scope: {layer}"):
        lower(networks.network(name), torch.randn(1, 3, size, size))
