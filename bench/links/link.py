"""Links: the network between two processes of a group.

A link is the round-trip time and the bandwidth of one pair of processes. Each direction has the whole
bandwidth (full duplex).
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass

LONGEST_RTT_S = 10.0
BANDWIDTHS_BITS_S = (1e4, 1e12)


@dataclass(frozen=True)
class Link:
    """A link: `rtt_s` is the round-trip time in seconds, `bandwidth_bits_s` each direction's rate in bit/s.

    Loopback is the plain path inside the machine: it adds no RTT and its bandwidth is infinite. Raises
    ValueError for values that no link can have.
    """

    name: str
    rtt_s: float
    bandwidth_bits_s: float

    def __post_init__(self) -> None:
        for value in (self.rtt_s, self.bandwidth_bits_s):
            if isinstance(value, bool) or not isinstance(value, int | float):
                raise ValueError(
                    f"the link {self.name!r} needs numbers for rtt_s and bandwidth_bits_s, not {value!r}"
                )
        if not self.name or not self.name.strip() or "," in self.name:
            raise ValueError(f"a link needs a name without commas, not {self.name!r}")
        if not self.shaped:
            return
        if not 0 <= self.rtt_s <= LONGEST_RTT_S:  # also NaN
            raise ValueError(
                f"the link {self.name!r} asks for an RTT of {self.rtt_s} s; "
                f"it must lie between 0 and {LONGEST_RTT_S:g} s"
            )
        slowest, fastest = BANDWIDTHS_BITS_S
        if not slowest <= self.bandwidth_bits_s <= fastest:
            raise ValueError(
                f"the link {self.name!r} asks for {self.bandwidth_bits_s} bit/s; "
                f"it must lie between {slowest:g} and {fastest:g} bit/s"
            )

    @property
    def shaped(self) -> bool:
        """True if bytes are delayed; only loopback is not shaped."""
        return not (self.rtt_s == 0 and self.bandwidth_bits_s == math.inf)


LOOPBACK = Link("loopback", 0.0, math.inf)

# OpenCheetah's throttle script (lan, wan) and MP-SPDZ's benchmarks (wan-slow).
LINKS = {
    link.name: link
    for link in (
        LOOPBACK,
        Link("lan", 0.3e-3, 3e9),
        Link("wan", 40e-3, 400e6),
        Link("wan-slow", 100e-3, 100e6),
    )
}

_CUSTOM = re.compile(
    r"(?P<rate>\d+(\.\d+)?)\s*(?P<unit>[kKMG])bit(/s)?\s*/\s*(?P<rtt>\d+(\.\d+)?)\s*ms", re.ASCII
)
_UNITS = {"k": 1e3, "K": 1e3, "M": 1e6, "G": 1e9}


def parse_link(text: str | Link) -> Link:
    """Returns the link of that name, or a custom link written as bandwidth/RTT: "200Mbit/40ms".

    >>> parse_link("200Mbit/40ms")
    Link(name='200Mbit/40ms', rtt_s=0.04, bandwidth_bits_s=200000000.0)
    """
    if isinstance(text, Link):
        return text
    if not isinstance(text, str):
        raise ValueError(f"a link is a name or a Link, not {text!r}")
    if text in LINKS:
        return LINKS[text]
    found = _CUSTOM.fullmatch(text.strip())
    if found is None:
        raise ValueError(
            f"unknown link {text!r}; choose one of {', '.join(LINKS)} "
            'or write bandwidth and RTT like "200Mbit/40ms"'
        )
    rate, rtt = float(found["rate"]), float(found["rtt"])
    name = f"{rate:g}{found['unit'].upper().replace('K', 'k')}bit/{rtt:g}ms"
    return Link(name, rtt / 1e3, rate * _UNITS[found["unit"]])
