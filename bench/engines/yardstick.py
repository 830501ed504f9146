"""The network that is written by hand, on CrypTen and for SPU: the CIFAR ResNet-18, BatchNorm folded.

An engine that runs it runs nothing else, whatever program it is given. It therefore refuses every other one.
"""

from __future__ import annotations

from pibench.program.ir import Add, MaxPool, Program, Relu, stored_of

BLOCKS = [f"layer{stage}.{block}" for stage in range(1, 5) for block in range(2)]
LAYERS = {
    "conv1",
    "fc",
    *(f"{block}.conv{place}" for block in BLOCKS for place in (1, 2)),
    *(f"layer{stage}.0.shortcut.conv" for stage in range(2, 5)),
}
STORED = {f"{layer}.{part}" for layer in LAYERS for part in ("weight", "bias")}


def only_resnet18(program: Program) -> dict[str, float]:
    """Returns no limits of values; raises NotImplementedError for another network than the one by hand."""
    operators = [step.operator for step in program.steps]
    relus = [operator for operator in operators if isinstance(operator, Relu)]
    if (
        {name for operator in operators for name in stored_of(operator)} == STORED
        and len(relus) == 2 * len(BLOCKS) + 1
        and all(relu.kept is None for relu in relus)
        and sum(isinstance(operator, Add) for operator in operators) == len(BLOCKS)
        and not any(isinstance(operator, MaxPool) for operator in operators)
    ):
        return {}
    raise NotImplementedError(
        "this engine runs only the CIFAR ResNet-18 that is written by hand (variant 'baseline'); "
        "use engine='stock', or the SPU engine of the protocol, for another network"
    )
