"""The channels of the cost models: the suite's links, and those of papers."""

from __future__ import annotations

from dataclasses import dataclass
from math import isfinite

from pibench.links.link import LINKS, LOOPBACK


@dataclass(frozen=True)
class Channel:
    """A link: round trip in seconds, bandwidth in bit/s from the client (up) and to it (down)."""

    name: str
    rtt_s: float
    up_bit_per_s: float
    down_bit_per_s: float

    def __post_init__(self) -> None:
        if not (isfinite(self.rtt_s) and self.rtt_s >= 0):
            raise ValueError(f"channel {self.name!r}: rtt_s must be 0 or more seconds, not {self.rtt_s}")
        for field in ("up_bit_per_s", "down_bit_per_s"):
            value = getattr(self, field)
            if not (isfinite(value) and value > 0):
                raise ValueError(f"channel {self.name!r}: {field} must be a positive number, not {value}")

    def up_s(self, sent: float) -> float:
        """Returns the seconds for `sent` bytes from the client."""
        return 8 * sent / self.up_bit_per_s

    def down_s(self, sent: float) -> float:
        """Returns the seconds for `sent` bytes to the client."""
        return 8 * sent / self.down_bit_per_s

    def messages_s(self, count: int) -> float:
        """Returns the latency of `count` messages one after the other, half a round trip each, in seconds."""
        return count * self.rtt_s / 2


CHANNELS = {
    channel.name: channel
    for channel in (
        *(
            Channel(link.name, link.rtt_s, link.bandwidth_bits_s, link.bandwidth_bits_s)
            for link in LINKS.values()
            if link != LOOPBACK
        ),
        # characterizing-private-inference artifact/generate_fig12.sh
        Channel("garimella", 0.0, 500e6, 500e6),
    )
}
