"""The program that parties run: a flat list of steps, the same for every engine.

`pibench.program.lower` lowers a torch network to a `Program`; an engine interprets it on shares. The program
is public (architecture, shapes, positions of masks). Weights are not in it. They travel separately, to party
0 alone, as a mapping from the names that the steps use. This module needs only numpy.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from math import prod
from typing import Any

import numpy as np


@dataclass(frozen=True)
class Convolution:
    """`x * W + b`, a two-dimensional cross-correlation with secret kernel.

    `weight` and `bias` name entries of the weights; `weight_shape` is [O, C / groups, H, W].
    """

    weight: str
    bias: str | None
    weight_shape: tuple[int, int, int, int]
    stride: tuple[int, int] = (1, 1)
    padding: tuple[int, int] = (0, 0)
    dilation: tuple[int, int] = (1, 1)
    groups: int = 1


@dataclass(frozen=True)
class Linear:
    """`x W^T + b` on the last dimension; `weight_shape` is [O, C]."""

    weight: str
    bias: str | None
    weight_shape: tuple[int, int]


@dataclass(frozen=True, eq=False)
class Relu:
    """ReLU at the public positions `kept` of the flattened image, identity elsewhere.

    `kept` is a sorted int64 array of positions in one image's [C * H * W], or None for all of them.
    """

    kept: np.ndarray | None = None


@dataclass(frozen=True)
class AveragePool:
    """Mean over windows of `kernel`; zero padding is counted."""

    kernel: tuple[int, int]
    stride: tuple[int, int]
    padding: tuple[int, int] = (0, 0)


@dataclass(frozen=True)
class MaxPool:
    """Maximum over windows of `kernel`; padding is never the maximum."""

    kernel: tuple[int, int]
    stride: tuple[int, int]
    padding: tuple[int, int] = (0, 0)
    dilation: tuple[int, int] = (1, 1)


@dataclass(frozen=True)
class Affine:
    """`x * w + b`, elementwise, with stored secrets that broadcast to the image.

    `weight_shape` is the shape of both, without the batch; it has at most the dimensions of the image.
    """

    weight: str
    bias: str | None
    weight_shape: tuple[int, ...]


@dataclass(frozen=True)
class Shift:
    """`x + b` with a stored secret of `bias_shape`, which broadcasts to the image."""

    bias: str
    bias_shape: tuple[int, ...]


@dataclass(frozen=True)
class PiecewiseLinear:
    """`slope x + sum_k jumps_k ReLU(x - knots_k) + offset`, elementwise, with public numbers.

    Its slope changes by `jumps_k` at `knots_k`; each knot costs one comparison an element.
    """

    slope: float
    knots: tuple[float, ...]
    jumps: tuple[float, ...]
    offset: float = 0.0

    @property
    def integer(self) -> bool:
        """True if all factors are whole numbers, so that no product needs a truncation."""
        return all(float(factor).is_integer() for factor in (self.slope, *self.jumps))


@dataclass(frozen=True)
class Combine:
    """`sum_k factors_k x_k` of values of one shape, with public factors."""

    factors: tuple[float, ...]

    @property
    def integer(self) -> bool:
        """True if all factors are whole numbers, so that no product needs a truncation."""
        return all(float(factor).is_integer() for factor in self.factors)


@dataclass(frozen=True, eq=False)
class Rearrange:
    """Element i of the flattened result is element `index[i]` of the flattened image, or 0 for -1.

    `shape` is the result's, without the batch. `index` is an int64 array with one entry for each element of
    the result. None means all elements in their order (only a new shape). Reshaping, permuting, slicing,
    padding, repeating and every mixture of these are one such step. It is free on shares.
    """

    shape: tuple[int, ...]
    index: np.ndarray | None = None


@dataclass(frozen=True)
class Sum:
    """Sum over `dims` (never the batch)."""

    dims: tuple[int, ...]
    keepdim: bool


@dataclass(frozen=True, eq=False)
class Weigh:
    """Elementwise product with public numbers `factors`, an array that broadcasts to the image."""

    factors: np.ndarray

    @property
    def integer(self) -> bool:
        """True if all factors are whole numbers, so that no product needs a truncation."""
        return bool((self.factors == np.round(self.factors)).all())


@dataclass(frozen=True)
class Add:
    """Sum of two inputs of one shape (both may be the same value)."""


@dataclass(frozen=True)
class Multiply:
    """Product of two secret inputs; the smaller one is broadcast to the shape of the larger."""


@dataclass(frozen=True)
class Square:
    """Product of a secret input with itself."""


@dataclass(frozen=True)
class Scale:
    """Product with a public constant."""

    factor: float


@dataclass(frozen=True)
class Concatenate:
    """Inputs one after the other along `dim` (never the batch)."""

    dim: int


@dataclass(frozen=True)
class Flatten:
    """Dimensions `start` to `end` (inclusive, both counted with the batch at 0) become one."""

    start: int
    end: int


@dataclass(frozen=True)
class Mean:
    """Mean over `dims` (never the batch)."""

    dims: tuple[int, ...]
    keepdim: bool


Operator = (
    Convolution
    | Linear
    | Relu
    | AveragePool
    | MaxPool
    | Add
    | Multiply
    | Square
    | Scale
    | Concatenate
    | Flatten
    | Mean
    | Affine
    | Shift
    | PiecewiseLinear
    | Combine
    | Rearrange
    | Sum
    | Weigh
)


def stored_of(operator: Operator) -> dict[str, tuple[int, ...]]:
    """Maps the names of the stored tensors that an operator uses to their shapes."""
    if isinstance(operator, Shift):
        return {operator.bias: operator.bias_shape}
    if isinstance(operator, Convolution | Linear):
        return {operator.weight: operator.weight_shape} | (
            {} if operator.bias is None else {operator.bias: operator.weight_shape[:1]}
        )
    if isinstance(operator, Affine):
        return {operator.weight: operator.weight_shape} | (
            {} if operator.bias is None else {operator.bias: operator.weight_shape}
        )
    return {}


@dataclass(frozen=True, eq=False)
class Step:
    """One operator applied to earlier values.

    `name` names its value; `inputs` name earlier steps or the program's input; `input_shapes` and `shape`
    are those of one image, without the batch.
    """

    name: str
    operator: Operator
    inputs: tuple[str, ...]
    input_shapes: tuple[tuple[int, ...], ...]
    shape: tuple[int, ...]

    @property
    def kind(self) -> str:
        """The operator's name in lower case, as reports group it."""
        return type(self.operator).__name__.lower()

    @property
    def input_size(self) -> int:
        """The elements |x| of the first input, for one image."""
        return prod(self.input_shapes[0])

    @property
    def size(self) -> int:
        """Elements of the value for one image."""
        return prod(self.shape)

    @property
    def relus(self) -> int:
        """Scalar ReLUs for one image: those that are kept, or one for each knot and element."""
        if isinstance(self.operator, Relu):
            return self.size if self.operator.kept is None else len(self.operator.kept)
        return self.size * len(self.operator.knots) if isinstance(self.operator, PiecewiseLinear) else 0

    @property
    def comparisons(self) -> int:
        """Comparisons of max pooling for one image: k^2 - 1 for each output."""
        return self.size * (prod(self.operator.kernel) - 1) if isinstance(self.operator, MaxPool) else 0


@dataclass(frozen=True, eq=False)
class Program:
    """Steps in an order that can be run, from the value `input` to the value `output`.

    `bounds` are public exponents: every absolute value of the value called `name` stays below 2^bounds[name]
    on the calibration's images (`pibench.program.lower.Lowered.calibrated`). Without one they are empty.
    """

    input: str
    input_shape: tuple[int, ...]
    steps: tuple[Step, ...]
    output: str
    bounds: Mapping[str, int] = field(default_factory=dict)

    def last_uses(self) -> dict[str, str]:
        """Maps each value to the step after which it is no longer needed; the output is never listed."""
        last: dict[str, Any] = {}
        for step in self.steps:
            for name in step.inputs:
                last[name] = step.name
        last.pop(self.output, None)
        return last
