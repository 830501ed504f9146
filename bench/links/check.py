"""Verifies a link before anything is measured on it, by a ping-pong and a bulk transfer between the parties.

Party 1 calls party 0 over the same path as its engine's bytes (through the relay, or through the namespaces).
The check uses a plain socket of its own. The asked and the measured values are therefore properties of the
link and not of an engine.
"""

from __future__ import annotations

import math
import select
import socket
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from pibench.links.link import Link

TOLERANCE = 0.1  # of what was asked for
TOLERANCE_S = 1e-4
WARM_UP = 3
BULK_S = 0.25  # duration of the bulk transfer, whose size stays between these two:
BULK_BYTES = (1 << 18, 1 << 26)
PING = b"\x01" * 8
TWO_HOSTS = "two-hosts"  # stands for a shaper: the link is the real network between two hosts


@dataclass(frozen=True)
class LinkCheck:
    """The asked and the measured values of a link; the bandwidth is measured in both directions at once.

    `round_s` is the time of the engine's smallest round in seconds, `round_hops` is its number of one-way
    trips. `hop_overhead_s` follows from both.
    """

    shaper: str
    asked_rtt_s: float
    measured_rtt_s: float
    asked_bandwidth_bits_s: float
    measured_bandwidth_bits_s: float
    round_s: float
    round_hops: int

    @property
    def hop_overhead_s(self) -> float:
        """Seconds that an engine's software adds to each hop (h0 of `pibench.links.model`)."""
        rtt_s = self.measured_rtt_s if self.shaper == TWO_HOSTS else self.asked_rtt_s
        return max(0.0, self.round_s / self.round_hops - rtt_s / 2)

    @property
    def complaint(self) -> str | None:
        """The reason why the link is not the one that was asked for, or None if it is.

        RTT and bandwidth may differ by 10 %, and the RTT by 0.1 ms if that is more. The link between two
        hosts is never wrong, because no values are asked for it.
        """
        if self.shaper == TWO_HOSTS:
            return None
        off = abs(self.measured_rtt_s - self.asked_rtt_s)
        if off > max(TOLERANCE * self.asked_rtt_s, TOLERANCE_S):
            return f"RTT {1e3 * self.measured_rtt_s:.3g} ms, asked for {1e3 * self.asked_rtt_s:.3g} ms"
        asked = self.asked_bandwidth_bits_s
        if math.isfinite(asked) and abs(self.measured_bandwidth_bits_s - asked) > TOLERANCE * asked:
            measured = self.measured_bandwidth_bits_s
            return f"bandwidth {measured / 1e6:.4g} Mbit/s, asked for {asked / 1e6:.4g} Mbit/s"
        return None

    @property
    def ok(self) -> bool:
        """True if the link is the one that was asked for."""
        return self.complaint is None

    def as_dict(self) -> dict[str, Any]:
        """Returns the check as a row stores it; an unlimited bandwidth becomes null."""
        asked = self.asked_bandwidth_bits_s
        return {
            "shaper": self.shaper,
            "asked_rtt_s": self.asked_rtt_s,
            "measured_rtt_s": self.measured_rtt_s,
            "asked_bandwidth_bits_s": asked if math.isfinite(asked) else None,
            "measured_bandwidth_bits_s": self.measured_bandwidth_bits_s,
            "round_s": self.round_s,
            "round_hops": self.round_hops,
            "hop_overhead_s": self.hop_overhead_s,
            "ok": self.ok,
            "complaint": self.complaint,
        }


def pings(link: Link) -> int:
    """Returns the number of timed ping-pongs: about one second's worth, between 5 and 50."""
    return max(5, min(50, int(1 / link.rtt_s))) if link.rtt_s else 50


def round_pairs(link: Link) -> int:
    """Returns the number of timed pairs of small rounds, between 3 and 50."""
    return max(3, min(50, int(0.3 / link.rtt_s))) if link.rtt_s else 50


def bulk_bytes(link: Link) -> int:
    """Returns the size of the bulk transfer, in bytes for each direction."""
    least, most = BULK_BYTES
    wanted = BULK_S * link.bandwidth_bits_s / 8
    return most if wanted > most else max(least, int(wanted))


def probe(
    connection: socket.socket, first: bool, link: Link, timeout_s: float, bulk: int | None = None
) -> tuple[float, float]:
    """Measures RTT (s) and bandwidth (bit/s) of the path to the other party, which calls `probe` too.

    Exactly one of the two parties is `first`. The bandwidth is the rate at which this party receives while
    both directions are busy. `bulk` is the number of bytes sent for it; the default suits the link. Raises
    TimeoutError when no byte moves for `timeout_s` seconds, ConnectionError when the other party closes the
    connection.
    """
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    connection.settimeout(timeout_s)
    times = []
    for _ in range(WARM_UP + pings(link)):
        started = time.perf_counter()
        if first:
            connection.sendall(PING)
        _fill(connection, bytearray(len(PING)))
        if not first:
            connection.sendall(PING)
        times.append(time.perf_counter() - started)
    rtt_s = statistics.median(times[WARM_UP:])
    rate = _bulk(connection, bulk or bulk_bytes(link), timeout_s)
    return rtt_s, rate


def median_round(small_round: Callable[[], None], link: Link) -> float:
    """Returns the median time of a small round, in seconds.

    The rounds are timed in pairs: a party that is early waits longer in one round and shorter in the next.
    """
    times = []
    for _ in range(1 + round_pairs(link)):
        started = time.perf_counter()
        small_round()
        small_round()
        times.append((time.perf_counter() - started) / 2)
    return statistics.median(times[1:])


def _fill(connection: socket.socket, into: bytearray) -> None:
    view = memoryview(into)
    while view:
        got = connection.recv_into(view)
        if not got:
            raise ConnectionError("the other party closed the connection while the link was checked")
        view = view[got:]


def _bulk(connection: socket.socket, count: int, timeout_s: float) -> float:
    """Sends and receives `count` bytes at once; returns the receiving rate (bit/s) after the first piece."""
    connection.setblocking(False)
    block = memoryview(bytearray(1 << 18))
    sending, received, first = count, 0, (0.0, 0)
    while sending or received < count:
        ready = select.select([connection], [connection] if sending else [], [], timeout_s)
        if not any(ready):
            raise TimeoutError(f"no byte moved for {timeout_s:g} s while the link was checked")
        if ready[1]:
            sending -= connection.send(block[: min(sending, len(block))])
        if ready[0]:  # the first piece is at most half of all, so that there is a rate
            got = connection.recv_into(block if received else block[: count // 2])
            if not got:
                raise ConnectionError("the other party closed the connection while the link was checked")
            received += got
            first = first if first[1] else (time.perf_counter(), received)
    seconds = time.perf_counter() - first[0]
    return 8 * (received - first[1]) / seconds
