"""The primitives that SPU computes for each operator, in order, from shapes alone: those that send something.

SPU compiles the same code for its three protocols (`networks`). A protocol then has a price for each
primitive (`semi2k`, `aby3`, `cheetah`). Everything else is local: sums, shifts, copies, products with a
public 1 or -1.

A convolution is a product of the matrix of its windows [N * H * W, C * h * w] with the weights
[C * h * w, O]. SPU 0.9.5 runs a depthwise one in the same way, with a weight for each pair of channels, of
which all but the own are zero, and fills a dilated kernel with zeros. Other groups are products one after
another. A square is a product like any other. SPU truncates after every product. The maximum of two values is
one comparison and one product with its bit; a ReLU is such a maximum with 0.

`Owner` tells who knows a value in plaintext. Only CHEETAH keeps values there (`protocols`); the others share
them.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import singledispatch
from itertools import product
from math import ceil, prod, sqrt
from typing import Literal

from pibench.program import ir

Owner = Literal["both", "image"]
"""Who holds a value: both parties as shares, or party 1 alone, because it depends on the image alone."""

TILE_BYTES = 256 << 20
"""SPU cuts a product whose factors are larger than this together."""


@dataclass(frozen=True)
class MatrixProduct:
    """A value [rows, inner] times stored weights [inner, columns], not truncated.

    `shared` weights are those of a dilated kernel: SPU fills it with a shared zero, so no party holds it.
    """

    rows: int
    inner: int
    columns: int
    shared: bool = False

    def tiles(self, word: int) -> list[MatrixProduct]:
        """Returns the parts that SPU multiplies one after another; `word` is the bytes of a value's share.

        Source: `_mmul` and `calcMmulTilingSize` in SPU's libspu/kernel/hal/ring.cc.
        """
        rows, inner, columns = self.rows, self.inner, self.columns
        if (rows + columns) * inner * word < TILE_BYTES:
            return [self]
        limit = TILE_BYTES / word
        outer = rows + columns
        if inner > 8 * outer:
            side = outer
            deep = max(1, ceil(limit / outer))
        elif outer > 8 * inner:
            deep = inner
            side = max(1, ceil(limit / inner))
        else:
            wide = sqrt(limit / (inner / outer))
            deep, side = max(1, ceil(limit / wide)), max(1, ceil(wide))
        steps = max(side * rows // outer, 1), deep, max(side * columns // outer, 1)
        cut = [
            [min(step, whole - start) for start in range(0, whole, step)]
            for whole, step in zip((rows, inner, columns), steps, strict=True)
        ]
        return [MatrixProduct(*each, self.shared) for each in product(*cut)]


@dataclass(frozen=True)
class WeightProduct:
    """`count` products of a value with stored weights, not truncated; `owner` is that of the value."""

    count: int
    owner: Owner


@dataclass(frozen=True)
class ValueProduct:
    """`count` products of two values, not truncated, with the owner of each."""

    count: int
    owners: tuple[Owner, Owner]


@dataclass(frozen=True)
class Truncation:
    """`count` truncations."""

    count: int
    owner: Owner


@dataclass(frozen=True)
class Maximum:
    """`count` maxima of two values, or of a value and a public number."""

    count: int
    owner: Owner


@dataclass(frozen=True)
class Constant:
    """A public number that becomes a share once in an inference: a padding, or where a sum begins."""

    name: Literal["zero", "lowest"]


ZERO, LOWEST = Constant("zero"), Constant("lowest")
Primitive = MatrixProduct | WeightProduct | ValueProduct | Truncation | Maximum | Constant
Owners = tuple[Owner, ...]


@singledispatch
def _primitives(operator: object, step: ir.Step, batch: int, owners: Owners) -> list[Primitive]:
    raise NotImplementedError(
        f"the cost of {step.kind!r} (step {step.name!r}) on SPU is unknown; "
        "add it to bench/engines/spu/primitives.py"
    )


@_primitives.register
def _(op: ir.Convolution, step: ir.Step, batch: int, owners: Owners) -> list[Primitive]:
    outputs, high, wide = step.shape
    inputs = step.input_shapes[0][0]
    groups = 1 if op.groups == inputs else op.groups
    kernel = [d * (k - 1) + 1 for d, k in zip(op.dilation, op.weight_shape[2:], strict=True)]
    window = inputs // groups * prod(kernel)
    dilated = kernel != list(op.weight_shape[2:])
    padded = any(op.padding) or dilated
    return [
        *([ZERO] if padded else []),
        *(groups * [MatrixProduct(batch * high * wide, window, outputs // groups, dilated)]),
        *(groups * [Truncation(batch * step.size // groups, "both")]),
    ]


@_primitives.register
def _(op: ir.Linear, step: ir.Step, batch: int, owners: Owners) -> list[Primitive]:
    columns, inner = op.weight_shape
    size = batch * step.size
    return [MatrixProduct(size // columns, inner, columns), Truncation(size, "both")]


@_primitives.register
def _(op: ir.Affine, step: ir.Step, batch: int, owners: Owners) -> list[Primitive]:
    size = batch * step.size
    return [WeightProduct(size, owners[0]), Truncation(size, "both")]


@_primitives.register
def _(op: ir.Multiply, step: ir.Step, batch: int, owners: Owners) -> list[Primitive]:
    size = batch * step.size
    return [ValueProduct(size, (owners[0], owners[1])), Truncation(size, _together(owners))]


@_primitives.register
def _(op: ir.Square, step: ir.Step, batch: int, owners: Owners) -> list[Primitive]:
    size = batch * step.size
    return [ValueProduct(size, (owners[0], owners[0])), Truncation(size, owners[0])]


def _scaled(step: ir.Step, batch: int, owners: Owners, factor: float) -> list[Primitive]:
    """Returns the truncation after a product with a public number, unless it is 1 and left out."""
    return [] if factor == 1 else [Truncation(batch * step.size, owners[0])]


def _combined(step: ir.Step, batch: int, owners: Owners, factors: list[float]) -> list[Primitive]:
    """Returns the truncation of a weighted sum, unless all its factors are 1, -1 or 0 (`networks`)."""
    if all(abs(factor) in (0, 1) for factor in factors):
        return []
    return [Truncation(batch * step.size, _together(owners))]


def _together(owners: Owners) -> Owner:
    return "image" if set(owners) == {"image"} else "both"


@_primitives.register
def _(op: ir.Scale, step: ir.Step, batch: int, owners: Owners) -> list[Primitive]:
    return _scaled(step, batch, owners, op.factor)


@_primitives.register
def _(op: ir.Weigh, step: ir.Step, batch: int, owners: Owners) -> list[Primitive]:
    if (op.factors == 1).all():
        return []
    return [Truncation(batch * step.size, owners[0])]


@_primitives.register
def _(op: ir.Combine, step: ir.Step, batch: int, owners: Owners) -> list[Primitive]:
    return _combined(step, batch, owners, list(op.factors))


@_primitives.register
def _(op: ir.AveragePool, step: ir.Step, batch: int, owners: Owners) -> list[Primitive]:
    begins: list[Primitive] = [ZERO] if prod(op.kernel) > 1 else []
    return begins + _scaled(step, batch, owners, 1 / prod(op.kernel))


@_primitives.register
def _(op: ir.Mean, step: ir.Step, batch: int, owners: Owners) -> list[Primitive]:
    return _summed(step) + _scaled(step, batch, owners, step.size / step.input_size)


@_primitives.register
def _(op: ir.Sum, step: ir.Step, batch: int, owners: Owners) -> list[Primitive]:
    return _summed(step)


def _summed(step: ir.Step) -> list[Primitive]:
    """Returns the zero where a sum begins, if there is anything to sum."""
    return [ZERO] if step.size < step.input_size else []


@_primitives.register
def _(op: ir.Rearrange, step: ir.Step, batch: int, owners: Owners) -> list[Primitive]:
    return [ZERO] if op.index is not None and (op.index < 0).any() else []


@_primitives.register
def _(op: ir.Relu, step: ir.Step, batch: int, owners: Owners) -> list[Primitive]:
    return _maxima(batch * step.relus, owners)


@_primitives.register
def _(op: ir.PiecewiseLinear, step: ir.Step, batch: int, owners: Owners) -> list[Primitive]:
    return _maxima(batch * step.relus, owners) + _combined(step, batch, owners, [op.slope, *op.jumps])


def _maxima(count: int, owners: Owners) -> list[Primitive]:
    return [Maximum(count, owners[0])] if count else []


@_primitives.register
def _(op: ir.MaxPool, step: ir.Step, batch: int, owners: Owners) -> list[Primitive]:
    made: list[Primitive] = [LOWEST] if any(op.padding) else []
    left = prod(op.kernel)
    while left > 1:
        made += _maxima(left // 2 * batch * step.size, owners)
        left -= left // 2
    return made


@_primitives.register(ir.Add)
@_primitives.register(ir.Concatenate)
@_primitives.register(ir.Flatten)
@_primitives.register(ir.Shift)
def _(op: object, step: ir.Step, batch: int, owners: Owners) -> list[Primitive]:
    return []


def primitives(program: ir.Program, batch: int) -> list[tuple[ir.Step, list[Primitive]]]:
    """Returns the primitives of each step for a batch, in order."""
    owners = owners_of(program)
    return [
        (step, _primitives(step.operator, step, batch, tuple(owners[name] for name in step.inputs)))
        for step in program.steps
    ]


def owners_of(program: ir.Program) -> dict[str, Owner]:
    """Returns the owner of each value."""
    owners: dict[str, Owner] = {program.input: "image"}
    for step in program.steps:
        given = tuple(owners[name] for name in step.inputs)
        owners[step.name] = "both" if ir.stored_of(step.operator) else _together(given)
    return owners
