"""The numbers of a network that the models use, read from a program; no torch is needed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from math import prod
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pibench.program.ir import Program


@dataclass(frozen=True)
class LinearLayer:
    """A convolution or a linear layer: `inputs` and `outputs` channels, `kernel` and the sizes of the maps.

    A linear layer has kernel (1, 1) and maps of one pixel. `groups` divides the channels as in torch.
    """

    name: str
    kind: str
    inputs: int
    outputs: int
    kernel: tuple[int, int]
    in_map: tuple[int, int]
    out_map: tuple[int, int]
    groups: int = 1

    @property
    def input_size(self) -> int:
        """Elements |x|."""
        return self.inputs * prod(self.in_map)

    @property
    def output_size(self) -> int:
        """Elements |y|."""
        return self.outputs * prod(self.out_map)

    @property
    def macs(self) -> int:
        """Multiplications of one image."""
        return self.output_size * self.inputs // self.groups * prod(self.kernel)


@dataclass(frozen=True)
class Network:
    """A network for the models: evaluated ReLUs, number of ReLU layers, linear layers in order."""

    name: str
    relus: int
    relu_layers: int
    linear: tuple[LinearLayer, ...]

    @property
    def macs(self) -> int:
        """Multiplications of one image."""
        return sum(layer.macs for layer in self.linear)

    def as_dict(self) -> dict[str, Any]:
        """Returns plain numbers and strings, as JSON keeps them; `network_from_dict` reads them."""
        return asdict(self)


def network_from_dict(values: Mapping[str, Any]) -> Network:
    """Makes a network from the result of `Network.as_dict`, also after JSON."""

    def layer(entry: Mapping[str, Any]) -> LinearLayer:
        pairs = {key: tuple(entry[key]) for key in ("kernel", "in_map", "out_map")}
        return LinearLayer(**{**entry, **pairs})

    return Network(**{**values, "linear": tuple(layer(entry) for entry in values["linear"])})


FREE = {"averagepool", "add", "scale", "concatenate", "flatten", "mean"}


def describe(name: str, program: Program) -> Network:
    """Reads a `Network` from a program; raises ValueError for steps that no model prices."""
    linear, counts = [], []
    for step in program.steps:
        op = step.operator
        if step.kind == "convolution":
            outputs, _, *kernel = op.weight_shape
            (inputs, *in_map), (_, *out_map) = step.input_shapes[0], step.shape
            maps = tuple(in_map), tuple(out_map)
            linear.append(LinearLayer(step.name, step.kind, inputs, outputs, tuple(kernel), *maps, op.groups))
        elif step.kind == "linear":
            outputs, inputs = op.weight_shape
            maps = (prod(step.input_shapes[0][:-1]), 1), (prod(step.shape[:-1]), 1)
            linear.append(LinearLayer(step.name, step.kind, inputs, outputs, (1, 1), *maps))
        elif step.kind == "relu":
            counts.append(step.size if op.kept is None else len(op.kept))
        elif step.kind not in FREE:
            raise ValueError(f"the literature models price no {step.kind} (step {step.name!r} of {name})")
    return Network(name, sum(counts), sum(count > 0 for count in counts), tuple(linear))
