"""The ring of the shares: words of 64 or 32 bits, and the fractional bits that values take in it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch


@dataclass(frozen=True)
class Ring:
    """Z_2^bits, with `fraction` fractional bits of inputs, ReLU outputs and logits, and `weights` of weights.

    A network whose values are too large for them gets fewer, down to `least` (None: never fewer).
    `headroom` is the least number of bits that must stay free above the largest calibrated value. None means
    that nothing is calibrated and that only the bound 2^(bits - 2) of the ring counts.
    """

    bits: int
    fraction: int
    weights: int
    headroom: int | None = None
    least: int | None = None

    @property
    def word(self) -> type[np.unsignedinteger]:
        """The unsigned type of a word."""
        return np.uint64 if self.bits == 64 else np.uint32

    @property
    def signed(self) -> type[np.signedinteger]:
        """The signed type of a word."""
        return np.int64 if self.bits == 64 else np.int32

    @property
    def torch(self) -> torch.dtype:
        """The signed type of a word in torch."""
        return torch.int64 if self.bits == 64 else torch.int32

    @property
    def nbytes(self) -> int:
        """The bytes of a word."""
        return self.bits // 8

    @property
    def top(self) -> int:
        """The exponent of the bound: a ring element z stands for a value while |z| < 2^top."""
        return self.bits - 2


WIDE = Ring(64, fraction=16, weights=16)
SLIM = Ring(32, fraction=10, weights=14, headroom=2, least=8)

ARITHMETIC = {"lean": (WIDE, False), "lean-k": (WIDE, True), "lean32": (SLIM, True)}
"""The ring of each engine, and whether its comparisons look only at the bits that calibrated bounds need."""


def arithmetic(engine: str) -> tuple[Ring, bool]:
    """Returns an engine's entry of `ARITHMETIC`; a stand-in of tests has that of `lean`."""
    return ARITHMETIC.get(engine, ARITHMETIC["lean"])
