"""Static cost of a program: the counts of `pibench.models.cost`, for every network that can be lowered."""

from __future__ import annotations

from math import prod

from pibench.models.cost import Cost, LayerCost
from pibench.program import ir


def count_program(program: ir.Program) -> Cost:
    """Counts the cost of a program for one image, with the conventions of `pibench.models.cost`.

    A piecewise linear activation counts a ReLU for each of its knots and elements.
    """
    layers = tuple(_layer(step) for step in program.steps)
    return Cost(
        relus=sum(layer.relus for layer in layers),
        comparisons=sum(layer.comparisons for layer in layers),
        relu_layers=sum(layer.relus > 0 for layer in layers),
        linear_layers=sum(layer.kind in ("convolution", "linear") for layer in layers),
        macs=sum(layer.macs for layer in layers),
        parameters=sum(layer.parameters for layer in layers),
        layers=layers,
    )


def _layer(step: ir.Step) -> LayerCost:
    op = step.operator
    relus = comparisons = macs = weights = biases = 0
    if isinstance(op, ir.Convolution | ir.Linear):
        weights = prod(op.weight_shape)
        macs = step.size * prod(op.weight_shape[1:])
        biases = op.weight_shape[0] if op.bias is not None else 0
    elif isinstance(op, ir.Affine):
        weights = prod(op.weight_shape)
        biases = weights if op.bias is not None else 0
    elif isinstance(op, ir.Shift):
        biases = prod(op.bias_shape)
    elif isinstance(op, ir.Relu):
        relus = step.size if op.kept is None else len(op.kept)
    elif isinstance(op, ir.PiecewiseLinear):
        relus = step.size * len(op.knots)
    elif isinstance(op, ir.MaxPool):
        comparisons = step.size * (prod(op.kernel) - 1)
    return LayerCost(
        step.name,
        step.kind,
        prod(step.input_shapes[0]) if step.input_shapes else 0,
        weights,
        relus,
        comparisons,
        macs,
        weights + biases,
    )
