"""A program in plaintext, in the fixed point of the lean engine: the parties' computation without parties.

The plan of `pibench.engines.lean.plan` gives the fractional bits of each value and the place of each
truncation. This module follows the same plan. Inputs and weights are rounded to the bits that it gives them
(16 on 64 bits). Sums and products are exact. A truncation by f bits gives

    t = floor((z + r) / 2^f),   r uniform in [0, 2^f).

The result is floor(z / 2^f), or one more with a probability equal to the fraction that is cut off. In the
protocol r is the low part of the dealer's mask (`lean.relu`: t = floor((z' + r) / 2^f) - floor(r / 2^f)).
Here r comes from a seeded generator. A logit of the parties and a logit of this module therefore have the
same distribution. They are the same number wherever nothing is cut off.

A value z / 2^s is held as a float64. It is exact, in any order of summation, as long as every partial sum
stays under 2^53 units of 2^-s. This is far under the 2^62 of a ring of 64 bits. Each step bounds its partial
sums from the actual inputs, and `PrecisionError` refuses a network that could exceed the bound.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import singledispatch

import torch
import torch.nn.functional as F
from torch import Tensor

from pibench.engines.lean.plan import Plan, StepPlan, make_plan
from pibench.engines.lean.ring import Ring, arithmetic
from pibench.program.fixed_point import nearest, truncated
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
    Program,
    Rearrange,
    Relu,
    Scale,
    Shift,
    Square,
    Step,
    Sum,
    Weigh,
)
from pibench.program.plaintext import rearranged

EXACT_BITS = 53
"""float64 holds every whole number up to 2^53."""


class PrecisionError(ValueError):
    """Raised when sums of a network might need more than the 53 bits of a float64."""


@dataclass(frozen=True, eq=False)
class FixedPoint:
    """A program in fixed point: its plan, and its weights rounded as the plan says."""

    plan: Plan
    weights: Mapping[str, Tensor]

    @classmethod
    def of(cls, program: Program, stored: Mapping[str, Tensor], engine: str = "lean") -> FixedPoint:
        """Rounds the weights: kernels to the bits of their step, each bias to those of its layer's output."""
        plan = make_plan(program, *arithmetic(engine))
        weights = {}
        for entry in plan.steps.values():
            operator = entry.step.operator
            if isinstance(operator, Shift):
                weights[_bias(entry)] = nearest(stored[operator.bias], entry.scale)
            elif isinstance(operator, Convolution | Linear | Affine):
                weights[_kernel(entry)] = nearest(stored[operator.weight], entry.weights)
                if operator.bias is not None:
                    weights[_bias(entry)] = nearest(stored[operator.bias], entry.scale)
        return cls(plan, weights)

    @torch.no_grad()
    def logits(
        self,
        images: Tensor,
        generator: torch.Generator,
        after: Callable[[Step, Tensor], None] | None = None,
        *,
        exact: bool = True,
    ) -> Tensor:
        """Returns float64 logits [N, classes] of `images` [N, *input_shape].

        Truncations draw from `generator`; `after` receives the value of every step. Raises PrecisionError if
        `exact` and float64 might not be exact. Without `exact`, sums beyond 53 bits lose their last bits.
        """
        ring = self.plan.ring
        run = _Run(self.weights, generator, exact, ring)
        program = self.plan.program
        values = {program.input: nearest(images, ring.fraction)}
        last = program.last_uses()
        for step in program.steps:
            entry = self.plan.steps[step.name]
            for name in entry.truncate:
                values[name] = run.truncated(values[name])
            inputs = [values[name] for name in step.inputs]
            values[step.name] = _apply(step.operator, entry, run, *inputs)
            if after is not None:
                after(step, values[step.name])
            for name in {name for name in step.inputs if last.get(name) == step.name}:
                del values[name]
        output = values[program.output]
        return run.truncated(output) if self.plan.truncate_output else output


def evaluate(
    program: Program,
    weights: Mapping[str, Tensor],
    images: Tensor,
    after: Callable[[Step, Tensor], None] | None = None,
    *,
    engine: str = "lean",
) -> Tensor:
    """Returns the output [N, ...] of one inference as the parties have it, to the precision of float64."""
    draw = torch.Generator().manual_seed(0)
    return FixedPoint.of(program, weights, engine).logits(images, draw, after, exact=False)


@dataclass(frozen=True, eq=False)
class _Run:
    """The common state of an evaluation's steps: weights, draws, whether sums must be exact, the ring."""

    weights: Mapping[str, Tensor]
    generator: torch.Generator
    exact: bool
    ring: Ring

    def truncated(self, values: Tensor) -> Tensor:
        """Rounds to the fractional bits of the ring, down or up at random."""
        return truncated(values, self.generator, self.ring.fraction)


def _bias(entry: StepPlan) -> str:
    """Returns the name of a layer's bias; two layers may share one bias at different scales."""
    return f"{entry.step.operator.bias} of {entry.step.name}"


def _kernel(entry: StepPlan) -> str:
    """Returns the name of a layer's rounded weight; two layers may share one weight at different scales."""
    return f"{entry.step.operator.weight} of {entry.step.name}"


def _largest(x: Tensor) -> float:
    low, high = x.aminmax()
    return max(-low.item(), high.item())


def _demand(run: _Run, bound: float, scale: int, entry: StepPlan) -> None:
    """Raises PrecisionError where sums must be exact and, up to `bound` in units of 2^-scale, may not be."""
    if run.exact and not bound < 2.0 ** (EXACT_BITS - scale):
        raise PrecisionError(
            f"sums of {entry.step.name!r} may reach {bound:.3g}, beyond the 2^{EXACT_BITS - scale} up to "
            f"which float64 is exact with {scale} fractional bits; normalise the network or its input"
        )


def _demand_bilinear(run: _Run, x: Tensor, weight: Tensor, bias: Tensor | None, entry: StepPlan) -> None:
    """Bounds every partial sum of a layer by max |x| times the largest sum of |w| of an output."""
    norms = weight.flatten(1).abs().sum(1)
    most = norms.max().item() * _largest(x) + (0.0 if bias is None else _largest(bias))
    _demand(run, most, entry.scale, entry)


@singledispatch
def _apply(operator: object, entry: StepPlan, run: _Run, *inputs: Tensor):
    raise NotImplementedError(
        f"there is no fixed-point evaluation of {entry.step.kind!r} (step {entry.step.name!r}); "
        "add one to bench/engines/lean/plaintext.py"
    )


@_apply.register
def _(o: Convolution, entry, run, x):
    weight, bias = run.weights[_kernel(entry)], None if o.bias is None else run.weights[_bias(entry)]
    _demand_bilinear(run, x, weight, bias, entry)
    return F.conv2d(x, weight, bias, o.stride, o.padding, o.dilation, o.groups)


@_apply.register
def _(o: Linear, entry, run, x):
    weight, bias = run.weights[_kernel(entry)], None if o.bias is None else run.weights[_bias(entry)]
    _demand_bilinear(run, x, weight, bias, entry)
    return F.linear(x, weight, bias)


@_apply.register
def _(o: Relu, entry, run, x):
    if o.kept is not None and o.kept.size == 0:
        return x
    if o.kept is None:
        y = x.relu()
    else:
        flat, kept = x.flatten(1).clone(), torch.from_numpy(o.kept)
        flat[:, kept] = flat[:, kept].relu()
        y = flat.view_as(x)
    return run.truncated(y) if entry.scales[0] > run.ring.fraction else y


def _mean(run: _Run, total: Tensor, x: Tensor, window: int, entry: StepPlan) -> Tensor:
    """Returns the sum times 1 / window, as the plan rounds this factor."""
    _demand(run, window * _largest(x), entry.scales[0], entry)
    mean = total * (entry.factor * 2.0 ** (entry.scales[0] - entry.scale))
    _demand(run, _largest(mean), entry.scale, entry)
    return mean


@_apply.register
def _(o: AveragePool, entry, run, x):
    total = F.avg_pool2d(x, o.kernel, o.stride, o.padding, divisor_override=1)
    return _mean(run, total, x, o.kernel[0] * o.kernel[1], entry)


@_apply.register
def _(o: Mean, entry, run, x):
    return _mean(run, x.sum(o.dims, keepdim=o.keepdim), x, entry.step.input_size // entry.step.size, entry)


@_apply.register
def _(o: MaxPool, entry, run, x):
    return F.max_pool2d(x, o.kernel, o.stride, o.padding, o.dilation)


@_apply.register
def _(o: Add, entry, run, x, y):
    _demand(run, _largest(x) + _largest(y), entry.scale, entry)
    return x + y


@_apply.register
def _(o: Multiply, entry, run, x, y):
    _demand(run, _largest(x) * _largest(y), entry.scale, entry)
    return x * y


@_apply.register
def _(o: Square, entry, run, x):
    _demand(run, _largest(x) ** 2, entry.scale, entry)
    return x * x


@_apply.register
def _(o: Scale, entry, run, x):
    factor = entry.factor * 2.0 ** (entry.scales[0] - entry.scale)
    _demand(run, _largest(x) * abs(factor), entry.scale, entry)
    return x * factor


@_apply.register
def _(o: Concatenate, entry, run, *inputs):
    return torch.cat(inputs, o.dim)


@_apply.register
def _(o: Flatten, entry, run, x):
    return x.flatten(o.start, o.end)


@_apply.register
def _(o: Rearrange, entry, run, x):
    return rearranged(x, o)


@_apply.register
def _(o: Sum, entry, run, x):
    _demand(run, entry.step.input_size // entry.step.size * _largest(x), entry.scale, entry)
    return x.sum(o.dims, keepdim=o.keepdim)


@_apply.register
def _(o: Shift, entry, run, x):
    shift = run.weights[_bias(entry)]
    _demand(run, _largest(x) + _largest(shift), entry.scale, entry)
    return x + shift


@_apply.register
def _(o: Affine, entry, run, x):
    weight, bias = run.weights[_kernel(entry)], None if o.bias is None else run.weights[_bias(entry)]
    most = _largest(weight) * _largest(x) + (0.0 if bias is None else _largest(bias))
    _demand(run, most, entry.scale, entry)
    return x * weight if bias is None else x * weight + bias


@_apply.register
def _(o: Weigh, entry, run, x):
    factors = nearest(torch.as_tensor(o.factors), entry.scale - entry.scales[0])
    _demand(run, _largest(x) * _largest(factors), entry.scale, entry)
    return x * factors


@_apply.register
def _(o: Combine, entry, run, *inputs):
    bits = entry.scale - max(entry.scales)
    factors = [factor * 2.0**-bits for factor in entry.factors]
    most = sum(abs(factor) * _largest(x) for factor, x in zip(factors, inputs, strict=True))
    _demand(run, most, entry.scale, entry)
    return sum(factor * x for factor, x in zip(factors, inputs, strict=True))


@_apply.register
def _(o: PiecewiseLinear, entry, run, x):
    scale = entry.scales[0]
    knots = nearest(torch.tensor(o.knots), scale)
    base = run.ring.fraction
    slope, *jumps = (factor * 2.0 ** (base - entry.scale) for factor in entry.factors)
    most = _largest(x) + _largest(knots)
    _demand(run, most, scale, entry)
    _demand(run, most * (abs(slope) + sum(map(abs, jumps))) + abs(o.offset), entry.scale, entry)
    positive = (x - knots.view(-1, *[1] * x.dim())).relu_()
    if scale > base:
        positive = run.truncated(positive)
        x = run.truncated(x) if slope else x
    y = slope * x + nearest(torch.tensor(o.offset, dtype=torch.float64), entry.scale)
    for jump, part in zip(jumps, positive, strict=True):
        y += jump * part
    return y
