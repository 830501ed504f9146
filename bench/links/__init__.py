"""Links between the parties: what they are, how they are shaped, verified and predicted.

`link` names them, `shapers` puts one between processes (`relay` in user space, or the kernel's netem),
`route` is how a party reaches the others through the relay, `check` verifies, `model` predicts. Importing
the package imports neither torch nor CrypTen; `route` does.
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
