"""For fixed inputs, over many fresh keys, everything that a party sends is uniform."""

import numpy as np
import pytest
import torch
from lean_harness import Trio, program, random_weights
from scipy.stats import chi2, norm

from pibench.engines.lean.keystream import Keystream
from pibench.program.ir import AveragePool, Convolution, Flatten, Linear, MaxPool, Multiply, Relu, Square

RUNS = 320
SMALL = program(
    (1, 4, 4),
    ("conv", Convolution("w", "b", (2, 1, 3, 3), padding=(1, 1)), ["input"], (2, 4, 4)),
    ("relu", Relu(), ["conv"], (2, 4, 4)),
    ("max", MaxPool((2, 2), (2, 2)), ["relu"], (2, 2, 2)),
    ("conv 2", Convolution("w2", None, (2, 2, 1, 1)), ["max"], (2, 2, 2)),
    ("masked", Relu(np.array([0, 5])), ["conv 2"], (2, 2, 2)),
    ("square", Square(), ["masked"], (2, 2, 2)),
    ("product", Multiply(), ["square", "masked"], (2, 2, 2)),
    ("mean", AveragePool((2, 2), (2, 2)), ["product"], (2, 1, 1)),
    ("flat", Flatten(1, -1), ["mean"], (2,)),
    ("fc", Linear("w3", "b3", (3, 2)), ["flat"], (3,)),
)


def transcripts(runs: int) -> list[np.ndarray]:
    """Returns the bytes [runs, count] that each party sends in load and in an inference.

    All inputs are fixed.
    """
    weights = random_weights(SMALL)
    x = torch.linspace(-2, 2, 16).view(1, 1, 4, 4)
    sent: list[list[bytes]] = [[], []]
    with Trio() as trio:
        for _ in range(runs):
            taken: list[list[bytes]] = [[], []]
            for party, log in zip(trio.nodes, taken, strict=False):
                party.peer.tap = lambda view, log=log: log.append(bytes(view)) if len(view) > 1 else None
            trio.load(SMALL, weights)
            trio.infer(x)
            for rank in (0, 1):
                sent[rank].append(b"".join(taken[rank]))
    return [np.frombuffer(b"".join(party), np.uint8).reshape(runs, -1) for party in sent]


def worst_of(data: np.ndarray) -> tuple[float, float, float]:
    """p-values, corrected for their number: all bits together, the worst bit, the worst nibble."""
    runs = len(data)
    bits = np.unpackbits(data, axis=1).sum(axis=0, dtype=np.int64)
    z = (bits - runs / 2) / (runs / 4) ** 0.5
    every_bit = chi2.sf((z**2).sum(), z.size)
    worst_bit = min(1.0, 2 * norm.sf(np.abs(z).max()) * z.size)
    nibbles = np.concatenate([data >> 4, data & 15], axis=1)
    counts = np.stack([(nibbles == value).sum(axis=0) for value in range(16)])
    statistic = ((counts - runs / 16) ** 2 / (runs / 16)).sum(axis=0)
    worst_nibble = min(1.0, chi2.sf(statistic.max(), 15) * statistic.size)
    return every_bit, worst_bit, worst_nibble


def test_every_sent_word_is_uniform():
    for data in transcripts(RUNS):
        assert data.shape[1] > 7_000
        assert min(worst_of(data)) > 1e-6


def test_the_statistic_notices_one_constant_word():
    data = np.random.default_rng(0).integers(0, 256, (RUNS, 10_000), dtype=np.uint8)
    assert min(worst_of(data)) > 1e-6
    data[:, 5000:5008] = 7
    assert worst_of(data)[1] < 1e-12
    assert worst_of(data)[2] < 1e-12


def test_without_randomness_the_transcript_is_not_uniform(monkeypatch):
    def zeros(self, words):
        words[...] = 0
        start, self.position = self.position, self.position + words.nbytes
        return self.name, start, self.position

    monkeypatch.setattr(Keystream, "fill", zeros)
    assert max(worst_of(transcripts(8)[0][:, 16:])[:1]) < 1e-12


@pytest.mark.parametrize("rank", [0, 1])
def test_a_party_knows_one_key_and_not_the_others(rank):
    with Trio() as trio:
        trio.load(SMALL, random_weights(SMALL))
        own, other = trio.nodes[rank], trio.nodes[1 - rank]
        assert own._stream.name != other._stream.name
        assert own._pair.name == other._pair.name
        assert own._pair.name not in {stream.name for stream in trio.nodes[2].streams}
