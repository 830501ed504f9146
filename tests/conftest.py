"""Parties shared by the tests: started once, loaded again and again."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from torch import nn

from bench.parties import Parties

torch.set_num_threads(1)  # the parties of the tests need the cores


@pytest.fixture(scope="session")
def _stock() -> Iterator[list[Parties]]:
    running: list[Parties] = []
    yield running
    for parties in running:
        parties.__exit__(None, None, None)


@pytest.fixture
def stock(_stock: list[Parties]) -> Parties:
    """Two running parties of the stock engine (new ones if a test ended the last)."""
    if not _stock or not _stock[-1].pids:
        _stock.append(Parties(timeout_s=60).__enter__())
    return _stock[-1]


class Block(nn.Module):
    """A small network with a convolution, a ReLU, pooling and a linear layer; 8 x 8 images."""

    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.conv = nn.Conv2d(3, 4, 3, padding=1)
            self.relu = nn.ReLU()
            self.pool = nn.AvgPool2d(2)
            self.fc = nn.Linear(64, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.fc(torch.flatten(self.pool(self.relu(self.conv(x))), 1))


@pytest.fixture
def block() -> Block:
    return Block()


@pytest.fixture
def images() -> torch.Tensor:
    """Four different images [4, 3, 8, 8]."""
    return torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(1))
