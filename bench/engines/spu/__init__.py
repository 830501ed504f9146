"""SecretFlow SPU's protocols as engines: SEMI2K, ABY3 and CHEETAH, with one process for each party.

SPU 0.9.5 is a compiler and a runtime. `networks` writes a program in jax.numpy. `compiler` turns it into
SPU's code, once for each batch, in a separate process that party 0 starts. `node` is a party, which runs the
code on shares. `link` connects the parties by SPU's own link (brpc). `log` reads rounds and bytes from SPU's
own profile. `protocols` holds the differences between the three engines. `byhand` is a network written by
hand, as a yardstick.

Secrets: party 0 alone receives the weights and party 1 alone the images. Each makes the shares of its input
in its own process and sends the others their shares over the link. The logits are opened to party 1.

One clock: these protocols have no offline phase here. `prepare` therefore does nothing, and an inference
contains all their work.
"""

from __future__ import annotations

import platform
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from pibench.engines.base import Engine, Helper, Node, Setting, StepTraffic
from pibench.engines.spu.protocols import options
from pibench.engines.yardstick import only_resnet18
from pibench.program import ir

if TYPE_CHECKING:
    import torch

OPERATORS = (
    ir.Convolution,
    ir.Linear,
    ir.Relu,
    ir.AveragePool,
    ir.MaxPool,
    ir.Add,
    ir.Multiply,
    ir.Square,
    ir.Scale,
    ir.Concatenate,
    ir.Flatten,
    ir.Mean,
    ir.Affine,
    ir.Shift,
    ir.PiecewiseLinear,
    ir.Combine,
    ir.Rearrange,
    ir.Sum,
    ir.Weigh,
)
"""The operators of the intermediate representation that `networks` can say to SPU."""


WHEEL = "Python 3.11 on Linux x86_64"
"""What SPU 0.9.5 can be installed for; its wheel for Python 3.10 is of no use here."""


def make_node(setting: Setting) -> Node | Helper:
    """Makes the party of this process and connects it to the others."""
    from pibench.engines.spu.node import SpuNode

    return SpuNode(setting)


def make_node_by_hand(setting: Setting) -> Node:
    """Makes a party that runs a network written by hand for SPU."""
    from pibench.engines.spu.node import ByHand

    return ByHand(setting)


def value_limits(program: ir.Program) -> dict[str, float]:
    """Returns no limits beyond the common |v| < 2^30; refuses operators by name.

    All three protocols truncate a product correctly to one unit while it is below 2^62, that is 2^30 in
    values. Raises NotImplementedError for an operator that SPU cannot express.
    """
    for step in program.steps:
        if not isinstance(step.operator, OPERATORS):
            raise NotImplementedError(
                f"the SPU engines have no operator {type(step.operator).__name__} (step {step.name!r}); "
                "use another engine, or add it to bench/engines/spu/networks.py"
            )
    return {}


def unsuited() -> str | None:
    """Returns which Python or system this is if SPU has no wheel for it, else None."""
    version = ".".join(map(str, sys.version_info[:2]))
    here = f"Python {version} on {platform.system()} {platform.machine()}"
    if here == WHEEL:
        return None
    return f"has a wheel for {WHEEL} alone, and this is {here}: make the environment with such a Python"


def rehearse(
    program: ir.Program,
    weights: Mapping[str, torch.Tensor],
    images: torch.Tensor,
    after: Callable[[ir.Step, torch.Tensor], None] | None,
) -> torch.Tensor:
    """Computes an answer in SPU's fixed point, in plaintext."""
    from pibench.program.fixed_point import evaluate_in_fixed_point

    return evaluate_in_fixed_point(program, weights, images, after)


def traffic_law(engine: str) -> Callable[[ir.Program, int, int], Sequence[StepTraffic]]:
    """Returns the traffic law of an engine (`cost`)."""

    def law(program: ir.Program, batch: int, parties: int) -> Sequence[StepTraffic]:
        from pibench.engines.spu.cost import traffic

        return traffic(engine, program, batch)

    return law


def _engine(
    name: str, label: str, trust: str, parties: int, provider: str, line: str, filled: bool, **known: float
) -> Engine:
    """Describes one protocol; `known` are its estimates of time and memory.

    `compute` is relative to the stock engine's time for one image and peer.
    """
    return Engine(
        name=name,
        label=label,
        trust=trust,
        parties=(parties,),
        providers={provider: ()},
        make_node=make_node,
        traffic=traffic_law(name),
        rehearse=rehearse,
        exact_truncation=True,
        line=line,
        filled=filled,
        bytes_per_relu=1000,
        **known,
        clocks=("all_phases",),
        options=options(name),
        value_limits=value_limits,
        modules=("spu",),
        install="pip install -e '.[spu]'",
        unsuited=unsuited,
        # ABY3 draws anew in each truncation who does what, CHEETAH compresses ciphertexts and makes its
        # oblivious transfers in stocks.
        steady_traffic=name == "spu-semi2k",
        all_listen=True,
    )


SEMI2K = _engine(
    "spu-semi2k",
    "SEMI2K (SPU)",
    "two semi-honest parties; party 0 deals the correlated randomness",
    *(2, "first party", "-.", False),
    compute=6.0,
    waiting=0.4,
    bytes_per_parameter=40,
)
ABY3 = _engine(
    "spu-aby3",
    "ABY3 (SPU)",
    "three semi-honest parties, of whom no two collude; no dealer",
    *(3, "none", "-.", True),
    compute=3.0,
    waiting=0.4,
    bytes_per_parameter=70,
)
CHEETAH = _engine(
    "spu-cheetah",
    "Cheetah (SPU)",
    "two semi-honest parties, nobody else: no dealer",
    *(2, "none", ":", True),
    compute=60.0,
    waiting=8.0,
    bytes_per_parameter=180,
)

BY_HAND = replace(
    SEMI2K,
    name="spu-byhand",
    label="SPU by hand",
    trust="as spu-semi2k",
    make_node=make_node_by_hand,
    value_limits=only_resnet18,
    traffic=None,
    offered=False,
)
