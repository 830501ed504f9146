"""The plan of a program: the gadgets (the protocols that talk) and scales of each step, before any run.

Every tensor carries its scale, the number of its fractional bits. A value v is the ring element z = round(v
2^scale). |z| < 2^62 must hold, so |v| < 2^(62 - scale): 2^30 at the scale of a product (32), 2^28 at the
scale of a Winograd convolution (34). `value_limits` returns the bound of every value.

- A ReLU takes any scale and returns 16.
- Sums align scales by shifting left.
- Pooling by 2^b adds b to the scale. It is a sum without a product, and exact.
- Linear layers accept up to `LINEAR_LIMIT` bits without truncation, so that average pooling before the
  classifier costs nothing.
- Other consumers truncate first, and only when they must. A value is truncated at most once.

Party, dealer and cost model read the same plan, so they always agree about the needs of a step.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import singledispatch
from math import ceil, log2, prod

import torch

from pibench.engines.lean.linear import lowering
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

BASE = 16
"""Fractional bits of inputs, weights, ReLU outputs and logits."""
LINEAR_LIMIT = 24
"""A linear layer takes inputs of at most this scale without truncation."""
VALUE_LIMIT = 40
"""No value has a larger scale than this."""
OPENING = "(open)"
"""Key of the plan entry that ends a run."""


@dataclass(frozen=True)
class Truncation:
    """Computes floor(z / 2^shift) for `count` elements an image."""

    count: int
    shift: int
    rounds = 1


@dataclass(frozen=True)
class Rectification:
    """Computes the ReLU of `kept` elements an image and truncates them by `shift`, if that is not 0.

    `linear` more elements are only truncated.
    """

    kept: int
    linear: int
    shift: int
    rounds = 5


@dataclass(frozen=True)
class Bilinear:
    """A product with the fixed weights of `step`, with `count` inputs and `outputs` outputs an image."""

    step: Step
    count: int
    outputs: int
    rounds = 1


@dataclass(frozen=True)
class Beaver:
    """Products of `count` pairs of secrets an image, or squares if `operands` is 1."""

    count: int
    operands: int
    rounds = 1


@dataclass(frozen=True)
class Broadcast:
    """Products of two secrets, the second repeated to the shape of the first (both without the batch)."""

    shape: tuple[int, ...]
    smaller: tuple[int, ...]
    rounds = 1

    @property
    def counts(self) -> tuple[int, int]:
        """The elements an image of both factors."""
        return prod(self.shape), prod(self.smaller)


@dataclass(frozen=True)
class Opening:
    """The opening of `count` logits an image, sent by party 0 to party 1 alone."""

    count: int
    rounds = 1


Gadget = Truncation | Rectification | Bilinear | Beaver | Broadcast | Opening


@dataclass(frozen=True, eq=False)
class StepPlan:
    """A step with its gadgets in the order of their use.

    `truncate` names the inputs that the first gadgets truncate. `scales` are the inputs' scales after that.
    `factor` is the public multiplier of pooling and scaling. `factors` are those of a sum, or of a piecewise
    linear function (slope, then jumps). `kept` are the positions that a masked ReLU evaluates, and `rest` the
    positions that it leaves linear.
    """

    step: Step
    gadgets: tuple[Gadget, ...]
    truncate: tuple[str, ...]
    scales: tuple[int, ...]
    scale: int
    factor: int = 1
    factors: tuple[int, ...] = ()
    kept: torch.Tensor | None = None
    rest: torch.Tensor | None = None


@dataclass(frozen=True, eq=False)
class Plan:
    """The plans of all steps, by name, and of the opening."""

    program: Program
    steps: dict[str, StepPlan]
    truncate_output: bool
    opening: tuple[Gadget, ...]

    def gadgets(self) -> list[tuple[str, Gadget]]:
        """Returns all gadgets in the order of their use, each with the key under which a run asks for it."""
        listed = [(name, gadget) for name, plan in self.steps.items() for gadget in plan.gadgets]
        return listed + [(OPENING, gadget) for gadget in self.opening]


class _Scales:
    """The scales of values while the steps are planned in order."""

    def __init__(self, program: Program) -> None:
        self.of = {program.input: BASE}
        self.size = {program.input: prod(program.input_shape)}
        self.truncated: list[str] = []
        self.gadgets: list[Gadget] = []

    def at_most(self, limit: int, *names: str) -> list[int]:
        """Truncates the values whose scale is above `limit` to 16; returns the scales of `names`."""
        for name in names:
            if self.of[name] > limit:
                self.gadgets.append(Truncation(self.size[name], self.of[name] - BASE))
                self.truncated.append(name)
                self.of[name] = BASE
        return [self.of[name] for name in names]


def make_plan(program: Program) -> Plan:
    """Plans every step of the program."""
    scales = _Scales(program)
    steps: dict[str, StepPlan] = {}
    for step in program.steps:
        scales.truncated, scales.gadgets = [], []
        made = _plan(step.operator, step, scales)
        steps[step.name] = StepPlan(
            step=step,
            gadgets=tuple(scales.gadgets),
            truncate=tuple(scales.truncated),
            scales=tuple(scales.of[name] for name in step.inputs),
            **made,
        )
        scales.of[step.name] = made["scale"]
        scales.size[step.name] = step.size
    scales.truncated, scales.gadgets = [], []
    scales.at_most(BASE, program.output)
    scales.gadgets.append(Opening(scales.size[program.output]))
    return Plan(program, steps, bool(scales.truncated), tuple(scales.gadgets))


def value_limits(program: Program) -> dict[str, float]:
    """Maps each value to its bound 2^(62 - scale): the absolute value must stay below it."""
    plan = make_plan(program)
    limits = {program.input: 2.0 ** (62 - BASE)}
    return limits | {name: 2.0 ** (62 - entry.scale) for name, entry in plan.steps.items()}


@singledispatch
def _plan(operator: object, step: Step, scales: _Scales) -> dict:
    raise NotImplementedError(
        f"the lean engine has no protocol for {step.kind!r} (step {step.name!r}); "
        "add one to bench/engines/lean or run this network with engine='stock'"
    )


@_plan.register(Convolution)
@_plan.register(Linear)
@_plan.register(Affine)
def _(operator, step, scales):
    gain = lowering(step).gain
    (scale,) = scales.at_most(min(LINEAR_LIMIT, VALUE_LIMIT - BASE - gain), *step.inputs)
    scales.gadgets.append(Bilinear(step, step.input_size, step.size))
    return {"scale": scale + BASE + gain}


@_plan.register
def _(operator: Relu, step, scales):
    scale = scales.of[step.inputs[0]]
    if operator.kept is None:
        kept = rest = None
        count = step.size
    else:
        kept = torch.from_numpy(operator.kept)
        linear = torch.ones(step.size, dtype=torch.bool)
        linear[kept] = False
        rest = linear.nonzero().flatten()
        count = kept.numel()
        if count == 0:
            return {"scale": scale, "kept": kept, "rest": rest}
        if count == step.size:
            kept = rest = None
    shift = scale - BASE
    scales.gadgets.append(Rectification(count, step.size - count if shift else 0, shift))
    return {"scale": BASE, "kept": kept, "rest": rest}


def _encoded(factors: Iterable[float], integer: bool) -> tuple[int, tuple[int, ...]]:
    """Returns the fractional bits that factors need (none for whole numbers), and the encoded factors."""
    bits = 0 if integer else BASE
    return bits, tuple(round(factor * 2**bits) for factor in factors)


@_plan.register
def _(operator: PiecewiseLinear, step, scales):
    """Plans all knots at once; where the slope needs x itself, x is truncated in the same rounds."""
    shift = scales.of[step.inputs[0]] - BASE
    linear = step.size if shift and operator.slope else 0
    scales.gadgets.append(Rectification(len(operator.knots) * step.size, linear, shift))
    bits, factors = _encoded((operator.slope, *operator.jumps), operator.integer)
    return {"scale": BASE + bits, "factors": factors}


@_plan.register
def _(operator: Combine, step, scales):
    bits, factors = _encoded(operator.factors, operator.integer)
    used = scales.at_most(VALUE_LIMIT - bits, *dict.fromkeys(step.inputs))
    return {"scale": max(used) + bits, "factors": factors}


def _mean(name: str, window: int, scales: _Scales) -> dict:
    """Returns b more fractional bits if window = 2^b, else a rounded 1 / window of relative error < 2^-17."""
    exact = window & (window - 1) == 0
    bits = ceil(log2(window)) + (0 if exact else BASE)
    (scale,) = scales.at_most(VALUE_LIMIT - bits, name)
    return {"scale": scale + bits, "factor": 1 if exact else round(2**bits / window)}


@_plan.register
def _(operator: AveragePool, step, scales):
    return _mean(step.inputs[0], prod(operator.kernel), scales)


@_plan.register
def _(operator: Mean, step, scales):
    return _mean(step.inputs[0], step.input_size // step.size, scales)


@_plan.register
def _(operator: MaxPool, step, scales):
    left = prod(operator.kernel)
    while left > 1:
        pairs = left // 2
        scales.gadgets.append(Rectification(pairs * step.size, 0, 0))
        left -= pairs
    return {"scale": scales.of[step.inputs[0]]}


@_plan.register(Add)
@_plan.register(Concatenate)
def _(operator, step, scales):
    return {"scale": max(scales.of[name] for name in step.inputs)}


@_plan.register(Multiply)
@_plan.register(Square)
def _(operator, step, scales):
    used = scales.at_most(VALUE_LIMIT // 2, *step.inputs)
    if len(set(step.input_shapes)) > 1:
        scales.gadgets.append(Broadcast(*step.input_shapes))
    else:
        scales.gadgets.append(Beaver(step.size, operands=len(step.inputs)))
    return {"scale": sum(used) if len(used) == 2 else 2 * used[0]}


@_plan.register
def _(operator: Scale, step, scales):
    (scale,) = scales.at_most(VALUE_LIMIT - BASE, *step.inputs)
    return {"scale": scale + BASE, "factor": round(operator.factor * 2**BASE)}


@_plan.register
def _(operator: Weigh, step, scales):
    bits = 0 if operator.integer else BASE
    (scale,) = scales.at_most(VALUE_LIMIT - bits, *step.inputs)
    return {"scale": scale + bits}


@_plan.register(Flatten)
@_plan.register(Rearrange)
@_plan.register(Shift)
@_plan.register(Sum)
def _(operator, step, scales):
    return {"scale": scales.of[step.inputs[0]]}
