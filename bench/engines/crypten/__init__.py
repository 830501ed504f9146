"""The stock engine: CrypTen's own operators. A network written by hand on CrypTen serves as a yardstick."""

from __future__ import annotations

from dataclasses import replace

from pibench.engines.base import Engine, Helper, Node, Setting, StepTraffic
from pibench.program.ir import Program


def make_node(setting: Setting) -> Node | Helper:
    """Makes the node of this process and joins it to CrypTen's process group."""
    from pibench.engines.crypten import node

    return node.make_node(setting)


def make_node_by_hand(setting: Setting) -> Node:
    """Makes a party that runs a network written by hand on CrypTen."""
    from pibench.engines.crypten import byhand

    return byhand.make_node(setting)


def traffic(program: Program, batch: int, parties: int) -> list[StepTraffic]:
    """Returns the traffic of every step and of the opening (`cost`)."""
    from pibench.engines.crypten.cost import traffic

    return traffic(program, batch, parties)


ENGINE = Engine(
    name="stock",
    label="stock (CrypTen)",
    trust="semi-honest parties; party 0 deals the correlated randomness",
    parties=(2, 3),
    providers={"TFP": (), "TTP": ("ttp",)},
    serving=("ttp",),
    make_node=make_node,
    traffic=traffic,
    exact_truncation=False,
    line="--",
    filled=False,
    bytes_per_relu=352,
    compute=1.0,
    waiting=1.0,
    modules=("crypten",),
    install="pip install -e '.[bench]'",
    all_listen=True,
    two_hosts=True,
)

BY_HAND = replace(
    ENGINE,
    name="byhand",
    label="CrypTen by hand",
    trust="as stock",
    parties=(2,),
    make_node=make_node_by_hand,
    traffic=None,
    line=":",
    offered=False,
)
