"""The arithmetic of a link: predicts the time of an inference there from its time on loopback.

    online = compute + hops (RTT / 2 + h0) + bytes / bandwidth

A hop is a one-way trip that the next step waits for. The bytes are those of the party that sends most. h0 is
the time that software adds to a hop, calibrated on the link itself by the engine's smallest round. The
compute time is the online time on loopback minus the loopback's own hops h0 + bytes / bandwidth.

In that subtraction h0 is the loopback's value, but at most the link's. The reason: small rounds on loopback
follow each other so closely that the threads of the processes wait for a core. The rounds of an inference
have computing between them and do not wait.

Rounds are not hops. A direct exchange of two parties is one hop a round. Gloo (torch 2.13) sends nothing
before the receiver has said that it is ready, so a message costs two hops. Its ring all-reduce has two phases
of messages. A round is therefore four one-way trips, and more if the payload is large: see `ring_hops`.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pibench.links.link import Link

GLOO_SEGMENT_BYTES = 1 << 20
GLOO_WINDOW = 2  # segments in flight at the same time


def ring_hops(payload_bytes: int, parties: int = 2) -> int:
    """Returns the sequential one-way trips of gloo's ring all-reduce of a payload among `parties`.

    The payload is cut into segments of at most 1 MiB, and into at least two for each party. In each of two
    phases a party passes on the segments of all parties but one. Two segments are in flight at a time. Each
    pair waits for the receiver's ready message (one hop) and for the data (one hop).

    >>> ring_hops(8), ring_hops(8 << 20)
    (4, 8)
    """
    segments = max(-(-payload_bytes // GLOO_SEGMENT_BYTES), 2 * parties)
    segments_a_party = -(-segments // parties)
    return 2 * 2 * -(-segments_a_party * (parties - 1) // GLOO_WINDOW)


@dataclass(frozen=True)
class Calibration:
    """The values of a link in a run: `hop_overhead_s` is h0 in s, `bandwidth_bits_s` the rate in bit/s."""

    hop_overhead_s: float
    bandwidth_bits_s: float


@dataclass(frozen=True)
class Prediction:
    """The predicted seconds of an online phase, split into their parts."""

    compute_s: float
    hops_s: float
    bytes_s: float

    @property
    def online_s(self) -> float:
        """The sum of the parts, in seconds."""
        return self.compute_s + self.hops_s + self.bytes_s

    def error(self, measured_s: float) -> float:
        """Returns the relative error of the prediction against `measured_s`.

        A slow prediction is positive.
        """
        return self.online_s / measured_s - 1


def predict_online(
    compute_s: float, hops: int, bytes_sent: int, link: Link, hop_overhead_s: float
) -> Prediction:
    """Predicts an online phase of `hops` one-way trips and `bytes_sent` bytes over `link`."""
    return Prediction(
        compute_s, hops * (link.rtt_s / 2 + hop_overhead_s), 8 * bytes_sent / link.bandwidth_bits_s
    )


def predict_from_loopback(
    online_s: float,
    hops: int,
    bytes_sent: int,
    link: Link,
    loopback: Calibration,
    hop_overhead_s: float | None = None,
) -> Prediction:
    """Predicts a link's online phase from the `online_s` seconds of the same network on loopback.

    `hop_overhead_s` is the link's h0; the default is the loopback's. The loopback's h0 has two upper bounds:
    the link's h0, and the value at which no compute time remains.
    """
    rest = max(0.0, online_s - 8 * bytes_sent / loopback.bandwidth_bits_s)
    on_link = loopback.hop_overhead_s if hop_overhead_s is None else hop_overhead_s
    h0 = min(loopback.hop_overhead_s, on_link, rest / hops) if hops else 0.0
    return predict_online(rest - hops * h0, hops, bytes_sent, link, h0 if hop_overhead_s is None else on_link)


def predict_row(loopback: Mapping[str, Any], row: Mapping[str, Any]) -> tuple[Prediction, float]:
    """Predicts the median online time of a link's row from the loopback's row; returns it and its error.

    Both are rows of results/bench.json with `traffic.hops` and `link_check` (`LinkCheck.as_dict`).
    """
    check, calibrated = row["link_check"], loopback["link_check"]
    link = Link(row["link"], check["asked_rtt_s"], check["asked_bandwidth_bits_s"] or math.inf)
    prediction = predict_from_loopback(
        statistics.median(loopback["times"]["online_s"]),
        row["traffic"]["hops"],
        row["traffic"]["bytes_sent"],
        link,
        Calibration(calibrated["hop_overhead_s"], calibrated["measured_bandwidth_bits_s"]),
        check["hop_overhead_s"],
    )
    return prediction, prediction.error(statistics.median(row["times"]["online_s"]))
