"""The lean engine: two semi-honest parties, and a dealer that is idle online.

Shares are additive in Z_2^64, with 16 fractional bits. `plan` decides which gadgets each step needs. `relu`
and `linear` define what the gadgets compute, `material` the randomness that the dealer deals for them, and
`kernels` their compiled inner part. `channel` carries the words and `keystream` makes them. `node` and
`dealer` are the processes.

Values must stay below 2^28 in absolute value; `plan.value_limits` returns the exact bound of each.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

from pibench.engines.base import Engine, Helper, Node, Setting, StepTraffic
from pibench.program.ir import Program, Step

if TYPE_CHECKING:
    import torch


def make_node(setting: Setting) -> Node | Helper:
    """Builds the process's part of the engine and connects it to the others."""
    if setting.parties not in ENGINE.parties:
        raise ValueError(f"the lean engine runs with 2 parties, not {setting.parties}; use engine='stock'")
    import torch

    from pibench.engines.lean.dealer import Dealer
    from pibench.engines.lean.memory import keep_blocks
    from pibench.engines.lean.node import LeanNode

    torch.set_num_threads(1)
    keep_blocks()
    return Dealer(setting) if setting.role == "dealer" else LeanNode(setting)


def value_limits(program: Program) -> dict[str, float]:
    """Maps each value to its bound: the absolute value must stay below it (`plan.value_limits`)."""
    from pibench.engines.lean import plan

    return plan.value_limits(program)


def traffic(program: Program, batch: int, parties: int) -> list[StepTraffic]:
    """Returns the traffic of every step and of the opening (`cost`)."""
    from pibench.engines.lean.cost import traffic

    return traffic(program, batch, parties)


def rehearse(
    program: Program,
    weights: Mapping[str, torch.Tensor],
    images: torch.Tensor,
    after: Callable[[Step, torch.Tensor], None] | None,
) -> torch.Tensor:
    """Computes an answer in the engine's fixed point, in plaintext (`plaintext`)."""
    from pibench.engines.lean.plaintext import evaluate

    return evaluate(program, weights, images, after)


def compile_all() -> None:
    """Compiles the kernels into the cache on disk, so that no measurement pays for it.

    Raises ValueError for a setting in the environment with which numba cannot be imported.
    """
    try:
        import numba  # noqa: F401
    except ValueError as error:
        remedy = "unset NUMBA_NUM_THREADS, or set it to 1 or more"
        raise ValueError(f"numba cannot be imported ({error}): {remedy}") from error
    from pibench.engines.lean import gemm, kernels, winograd  # noqa: F401 (compiled on import)


ENGINE = Engine(
    name="lean",
    label="lean (ours)",
    trust="two semi-honest parties; a dealer in a process of its own, idle online",
    parties=(2,),
    providers={"dealer": ("dealer",)},
    make_node=make_node,
    value_limits=value_limits,
    traffic=traffic,
    compile_all=compile_all,
    rehearse=rehearse,
    exact_truncation=True,
    line="-",
    filled=True,
    bytes_per_relu=131,
    compute=0.1,
    waiting=0.2,
    modules=("numba", "cryptography"),
    install="pip install -e '.[bench]'",
    two_hosts=True,
)
