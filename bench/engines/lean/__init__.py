"""The lean engines: two semi-honest parties, and a dealer that is idle online.

Shares are additive. `lean` has words of 64 bits, with 16 fractional bits. `lean-k` is the same, but its
comparisons look at the k lowest bits of the shares alone: the sign of a value that fits in k bits. `lean32`
has words of 32 bits, with at most 10 fractional bits of values and 14 of weights. The program tells the last
two how large each value was for the example (`ring`).

`plan` decides which gadgets each step needs. `relu` and `linear` define what the gadgets compute, `material`
the randomness that the dealer deals for them, and `kernels` their compiled inner part. `channel` carries the
words and `keystream` makes them. `node` and `dealer` are the processes.

Values in words of 64 bits must stay below 2^28 in absolute value; `plan.value_limits` returns the exact bound
of each.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import TYPE_CHECKING, Any

from pibench.engines.base import Engine, Helper, Node, Setting, StepTraffic
from pibench.program.ir import Program, Step

if TYPE_CHECKING:
    import torch


def make_node(setting: Setting) -> Node | Helper:
    """Builds the process's part of the engine and connects it to the others."""
    if setting.parties not in ENGINE.parties:
        raise ValueError(f"the lean engines run with 2 parties, not {setting.parties}; use engine='stock'")
    import torch

    from pibench.engines.lean.dealer import Dealer
    from pibench.engines.lean.memory import keep_blocks
    from pibench.engines.lean.node import LeanNode

    torch.set_num_threads(1)
    keep_blocks()
    return Dealer(setting) if setting.role == "dealer" else LeanNode(setting)


def value_limits(engine: str, program: Program) -> dict[str, float]:
    """Maps each value to its bound: the absolute value must stay below it (`plan.value_limits`)."""
    from pibench.engines.lean import plan
    from pibench.engines.lean.ring import arithmetic

    return plan.value_limits(program, *arithmetic(engine))


def traffic(engine: str, program: Program, batch: int, parties: int) -> list[StepTraffic]:
    """Returns the traffic of every step and of the opening (`cost`)."""
    from pibench.engines.lean.cost import traffic

    return traffic(engine, program, batch, parties)


def rehearse(
    engine: str,
    program: Program,
    weights: Mapping[str, torch.Tensor],
    images: torch.Tensor,
    after: Callable[[Step, torch.Tensor], None] | None,
) -> torch.Tensor:
    """Computes an answer in the engine's fixed point, in plaintext (`plaintext`)."""
    from pibench.engines.lean.plaintext import evaluate

    return evaluate(program, weights, images, after, engine=engine)


def compile_all() -> None:
    """Compiles the kernels into the cache on disk, so that no measurement pays for it.

    Raises ValueError for a setting in the environment with which numba cannot be imported.
    """
    try:
        import numba  # noqa: F401
    except ValueError as error:
        remedy = "unset NUMBA_NUM_THREADS, or set it to 1 or more"
        raise ValueError(f"numba cannot be imported ({error}): {remedy}") from error
    from pibench.engines.lean import gemm, grouped, kernels, winograd  # noqa: F401 (compiled on import)


def _engine(name: str, label: str, line: str, filled: bool, **known: Any) -> Engine:
    """Describes one arithmetic; `known` are its estimates, its options and what else it has of its own."""
    return Engine(
        name=name,
        label=label,
        trust="two semi-honest parties; a dealer in a process of its own, idle online",
        parties=(2,),
        providers={"dealer": ("dealer",)},
        make_node=make_node,
        value_limits=partial(value_limits, name),
        traffic=partial(traffic, name),
        compile_all=compile_all,
        rehearse=partial(rehearse, name),
        exact_truncation=True,
        line=line,
        filled=filled,
        waiting=0.2,
        modules=("numba", "cryptography"),
        install="pip install -e '.[bench]'",
        two_hosts=True,
        **known,
    )


ENGINE = _engine("lean", "lean (ours)", "-", True, bytes_per_relu=131, compute=0.1)
SHORT_SIGNS = _engine(
    "lean-k",
    "lean, k-bit signs (ours)",
    "-.",
    False,
    bytes_per_relu=106,
    compute=0.09,
    calibrated=True,
    options={"ring_bits": 64, "fraction_bits": 16, "compare_bits": "calibrated"},
)
LEAN32 = _engine(
    "lean32",
    "lean, 32 bits (ours)",
    "-",
    False,
    bytes_per_relu=65,
    compute=0.06,
    calibrated=True,
    usual_loss=0.01,
    options={"ring_bits": 32, "fraction_bits": 10, "weight_fraction_bits": 14},
)
