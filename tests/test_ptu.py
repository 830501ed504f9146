"""The estimate for PTU in docs/reductions.md, from a network of that structure by the traffic laws."""

import re
from pathlib import Path

import pytest
import torch
from torch import nn

from pibench.costs.predict import predict
from pibench.measure.count import count_program
from pibench.models.zoo import resnet18
from pibench.program.lower import lower

PAGE = (Path(__file__).parent.parent / "docs" / "reductions.md").read_text()


class Unit(nn.Module):
    """Mixes the activations of both networks by two gates, each a 1x1 convolution of both and a sigmoid."""

    def __init__(self, channels, sigmoid):
        super().__init__()
        self.gates = nn.ModuleList(nn.Conv2d(2 * channels, channels, 1) for _ in range(2))
        self.sigmoid = sigmoid

    def forward(self, old, new):
        first, second = (self.sigmoid(gate(torch.cat([old, new], 1))) for gate in self.gates)
        return first * old + second * new


class Ptu(nn.Module):
    """Two ResNet-18, with a unit after each stage; its value goes on in the network of the new task."""

    def __init__(self, sigmoid):
        super().__init__()
        self.old, self.new = resnet18(), resnet18()
        self.units = nn.ModuleList(Unit(64 << stage, sigmoid) for stage in range(4))

    def forward(self, x):
        old, new = (net.relu(net.bn1(net.conv1(x))) for net in (self.old, self.new))
        for unit, stage in zip(self.units, self.new.stages, strict=True):
            old, new = getattr(self.old, stage)(old), getattr(self.new, stage)(new)
            new = unit(old, new)
        return self.new.fc(self.new.avgpool(new).flatten(1))


@pytest.fixture(scope="module")
def line():
    (found,) = re.findall(r"^\| PTU .*$", PAGE, re.MULTILINE)
    return found


def test_with_sigmoids(line):
    program = lower(Ptu(nn.Sigmoid()).eval(), torch.rand(1, 3, 32, 32)).program
    millions = float(re.search(r"([\d.]+) M comparisons", line)[1])
    assert millions == pytest.approx(count_program(program).relus / 1e6, abs=0.005)
    for engine in ("stock", "lean"):
        megabytes, rounds = re.search(rf"on {engine} ([\d,]+) MB and (\d+) rounds", line).groups()
        found = predict(program, engine)
        assert float(megabytes.replace(",", "")) == pytest.approx(found.bytes_sent / 1e6, abs=0.5)
        assert int(rounds) == found.rounds


def test_with_hard_sigmoids(line):
    program = lower(Ptu(nn.Hardsigmoid()).eval(), torch.rand(1, 3, 32, 32)).program
    said = map(float, re.search(r"With hard sigmoids (\d+) and (\d+) MB", line).groups())
    for engine, megabytes in zip(("stock", "lean"), said, strict=True):
        assert megabytes == pytest.approx(predict(program, engine).bytes_sent / 1e6, abs=0.5)
