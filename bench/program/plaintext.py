"""A program in plaintext, in float64: the meaning of its steps, without shares and without rounding."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import singledispatch
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor

from pibench.program import ir

Rehearsal = Callable[
    [ir.Program, Mapping[str, Tensor], Tensor, Callable[[ir.Step, Tensor], None] | None], Tensor
]
"""Computes the answer to images in plaintext, in an engine's fixed point; tells every value."""


@torch.no_grad()
def evaluate(
    program: ir.Program,
    weights: Mapping[str, Tensor],
    images: Tensor,
    after: Callable[[ir.Step, Tensor], None] | None = None,
) -> Tensor:
    """Returns the output [N, ...] of `program` for `images` [N, *input_shape].

    `after` receives the value of every step.
    """
    return walk(program, images, lambda step, *inputs: value_of(step.operator, weights, *inputs), after)


def walk(
    program: ir.Program,
    images: Tensor,
    apply: Callable[..., Tensor],
    after: Callable[[ir.Step, Tensor], None] | None = None,
) -> Tensor:
    """Returns the output of a program whose steps are `apply(step, *inputs)`.

    `after` receives every value.
    """
    values = {program.input: images}
    last = program.last_uses()
    for step in program.steps:
        values[step.name] = apply(step, *(values[name] for name in step.inputs))
        if after is not None:
            after(step, values[step.name])
        for name in {name for name in step.inputs if last.get(name) == step.name}:
            del values[name]
    return values[program.output]


@singledispatch
def value_of(operator: object, weights: Mapping[str, Tensor], *inputs: Tensor) -> Tensor:
    """Returns the value of one operator on inputs [N, ...]."""
    raise NotImplementedError(f"{type(operator).__name__} has no meaning in bench/program/plaintext.py")


@value_of.register
def _(o: ir.Convolution, weights: Mapping[str, Tensor], x: Tensor) -> Tensor:
    bias = None if o.bias is None else weights[o.bias]
    return F.conv2d(x, weights[o.weight], bias, o.stride, o.padding, o.dilation, o.groups)


@value_of.register
def _(o: ir.Linear, weights: Mapping[str, Tensor], x: Tensor) -> Tensor:
    return F.linear(x, weights[o.weight], None if o.bias is None else weights[o.bias])


@value_of.register
def _(o: ir.Affine, weights: Mapping[str, Tensor], x: Tensor) -> Tensor:
    y = x * weights[o.weight]
    return y if o.bias is None else y + weights[o.bias]


@value_of.register
def _(o: ir.Shift, weights: Mapping[str, Tensor], x: Tensor) -> Tensor:
    return x + weights[o.bias]


@value_of.register
def _(o: ir.Relu, weights: Mapping[str, Tensor], x: Tensor) -> Tensor:
    if o.kept is None:
        return x.relu()
    kept = torch.as_tensor(o.kept)
    flat = x.flatten(1).clone()
    flat[:, kept] = flat[:, kept].relu()
    return flat.view(x.shape)


@value_of.register
def _(o: ir.PiecewiseLinear, weights: Mapping[str, Tensor], x: Tensor) -> Tensor:
    y = o.slope * x + o.offset
    for knot, jump in zip(o.knots, o.jumps, strict=True):
        y = y + jump * (x - knot).relu()
    return y


@value_of.register
def _(o: ir.AveragePool, weights: Mapping[str, Tensor], x: Tensor) -> Tensor:
    return F.avg_pool2d(x, o.kernel, o.stride, o.padding)


@value_of.register
def _(o: ir.MaxPool, weights: Mapping[str, Tensor], x: Tensor) -> Tensor:
    return F.max_pool2d(x, o.kernel, o.stride, o.padding, o.dilation)


@value_of.register
def _(o: ir.Add, weights: Mapping[str, Tensor], x: Tensor, y: Tensor) -> Tensor:
    return x + y


@value_of.register
def _(o: ir.Combine, weights: Mapping[str, Tensor], *inputs: Tensor) -> Tensor:
    # Every combination has an input, so the sum is never the bare 0 that it starts from.
    return cast(Tensor, sum(factor * x for factor, x in zip(o.factors, inputs, strict=True)))


@value_of.register
def _(o: ir.Multiply, weights: Mapping[str, Tensor], x: Tensor, y: Tensor) -> Tensor:
    return x * y


@value_of.register
def _(o: ir.Square, weights: Mapping[str, Tensor], x: Tensor) -> Tensor:
    return x * x


@value_of.register
def _(o: ir.Scale, weights: Mapping[str, Tensor], x: Tensor) -> Tensor:
    return x * o.factor


@value_of.register
def _(o: ir.Weigh, weights: Mapping[str, Tensor], x: Tensor) -> Tensor:
    return x * torch.as_tensor(o.factors)


@value_of.register
def _(o: ir.Concatenate, weights: Mapping[str, Tensor], *inputs: Tensor) -> Tensor:
    return torch.cat(inputs, o.dim)


@value_of.register
def _(o: ir.Flatten, weights: Mapping[str, Tensor], x: Tensor) -> Tensor:
    return x.flatten(o.start, o.end)


@value_of.register
def _(o: ir.Mean, weights: Mapping[str, Tensor], x: Tensor) -> Tensor:
    return x.mean(o.dims, keepdim=o.keepdim)


@value_of.register
def _(o: ir.Sum, weights: Mapping[str, Tensor], x: Tensor) -> Tensor:
    return x.sum(o.dims, keepdim=o.keepdim)


@value_of.register
def _(o: ir.Rearrange, weights: Mapping[str, Tensor], x: Tensor) -> Tensor:
    return rearranged(x, o)


def rearranged(x: Tensor, operator: ir.Rearrange) -> Tensor:
    """Returns [N, *operator.shape] from x [N, ...], a tensor of any type of number."""
    flat = x.flatten(1)
    if operator.index is not None:
        index = torch.as_tensor(operator.index)
        if (index < 0).any():
            flat = F.pad(flat, (0, 1))  # a zero at the end, to which -1 points
            index = index % flat.shape[1]
        flat = flat.index_select(1, index)
    return flat.reshape(len(x), *operator.shape)
