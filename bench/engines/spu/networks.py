"""A program in jax.numpy, as input of SPU's compiler. Only `compiler` imports it, because it needs jax.

Values are arrays [N, ...] of float32, which SPU holds in fixed point. SPU truncates after every product.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import singledispatch
from math import prod
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax import lax

from pibench.program import ir

Weights = Mapping[str, Any]
LOWEST = -(2.0**31)
"""Padding of a maximum: below every value that is admitted, and differences stay far inside the ring."""


def network(program: ir.Program, names: tuple[str, ...]) -> Callable[..., Any]:
    """Returns the function (weights in the order of `names`, image) -> logits of a program."""

    def run(*arguments: Any) -> Any:
        weights = dict(zip(names, arguments, strict=False))
        values = {program.input: arguments[-1]}
        for step in program.steps:
            values[step.name] = apply(step.operator, weights, *(values[name] for name in step.inputs))
        return values[program.output]

    return run


def layer(step: ir.Step, names: tuple[str, ...]) -> Callable[..., Any]:
    """Returns the function (weights in the order of `names`, inputs) -> value of one step."""

    def run(*arguments: Any) -> Any:
        weights = dict(zip(names, arguments, strict=False))
        return apply(step.operator, weights, *arguments[len(names) :])

    return run


@singledispatch
def apply(operator: Any, weights: Weights, *inputs: Any) -> Any:
    """Applies one operator."""
    raise TypeError(f"the SPU engines have no operator {type(operator).__name__}")


@apply.register
def _(op: ir.Convolution, weights, x):
    """Convolves groups one after the other: SPU 0.9.5 knows one group, and groups of one channel."""
    w = weights[op.weight]
    if op.groups in (1, x.shape[1]):
        y = _convolved(op, x, w, op.groups)
    else:
        parts = zip(jnp.split(x, op.groups, 1), jnp.split(w, op.groups, 0), strict=True)
        y = jnp.concatenate([_convolved(op, *part, 1) for part in parts], 1)
    return y if op.bias is None else y + weights[op.bias].reshape(1, -1, 1, 1)


def _convolved(op: ir.Convolution, x: Any, w: Any, groups: int) -> Any:
    return lax.conv_general_dilated(
        x,
        w,
        window_strides=op.stride,
        padding=[(p, p) for p in op.padding],
        rhs_dilation=op.dilation,
        dimension_numbers=("NCHW", "OIHW", "NCHW"),
        feature_group_count=groups,
    )


@apply.register
def _(op: ir.Linear, weights, x):
    y = x @ weights[op.weight].T
    return y if op.bias is None else y + weights[op.bias]


@apply.register
def _(op: ir.Affine, weights, x):
    y = x * weights[op.weight]
    return y if op.bias is None else y + weights[op.bias]


@apply.register
def _(op: ir.Shift, weights, x):
    return x + weights[op.bias]


@apply.register
def _(op: ir.Relu, weights, x):
    """Gathers what is kept, compares, and gathers back through a public permutation.

    A scatter would do the same, element by element: 70 times slower in SPU 0.9.5.
    """
    if op.kept is None:
        return jnp.maximum(x, 0)
    flat = x.reshape(x.shape[0], -1)
    kept = np.asarray(op.kept, np.int32)
    rectified = jnp.maximum(_taken(flat, kept), 0)
    place = np.arange(flat.shape[1], dtype=np.int32)
    place[kept] = flat.shape[1] + np.arange(len(kept), dtype=np.int32)
    return _taken(jnp.concatenate([flat, rectified], 1), place).reshape(x.shape)


def _taken(flat: Any, columns: np.ndarray) -> Any:
    """Gathers columns, all of which are there: without a bound that SPU would check under encryption."""
    return flat.at[:, columns].get(mode="promise_in_bounds")


@apply.register
def _(op: ir.PiecewiseLinear, weights, x):
    """Compares with all knots at once: [K, N, ...] values x - t_k."""
    knots = np.asarray(op.knots, np.float32).reshape(-1, *[1] * x.ndim)
    above = jnp.maximum(x[None] - knots, 0)
    return _combined([x, *above], (op.slope, *op.jumps)) + np.float32(op.offset)


def _combined(values: Sequence[Any], factors: Sequence[float]) -> Any:
    """Sums products with public factors: without a truncation if all are 1, -1 or 0, else with one."""
    parts = [(value, factor) for value, factor in zip(values, factors, strict=True) if factor]
    if not all(abs(factor) == 1 for _, factor in parts):
        values, factors = zip(*parts, strict=True)
        return jnp.stack(values, -1) @ np.asarray(factors, np.float32)
    total = jnp.zeros_like(values[0])
    for value, factor in parts:
        total = total + value if factor > 0 else total - value
    return total


@apply.register
def _(op: ir.Rearrange, weights, x):
    flat = x.reshape(x.shape[0], -1)
    if op.index is not None:
        index = np.asarray(op.index, np.int32)
        if (index < 0).any():
            flat = jnp.pad(flat, ((0, 0), (0, 1)))  # a zero at the end, which -1 is counted back from
            index = index % flat.shape[1]
        flat = _taken(flat, index)
    return flat.reshape(x.shape[0], *op.shape)


@apply.register
def _(op: ir.AveragePool, weights, x):
    return _sums(x, op) * np.float32(1 / prod(op.kernel))


def _sums(x: Any, op: ir.AveragePool) -> Any:
    if op.kernel == x.shape[2:] and not any(op.padding):
        return x.sum((2, 3), keepdims=True)
    window = (1, 1, *op.kernel), (1, 1, *op.stride)
    return lax.reduce_window(x, np.float32(0), lax.add, *window, _margins(op))


def _margins(op: ir.AveragePool | ir.MaxPool) -> list[tuple[int, int]]:
    return [(0, 0), (0, 0), *((p, p) for p in op.padding)]


@apply.register
def _(op: ir.MaxPool, weights, x):
    """Takes maxima of pairs of windows, so that the rounds grow with the logarithm of the window."""
    x = jnp.pad(x, _margins(op), constant_values=np.float32(LOWEST))
    (kh, kw), (sh, sw), (dh, dw) = op.kernel, op.stride, op.dilation
    high = (x.shape[2] - dh * (kh - 1) - 1) // sh + 1
    wide = (x.shape[3] - dw * (kw - 1) - 1) // sw + 1
    left = [
        x[:, :, i * dh : i * dh + sh * (high - 1) + 1 : sh, j * dw : j * dw + sw * (wide - 1) + 1 : sw]
        for i in range(kh)
        for j in range(kw)
    ]
    while len(left) > 1:
        pairs = len(left) // 2
        larger = jnp.maximum(jnp.stack(left[:pairs]), jnp.stack(left[pairs : 2 * pairs]))
        left = [*larger, *left[2 * pairs :]]
    return left[0]


@apply.register
def _(op: ir.Add, weights, x, y):
    return x + y


@apply.register
def _(op: ir.Combine, weights, *inputs):
    return _combined(inputs, op.factors)


@apply.register
def _(op: ir.Multiply, weights, x, y):
    return x * y


@apply.register
def _(op: ir.Square, weights, x):
    return x * x


@apply.register
def _(op: ir.Scale, weights, x):
    return x * np.float32(op.factor)


@apply.register
def _(op: ir.Weigh, weights, x):
    return x * np.asarray(op.factors, np.float32)


@apply.register
def _(op: ir.Concatenate, weights, *inputs):
    return jnp.concatenate(inputs, op.dim)


@apply.register
def _(op: ir.Flatten, weights, x):
    shape = x.shape
    return x.reshape(*shape[: op.start], prod(shape[op.start : op.end + 1]), *shape[op.end + 1 :])


@apply.register
def _(op: ir.Mean, weights, x):
    count = prod(x.shape[dim] for dim in op.dims)
    return x.sum(op.dims, keepdims=op.keepdim) * np.float32(1 / count)


@apply.register
def _(op: ir.Sum, weights, x):
    return x.sum(op.dims, keepdims=op.keepdim)
