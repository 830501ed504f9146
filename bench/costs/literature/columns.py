"""Latency columns of the ReLU-reduction papers: lines through published tables, estimates without a link."""

from __future__ import annotations

from math import nan
from statistics import fmean

from pibench.costs.literature.channels import Channel
from pibench.costs.literature.charge import Modelled
from pibench.costs.literature.network import Network

COLUMN_RELU_S = 21e-6
COLUMN_FIXED_S = (0.07, 0.11)
AUTOREP_RELU_S = 2.45e-6


def _column(model: str, network: Network, channel: Channel, online_s: float, source: str) -> Modelled:
    return Modelled(
        model,
        network.name,
        channel.name,
        offline_s=nan,
        online_s=online_s,
        offline_bytes=nan,
        online_bytes=nan,
        rounds=nan,
        covers="a line through a published column; no link, no linear layers",
        source=source,
        verified=False,
    )


def relu_column(network: Network, channel: Channel) -> Modelled:
    """Models the latency column of SENet, SNL and others: 0.09 s (0.07 to 0.11) + 21 microseconds a ReLU."""
    seconds = fmean(COLUMN_FIXED_S) + COLUMN_RELU_S * network.relus
    source = "fit (ours) to the latency columns of SENet (ICLR 2023) and SNL (ICML 2022)"
    return _column("21us-column", network, channel, seconds, source)


def autorep_column(network: Network, channel: Channel) -> Modelled:
    """Models AutoReP's latency column: 2.45 microseconds a ReLU, for another protocol on another machine."""
    source = "fit (ours) to the latency column of AutoReP (ICCV 2023)"
    return _column("autorep-column", network, channel, AUTOREP_RELU_S * network.relus, source)
