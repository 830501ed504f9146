"""Gates that the client computes: their price by the traffic laws, and the numbers that the docs give."""

import re
from pathlib import Path

import pytest
import torch
from torch import nn

from pibench.costs.predict import predict
from pibench.program.lower import lower

PAGE = (Path(__file__).parent.parent / "docs" / "reductions.md").read_text()


class Hidden(nn.Module):
    """One hidden layer: linear, with ReLUs, or with gates behind the image."""

    def __init__(self, kind):
        super().__init__()
        self.kind, self.conv, self.fc = kind, nn.Conv2d(3, 64, 3, padding=1), nn.Linear(64, 100)

    def forward(self, x):
        y = self.conv(x[:, :3])
        y = {"linear": lambda: y, "relu": y.relu, "gated": lambda: x[:, 3:] * y}[self.kind]()
        return self.fc(y.mean((2, 3)))


def price(kind, engine):
    x = torch.randn(1, 67 if kind == "gated" else 3, 32, 32)
    return predict(lower(Hidden(kind).eval(), x).program, engine)


def test_a_gate_is_one_product_of_secrets_on_stock():
    linear, gated, relu = (price(kind, "stock") for kind in ("linear", "gated", "relu"))
    elements = 64 * 32 * 32
    assert gated.rounds - linear.rounds == 1
    assert gated.bytes_sent - linear.bytes_sent == 16 * elements
    assert (relu.rounds - linear.rounds, relu.bytes_sent - linear.bytes_sent) == (9, 232 * elements)


@pytest.mark.parametrize("engine", ["stock", "lean"])
def test_the_docs_give_the_prices(engine):
    (line,) = re.findall(rf"^\| {engine} \| (.+) \|$", PAGE, re.MULTILINE)
    for cell, kind in zip(line.split(" | "), ("relu", "gated"), strict=True):
        rounds, megabytes = cell.split(", ")
        found = price(kind, engine)
        assert int(rounds) == found.rounds
        assert float(megabytes) == pytest.approx(found.bytes_sent / 1e6, rel=0.01)
