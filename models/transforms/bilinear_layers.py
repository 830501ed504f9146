"""Conv -> Conv of rows, Conv of columns, and Linear -> the same for vectors: bilinear projections.

    W * x  ->  L^T X R     (`pibench.models.graph.bilinear`)

C = c1 c2 and O = u1 u2 are split into the two factors that are nearest to each other, the smaller one first.
With a scale s every layer gives s^2 times as many channels: L is [s u1, s c1, k, k] and R is [s u2, s c2].
BatchNorms grow with them. The convolutions that read the image stay dense, as three channels have no factors,
and give s^2 times as many channels too. The last layer, the classifier, keeps its number of outputs.

Approximate: this transform makes only the structure. The weights are random and learnt elsewhere. Source:
arXiv 2011.01391. The nearest factors, the dense stem and the first weights are ours: the product of both
factors has the variance that a dense layer starts with. Refuses a network whose first layer is no
convolution, grouped and dilated convolutions, layers that are called more than once, and other layers whose
size depends on the number of channels.
"""

from __future__ import annotations

from contextlib import nullcontext
from math import isqrt, sqrt

import torch
from torch import Tensor, fx, nn

from pibench.models.graph.bilinear import BilinearLinear, ColumnsConv2d, RowsConv2d
from pibench.models.graph.convolution import convolution, padding_obstacle, padding_of
from pibench.models.graph.moves import (
    callers,
    finish,
    insert_module,
    module_of,
    replace_module,
    source,
    trace,
)

_LAYERS = (nn.Conv2d, nn.Linear)
_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d)


def pair_of(channels: int) -> tuple[int, int]:
    """Returns the two factors of a number that are nearest to each other, the smaller one first.

    >>> pair_of(64), pair_of(128), pair_of(7)
    ((8, 8), (8, 16), (1, 7))
    """
    first = next(factor for factor in range(isqrt(channels), 0, -1) if channels % factor == 0)
    return first, channels // first


def obstacle(graph: fx.GraphModule, node: fx.Node) -> str | None:
    """Returns why the layer that `node` calls cannot become bilinear or grow, or None if it can."""
    layer = module_of(graph, node)
    if len(callers(graph, node.target)) > 1:
        return "it is called more than once"
    if isinstance(layer, nn.Conv2d):
        if layer.groups != 1:
            return f"it has {layer.groups} groups"
        if layer.dilation != (1, 1):
            return f"it is dilated by {layer.dilation}"
        return padding_obstacle(layer)
    if isinstance(layer, (nn.Linear, *_NORMS)) or not layer.state_dict():
        return None
    return f"a {type(layer).__name__} depends on the number of channels"


def bilinear_layers(model: nn.Module, scale: int = 1, seed: int | None = 0) -> fx.GraphModule:
    """Replaces all convolutions and linear layers but those that read the image.

    A convolution NAME becomes `NAME_rows` and `NAME_columns`. New weights are drawn by an own generator,
    seeded by `seed`. None draws from torch's global generator. Raises ValueError for a scale below 1 and for
    a network that the transform refuses.
    """
    if scale < 1:
        raise ValueError(f"a scale of channels is 1 or more, not {scale}")
    graph = trace(model)
    nodes = [node for node in graph.graph.nodes if module_of(graph, node) is not None]
    layers = [node for node in nodes if module_of(graph, node, _LAYERS) is not None]
    first = layers[0] if layers else None
    if module_of(graph, first, nn.Conv2d) is None or source(first).op != "placeholder":
        raise ValueError("no bilinear network of this one: its first layer is no convolution of the image")
    for node in nodes:
        if reason := obstacle(graph, node):
            raise ValueError(f"cannot make {node.target} bilinear: {reason}")
    with nullcontext() if seed is None else torch.random.fork_rng(devices=[]):
        if seed is not None:
            torch.manual_seed(seed)
        for node in nodes:
            layer = module_of(graph, node)
            if isinstance(layer, nn.Linear):
                replace_module(graph, node, _linear(layer, scale, node is layers[-1]))
            elif isinstance(layer, _NORMS):
                replace_module(graph, node, _norm(layer, scale))
            elif isinstance(layer, nn.Conv2d) and source(node).op == "placeholder":
                replace_module(graph, node, _stem(layer, scale))
            elif isinstance(layer, nn.Conv2d):
                _replace(graph, node, layer, scale)
    return finish(graph)


def _scaled_pair(channels: int, scale: int) -> tuple[int, int]:
    first, second = pair_of(channels)
    return scale * first, scale * second


def _drawn(like: Tensor, variance: float, *shape: int) -> Tensor:
    """Draws from N(0, variance), in the type of `like`."""
    return like.new_empty(shape).normal_(0, sqrt(variance))


def _replace(graph: fx.GraphModule, node: fx.Node, conv: nn.Conv2d, scale: int) -> None:
    (c1, c2), (u1, u2) = (_scaled_pair(each, scale) for each in (conv.in_channels, conv.out_channels))
    height, width = conv.kernel_size
    # He's variance 2 / (O k^2), shared by the factors
    kernel = _drawn(conv.weight, 2 / (u1 * height * width), u1, c1, height, width)
    matrix = _drawn(conv.weight, 1 / u2, u2, c2, 1, 1)
    bias = None if conv.bias is None else conv.weight.new_zeros(u1 * u2)
    rows = RowsConv2d(kernel, c2, conv.stride, padding_of(conv))
    value = insert_module(graph, f"{node.target}_rows", rows, source(node), node)
    value = insert_module(graph, f"{node.target}_columns", ColumnsConv2d(matrix, u1, bias), value, node)
    node.replace_all_uses_with(value)
    graph.graph.erase_node(node)


def _stem(conv: nn.Conv2d, scale: int) -> nn.Conv2d:
    outputs, inputs, height, width = conv.weight.shape
    outputs = scale**2 * outputs
    kernel = _drawn(conv.weight, 2 / (outputs * height * width), outputs, inputs, height, width)
    bias = None if conv.bias is None else conv.weight.new_zeros(outputs)
    return convolution(kernel, bias, conv.stride, padding_of(conv))


def _norm(norm: nn.BatchNorm1d | nn.BatchNorm2d, scale: int) -> nn.BatchNorm1d | nn.BatchNorm2d:
    weight = norm.weight if norm.weight is not None else norm.running_mean
    return type(norm)(
        scale**2 * norm.num_features,
        norm.eps,
        norm.momentum,
        norm.affine,
        norm.track_running_stats,
        device=None if weight is None else weight.device,
        dtype=None if weight is None else weight.dtype,
    )


def _linear(layer: nn.Linear, scale: int, last: bool) -> BilinearLinear:
    c1, c2 = _scaled_pair(layer.in_features, scale)
    u1, u2 = _scaled_pair(layer.out_features, 1 if last else scale)
    # the variance 1 / (3 C) and the bias of torch's linear layers
    left = _drawn(layer.weight, 1 / c1, u1, c1)
    right = _drawn(layer.weight, 1 / (3 * c2), u2, c2)
    bound = 1 / sqrt(c1 * c2)
    return BilinearLinear(left, right, layer.weight.new_empty(u1 * u2).uniform_(-bound, bound))
