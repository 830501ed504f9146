"""Prices of one ReLU and one linear layer under a model: shows where layers cost more than ReLUs."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass, replace
from math import nan, prod
from statistics import median

import pandas as pd

from pibench.costs.literature.channels import CHANNELS, Channel
from pibench.costs.literature.charge import LABEL, Modelled
from pibench.costs.literature.models import MODELS, modelled
from pibench.costs.literature.network import Network

PHASES = ("total_s", "online_s", "offline_s")


def _seconds(cost: Modelled, phase: str) -> float:
    if phase not in PHASES:
        raise ValueError(f"unknown phase {phase!r}: known are {', '.join(PHASES)}")
    return getattr(cost, phase)


@dataclass(frozen=True)
class BreakEven:
    """Prices of one ReLU and of one linear layer of a network under a model, in seconds.

    `layer_s` is the saving from one convolution less, with its ReLUs kept: the median over all convolutions
    larger than 1x1. `relu_layer_s` is the saving from an emptied ReLU layer beyond its ReLUs (latency).
    `relus_per_layer` = layer_s / relu_s. If fewer ReLUs than this are left, dropping one more such layer
    saves more than dropping all of them.
    """

    model: str
    network: str
    channel: str
    phase: str
    relu_s: float
    relu_layer_s: float
    layer_s: float
    relus_per_layer: float
    relus_left: int

    @property
    def layers_win(self) -> bool:
        """True if one more layer saves more than all remaining ReLUs."""
        return self.relus_per_layer > self.relus_left


def where_layers_beat_relus(
    model: str, network: Network, channel: Channel, phase: str = "total_s"
) -> BreakEven:
    """Prices a ReLU against a linear layer.

    Raises ValueError for a network without ReLUs or without such layers.
    """
    candidates = [i for i, layer in enumerate(network.linear) if prod(layer.kernel) > 1]
    if not network.relus or len(network.linear) < 2 or not candidates:
        raise ValueError(f"network {network.name!r} has no ReLU or no convolution to spare")

    def seconds(changed: Network) -> float:
        return _seconds(modelled(model, changed, channel), phase)

    whole = seconds(network)
    relu_s = (whole - seconds(replace(network, relus=0))) / network.relus
    relu_layer_s = whole - seconds(replace(network, relu_layers=network.relu_layers - 1))
    layer_s = median(
        whole - seconds(replace(network, linear=network.linear[:i] + network.linear[i + 1 :]))
        for i in candidates
    )
    return BreakEven(
        model,
        network.name,
        channel.name,
        phase,
        relu_s,
        relu_layer_s,
        layer_s,
        layer_s / relu_s if relu_s else nan,
        network.relus,
    )


def break_even_rows(
    networks: Iterable[Network],
    channels: Iterable[Channel] = tuple(CHANNELS.values()),
    models: Iterable[str] = tuple(MODELS),
    phase: str = "total_s",
) -> pd.DataFrame:
    """Returns `where_layers_beat_relus` for each network, model and channel, one row each."""
    networks, channels = tuple(networks), tuple(channels)
    return pd.DataFrame(
        asdict(found) | {"label": LABEL, "layers_win": found.layers_win}
        for model in models
        for channel in channels
        for network in networks
        for found in [where_layers_beat_relus(model, network, channel, phase)]
    )
