"""x + deep(x) -> x + Conv(x): the deep branch of a residual block becomes one 3x3 convolution.

    ReLU(BN(Conv(ReLU(BN(Conv(x))))) + shortcut(x))  ->  ReLU(BN(Conv'(x)) + shortcut(x))

Conv' is 3x3 with "same" padding, the branch's channels and the product of its strides. If the branch ends in
a BatchNorm, a fresh one follows Conv' (fold_batchnorm removes it later). Otherwise Conv' has a bias. The
layers of a pre-activation block before its first convolution stay, and Conv' reads their output:

    Conv(ReLU(BN(Conv(a)))) + shortcut  ->  Conv'(a) + shortcut,   a = ReLU(BN(x))

The block's last ReLU and its skip stay; absorb_skips folds the skip in. Exact merging would give a 5x5 or 7x7
kernel and more operations.

Approximate: this transform makes only the structure. The weights are random and learnt elsewhere (after arXiv
2304.13274; it does not publish kernel size and gate, so the 3x3 is our choice). Refuses a branch of low rank
(factorize_convs), whose inverse this is, and a module that is not a residual block. A residual block is the
sum of its input, or of a shortcut of it, and a chain of at least two convolutions with "same" padding.
"""

from collections.abc import Collection
from contextlib import nullcontext
from math import prod

import torch
from torch import fx, nn

from pibench.models.graph.convolution import FACTOR_OF, MERGED, padding_obstacle, padding_of
from pibench.models.graph.moves import addends, finish, insert_module, module_of, source, trace


def _chain(graph: fx.GraphModule, node: fx.Node, block: str) -> tuple[list[fx.Node], fx.Node]:
    """Walks up from `node` inside `block`; returns the nodes in order and the value at their start."""
    nodes = []
    while module_of(graph, node) is not None and node.target.startswith(f"{block}."):
        nodes.insert(0, node)
        node = source(node)
    return nodes, node


def _convolutions(graph: fx.GraphModule, nodes: list[fx.Node]) -> list[nn.Conv2d]:
    return [conv for node in nodes if (conv := module_of(graph, node, nn.Conv2d)) is not None]


def deep_branch(graph: fx.GraphModule, block: str) -> tuple[list[fx.Node], fx.Node, fx.Node]:
    """Returns the nodes of the deep branch of `block`, its input, and the addition at its end.

    The branch begins with its first convolution; earlier layers are part of its input. Raises ValueError with
    the reason if `block` is not a residual block.
    """
    inside = [n for n in graph.graph.nodes if n.op == "call_module" and n.target.startswith(f"{block}.")]
    if not inside:
        raise ValueError(f"no block named {block!r} in this network")
    for node in graph.graph.nodes:
        values = addends(node)
        if values is None:
            continue
        (left, start), (right, other) = (_chain(graph, value, block) for value in values)
        if start is not other:
            continue
        deep = max(left, right, key=lambda nodes: len(_convolutions(graph, nodes)))
        if len(_convolutions(graph, deep)) >= 2:
            while module_of(graph, deep[0], nn.Conv2d) is None:
                start = deep.pop(0)
            if any(len(inner.users) > 1 for inner in deep):
                raise ValueError(
                    f"{block} cannot become shallow: a value inside its deep branch has other users"
                )
            return deep, start, node
    raise ValueError(
        f"{block} cannot become shallow: it is no sum of its input (or a shortcut of it) and two or more "
        "convolutions in a chain"
    )


def obstacle(graph: fx.GraphModule, block: str) -> str | None:
    """Returns why the block named `block` cannot become shallow, or None if it can."""
    try:
        deep, _, _ = deep_branch(graph, block)
    except ValueError as error:
        return str(error)
    if low := next((node.meta[FACTOR_OF] for node in deep if FACTOR_OF in node.meta), None):
        return (
            f"{block} cannot become shallow: {low} is of low rank, and the shallow convolution would take "
            "the place of its factors: choose one of the two"
        )
    for conv in _convolutions(graph, deep):
        if conv.groups != 1:
            return f"{block} cannot become shallow: its convolutions are grouped"
        if reason := padding_obstacle(conv):
            return f"{block} cannot become shallow: {reason}"
        spans = tuple(d * (k - 1) for k, d in zip(conv.kernel_size, conv.dilation, strict=True))
        if spans != tuple(2 * p for p in padding_of(conv)):
            return f"{block} cannot become shallow: a convolution's padding {conv.padding} is not 'same'"
    return None


def shallow_blocks(model: nn.Module, blocks: Collection[str], seed: int | None = 0) -> fx.GraphModule:
    """Replaces the deep branch of each block named in `blocks` ("layer1.0") by one 3x3 convolution.

    The convolution is drawn from N(0, 2 / fan_out) with its own generator, seeded by `seed`. None draws from
    torch's global generator.
    """
    graph = trace(model)
    with nullcontext() if seed is None else torch.random.fork_rng(devices=[]):
        if seed is not None:
            torch.manual_seed(seed)
        for block in blocks:
            if reason := obstacle(graph, block):
                raise ValueError(reason)
            _replace(graph, block)
    return finish(graph)


def _replace(graph: fx.GraphModule, block: str) -> None:
    deep, start, addition = deep_branch(graph, block)
    convs = _convolutions(graph, deep)
    norm = module_of(graph, deep[-1], nn.BatchNorm2d)
    like = {"device": convs[0].weight.device, "dtype": convs[0].weight.dtype}
    stride = tuple(prod(conv.stride[axis] for conv in convs) for axis in (0, 1))
    conv = nn.Conv2d(
        convs[0].in_channels, convs[-1].out_channels, 3, stride, padding=1, bias=norm is None, **like
    )
    nn.init.kaiming_normal_(conv.weight, mode="fan_out", nonlinearity="relu")
    if conv.bias is not None:
        nn.init.zeros_(conv.bias)
    new = insert_module(graph, f"{block}.shallow", conv, start, deep[0])
    new.meta[MERGED] = True
    if norm is not None:
        fresh = nn.BatchNorm2d(norm.num_features, norm.eps, norm.momentum, **like)
        new = insert_module(graph, f"{block}.shallow_bn", fresh, new, deep[0])
    addition.replace_input_with(deep[-1], new)
