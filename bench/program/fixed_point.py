"""A program in plaintext, in plain fixed point: every product is cut at once to 16 fractional bits.

This is the computation of engines that keep every value at one scale. Inputs and stored numbers are encoded
first. A value with more than 16 fractional bits is then cut, down or up at random. The probability of "up" is
the fraction that is cut off.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import singledispatch

import torch
from torch import Tensor

from pibench.program import ir
from pibench.program.plaintext import value_of, walk

BITS = 16
"""Fractional bits of every value."""


def nearest(values: Tensor, bits: int = BITS) -> Tensor:
    """Returns the nearest multiples of 2^-bits as float64."""
    return torch.round(values.detach().to(torch.float64) * 2.0**bits) * 2.0**-bits


def toward_zero(values: Tensor) -> Tensor:
    """Returns the next multiples of 2^-16 toward zero as float64."""
    return torch.trunc(values.detach().to(torch.float64) * 2.0**BITS) * 2.0**-BITS


def truncated(values: Tensor, generator: torch.Generator, bits: int = BITS) -> Tensor:
    """Returns `values`, multiples of 2^-s, rounded to `bits` fractional bits, down or up at random.

    torch draws 24 bits for a float32. If s - bits <= 24, the probabilities are exact.
    """
    up = torch.rand(values.shape, generator=generator, dtype=torch.float32)
    return values.mul(2.0**bits).add_(up).floor_().mul_(2.0**-bits)


@torch.no_grad()
def evaluate_in_fixed_point(
    program: ir.Program,
    weights: Mapping[str, Tensor],
    images: Tensor,
    after: Callable[[ir.Step, Tensor], None] | None = None,
    *,
    encode: Callable[[Tensor], Tensor] = nearest,
) -> Tensor:
    """Returns the output [N, ...] of `program` for `images` [N, *input_shape]; draws are seeded.

    `encode` rounds inputs and stored numbers to 16 fractional bits; `after` receives the value of every step.
    """
    generator = torch.Generator().manual_seed(0)
    encoded = {name: encode(weight) for name, weight in weights.items()}

    def apply(step: ir.Step, *inputs: Tensor) -> Tensor:
        return truncated(value_of(_encoded(step.operator, encode), encoded, *inputs), generator)

    return walk(program, encode(images), apply, after)


Encode = Callable[[Tensor], Tensor]


def _numbers(factors: tuple[float, ...], encode: Encode) -> tuple[float, ...]:
    return tuple(encode(torch.tensor(factors, dtype=torch.float64)).tolist())


@singledispatch
def _encoded(operator: ir.Operator, encode: Encode) -> ir.Operator:
    """Returns an operator with its public numbers as the engine holds them; most operators have none."""
    return operator


@_encoded.register
def _(o: ir.Scale, encode: Encode) -> ir.Operator:
    return ir.Scale(*_numbers((o.factor,), encode))


@_encoded.register
def _(o: ir.Combine, encode: Encode) -> ir.Operator:
    return ir.Combine(_numbers(o.factors, encode))


@_encoded.register
def _(o: ir.Weigh, encode: Encode) -> ir.Operator:
    return ir.Weigh(encode(torch.as_tensor(o.factors)).numpy())


@_encoded.register
def _(o: ir.PiecewiseLinear, encode: Encode) -> ir.Operator:
    slope, offset = _numbers((o.slope, o.offset), encode)
    return replace(
        o, slope=slope, knots=_numbers(o.knots, encode), jumps=_numbers(o.jumps, encode), offset=offset
    )
