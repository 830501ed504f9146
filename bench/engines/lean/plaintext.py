"""A program in plaintext, in the fixed point of the lean engine: the parties' computation without parties.

The plan of `pibench.engines.lean.plan` gives the fractional bits of each value and the place of each
truncation. This module follows the same plan. Inputs and weights are rounded to 16 fractional bits. Sums and
products are exact. A truncation by f bits gives

    t = floor((z + r) / 2^f),   r uniform in [0, 2^f).

The result is floor(z / 2^f), or one more with a probability equal to the fraction that is cut off. In the
protocol r is the low part of the dealer's mask (`lean.relu`: t = floor((z' + r) / 2^f) - floor(r / 2^f)).
Here r comes from a seeded generator. A logit of the parties and a logit of this module therefore have the
same distribution. They are the same number wherever nothing is cut off.

A value z / 2^s is held as a float64. It is exact, in any order of summation, as long as every partial sum
stays under 2^53 units of 2^-s. This is far under the 2^62 of the ring. Each step bounds its partial sums from
the actual inputs, and `PrecisionError` refuses a network that could exceed the bound.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import singledispatch

import torch
import torch.nn.functional as F
from torch import Tensor

from pibench.engines.lean.plan import BASE, Plan, StepPlan, make_plan
from pibench.program.ir import (
    Add,
    Affine,
    AveragePool,
    Combine,
    Concatenate,
    Convolution,
    Flatten,
    Linear,
    MaxPool,
    Mean,
    Multiply,
    PiecewiseLinear,
    Rearrange,
    Relu,
    Scale,
    Shift,
    Square,
    Sum,
    Weigh,
)
from pibench.program.lower import Lowered
from pibench.program.plaintext import rearranged

EXACT_BITS = 53
"""float64 holds every whole number up to 2^53."""


class PrecisionError(ValueError):
    """Raised when sums of a network might need more than the 53 bits of a float64."""


def rounded(values: Tensor, scale: int = BASE) -> Tensor:
    """Returns the nearest multiples of 2^-scale as float64, like the values that the parties share."""
    return torch.round(values.detach().to(torch.float64) * 2.0**scale) * 2.0**-scale


@dataclass(frozen=True, eq=False)
class FixedPoint:
    """A lowered network in fixed point: its plan, and its weights rounded as the plan says."""

    plan: Plan
    weights: Mapping[str, Tensor]

    @classmethod
    def of(cls, lowered: Lowered) -> FixedPoint:
        """Rounds the weights: kernels to 16 fractional bits, each bias to the bits of its layer's output."""
        plan = make_plan(lowered.program)
        weights = {}
        for entry in plan.steps.values():
            operator = entry.step.operator
            if isinstance(operator, Shift):
                weights[_bias(entry)] = rounded(lowered.weights[operator.bias], entry.scale)
            elif isinstance(operator, Convolution | Linear | Affine):
                weights[operator.weight] = rounded(lowered.weights[operator.weight])
                if operator.bias is not None:
                    weights[_bias(entry)] = rounded(lowered.weights[operator.bias], entry.scale)
        return cls(plan, weights)

    @torch.no_grad()
    def logits(self, images: Tensor, generator: torch.Generator) -> Tensor:
        """Returns float64 logits [N, classes] of `images` [N, *input_shape].

        Truncations draw from `generator`. Raises PrecisionError where float64 might not be exact.
        """
        program = self.plan.program
        values = {program.input: rounded(images)}
        last = program.last_uses()
        for step in program.steps:
            entry = self.plan.steps[step.name]
            for name in entry.truncate:
                values[name] = truncated(values[name], generator)
            inputs = [values[name] for name in step.inputs]
            values[step.name] = _apply(step.operator, entry, self.weights, generator, *inputs)
            for name in {name for name in step.inputs if last.get(name) == step.name}:
                del values[name]
        output = values[program.output]
        return truncated(output, generator) if self.plan.truncate_output else output


def truncated(values: Tensor, generator: torch.Generator) -> Tensor:
    """Returns `values`, multiples of 2^-s for s <= 40, rounded to 16 fractional bits, down or up at random.

    torch draws 24 bits for a float32. No more than 24 bits are cut off, so the probabilities are exact.
    """
    up = torch.rand(values.shape, generator=generator, dtype=torch.float32)
    return values.mul(2.0**BASE).add_(up).floor_().mul_(2.0**-BASE)


def _bias(entry: StepPlan) -> str:
    """Returns the name of a layer's bias; two layers may share one bias at different scales."""
    return f"{entry.step.operator.bias} of {entry.step.name}"


def _largest(x: Tensor) -> float:
    low, high = x.aminmax()
    return max(-low.item(), high.item())


def _demand(bound: float, scale: int, entry: StepPlan) -> None:
    """Raises PrecisionError unless sums up to `bound`, in units of 2^-scale, are exact."""
    if not bound < 2.0 ** (EXACT_BITS - scale):
        raise PrecisionError(
            f"sums of {entry.step.name!r} may reach {bound:.3g}, beyond the 2^{EXACT_BITS - scale} up to "
            f"which float64 is exact with {scale} fractional bits; normalise the network or its input"
        )


def _demand_bilinear(x: Tensor, weight: Tensor, bias: Tensor | None, entry: StepPlan) -> None:
    """Bounds every partial sum of a layer by max |x| times the largest sum of |w| of an output."""
    norms = weight.flatten(1).abs().sum(1)
    most = norms.max().item() * _largest(x) + (0.0 if bias is None else _largest(bias))
    _demand(most, entry.scale, entry)


@singledispatch
def _apply(operator: object, entry: StepPlan, weights: Mapping, generator: torch.Generator, *inputs: Tensor):
    raise NotImplementedError(
        f"there is no fixed-point evaluation of {entry.step.kind!r} (step {entry.step.name!r}); "
        "add one to bench/engines/lean/plaintext.py"
    )


@_apply.register
def _(o: Convolution, entry, weights, generator, x):
    weight, bias = weights[o.weight], None if o.bias is None else weights[_bias(entry)]
    _demand_bilinear(x, weight, bias, entry)
    return F.conv2d(x, weight, bias, o.stride, o.padding, o.dilation, o.groups)


@_apply.register
def _(o: Linear, entry, weights, generator, x):
    weight, bias = weights[o.weight], None if o.bias is None else weights[_bias(entry)]
    _demand_bilinear(x, weight, bias, entry)
    return F.linear(x, weight, bias)


@_apply.register
def _(o: Relu, entry, weights, generator, x):
    if o.kept is not None and o.kept.size == 0:
        return x
    if o.kept is None:
        y = x.relu()
    else:
        flat, kept = x.flatten(1).clone(), torch.from_numpy(o.kept)
        flat[:, kept] = flat[:, kept].relu()
        y = flat.view_as(x)
    return truncated(y, generator) if entry.scales[0] > BASE else y


def _mean(total: Tensor, x: Tensor, window: int, entry: StepPlan) -> Tensor:
    """Returns the sum times 1 / window, as the plan rounds this factor."""
    _demand(window * _largest(x), entry.scales[0], entry)
    mean = total * (entry.factor * 2.0 ** (entry.scales[0] - entry.scale))
    _demand(_largest(mean), entry.scale, entry)
    return mean


@_apply.register
def _(o: AveragePool, entry, weights, generator, x):
    total = F.avg_pool2d(x, o.kernel, o.stride, o.padding, divisor_override=1)
    return _mean(total, x, o.kernel[0] * o.kernel[1], entry)


@_apply.register
def _(o: Mean, entry, weights, generator, x):
    return _mean(x.sum(o.dims, keepdim=o.keepdim), x, entry.step.input_size // entry.step.size, entry)


@_apply.register
def _(o: MaxPool, entry, weights, generator, x):
    return F.max_pool2d(x, o.kernel, o.stride, o.padding, o.dilation)


@_apply.register
def _(o: Add, entry, weights, generator, x, y):
    _demand(_largest(x) + _largest(y), entry.scale, entry)
    return x + y


@_apply.register
def _(o: Multiply, entry, weights, generator, x, y):
    _demand(_largest(x) * _largest(y), entry.scale, entry)
    return x * y


@_apply.register
def _(o: Square, entry, weights, generator, x):
    _demand(_largest(x) ** 2, entry.scale, entry)
    return x * x


@_apply.register
def _(o: Scale, entry, weights, generator, x):
    factor = entry.factor * 2.0**-BASE
    _demand(_largest(x) * abs(factor), entry.scale, entry)
    return x * factor


@_apply.register
def _(o: Concatenate, entry, weights, generator, *inputs):
    return torch.cat(inputs, o.dim)


@_apply.register
def _(o: Flatten, entry, weights, generator, x):
    return x.flatten(o.start, o.end)


@_apply.register
def _(o: Rearrange, entry, weights, generator, x):
    return rearranged(x, o)


@_apply.register
def _(o: Sum, entry, weights, generator, x):
    _demand(entry.step.input_size // entry.step.size * _largest(x), entry.scale, entry)
    return x.sum(o.dims, keepdim=o.keepdim)


@_apply.register
def _(o: Shift, entry, weights, generator, x):
    shift = weights[_bias(entry)]
    _demand(_largest(x) + _largest(shift), entry.scale, entry)
    return x + shift


@_apply.register
def _(o: Affine, entry, weights, generator, x):
    weight, bias = weights[o.weight], None if o.bias is None else weights[_bias(entry)]
    most = _largest(weight) * _largest(x) + (0.0 if bias is None else _largest(bias))
    _demand(most, entry.scale, entry)
    return x * weight if bias is None else x * weight + bias


@_apply.register
def _(o: Weigh, entry, weights, generator, x):
    factors = rounded(torch.as_tensor(o.factors), entry.scale - entry.scales[0])
    _demand(_largest(x) * _largest(factors), entry.scale, entry)
    return x * factors


@_apply.register
def _(o: Combine, entry, weights, generator, *inputs):
    bits = entry.scale - max(entry.scales)
    factors = [factor * 2.0**-bits for factor in entry.factors]
    most = sum(abs(factor) * _largest(x) for factor, x in zip(factors, inputs, strict=True))
    _demand(most, entry.scale, entry)
    return sum(factor * x for factor, x in zip(factors, inputs, strict=True))


@_apply.register
def _(o: PiecewiseLinear, entry, weights, generator, x):
    scale = entry.scales[0]
    knots = rounded(torch.tensor(o.knots), scale)
    slope, *jumps = (factor * 2.0 ** (BASE - entry.scale) for factor in entry.factors)
    most = _largest(x) + _largest(knots)
    _demand(most, scale, entry)
    _demand(most * (abs(slope) + sum(map(abs, jumps))) + abs(o.offset), entry.scale, entry)
    positive = (x - knots.view(-1, *[1] * x.dim())).relu_()
    if scale > BASE:
        positive = truncated(positive, generator)
        x = truncated(x, generator) if slope else x
    y = slope * x + rounded(torch.tensor(o.offset, dtype=torch.float64), entry.scale)
    for jump, part in zip(jumps, positive, strict=True):
        y += jump * part
    return y
