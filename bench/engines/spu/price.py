"""The traffic of a primitive under a protocol: bytes and messages of each party, and hops in sequence.

Numbers may be fractions: what a protocol makes in stocks is shared out among the primitives that use it.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True)
class Price:
    """Payload bytes and messages by party; `hops` are the one-way trips that follow each other."""

    sent: tuple[float, ...]
    messages: tuple[float, ...]
    hops: float

    def __add__(self, other: Price) -> Price:
        """Returns both, one after the other."""
        return Price(
            tuple(map(sum, zip(self.sent, other.sent, strict=True))),
            tuple(map(sum, zip(self.messages, other.messages, strict=True))),
            self.hops + other.hops,
        )

    def __mul__(self, times: float) -> Price:
        """Returns the price of so many of them in sequence."""
        return Price(
            tuple(times * each for each in self.sent),
            tuple(times * each for each in self.messages),
            times * self.hops,
        )


def nothing(parties: int) -> Price:
    """Returns the price of what is local."""
    return Price((0,) * parties, (0,) * parties, 0)


def alike(parties: int, sent: float, messages: int = 1) -> Price:
    """Returns the price of messages that all parties send at the same time, `sent` bytes together."""
    return Price((sent,) * parties, (messages,) * parties, messages)


def total(parties: int, prices: Iterable[Price]) -> Price:
    """Returns the sum of prices."""
    found = nothing(parties)
    for price in prices:
        found += price
    return found
