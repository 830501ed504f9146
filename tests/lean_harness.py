"""The lean engine's three processes as threads of one, and small programs made by hand."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from math import frexp
from pathlib import Path
from types import TracebackType
from typing import Any

import torch
import torch.nn.functional as F

from pibench.engines.base import Setting
from pibench.engines.lean.dealer import Dealer
from pibench.engines.lean.node import LeanNode
from pibench.program.ir import Affine, Operator, Program, Step


def settings(folder: str, timeout_s: float = 20.0, engine: str = "lean") -> list[Setting]:
    roles = ("party", "party", "dealer")
    where = f"file://{Path(folder) / 'rendezvous'}"
    return [
        Setting(engine, role, rank, 2, where, "dealer", timeout_s, key=b"a key of the tests")
        for rank, role in enumerate(roles)
    ]


class Trio:
    """Two parties and a dealer, each driven by a thread."""

    def __init__(self, timeout_s: float = 20.0, engine: str = "lean") -> None:
        self._pool = ThreadPoolExecutor(3)
        with tempfile.TemporaryDirectory() as folder:
            made = [
                self._pool.submit(Dealer if one.role == "dealer" else LeanNode, one)
                for one in settings(folder, timeout_s, engine)
            ]
            self.nodes = [future.result(timeout_s) for future in made]

    def __enter__(self) -> Trio:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        p0, p1, dealer = self.nodes
        for channel in (p0.peer, p0._dealer, p1.peer, p1._dealer, *dealer._channels.values()):
            channel.close()
        self._pool.shutdown()

    def each(self, *calls: Callable[[], Any]) -> list[Any]:
        futures = [self._pool.submit(call) for call in calls]
        return [future.result(60) for future in futures]

    def load(self, program: Program, weights: dict[str, torch.Tensor]) -> None:
        p0, p1, dealer = self.nodes
        self.each(
            lambda: p0.load(program, dict(weights)),
            lambda: p1.load(program, None),
            lambda: dealer.load(program),
        )

    def prepare(self, batch: int) -> list[int]:
        return self.each(*(lambda node=node: node.prepare(batch) for node in self.nodes))

    def online(self, images: torch.Tensor, method: str = "run") -> list[Any]:
        def party(node: LeanNode, own: torch.Tensor | None) -> Any:
            node.start(len(images))
            shared = node.share(own, len(images))
            node.barrier()
            return getattr(node, method)(shared)

        p0, p1, _ = self.nodes
        return self.each(lambda: party(p0, None), lambda: party(p1, images))

    def infer(self, images: torch.Tensor) -> torch.Tensor:
        self.prepare(len(images))
        nothing, logits = self.online(images)
        assert nothing is None
        return logits


Line = tuple[str, Operator, Sequence[str], Sequence[int]]


def program(input_shape: Sequence[int], *lines: Line) -> Program:
    """Lines are (name, operator, inputs, shape of one image's value)."""
    shapes = {"input": tuple(input_shape)}
    steps = []
    for name, operator, inputs, shape in lines:
        shapes[name] = tuple(shape)
        steps.append(Step(name, operator, tuple(inputs), tuple(shapes[i] for i in inputs), shapes[name]))
    return Program("input", tuple(input_shape), tuple(steps), steps[-1].name)


def random_weights(made: Program, seed: int = 0) -> dict[str, torch.Tensor]:
    draw = torch.Generator().manual_seed(seed)
    weights = {}
    for step in made.steps:
        operator = step.operator
        if hasattr(operator, "bias_shape"):
            weights[operator.bias] = torch.randn(operator.bias_shape, generator=draw, dtype=torch.float64)
        elif isinstance(operator, Affine):
            for name in (operator.weight, operator.bias) if operator.bias else (operator.weight,):
                weights[name] = torch.randn(operator.weight_shape, generator=draw, dtype=torch.float64)
        elif hasattr(operator, "weight"):
            shape = operator.weight_shape
            scale = torch.Size(shape[1:]).numel() ** -0.5
            weights[operator.weight] = torch.randn(shape, generator=draw, dtype=torch.float64) * scale
            if operator.bias is not None:
                weights[operator.bias] = torch.randn(shape[0], generator=draw, dtype=torch.float64)
    return weights


def calibrated(made: Program, weights: dict[str, torch.Tensor], images: torch.Tensor) -> Program:
    """The program with the bounds that its values keep for these images."""
    values = _values(made, weights, images)
    return replace(made, bounds={name: max(0, frexp(float(v.abs().max()))[1]) for name, v in values.items()})


def plaintext(made: Program, weights: dict[str, torch.Tensor], images: torch.Tensor) -> torch.Tensor:
    return _values(made, weights, images)[made.output]


def _values(made: Program, weights: dict[str, torch.Tensor], images: torch.Tensor) -> dict[str, torch.Tensor]:
    values = {made.input: images.double()}
    for step in made.steps:
        inputs = [values[name] for name in step.inputs]
        values[step.name] = _value(step, weights, *inputs)
        assert values[step.name].shape == (len(images), *step.shape), step.name
    return values


def _value(
    step: Step, weights: dict[str, torch.Tensor], x: torch.Tensor, *more: torch.Tensor
) -> torch.Tensor:
    o = step.operator
    match step.kind:
        case "convolution":
            bias = None if o.bias is None else weights[o.bias]
            return F.conv2d(x, weights[o.weight], bias, o.stride, o.padding, o.dilation, o.groups)
        case "linear":
            return F.linear(x, weights[o.weight], None if o.bias is None else weights[o.bias])
        case "relu":
            if o.kept is None:
                return x.relu()
            flat, kept = x.flatten(1).clone(), torch.from_numpy(o.kept)
            flat[:, kept] = flat[:, kept].relu()
            return flat.view_as(x)
        case "averagepool":
            return F.avg_pool2d(x, o.kernel, o.stride, o.padding)
        case "maxpool":
            return F.max_pool2d(x, o.kernel, o.stride, o.padding, o.dilation)
        case "add":
            return x + more[0]
        case "multiply":
            return x * more[0]
        case "square":
            return x * x
        case "scale":
            return x * o.factor
        case "concatenate":
            return torch.cat([x, *more], o.dim)
        case "flatten":
            return x.flatten(o.start, o.end)
        case "mean":
            return x.mean(o.dims, keepdim=o.keepdim)
        case "sum":
            return x.sum(o.dims, keepdim=o.keepdim)
        case "affine":
            return torch.addcmul(torch.zeros(()) if o.bias is None else weights[o.bias], x, weights[o.weight])
        case "shift":
            return x + weights[o.bias]
        case "combine":
            return sum(factor * each for factor, each in zip(o.factors, (x, *more), strict=True))
        case "weigh":
            return x * torch.as_tensor(o.factors)
        case "rearrange":
            padded = torch.cat([x.flatten(1), torch.zeros(len(x), 1)], 1)
            index = slice(0, -1) if o.index is None else torch.as_tensor(o.index)
            return padded[:, index].view(len(x), *o.shape)
        case "piecewiselinear":
            points = (x[..., None] - torch.tensor(o.knots)).clamp(min=0) * torch.tensor(o.jumps)
            return o.slope * x + points.sum(-1) + o.offset
    raise AssertionError(step.kind)
