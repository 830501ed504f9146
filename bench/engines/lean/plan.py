"""The plan of a program: the gadgets (the protocols that talk) and scales of each step, before any run.

Every tensor carries its scale, the number of its fractional bits. A value v is the ring element z = round(v
2^scale). |z| < 2^(l - 2) must hold for words of l bits. On 64 bits therefore |v| < 2^30 at the scale of a
product (32), and 2^28 at the scale of a Winograd convolution (34). `value_limits` returns the bound of every
value.

- A ReLU takes any scale and returns the ring's `fraction`: 16 bits on 64, 10 to 8 on 32.
- Sums align scales by shifting left.
- Pooling by 2^b adds b to the scale. It is a sum without a product, and exact.
- Linear layers accept some more bits without truncation, so that average pooling before the classifier costs
  nothing.
- Other consumers truncate first, and only when they must. A value is truncated at most once.

On 64 bits the largest scales are constants. On 32 bits they come from the program's `bounds`: a value that
stays below 2^b may have l - 2 - b - headroom fractional bits. A layer whose output leaves no room for all
fractional bits of its weights gets fewer of them.

Party, dealer and cost model read the same plan, so they always agree about the needs of a step.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import singledispatch
from math import ceil, log2, prod

import torch

from pibench.engines.lean.kernels import POSITIONS
from pibench.engines.lean.linear import lowering
from pibench.engines.lean.ring import WIDE, Ring
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

LINEAR_LIMIT = 24
"""On 64 bits a linear layer takes inputs of at most this scale without truncation."""
VALUE_LIMIT = 40
"""On 64 bits no value has a larger scale than this."""
COMPARE_HEADROOM = 2
"""Bits that a comparison looks at above the bound of its values and their sign."""
LEAST_WEIGHTS = 9
"""Weights never have fewer fractional bits than this."""
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

    `linear` more elements are only truncated. A comparison looks at the `positions` lowest bits.
    """

    kept: int
    linear: int
    shift: int
    positions: int = 64

    @property
    def rounds(self) -> int:
        """Five; a small carry tree has a level less."""
        return 5 if self.positions > 16 else 4


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
    `weights` are the fractional bits of stored weights. `factor` is the public multiplier of pooling and
    scaling. `factors` are those of a sum, or of a piecewise linear function (slope, then jumps). `kept` are
    the positions that a masked ReLU evaluates, and `rest` the positions that it leaves linear.
    """

    step: Step
    gadgets: tuple[Gadget, ...]
    truncate: tuple[str, ...]
    scales: tuple[int, ...]
    scale: int
    weights: int = 0
    factor: int = 1
    factors: tuple[int, ...] = ()
    kept: torch.Tensor | None = None
    rest: torch.Tensor | None = None

    @property
    def positions(self) -> int:
        """The low bits that the step's comparisons look at."""
        return next(gadget.positions for gadget in self.gadgets if isinstance(gadget, Rectification))


@dataclass(frozen=True, eq=False)
class Plan:
    """The plans of all steps, by name, and of the opening."""

    program: Program
    ring: Ring
    steps: dict[str, StepPlan]
    truncate_output: bool
    opening: tuple[Gadget, ...]

    def gadgets(self) -> list[tuple[str, Gadget]]:
        """Returns all gadgets in the order of their use, each with the key under which a run asks for it."""
        listed = [(name, gadget) for name, plan in self.steps.items() for gadget in plan.gadgets]
        return listed + [(OPENING, gadget) for gadget in self.opening]


class _Scales:
    """The scales of values while the steps are planned in order."""

    def __init__(self, program: Program, ring: Ring, compare: bool) -> None:
        if (compare or ring.headroom is not None) and not program.bounds:
            what = "a comparison of few bits" if ring.headroom is None else f"a ring of {ring.bits} bits"
            raise ValueError(f"{what} needs a program with calibrated bounds of its values")
        self.ring = ring
        self.base = ring.fraction
        self.compare = compare
        self.of = {program.input: self.base}
        self.size = {program.input: prod(program.input_shape)}
        self.truncated: list[str] = []
        self.gadgets: list[Gadget] = []
        self._bounds = program.bounds
        self._rooms: dict[str, int] = {}
        if ring.headroom is not None:
            for step in reversed(program.steps):
                if isinstance(step.operator, Add | Combine | Concatenate | Flatten | Rearrange | Shift):
                    room = self.room(step.name)
                    self._rooms |= {name: min(self.room(name), room) for name in step.inputs}

    def room(self, name: str) -> int:
        """Returns the largest scale with which a value and the sums that it is a part of have room."""
        return self._rooms.get(name, self.limit(name))

    def limit(self, name: str) -> int:
        """Returns the largest scale that a value may have."""
        if self.ring.headroom is None:
            return VALUE_LIMIT
        return self.ring.top - self.ring.headroom - self._bounds[name]

    def positions(self, name: str, scale: int, more: int = 0) -> int:
        """Returns how many low bits decide the sign of a value, up to `more` bits larger than its bound."""
        if not self.compare:
            return self.ring.bits
        needed = scale + self._bounds[name] + more + COMPARE_HEADROOM + 1
        return next((bits for bits in POSITIONS if needed <= bits <= self.ring.bits), self.ring.bits)

    def at_most(self, limit: int, *names: str) -> list[int]:
        """Truncates the values whose scale is above `limit`; returns the scales of `names`."""
        for name in names:
            if self.of[name] > max(limit, self.base):
                self.gadgets.append(Truncation(self.size[name], self.of[name] - self.base))
                self.truncated.append(name)
                self.of[name] = self.base
        return [self.of[name] for name in names]


def make_plan(program: Program, ring: Ring = WIDE, compare: bool = False) -> Plan:
    """Plans every step of the program.

    With `compare` a comparison looks only at as many bits as the program's bounds and the ring's headroom
    need. `Plan.ring` has the fractional bits that fit. Raises ValueError for bounds that the ring cannot hold
    with the fewest, naming the step, and for none at all.
    """
    try:
        return _plan_all(program, ring, compare)
    except _TooLargeError:
        if ring.least is None or ring.fraction <= ring.least:
            raise
        return make_plan(program, replace(ring, fraction=ring.fraction - 1), compare)


class _TooLargeError(ValueError):
    """A value leaves no room for the fractional bits of a ring."""


def _plan_all(program: Program, ring: Ring, compare: bool) -> Plan:
    scales = _Scales(program, ring, compare)
    steps: dict[str, StepPlan] = {}
    for step in program.steps:
        scales.truncated, scales.gadgets = [], []
        made = _plan(step.operator, step, scales)
        if made["scale"] > scales.limit(step.name):
            raise _too_large(step, scales, made["scale"])
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
    scales.at_most(scales.base, program.output)
    scales.gadgets.append(Opening(scales.size[program.output]))
    return Plan(program, ring, steps, bool(scales.truncated), tuple(scales.gadgets))


def _too_large(step: Step, scales: _Scales, scale: int) -> _TooLargeError:
    return _TooLargeError(
        f"step {step.name!r} has values that need {scale - scales.limit(step.name)} more bits than a ring of "
        f"{scales.ring.bits} bits has: scale the network down before this layer"
    )


def value_limits(program: Program, ring: Ring = WIDE, compare: bool = False) -> dict[str, float]:
    """Maps each value to its bound 2^(l - 2 - scale): the absolute value must stay below it.

    Where a comparison looks at k bits only, its operand must stay below 2^(k - 1 - scale).
    """
    plan = make_plan(program, ring, compare)
    limits = {program.input: 2.0 ** (ring.top - plan.ring.fraction)}
    limits |= {name: 2.0 ** (ring.top - entry.scale) for name, entry in plan.steps.items()}
    for entry in plan.steps.values():
        if any(isinstance(gadget, Rectification) for gadget in entry.gadgets):
            (name,) = entry.step.inputs
            # The operand of a maximum or of a knot is a difference, up to twice as large as the values.
            spare = 0 if isinstance(entry.step.operator, Relu) else 1
            held = entry.positions - 1 - spare - entry.scales[0]
            limits[name] = min(limits[name], 2.0**held)
    return limits


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
    weights = scales.ring.weights
    if scales.ring.headroom is None:
        (scale,) = scales.at_most(min(LINEAR_LIMIT, VALUE_LIMIT - weights - gain), *step.inputs)
    else:
        room = scales.limit(step.name) - gain
        (scale,) = scales.at_most(room - LEAST_WEIGHTS, *step.inputs)
        within_sums = max(LEAST_WEIGHTS, scales.room(step.name) - gain - scale)  # else a sum truncates it
        weights = min(weights, room - scale, within_sums)
        if weights < LEAST_WEIGHTS:
            raise _too_large(step, scales, scale + LEAST_WEIGHTS + gain)
    scales.gadgets.append(Bilinear(step, step.input_size, step.size))
    return {"scale": scale + weights + gain, "weights": weights}


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
    shift = scale - scales.base
    positions = scales.positions(step.inputs[0], scale)
    scales.gadgets.append(Rectification(count, step.size - count if shift else 0, shift, positions))
    return {"scale": scales.base, "kept": kept, "rest": rest}


def _encoded(factors: Iterable[float], integer: bool, room: int) -> tuple[int, tuple[int, ...]]:
    """Returns the fractional bits of factors (whole numbers: none, else `room`) and the encoded factors."""
    bits = 0 if integer else room
    return bits, tuple(round(factor * 2**bits) for factor in factors)


@_plan.register
def _(operator: PiecewiseLinear, step, scales):
    """Plans all knots at once; where the slope needs x itself, x is truncated in the same rounds."""
    (name,) = step.inputs
    scale = scales.of[name]
    shift = scale - scales.base
    linear = step.size if shift and operator.slope else 0
    count = len(operator.knots) * step.size
    # The knots lie among the values; a difference to one is at most twice as large as they or it.
    more = 1 + max(0, ceil(log2(max(1.0, *map(abs, operator.knots)))))
    scales.gadgets.append(Rectification(count, linear, shift, scales.positions(name, scale, more)))
    room = min(scales.ring.weights, scales.limit(step.name) - scales.base)
    bits, factors = _encoded((operator.slope, *operator.jumps), operator.integer, room)
    return {"scale": scales.base + bits, "factors": factors}


@_plan.register
def _(operator: Combine, step, scales):
    limit = scales.limit(step.name)
    bits, factors = _encoded(
        operator.factors, operator.integer, min(scales.ring.weights, limit - scales.base)
    )
    used = scales.at_most(limit - bits, *dict.fromkeys(step.inputs))
    return {"scale": max(used) + bits, "factors": factors}


def _mean(step: Step, window: int, scales: _Scales) -> dict:
    """Returns b more fractional bits if window = 2^b, else a rounded 1 / window.

    Its relative error is below 2^-(w + 1) with w fractional bits of weights.
    """
    exact = window & (window - 1) == 0
    limit = scales.limit(step.name)
    bits = ceil(log2(window)) + (
        0 if exact else min(scales.ring.weights, limit - scales.base - ceil(log2(window)))
    )
    (scale,) = scales.at_most(limit - bits, *step.inputs)
    return {"scale": scale + bits, "factor": 1 if exact else round(2**bits / window)}


@_plan.register
def _(operator: AveragePool, step, scales):
    return _mean(step, prod(operator.kernel), scales)


@_plan.register
def _(operator: Mean, step, scales):
    return _mean(step, step.input_size // step.size, scales)


@_plan.register
def _(operator: MaxPool, step, scales):
    (name,) = step.inputs
    (scale,) = scales.at_most(scales.limit(name) - (scales.ring.headroom is not None), name)  # differences
    positions = scales.positions(name, scale, 2)
    left = prod(operator.kernel)
    while left > 1:
        pairs = left // 2
        scales.gadgets.append(Rectification(pairs * step.size, 0, 0, positions))
        left -= pairs
    return {"scale": scale}


@_plan.register(Add)
@_plan.register(Concatenate)
def _(operator, step, scales):
    return {"scale": max(scales.at_most(scales.limit(step.name), *step.inputs))}


@_plan.register(Multiply)
@_plan.register(Square)
def _(operator, step, scales):
    used = scales.at_most(scales.limit(step.name) // 2, *step.inputs)
    if len(set(step.input_shapes)) > 1:
        scales.gadgets.append(Broadcast(*step.input_shapes))
    else:
        scales.gadgets.append(Beaver(step.size, operands=len(step.inputs)))
    return {"scale": sum(used) if len(used) == 2 else 2 * used[0]}


@_plan.register
def _(operator: Scale, step, scales):
    limit = scales.limit(step.name)
    bits = min(scales.ring.weights, limit - scales.base)
    (scale,) = scales.at_most(limit - bits, *step.inputs)
    return {"scale": scale + bits, "factor": round(operator.factor * 2**bits)}


@_plan.register
def _(operator: Weigh, step, scales):
    limit = scales.limit(step.name)
    bits = 0 if operator.integer else min(scales.ring.weights, limit - scales.base)
    (scale,) = scales.at_most(limit - bits, *step.inputs)
    return {"scale": scale + bits}


@_plan.register(Flatten)
@_plan.register(Rearrange)
@_plan.register(Shift)
@_plan.register(Sum)
def _(operator, step, scales):
    return {"scale": scales.at_most(scales.limit(step.name), *step.inputs)[0]}
