"""Static cost of a network under private inference, counted from the program that parties run.

All counts are per image. MACs are those of convolutions and linear layers, without bias. ReLUs are the scalar
comparisons that are really evaluated, after masks. Comparisons of max pooling (k^2 - 1 for each output) are
counted separately. Parameters are the numbers that the program stores. BatchNorm is folded, so they are
kernels and biases of convolutions and linear layers, scales and shifts.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import prod

from torch import Tensor, nn

from pibench.program import ir
from pibench.program.lower import lower


@dataclass(frozen=True)
class LayerCost:
    """The cost of one step for one image.

    `name` is the step's; `input_size` the elements |x| of its first input; `weight_size` the elements |w| of
    its kernel, matrix or scale, without bias.
    """

    name: str
    kind: str
    input_size: int
    weight_size: int
    relus: int
    comparisons: int
    macs: int
    parameters: int


@dataclass(frozen=True)
class Cost:
    """The cost of a network for one image; `relu_layers` and `linear_layers` count steps of the program.

    `relu_layers` are the steps that evaluate ReLUs, `linear_layers` the convolutions (shortcuts and depthwise
    ones too) and linear layers.
    """

    relus: int
    comparisons: int
    relu_layers: int
    linear_layers: int
    macs: int
    parameters: int
    layers: tuple[LayerCost, ...]


def cost_of(model: nn.Module, images: Tensor) -> Cost:
    """Counts the cost of `model` for one of `images` [N, ...].

    Raises ExportError for a network that cannot be lowered.
    """
    return count_program(lower(model, images[:1]).program)


def count_program(program: ir.Program) -> Cost:
    """Counts the cost of a program for one image.

    A piecewise linear activation counts one ReLU for each of its knots and elements. A tensor that several
    steps share counts once in the sum of the parameters.
    """
    stored = {name: shape for step in program.steps for name, shape in ir.stored_of(step.operator).items()}
    layers = tuple(_layer(step) for step in program.steps)
    return Cost(
        relus=sum(layer.relus for layer in layers),
        comparisons=sum(layer.comparisons for layer in layers),
        relu_layers=sum(layer.relus > 0 for layer in layers),
        linear_layers=sum(layer.kind in ("convolution", "linear") for layer in layers),
        macs=sum(layer.macs for layer in layers),
        parameters=sum(map(prod, stored.values())),
        layers=layers,
    )


def _layer(step: ir.Step) -> LayerCost:
    op = step.operator
    macs = weights = biases = 0
    if isinstance(op, ir.Convolution | ir.Linear):
        weights = prod(op.weight_shape)
        macs = step.size * prod(op.weight_shape[1:])
        biases = op.weight_shape[0] if op.bias is not None else 0
    elif isinstance(op, ir.Affine):
        weights = prod(op.weight_shape)
        biases = weights if op.bias is not None else 0
    elif isinstance(op, ir.Shift):
        biases = prod(op.bias_shape)
    return LayerCost(
        step.name,
        step.kind,
        step.input_size,
        weights,
        step.relus,
        step.comparisons,
        macs,
        weights + biases,
    )
