"""A program in plaintext, in float64: what its steps mean, without shares and without rounding."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import singledispatch

import torch
import torch.nn.functional as F
from torch import Tensor

from pibench.program import ir


@torch.no_grad()
def evaluate(
    program: ir.Program,
    weights: Mapping[str, Tensor],
    images: Tensor,
    after: Callable[[ir.Step, Tensor], None] | None = None,
) -> Tensor:
    """Returns the output [N, ...] of `program` for `images` [N, *input_shape].

    `after` sees the value of every step.
    """
    values = {program.input: images}
    last = program.last_uses()
    for step in program.steps:
        values[step.name] = value_of(step.operator, weights, *(values[name] for name in step.inputs))
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
def _(o: ir.Convolution, weights, x):
    bias = None if o.bias is None else weights[o.bias]
    return F.conv2d(x, weights[o.weight], bias, o.stride, o.padding, o.dilation, o.groups)


@value_of.register
def _(o: ir.Linear, weights, x):
    return F.linear(x, weights[o.weight], None if o.bias is None else weights[o.bias])


@value_of.register
def _(o: ir.Affine, weights, x):
    y = x * weights[o.weight]
    return y if o.bias is None else y + weights[o.bias]


@value_of.register
def _(o: ir.Shift, weights, x):
    return x + weights[o.bias]


@value_of.register
def _(o: ir.Relu, weights, x):
    if o.kept is None:
        return x.relu()
    kept = torch.as_tensor(o.kept)
    flat = x.flatten(1).clone()
    flat[:, kept] = flat[:, kept].relu()
    return flat.view(x.shape)


@value_of.register
def _(o: ir.PiecewiseLinear, weights, x):
    y = o.slope * x + o.offset
    for knot, jump in zip(o.knots, o.jumps, strict=True):
        y = y + jump * (x - knot).relu()
    return y


@value_of.register
def _(o: ir.AveragePool, weights, x):
    return F.avg_pool2d(x, o.kernel, o.stride, o.padding)


@value_of.register
def _(o: ir.MaxPool, weights, x):
    return F.max_pool2d(x, o.kernel, o.stride, o.padding, o.dilation)


@value_of.register
def _(o: ir.Add, weights, x, y):
    return x + y


@value_of.register
def _(o: ir.Combine, weights, *inputs):
    return sum(factor * x for factor, x in zip(o.factors, inputs, strict=True))


@value_of.register
def _(o: ir.Multiply, weights, x, y):
    return x * y


@value_of.register
def _(o: ir.Square, weights, x):
    return x * x


@value_of.register
def _(o: ir.Scale, weights, x):
    return x * o.factor


@value_of.register
def _(o: ir.Weigh, weights, x):
    return x * torch.as_tensor(o.factors)


@value_of.register
def _(o: ir.Concatenate, weights, *inputs):
    return torch.cat(inputs, o.dim)


@value_of.register
def _(o: ir.Flatten, weights, x):
    return x.flatten(o.start, o.end)


@value_of.register
def _(o: ir.Mean, weights, x):
    return x.mean(o.dims, keepdim=o.keepdim)


@value_of.register
def _(o: ir.Sum, weights, x):
    return x.sum(o.dims, keepdim=o.keepdim)


@value_of.register
def _(o: ir.Rearrange, weights, x):
    return rearranged(x, o)


def rearranged(x: Tensor, operator: ir.Rearrange) -> Tensor:
    """Returns [N, *operator.shape] of x [N, ...], a tensor of any kind of number."""
    flat = x.flatten(1)
    if operator.index is not None:
        index = torch.as_tensor(operator.index)
        if (index < 0).any():
            flat = F.pad(flat, (0, 1))  # a zero at the end, which -1 is counted back from
            index = index % flat.shape[1]
        flat = flat.index_select(1, index)
    return flat.reshape(len(x), *operator.shape)
