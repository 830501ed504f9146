"""Conv2[p2] . Conv1[p1] -> Conv2[0] . Conv1[p1 + s1 p2]: the padding moves to the head of the chain.

Conv2 reads y at j = -p2 ... n + p2 - 1 and finds zeros outside 0 ... n - 1. Conv1 with padding p1 + s1 p2,

    y[j - p2] = b1 + sum_m W1[m] x[s1 j - (p1 + s1 p2) + d1 m],

gives the same y inside. Outside it gives 2 p2 more values, computed from the zeros (and from the image's
edge), where there were zeros before. The size of the result is the same.

Approximate: the border changes, that is, all values that depend on y outside 0 ... n - 1. The interior is
exact. This step makes merge_convs possible. Refuses paddings other than zeros, and a first convolution with
other users.
"""

from collections.abc import Collection

from torch import fx, nn

from pibench.models.graph.convolution import Pair, convolution, followers, padding_obstacle, padding_of
from pibench.models.graph.moves import finish, module_of, replace_module, source, trace


def hoisted(padding1: Pair, stride1: Pair, padding2: Pair) -> Pair:
    """Returns the first convolution's new padding p1 + s1 p2 for each axis."""
    return tuple(p1 + s1 * p2 for p1, s1, p2 in zip(padding1, stride1, padding2, strict=True))


def obstacle(first: nn.Conv2d, second: nn.Conv2d) -> str | None:
    """Returns why the padding of `second` cannot move to `first`, or None if it can."""
    return padding_obstacle(first) or padding_obstacle(second)


def hoist_padding(model: nn.Module, names: Collection[str] | None = None) -> fx.GraphModule:
    """Moves the padding of convolutions that follow a convolution to the head of their chain.

    `names` lists the module names of the second convolutions. If one of them cannot move its padding,
    ValueError gives the reason. None moves all that are possible.
    """
    graph = trace(model)
    # Starts with the last one, so that its padding travels through the whole chain.
    for node in followers(graph, names, "hoist the padding of", obstacle, last_first=True):
        first, second = module_of(graph, source(node)), module_of(graph, node)
        if padding_of(second) == (0, 0):
            continue
        _pad(graph, source(node), first, hoisted(padding_of(first), first.stride, padding_of(second)))
        _pad(graph, node, second, (0, 0))
    return finish(graph)


def _pad(graph: fx.GraphModule, node: fx.Node, conv: nn.Conv2d, padding: Pair) -> None:
    new = convolution(conv.weight, conv.bias, conv.stride, padding, conv.dilation, conv.groups)
    replace_module(graph, node, new)
