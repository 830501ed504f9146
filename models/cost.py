"""Static cost of a network under private inference, counted by running its graph once on an example.

Conventions: all counts are per image. MACs are those of convolutions and linear layers, without bias
(torch's flop counter / 2). ReLUs are the scalar comparisons that are really evaluated, after masks;
comparisons of max pooling (k^2 - 1 for each output) stand apart. Parameters are those of the graph's modules:
with BatchNorm folded, kernels and biases of convolutions and linear layers.
"""

import operator
from dataclasses import dataclass
from math import prod
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from pibench.models.graph.moves import module_of, relu_nodes, trace
from pibench.models.graph.relu import MaskedReLU


@dataclass(frozen=True)
class LayerCost:
    """The cost of one node for one image.

    `name` is the fx node's; `input_size` the elements |x| of its first tensor input; `weight_size` the
    elements |w| of its kernel or matrix, without bias.
    """

    name: str
    kind: str
    input_size: int
    weight_size: int
    relus: int
    comparisons: int
    macs: int
    parameters: int


@dataclass(frozen=True)
class Cost:
    """The cost of a network for one image; `relu_layers` and `linear_layers` count nodes of the graph.

    `linear_layers` are the convolutions (shortcuts and depthwise ones too) and linear layers.
    """

    relus: int
    comparisons: int
    relu_layers: int
    linear_layers: int
    macs: int
    parameters: int
    layers: tuple[LayerCost, ...]


_MODULES = {
    nn.Conv2d: "convolution",
    nn.Linear: "linear",
    nn.ReLU: "relu",
    MaskedReLU: "relu",
    nn.MaxPool2d: "maxpool",
    nn.AvgPool2d: "averagepool",
    nn.AdaptiveMaxPool2d: "maxpool",
    nn.AdaptiveAvgPool2d: "averagepool",
    nn.BatchNorm1d: "batchnorm",
    nn.BatchNorm2d: "batchnorm",
    nn.Flatten: "flatten",
    nn.Identity: "identity",
    nn.Dropout: "identity",
    nn.Dropout2d: "identity",
}
_FUNCTIONS = {
    F.conv2d: "convolution",
    torch.conv2d: "convolution",
    F.linear: "linear",
    F.relu: "relu",
    torch.relu: "relu",
    F.max_pool2d: "maxpool",
    torch.max_pool2d: "maxpool",
    F.adaptive_max_pool2d: "maxpool",
    F.avg_pool2d: "averagepool",
    F.adaptive_avg_pool2d: "averagepool",
    F.batch_norm: "batchnorm",
    F.dropout: "identity",
    F.dropout2d: "identity",
    operator.add: "add",
    torch.add: "add",
    operator.mul: "multiply",
    torch.mul: "multiply",
    torch.multiply: "multiply",
    operator.truediv: "multiply",
    torch.div: "multiply",
    operator.pow: "square",
    torch.pow: "square",
    torch.square: "square",
    torch.cat: "concatenate",
    torch.concat: "concatenate",
    torch.concatenate: "concatenate",
    torch.flatten: "flatten",
    torch.mean: "mean",
}
_METHODS = {
    "relu": "relu",
    "add": "add",
    "mul": "multiply",
    "multiply": "multiply",
    "div": "multiply",
    "pow": "square",
    "square": "square",
    "mean": "mean",
    "flatten": "flatten",
    "view": "flatten",
    "reshape": "flatten",
    "contiguous": "identity",
}


def _kind(graph: fx.GraphModule, node: fx.Node) -> str:
    """Returns the kind of operator; NotImplementedError for one whose cost is unknown."""
    if node.op == "call_module":
        kind, called = _MODULES.get(type(module_of(graph, node))), type(module_of(graph, node)).__name__
    elif node.op == "call_function":
        kind, called = _FUNCTIONS.get(node.target), getattr(node.target, "__name__", str(node.target))
    else:
        kind, called = _METHODS.get(node.target), f"Tensor.{node.target}"
    operands = (*node.args, *node.kwargs.values())
    if kind == "square" and any(operand != 2 for operand in operands[1:]):
        kind = None
    if kind is None:
        raise NotImplementedError(
            f"the cost of {node.name} ({called}) is unknown: replace it by a known operator or add it to the "
            "tables of pibench.models.cost"
        )
    if kind == "multiply":
        factors = [operand for operand in operands if isinstance(operand, fx.Node)]
        return "scale" if len(factors) < 2 else "square" if factors[0] is factors[1] else "multiply"
    return kind


def _comparisons(graph: fx.GraphModule, node: fx.Node, image: Tensor, value: Tensor) -> int:
    """Returns the comparisons of a max pooling [N, C, H, W] -> [N, C, h, w]: k_h k_w - 1 for each output."""
    pool = module_of(graph, node)
    if isinstance(pool, nn.AdaptiveMaxPool2d) or node.target is F.adaptive_max_pool2d:
        # Output i of h reads the rows from floor(i H / h) up to ceil((i + 1) H / h).
        spans = [
            sum(-(-(i + 1) * size // count) - i * size // count for i in range(count))
            for size, count in zip(image.shape[-2:], value.shape[-2:], strict=True)
        ]
        return prod(value.shape[1:-2]) * prod(spans) - prod(value.shape[1:])
    if pool is not None:
        kernel = pool.kernel_size
    else:
        kernel = node.args[1] if len(node.args) > 1 else node.kwargs["kernel_size"]
    kernel = (kernel,) if isinstance(kernel, int) else tuple(kernel)
    return (prod(kernel if len(kernel) == 2 else kernel * 2) - 1) * prod(value.shape[1:])


class _Counter(fx.Interpreter):
    """Runs a graph and notes the cost of every node."""

    def __init__(self, graph: fx.GraphModule, batch: int) -> None:
        super().__init__(graph)
        self.batch = batch
        self.layers: list[LayerCost] = []
        self.relu_shapes: dict[str, tuple[int, ...]] = {}

    def run_node(self, node: fx.Node) -> Any:
        with FlopCounterMode(display=False) as counter:
            value = super().run_node(node)
        if node.op.startswith("call_") and isinstance(value, Tensor):
            self._note(node, value, counter.get_total_flops())
        return value

    def _note(self, node: fx.Node, value: Tensor, flops: int) -> None:
        kind = _kind(self.module, node)
        module = module_of(self.module, node)
        inputs = [self.env[argument] for argument in node.all_input_nodes]
        tensors = [argument for argument in inputs if isinstance(argument, Tensor)]
        weight, parameters = 0, 0
        if module is not None:
            parameters = sum(parameter.numel() for parameter in module.parameters())
            weight = module.weight.numel() if kind in ("convolution", "linear") else 0
        elif kind in ("convolution", "linear"):
            weight = tensors[1].numel()
            parameters = sum(tensor.numel() for tensor in tensors[1:])
        relus = 0
        if kind == "relu":
            shape = tuple(value.shape[1:])
            self.relu_shapes[node.name] = shape
            relus = module.kept(shape) if isinstance(module, MaskedReLU) else prod(shape)
        comparisons = 0
        if kind == "maxpool":
            comparisons = _comparisons(self.module, node, tensors[0], value)
        self.layers.append(
            LayerCost(
                name=node.name,
                kind=kind,
                input_size=tensors[0].numel() // self.batch,
                weight_size=weight,
                relus=relus,
                comparisons=comparisons,
                macs=flops // 2 // self.batch,
                parameters=parameters,
            )
        )


def _count(model: nn.Module, example: Tensor) -> tuple[fx.GraphModule, _Counter]:
    if example.dim() != 4 or not len(example):
        raise ValueError(f"the example is a batch of images [N, C, H, W], not of shape {list(example.shape)}")
    graph = trace(model).eval()
    counter = _Counter(graph, len(example))
    with torch.no_grad():
        counter.run(example)
    return graph, counter


def count_cost(model: nn.Module, example: Tensor) -> Cost:
    """Counts the cost of `model` for one image of the batch `example` [N, C, H, W]."""
    graph, counter = _count(model, example)
    layers = tuple(counter.layers)
    return Cost(
        relus=sum(layer.relus for layer in layers),
        comparisons=sum(layer.comparisons for layer in layers),
        relu_layers=sum(layer.relus > 0 for layer in layers),
        linear_layers=sum(layer.kind in ("convolution", "linear") for layer in layers),
        macs=sum(layer.macs for layer in layers),
        parameters=sum(parameter.numel() for parameter in graph.parameters()),
        layers=layers,
    )


def relu_shapes(model: nn.Module, example: Tensor) -> dict[str, tuple[int, ...]]:
    """Returns the shape of one image's activation at each ReLU, in order, named as `relu_nodes` does."""
    graph, counter = _count(model, example)
    return {name: counter.relu_shapes[node.name] for name, node in relu_nodes(graph).items()}
