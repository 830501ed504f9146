"""The counts for training, from one run of a network's graph on an example.

All counts are for one image. The cost of a private inference, layer by layer, is counted elsewhere, from the
program that parties run.
"""

from math import prod
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.utils.flop_counter import FlopCounterMode

from pibench.models.graph.moves import module_of, relu_nodes, trace
from pibench.models.graph.polynomial import PolynomialReLU
from pibench.models.graph.relu import MaskedReLU


def relu_shapes(model: nn.Module, example: Tensor) -> dict[str, tuple[int, ...]]:
    """Returns the shape of one image's activation at each ReLU, in order, named as `relu_nodes` does.

    `example` [N, ...] is a batch of images.
    """
    return _relu_shapes(trace(model).eval(), example)


def count_relus(model: nn.Module, example: Tensor) -> int:
    """Counts the ReLUs that are evaluated for one image of `example` [N, ...], after masks.

    A quadratic in place of a ReLU is none.
    """
    graph = trace(model).eval()
    shapes, kept = _relu_shapes(graph, example), 0
    for name, node in relu_nodes(graph).items():
        module = module_of(graph, node)
        kept += module.kept(shapes[name]) if isinstance(module, MaskedReLU) else prod(shapes[name])
    polynomials = (module_of(graph, node, PolynomialReLU) for node in graph.graph.nodes)
    return kept + sum(int(each.mask.count_nonzero()) for each in polynomials if each is not None)


def count_macs(model: nn.Module, example: Tensor) -> int:
    """Counts the multiplications of convolutions and linear layers for one image of `example` [N, ...].

    They are half of the number from torch's flop counter, which leaves out biases.
    """
    graph = trace(model).eval()
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        graph(example)
    return counter.get_total_flops() // 2 // len(example)


class _Shapes(fx.Interpreter):
    """Runs a graph and stores the shape of every value in `wanted`."""

    def __init__(self, graph: fx.GraphModule, wanted: set[fx.Node]) -> None:
        super().__init__(graph)
        self.wanted = wanted
        self.found: dict[fx.Node, tuple[int, ...]] = {}

    def run_node(self, node: fx.Node) -> Any:
        value = super().run_node(node)
        if node in self.wanted:
            self.found[node] = tuple(value.shape[1:])
        return value


def _relu_shapes(graph: fx.GraphModule, example: Tensor) -> dict[str, tuple[int, ...]]:
    relus = relu_nodes(graph)
    shapes = _Shapes(graph, set(relus.values()))
    with torch.no_grad():
        shapes.run(example)
    return {name: shapes.found[node] for name, node in relus.items()}
