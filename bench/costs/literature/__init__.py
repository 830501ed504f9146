"""Cost models of other protocols from the literature; this suite measures none of them.

A model is a function from a `Network` (plain numbers: no torch is needed) and a `Channel` to a `Modelled`
cost. Every number is either published, with its place cited beside it, or marked *ours*. docs/literature.md
lists the sources and the checks. All costs are per image. In a protocol of two parties the client has the
image, and its upload is `up`. The server has the weights, and its traffic to the client is `down`.

    channel = CHANNELS["lan"]
    modelled("delphi-server-garbler", network, channel).online_s
    where_layers_beat_relus("orca", network, channel)      # the cost of one linear layer, in ReLUs

Each family of protocols has its file: `delphi`, `columns`, `communication`.
"""

from pibench.costs.literature.break_even import BreakEven, break_even_rows, where_layers_beat_relus
from pibench.costs.literature.channels import CHANNELS, Channel
from pibench.costs.literature.charge import LABEL, Modelled
from pibench.costs.literature.models import MODELS, modelled, modelled_rows
from pibench.costs.literature.network import LinearLayer, Network, describe, network_from_dict

__all__ = [
    "CHANNELS",
    "LABEL",
    "MODELS",
    "BreakEven",
    "Channel",
    "LinearLayer",
    "Modelled",
    "Network",
    "break_even_rows",
    "describe",
    "modelled",
    "modelled_rows",
    "network_from_dict",
    "where_layers_beat_relus",
]
