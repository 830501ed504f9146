"""The layout of a network, so that reductions and training need not know architectures: data, no torch."""

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Block:
    """A residual block and the modules of its deep branch, by full names.

    `mid` is the ReLU between its convolutions `conv1` and `conv2`. `other` is its second ReLU: after the sum,
    or before `conv1` in a block that activates first.
    """

    name: str
    conv1: str
    mid: str
    conv2: str
    other: str


@dataclass(frozen=True)
class Layout:
    """Modules of a network by name, in the order in which they run.

    `convolutions` maps each ReLU to the convolution whose output reaches it. `stages` are the ReLUs at the
    end of a stage; their outputs are compared with a teacher's. `blocks` is empty for a network without
    skips.
    """

    convolutions: Mapping[str, str]
    stages: tuple[str, ...]
    blocks: tuple[Block, ...] = ()

    @property
    def relus(self) -> tuple[str, ...]:
        """The names of all ReLUs."""
        return tuple(self.convolutions)
