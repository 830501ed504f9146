"""What other protocols would charge for a network: cost models of the literature, none measured here.

A model is a function from a `Network` (plain numbers: no torch is needed) and a `Channel` to a `Modelled`
cost. Every number is either published (its place is cited beside it), or marked *ours*. docs/literature.md
tells what was checked against which source. All costs are per image; a party of two is called client (it has
the image; its upload is `up`) or server (it has the weights; its traffic to the client is `down`).

    channel = CHANNELS["lan"]
    modelled("delphi-server-garbler", network, channel).online_s
    where_layers_beat_relus("orca", network, channel)      # what one linear layer costs, in ReLUs

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
