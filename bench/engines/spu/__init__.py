"""SecretFlow SPU's protocols as engines: SEMI2K, ABY3 and CHEETAH, each party a process.

SPU 0.9.5 is a compiler and a runtime. `networks` says a program in jax.numpy, `compiler` turns that into
SPU's code, once for each batch, in a process of its own that party 0 starts; `node` is a party, which runs
the code on shares; `link` connects the parties by SPU's own link (brpc), `log` reads rounds and bytes from
SPU's own profile; `protocols` holds what differs between the three engines.

Secrets: party 0 alone is given the weights and party 1 alone the images. Each makes the shares of what it was
given in its own process and sends the others theirs over the link; the logits are opened to party 1.

One clock: these protocols have no offline phase here, so `prepare` has nothing to do and an inference is
everything that they do.
"""

from __future__ import annotations

import importlib.util
import sys

from pibench.engines.base import Helper, Node, Setting
from pibench.program import ir
from pibench.program.lower import ExportError

VERSION = "0.9.5"
INSTALL = "pip install -e '.[spu]'"
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
)
"""The operators of the intermediate representation that `networks` can say to SPU."""


class NotInstalled(ImportError):  # noqa: N818 (a state, named in the interface)
    """Raised when an SPU engine is asked for where SPU is not installed."""


def missing() -> str | None:
    """Says why the engines cannot run here and what installs them; None if they can."""
    if importlib.util.find_spec("spu") is not None:
        return None
    if sys.platform != "linux" or sys.version_info >= (3, 12):
        return (
            f"SPU {VERSION} has wheels for Linux x86-64 with Python 3.10 or 3.11 alone; "
            f"make an environment with python3.11 there and run {INSTALL}"
        )
    return f"SPU is not installed; run {INSTALL}"


def helper_roles(provider: str) -> tuple[str, ...]:
    """Names no process beside the parties; raises NotInstalled where SPU is missing."""
    if provider not in ("first party", "none"):
        raise ValueError(
            f"the SPU engines have no provider {provider!r}; "
            "SEMI2K's is its first party, the others need none: leave it out"
        )
    if (reason := missing()) is not None:
        raise NotInstalled(reason)
    return ()


def make_node(setting: Setting) -> Node | Helper:
    """Builds the party of this process and connects it to the others."""
    from pibench.engines.spu.node import SpuNode

    return SpuNode(setting)


def value_limits(program: ir.Program) -> dict[str, float]:
    """Asks for no more than what holds for every engine, |v| < 2^30; refuses operators by name.

    All three protocols truncate a product right to one unit while it is below 2^62, that is 2^30 in values.
    Raises ExportError for an operator that cannot be said to SPU.
    """
    for step in program.steps:
        if not isinstance(step.operator, OPERATORS):
            raise ExportError(
                f"the SPU engines have no operator {type(step.operator).__name__} (step {step.name!r}); "
                "use another engine, or add it to bench/engines/spu/networks.py"
            )
    return {}


def compile_all() -> None:
    """Has nothing to compile before a network is loaded."""
