"""Links between the parties: names, shaping, verification and prediction.

`link` names the links. `shapers` puts one between processes, either by `relay` in user space or by the
kernel's netem. `route` leads a party to the others through the relay. `check` verifies a link and `model`
predicts the time it costs. Nothing here imports torch or CrypTen.
"""

from pibench.links.check import LinkCheck
from pibench.links.link import LINKS, LOOPBACK, Link, parse_link
from pibench.links.model import (
    Calibration,
    Prediction,
    predict_from_loopback,
    predict_online,
    predict_row,
    ring_hops,
)
from pibench.links.shapers import ShaperUnavailable, make_shaper, obstacle

__all__ = [
    "LINKS",
    "LOOPBACK",
    "Calibration",
    "Link",
    "LinkCheck",
    "Prediction",
    "ShaperUnavailable",
    "make_shaper",
    "obstacle",
    "parse_link",
    "predict_from_loopback",
    "predict_online",
    "predict_row",
    "ring_hops",
]
