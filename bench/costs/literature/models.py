"""All models by name, and their costs for networks."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import pandas as pd

from pibench.costs.literature.channels import CHANNELS, Channel
from pibench.costs.literature.charge import Modelled
from pibench.costs.literature.columns import autorep_column, relu_column
from pibench.costs.literature.communication import aby3, cheetah, cryptflow2, orca
from pibench.costs.literature.delphi import (
    delphi_client_garbler,
    delphi_client_garbler_lphe,
    delphi_server_garbler,
    delphi_server_garbler_lphe,
)
from pibench.costs.literature.network import Network, network_from_dict

MODELS: dict[str, Callable[[Network, Channel], Modelled]] = {
    "delphi-server-garbler": delphi_server_garbler,
    "delphi-client-garbler": delphi_client_garbler,
    "delphi-server-garbler-lphe": delphi_server_garbler_lphe,
    "delphi-client-garbler-lphe": delphi_client_garbler_lphe,
    "21us-column": relu_column,
    "autorep-column": autorep_column,
    "cryptflow2": cryptflow2,
    "cheetah": cheetah,
    "orca": orca,
    "aby3": aby3,
}


def modelled(model: str, network: Network, channel: Channel) -> Modelled:
    """Returns the cost of a network under the model of this name.

    Raises ValueError for an unknown model, and names the known ones, or for a network without linear layers.
    """
    if model not in MODELS:
        raise ValueError(f"unknown model {model!r}: known are {', '.join(MODELS)}")
    if not network.linear:
        raise ValueError(f"network {network.name!r} has no linear layer")
    return MODELS[model](network, channel)


def modelled_rows(
    networks: Iterable[Network | Mapping[str, Any]],
    channels: Iterable[Channel] = tuple(CHANNELS.values()),
    models: Iterable[str] = tuple(MODELS),
) -> pd.DataFrame:
    """Returns one row for each network, model and channel.

    Networks may be plain dicts (`Network.as_dict`). Seconds and bytes stand in columns named `modelled_*`, so
    that nobody takes them for measured ones. `rank` is the place by `modelled_total_s` among the networks
    under the same model and channel (1 is the cheapest).
    """
    known = [each if isinstance(each, Network) else network_from_dict(each) for each in networks]
    channels, models = tuple(channels), tuple(models)
    rows = []
    for model in models:
        for channel in channels:
            for network in known:
                cost = modelled(model, network, channel)
                rows.append(
                    {
                        "label": cost.label,
                        "model": model,
                        "channel": channel.name,
                        "network": network.name,
                        "relus": network.relus,
                        "relu_layers": network.relu_layers,
                        "linear_layers": len(network.linear),
                        "modelled_offline_s": cost.offline_s,
                        "modelled_online_s": cost.online_s,
                        "modelled_total_s": cost.total_s,
                        "modelled_offline_bytes": cost.offline_bytes,
                        "modelled_online_bytes": cost.online_bytes,
                        "modelled_rounds": cost.rounds,
                        "covers": cost.covers,
                        "verified": cost.verified,
                        "source": cost.source,
                    }
                )
    frame = pd.DataFrame(rows)
    if len(frame):
        groups = frame.groupby(["model", "channel"])["modelled_total_s"]
        frame["rank"] = groups.rank(method="min").astype(int)
    return frame
