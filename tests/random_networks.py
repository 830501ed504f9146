"""Random networks and images over the whole range of fixed point.

    draw = random.Random(7)
    network = random_network(draw)  # a program with its stored numbers
    images = random_images(draw, network.program.input_shape, 3)
    parties.load(network.module(), images)  # the same network as a torch module

All that is random comes from the `random.Random`, so a seed repeats a network and its images. A campaign has
one seed a try; `networks()` and `cases()` give the same to tests of properties, as strategies of hypothesis.

A network has one to six operators of `pibench.program.ir` and a few hundred elements. Most of its numbers are
about 1. About one in five layers has a gain from 2^-20 to 2^30 instead, and one batch of images in two has a
scale from 2^-20 to 2^30. Parties refuse some of these networks and images. They must answer the others right.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass
from math import prod

import numpy as np
import torch
import torch.nn.functional as F
from hypothesis import strategies as st
from torch import Tensor, nn

from pibench.program import ir
from pibench.program.approximations import GELU, HARD_SIGMOID, SIGMOID, SILU, TANH
from pibench.program.lower import Lowered

GAINS = (-20, 30)
"""Powers of two: those of layers and images."""

SHAPES = ((2, 6, 6), (3, 5, 4), (16, 5, 5), (3, 8), (7,))
MOST_ELEMENTS = 512
MOST_STEPS = 6

CURVES: dict[ir.PiecewiseLinear, Callable[[Tensor], Tensor]] = {
    ir.PiecewiseLinear(0.0, (-1.5, 2.0), (1.0, -1.0), -1.5): lambda x: x.clamp(-1.5, 2.0),
    ir.PiecewiseLinear(0.0, (0.0, 6.0), (1.0, -1.0)): F.relu6,
    ir.PiecewiseLinear(0.25, (0.0,), (0.75,)): lambda x: F.leaky_relu(x, 0.25),
    ir.PiecewiseLinear(-1.0, (0.0,), (2.0,)): torch.abs,
    HARD_SIGMOID: F.hardsigmoid,
    SIGMOID: torch.sigmoid,
    SILU: F.silu,
    GELU: F.gelu,
    TANH: torch.tanh,
}


@dataclass(frozen=True, eq=False)
class RandomNetwork:
    """A program with its stored numbers (float64), by their names."""

    program: ir.Program
    weights: dict[str, Tensor]

    def lowered(self, example: Tensor) -> Lowered:
        """Returns the network as `lower` gives it for `example` [N, ...], without a capture.

        Raises ExportError for values beyond fixed point.
        """
        return Lowered(self.program, self.weights, {}, 0.0).on(example)

    def module(self) -> nn.Module:
        """Returns the same network as a torch module."""
        return _Module(self)

    def __repr__(self) -> str:
        stored = {name: f"{weight.abs().max().item():.2g}" for name, weight in self.weights.items()}
        return "\n".join(
            [f"input {self.program.input_shape}, stored numbers up to {stored}"]
            + [f"  {s.name} = {s.operator} of {s.inputs}: {s.shape}" for s in self.program.steps]
        )


@dataclass(frozen=True, eq=False)
class RandomCase:
    """A network, an example for it [M, ...], and images [N, ...] of any size (both float32)."""

    network: RandomNetwork
    example: Tensor
    images: Tensor

    def __repr__(self) -> str:
        reach, wide = (each.abs().max().item() for each in (self.example, self.images))
        return f"{self.network}\nexample up to {reach:.3g}, images up to {wide:.3g}"


def random_network(draw: random.Random) -> RandomNetwork:
    """Draws a network."""
    return _Builder(draw).build(draw.randint(1, MOST_STEPS))


def random_images(
    draw: random.Random, shape: tuple[int, ...], count: int, scale: float | None = None
) -> Tensor:
    """Draws float32 images [count, *shape]: noise, a constant, one point, or noise of many sizes.

    The largest number is about `scale`, which is drawn if it is None.
    """
    if scale is None:
        scale = _gain(draw, 0.5)
    kind = draw.choice(("noise", "noise", "constant", "point", "sizes"))
    noise = torch.randn(count, *shape, generator=_generator(draw))
    if kind == "constant":
        noise = torch.ones(count, *shape)
    elif kind == "point":
        noise = torch.zeros(count, *shape)
        noise.view(count, -1)[:, draw.randrange(prod(shape))] = 1.0
    elif kind == "sizes":
        powers = torch.tensor([float(draw.randint(GAINS[0], 0)) for _ in range(count)])
        noise = noise * torch.exp2(powers).view(-1, *[1] * len(shape))
    return noise * scale


def random_case(draw: random.Random) -> RandomCase:
    """Draws a network with an example and images; their scales are drawn apart."""
    network = random_network(draw)
    example, images = (random_images(draw, network.program.input_shape, draw.randint(1, 3)) for _ in range(2))
    return RandomCase(network, example, images)


def networks() -> st.SearchStrategy[RandomNetwork]:
    """Returns the strategy of random networks."""
    return st.builds(random_network, st.randoms(use_true_random=False))


def cases() -> st.SearchStrategy[RandomCase]:
    """Returns the strategy of random networks with an example and images."""
    return st.builds(random_case, st.randoms(use_true_random=False))


def _gain(draw: random.Random, odds: float = 0.2) -> float:
    """Returns 1, or with these odds any power of two in the range of fixed point."""
    return 2.0 ** draw.randint(*GAINS) if draw.random() < odds else 1.0


def _generator(draw: random.Random) -> torch.Generator:
    return torch.Generator().manual_seed(draw.getrandbits(32))


class _Builder:
    """Draws the steps of a program one after the other."""

    def __init__(self, draw: random.Random) -> None:
        self.draw = draw
        self.shapes: dict[str, tuple[int, ...]] = {"input": draw.choice(SHAPES)}
        self.steps: list[ir.Step] = []
        self.weights: dict[str, Tensor] = {}

    def build(self, count: int) -> RandomNetwork:
        """Draws `count` steps; a step that makes too many elements is left out."""
        kinds = (
            *(self.convolution, self.linear, self.relu, self.average, self.maximum, self.mean, self.flatten),
            *(self.affine, self.shift, self.scale, self.square, self.multiply, self.add, self.combine),
            *(self.weigh, self.curve, self.rearrange, self.concatenate, self.sum, self.convolution),
        )
        while len(self.steps) < count:
            self.draw.choice(kinds)(self.last, self.shapes[self.last])
        program = ir.Program("input", self.shapes["input"], tuple(self.steps), self.last)
        used = [name for step in self.steps for name in ir.stored_of(step.operator)]
        return RandomNetwork(program, {name: self.weights[name] for name in used})

    @property
    def last(self) -> str:
        return self.steps[-1].name if self.steps else "input"

    def emit(self, operator: ir.Operator, inputs: tuple[str, ...], shape: tuple[int, ...]) -> None:
        if not 0 < prod(shape) <= MOST_ELEMENTS:
            return
        name = f"step{len(self.steps)}"
        given = tuple(self.shapes[each] for each in inputs)
        self.steps.append(ir.Step(name, operator, inputs, given, shape))
        self.shapes[name] = shape

    def stored(self, kind: str, shape: tuple[int, ...], inputs: int = 1) -> str:
        """Keeps random numbers of about 1 / sqrt(inputs), times a gain; returns their name."""
        name = f"{kind}{len(self.steps)}"
        noise = torch.randn(shape, generator=_generator(self.draw), dtype=torch.float64)
        self.weights[name] = noise * inputs**-0.5 * _gain(self.draw)
        return name

    def bias(self, shape: tuple[int, ...]) -> str | None:
        return self.stored("bias", shape) if self.draw.random() < 0.5 else None

    def like(self, shape: tuple[int, ...]) -> str:
        """Returns the name of a value of this shape, the last one or an earlier one."""
        return self.draw.choice([name for name, known in self.shapes.items() if known == shape])

    # One method an operator; one that does not suit the shape does nothing.

    def convolution(self, x: str, shape: tuple[int, ...]) -> None:
        if len(shape) != 3:
            return
        groups = self.draw.choice((1, 1, 1, shape[0]))
        outputs = shape[0] if groups > 1 else self.draw.choice((1, 3, 16))
        size, stride = self.draw.choice((1, 3, 3)), self.draw.choice((1, 1, 2))
        padding = size // 2
        sides = tuple((side + 2 * padding - size) // stride + 1 for side in shape[1:])
        kernel = (outputs, shape[0] // groups, size, size)
        if outputs * prod(sides) > MOST_ELEMENTS:
            return
        operator = ir.Convolution(
            self.stored("kernel", kernel, prod(kernel[1:])),
            self.bias((outputs,)),
            kernel,
            (stride, stride),
            (padding, padding),
            groups=groups,
        )
        self.emit(operator, (x,), (outputs, *sides))

    def linear(self, x: str, shape: tuple[int, ...]) -> None:
        outputs = self.draw.choice((1, 5))
        matrix = (outputs, shape[-1])
        weight, bias = self.stored("matrix", matrix, shape[-1]), self.bias((outputs,))
        self.emit(ir.Linear(weight, bias, matrix), (x,), (*shape[:-1], outputs))

    def affine(self, x: str, shape: tuple[int, ...]) -> None:
        weight, bias = self.stored("factors", shape), self.bias(shape)
        self.emit(ir.Affine(weight, bias, shape), (x,), shape)

    def shift(self, x: str, shape: tuple[int, ...]) -> None:
        self.emit(ir.Shift(self.stored("shift", shape), shape), (x,), shape)

    def relu(self, x: str, shape: tuple[int, ...]) -> None:
        kept = None
        if self.draw.random() < 0.3:
            count = self.draw.randint(1, prod(shape))
            kept = np.sort(self.permutation(prod(shape))[:count])
        self.emit(ir.Relu(kept), (x,), shape)

    def average(self, x: str, shape: tuple[int, ...]) -> None:
        if len(shape) == 3 and min(shape[1:]) >= 3:
            size = self.draw.choice((2, 3))
            sides = tuple((side - size) // size + 1 for side in shape[1:])
            self.emit(ir.AveragePool((size, size), (size, size)), (x,), (shape[0], *sides))

    def maximum(self, x: str, shape: tuple[int, ...]) -> None:
        if len(shape) == 3 and min(shape[1:]) >= 3:
            sides = tuple((side + 2 - 3) // 2 + 1 for side in shape[1:])
            self.emit(ir.MaxPool((3, 3), (2, 2), (1, 1)), (x,), (shape[0], *sides))

    def mean(self, x: str, shape: tuple[int, ...]) -> None:
        if len(shape) == 3:
            self.emit(ir.Mean((2, 3), False), (x,), shape[:1])

    def sum(self, x: str, shape: tuple[int, ...]) -> None:
        if len(shape) > 1:
            self.emit(ir.Sum((len(shape),), False), (x,), shape[:-1])

    def flatten(self, x: str, shape: tuple[int, ...]) -> None:
        if len(shape) > 1:
            self.emit(ir.Flatten(1, len(shape)), (x,), (prod(shape),))

    def scale(self, x: str, shape: tuple[int, ...]) -> None:
        self.emit(ir.Scale(self.draw.choice((-0.75, 0.3, 1.5)) * _gain(self.draw)), (x,), shape)

    def square(self, x: str, shape: tuple[int, ...]) -> None:
        self.emit(ir.Square(), (x,), shape)

    def multiply(self, x: str, shape: tuple[int, ...]) -> None:
        if (other := self.like(shape)) != x:  # a product with itself is a square
            self.emit(ir.Multiply(), (x, other), shape)

    def add(self, x: str, shape: tuple[int, ...]) -> None:
        self.emit(ir.Add(), (x, self.like(shape)), shape)

    def combine(self, x: str, shape: tuple[int, ...]) -> None:
        factors = (self.draw.choice((1.0, -2.0, 0.3)), self.draw.choice((-1.0, 0.5)) * _gain(self.draw))
        self.emit(ir.Combine(factors), (x, self.like(shape)), shape)

    def weigh(self, x: str, shape: tuple[int, ...]) -> None:
        factors = torch.randn(shape, generator=_generator(self.draw), dtype=torch.float64) * _gain(self.draw)
        self.emit(ir.Weigh(factors.numpy()), (x,), shape)

    def curve(self, x: str, shape: tuple[int, ...]) -> None:
        self.emit(self.draw.choice(list(CURVES)), (x,), shape)

    def rearrange(self, x: str, shape: tuple[int, ...]) -> None:
        index = self.permutation(prod(shape))
        if self.draw.random() < 0.5:
            index[: len(index) // 2] = -1
        self.emit(ir.Rearrange(shape, index), (x,), shape)

    def concatenate(self, x: str, shape: tuple[int, ...]) -> None:
        self.emit(ir.Concatenate(1), (x, self.like(shape)), (2 * shape[0], *shape[1:]))

    def permutation(self, size: int) -> np.ndarray:
        return torch.randperm(size, generator=_generator(self.draw)).numpy()


class _Module(nn.Module):
    """Runs a program by torch's own functions, as a user writes them."""

    def __init__(self, network: RandomNetwork) -> None:
        super().__init__()
        self.program = network.program
        for name, weight in network.weights.items():
            self.register_buffer(name, weight.clone())
        for step in network.program.steps:
            if isinstance(step.operator, ir.Weigh):
                self.register_buffer(f"{step.name}_factors", torch.tensor(step.operator.factors))
            elif isinstance(step.operator, ir.Relu) and step.operator.kept is not None:
                mask = torch.zeros(step.size, dtype=torch.bool)
                mask[torch.as_tensor(step.operator.kept)] = True
                self.register_buffer(f"{step.name}_mask", mask.view(step.shape))

    def forward(self, x: Tensor) -> Tensor:
        values = {"input": x}
        for step in self.program.steps:
            values[step.name] = self.value(step, *(values[name] for name in step.inputs))
        return values[self.program.output]

    def value(self, step: ir.Step, x: Tensor, *more: Tensor) -> Tensor:
        """Returns the value of one step."""
        o = step.operator
        bias = getattr(self, o.bias) if getattr(o, "bias", None) else None
        match o:
            case ir.Convolution():
                return F.conv2d(x, getattr(self, o.weight), bias, o.stride, o.padding, o.dilation, o.groups)
            case ir.Linear():
                return F.linear(x, getattr(self, o.weight), bias)
            case ir.Affine():
                y = x * getattr(self, o.weight)
                return y if bias is None else y + bias
            case ir.Shift():
                return x + bias
            case ir.Relu():
                y = x.relu()
                return y if o.kept is None else torch.where(getattr(self, f"{step.name}_mask"), y, x)
            case ir.PiecewiseLinear():
                return CURVES[o](x)
            case ir.AveragePool():
                return F.avg_pool2d(x, o.kernel, o.stride, o.padding)
            case ir.MaxPool():
                return F.max_pool2d(x, o.kernel, o.stride, o.padding)
            case ir.Mean():
                return x.mean(o.dims)
            case ir.Sum():
                return x.sum(o.dims)
            case ir.Flatten():
                return x.flatten(1)
            case ir.Scale():
                return x * o.factor
            case ir.Square():
                return x * x
            case ir.Multiply():
                return x * more[0]
            case ir.Add():
                return x + more[0]
            case ir.Combine():
                return o.factors[0] * x + o.factors[1] * more[0]
            case ir.Weigh():
                return x * getattr(self, f"{step.name}_factors")
            case ir.Rearrange():
                return F.pad(x.flatten(1), (0, 1))[:, torch.as_tensor(o.index)].reshape(len(x), *step.shape)
            case ir.Concatenate():
                return torch.cat((x, *more), o.dim)
        raise AssertionError(f"no module says {step.kind}")
