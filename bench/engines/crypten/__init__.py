"""The stock engine: CrypTen's own operators. A network written by hand on CrypTen serves as a yardstick."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING

from pibench.engines.base import Engine, Helper, Node, Setting, StepTraffic
from pibench.engines.yardstick import only_resnet18
from pibench.program.ir import Program, Step

if TYPE_CHECKING:
    import torch


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


def rehearse(
    program: Program,
    weights: Mapping[str, torch.Tensor],
    images: torch.Tensor,
    after: Callable[[Step, torch.Tensor], None] | None,
) -> torch.Tensor:
    """Computes an answer in CrypTen's fixed point, in plaintext; it encodes toward zero."""
    from pibench.program.fixed_point import evaluate_in_fixed_point, toward_zero

    return evaluate_in_fixed_point(program, weights, images, after, encode=toward_zero)


ENGINE = Engine(
    name="stock",
    label="stock (CrypTen)",
    trust="semi-honest parties; party 0 deals the correlated randomness",
    parties=(2, 3),
    providers={"TFP": (), "TTP": ("ttp",)},
    serving=("ttp",),
    make_node=make_node,
    traffic=traffic,
    rehearse=rehearse,
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
    value_limits=only_resnet18,
    traffic=None,
    line=":",
    offered=False,
)
