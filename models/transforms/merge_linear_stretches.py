"""A stretch without ReLUs -> one convolution.

Every value y between two nonlinearities is an affine map of the value x before them,

    y[i] = b + sum_t K[t] x[S i - P + t],

with K [O, C, H, W], stride S and padding P. The maps follow from x itself (K = Dirac, b = 0, S = 1, P = 0):

    convolution (W, c, s, p)   K' = sum over n, m with S n + m = t of W[n] K[m],  b' = c + sum_n W[n] b,
                               S' = S s,  P' = P + S p
    sum of two maps of one S   kernels laid over each other where they read the same pixel, biases added
    average pooling            the depthwise convolution with 1 / k^2 at every tap

Convolutions, skips and average pools of a stretch therefore become one convolution. A stretch can be cut at
values that every path passes. Among all such cuts the transform takes the cheapest (by operations, or by
`price`, for example measured seconds). Among equal ones it takes the cut with the fewest layers. A part whose
merged form costs more stays unchanged. A convolution that only convolutions read, such as the deep branch and
the shortcut of a block, is merged into each of them if they then cost less than all apart. The chain rule is
that of `merge_convs`. Folding the stretches that masks leave linear, skips included, is ours.

Exact with borders="exact": a convolution that pads is merged only with a part that gives 0 for zeros there.
With borders="hoisted" the padding moves to the head of the stretch, as in `hoist_padding`: the interior is
exact, the border is not, and such a network is usually tuned. Refuses nothing: a part that cannot be merged
ends a stretch (dilation, padding other than zeros, sums of different strides or sources, values that a
nonlinearity reads too, factors of low rank).
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from math import prod

import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F

from pibench.models.graph.convolution import (
    FACTOR_OF,
    MERGED,
    Pair,
    bias_of,
    convolution,
    padding_obstacle,
    padding_of,
)
from pibench.models.graph.moves import addends, callers, finish, module_of, replace_module, source, trace

BORDERS = ("exact", "hoisted")


@dataclass(frozen=True)
class Affine:
    """The map of one value of a stretch: kernel [O, C, H, W], bias [O], stride, padding.

    `exact` is true if no zero of an inner padding stands where the map gives another value.
    """

    kernel: Tensor
    bias: Tensor
    stride: Pair
    padding: Pair
    exact: bool = True

    def after(self, first: "Affine | None") -> "Affine":
        """Returns this map applied to the values of `first` (None: to the source itself)."""
        if first is None:
            return self
        kernel = F.conv_transpose2d(self.kernel, first.kernel, stride=first.stride)
        bias = self.bias + torch.einsum("omhw,m->o", self.kernel, first.bias)
        stride = tuple(a * b for a, b in zip(first.stride, self.stride, strict=True))
        padding = tuple(p + s * q for p, s, q in zip(first.padding, first.stride, self.padding, strict=True))
        return Affine(kernel, bias, stride, padding, first.exact and self.padding == (0, 0))

    def plus(self, other: "Affine") -> "Affine":
        """Returns the sum of two maps for which `summable` holds."""
        before = tuple(map(max, self.padding, other.padding))
        kernels = []
        for each in (self, other):
            grown = [b - p for b, p in zip(before, each.padding, strict=True)]  # the same at both ends
            kernels.append(F.pad(each.kernel, (grown[1], grown[1], grown[0], grown[0])))
        return Affine(
            kernels[0] + kernels[1], self.bias + other.bias, self.stride, before, self.exact and other.exact
        )


def summable(one: Affine, other: Affine) -> bool:
    """Returns whether two maps of one source read it at the same pixels and give values of one size."""
    ends = [
        tuple(2 * p - k for p, k in zip(each.padding, each.kernel.shape[2:], strict=True))
        for each in (one, other)
    ]
    return (
        one.stride == other.stride
        and ends[0] == ends[1]
        and (one.kernel.shape[:2], one.kernel.device) == (other.kernel.shape[:2], other.kernel.device)
    )


Price = Callable[[nn.Conv2d, float], float]
"""The cost of a convolution whose output has `area` times the pixels of its stretch's source."""


def operations(conv: nn.Conv2d, area: float) -> float:
    """Returns multiplications for each pixel of the stretch's source."""
    return conv.weight.numel() * area


def merge_linear_stretches(
    model: nn.Module, borders: str = "exact", price: Price = operations
) -> fx.GraphModule:
    """Merges stretches of convolutions, skips and average pools without a nonlinearity between them.

    `borders` is one of `BORDERS`. A merged convolution has the name of the last one in it.
    """
    if borders not in BORDERS:
        raise ValueError(f"borders are {' or '.join(BORDERS)}, not {borders!r}")
    graph, hoisted = trace(model), borders == "hoisted"
    while (parts := _next_part(graph, hoisted, price) or _next_fork(graph, hoisted, price)) is not None:
        for stretch, first, last in parts:
            stretch.merge(first, last)
    return finish(graph)


def _next_part(
    graph: fx.GraphModule, hoisted: bool, price: Price
) -> "list[tuple[_Stretch, fx.Node, fx.Node]] | None":
    """Returns the first part that is worth merging, or None if no stretch has one."""
    for start, nodes in _stretches(graph):
        stretch = _Stretch(graph, start, nodes)
        if parts := stretch.choice(hoisted, price):
            return [(stretch, *parts[0])]
    return None


def _next_fork(
    graph: fx.GraphModule, hoisted: bool, price: Price
) -> "list[tuple[_Stretch, fx.Node, fx.Node]] | None":
    """Returns a convolution with each of its users, if all are convolutions and cost less when merged."""
    for node in graph.graph.nodes:
        users = list(node.users)
        if len(users) < 2 or any(_layer(graph, each) is None for each in (node, *users)):
            continue
        first = module_of(graph, node)
        area = 1 / prod(first.stride)
        apart, merged, parts = price(first, area), 0.0, []
        for user in users:
            stretch = _Stretch(graph, source(node), [node, user])
            made, own = stretch.affine(source(node), user, shapes_alone=True), module_of(graph, user)
            inner = area / prod(own.stride)
            apart += price(own, inner)
            if made is not None and (hoisted or made.exact):
                merged += price(_as_convolution(made), inner)
                parts.append((stretch, source(node), user))
        if len(parts) == len(users) and merged < apart:
            return parts
    return None


def _layer(graph: fx.GraphModule, node: fx.Node) -> Affine | None:
    """Returns the map of a convolution, or None if `node` is not one or ends a stretch."""
    conv = module_of(graph, node, nn.Conv2d)
    if conv is None or conv.groups != 1 or conv.dilation != (1, 1) or padding_obstacle(conv) is not None:
        return None
    if len(callers(graph, node.target)) > 1 or FACTOR_OF in node.meta:
        return None
    return Affine(conv.weight.detach(), bias_of(conv).detach(), conv.stride, padding_of(conv))


def _pool(graph: fx.GraphModule, node: fx.Node, channels: int, like: Tensor) -> Affine | None:
    """Returns the map of an average pooling of `channels` channels, or None if `node` is not one or clips."""
    pool = module_of(graph, node, nn.AvgPool2d)
    if pool is None or pool.ceil_mode or pool.divisor_override is not None:
        return None
    sides, stride, padding = (
        (value, value) if isinstance(value, int) else tuple(value)
        for value in (pool.kernel_size, pool.stride, pool.padding)
    )
    if padding != (0, 0) and not pool.count_include_pad:
        return None
    kernel = like.new_zeros(channels, channels, *sides)
    kernel[range(channels), range(channels)] = 1 / (sides[0] * sides[1])
    return Affine(kernel, like.new_zeros(channels), stride, padding)


def _linear(graph: fx.GraphModule, node: fx.Node) -> bool:
    """Returns whether a node may stand inside a stretch."""
    if module_of(graph, node, nn.AvgPool2d) is not None:
        # A pool at the head of a stretch costs nothing alone, and its channels are not known.
        return _linear(graph, source(node))
    return addends(node) is not None or _layer(graph, node) is not None


def _stretches(graph: fx.GraphModule) -> Iterable[tuple[fx.Node, list[fx.Node]]]:
    """Yields the source of each stretch and its values, in order, including the last one."""
    nodes = list(graph.graph.nodes)
    linear = [node for node in nodes if _linear(graph, node)]
    ends = {node for node in linear if any(user not in linear for user in node.users)}
    opens: set[fx.Node] = set()  # linear nodes at which a stretch starts: sums of two stretches
    settled = False
    while not settled:
        before = len(ends), len(opens)
        origin: dict[fx.Node, fx.Node] = {}
        for node in linear:
            parents = node.all_input_nodes
            sources = {origin[each] if each in origin and each not in ends else each for each in parents}
            if len(sources) > 1:
                opens.add(node)
                ends |= {node, *(parent for parent in parents if parent in origin)}
            origin[node] = node if node in opens else sources.pop()
        targets: dict[fx.Node, frozenset[fx.Node]] = {}
        for node in reversed([node for node in linear if node not in ends]):
            reached = [frozenset({user}) if user in ends else targets[user] for user in node.users]
            targets[node] = frozenset().union(*reached)
            if targets[node] not in reached:
                ends.add(node)  # its users end in different places
        settled = before == (len(ends), len(opens))
    for end in [node for node in linear if node in ends and node not in opens]:
        inner, waiting = {end}, [end]
        while waiting:
            for parent in waiting.pop().all_input_nodes:
                if parent is not origin[end] and parent not in inner:
                    inner.add(parent)
                    waiting.append(parent)
        yield origin[end], [node for node in nodes if node in inner]


def _identity(like: Affine) -> Affine:
    """Returns the map of a source to itself, with the channels of `like`."""
    channels = len(like.bias)
    dirac = torch.eye(channels, dtype=like.kernel.dtype, device=like.kernel.device)
    return Affine(dirac.view(channels, channels, 1, 1), torch.zeros_like(like.bias), (1, 1), (0, 0))


class _Stretch:
    """One stretch: its values in order, and the maps between them."""

    def __init__(self, graph: fx.GraphModule, start: fx.Node, nodes: list[fx.Node]) -> None:
        self.graph, self.start, self.nodes = graph, start, nodes

    def cuts(self) -> list[fx.Node]:
        """Returns the source and the inner values that every path passes."""
        order = {node: place for place, node in enumerate([self.start, *self.nodes])}
        edges = [(order[parent], order[node]) for node in self.nodes for parent in node.all_input_nodes]
        inner = [node for node in self.nodes if not any(a < order[node] < b for a, b in edges)]
        return [self.start, *inner]

    def between(self, first: fx.Node, last: fx.Node) -> list[fx.Node]:
        """Returns the values after `first` up to `last`."""
        whole = [self.start, *self.nodes]
        return whole[whole.index(first) + 1 : whole.index(last) + 1]

    def affine(self, first: fx.Node, last: fx.Node, shapes_alone: bool = False) -> Affine | None:
        """Returns the map from `first` to `last` in float64, or None if there is none.

        With `shapes_alone` its tensors have shapes and no values.
        """

        def prepared(map_: Affine) -> Affine:
            if shapes_alone:
                return replace(map_, kernel=map_.kernel.to("meta"), bias=map_.bias.to("meta"))
            return replace(map_, kernel=map_.kernel.double(), bias=map_.bias.double())

        maps: dict[fx.Node, Affine | None] = {first: None}
        for node in self.between(first, last):
            values = addends(node)
            if values is None:
                before = maps[source(node)]
                own = _layer(self.graph, node)
                if own is None and before is not None:
                    own = _pool(self.graph, node, len(before.bias), before.bias)
                if own is None:
                    return None
                inner_zero = before is None or (
                    tuple(before.kernel.shape[2:]) == (1, 1)
                    and before.stride == (1, 1)
                    and before.padding == (0, 0)
                    and _adds_nothing(self.graph, source(node))
                )
                made = prepared(own).after(before)
                if inner_zero:
                    made = replace(made, exact=True if before is None else before.exact)
                maps[node] = made
                continue
            one, other = (maps[value] for value in values)
            if one is None and other is None:
                return None
            known = one if one is not None else other
            if one is None or other is None:
                if known.kernel.shape[0] != known.kernel.shape[1]:
                    return None
                channels = known.kernel.shape[0]
                dirac = torch.eye(channels, dtype=known.kernel.dtype, device=known.kernel.device)
                skip = Affine(
                    dirac.view(channels, channels, 1, 1), torch.zeros_like(known.bias), (1, 1), (0, 0)
                )
                one, other = known, skip
            if not summable(one, other):
                return None
            maps[node] = one.plus(other)
        return maps[last]

    def choice(self, hoisted: bool, price: Price) -> list[tuple[fx.Node, fx.Node]]:
        """Returns the parts to merge, as first and last value, that make the stretch cheapest."""
        cuts = self.cuts()
        area = {self.start: 1.0}
        for node in self.nodes:
            layer = module_of(self.graph, node, (nn.Conv2d, nn.AvgPool2d))
            stride = getattr(layer, "stride", 1)
            along = (stride, stride) if isinstance(stride, int) else stride
            area[node] = min(area[parent] for parent in node.all_input_nodes) / (along[0] * along[1])
        best: list[tuple[tuple[float, int], list[tuple[fx.Node, fx.Node]]]] = [((0.0, 0), [])]
        for last in range(1, len(cuts)):
            options = []
            for first in range(last):
                (paid, layers), parts = best[first]
                inside = self.between(cuts[first], cuts[last])
                convs = [(node, module_of(self.graph, node, nn.Conv2d)) for node in inside]
                kept = [(conv, area[node]) for node, conv in convs if conv is not None]
                if first == last - 1:
                    total = paid + sum(price(conv, where) for conv, where in kept)
                    options.append(((total, layers + len(kept)), parts))
                made = self.affine(cuts[first], cuts[last], shapes_alone=True) if len(inside) > 1 else None
                if made is not None and kept and (hoisted or made.exact):
                    total = paid + price(_as_convolution(made), area[cuts[last]])
                    options.append(((total, layers + 1), [*parts, (cuts[first], cuts[last])]))
            best.append(min(options, key=lambda option: option[0]))
        return best[-1][1]

    @torch.no_grad()
    def merge(self, first: fx.Node, last: fx.Node) -> None:
        """Replaces everything between two values by one convolution."""
        graph = self.graph
        inside = self.between(first, last)
        node = next(each for each in reversed(inside) if module_of(graph, each, nn.Conv2d) is not None)
        like = module_of(graph, node).weight
        made = self.affine(first, last)
        kept = replace(made, kernel=made.kernel.to(like.dtype), bias=made.bias.to(like.dtype))
        replace_module(graph, node, _as_convolution(kept))
        node.args, node.kwargs = (first,), {}
        node.meta[MERGED] = True
        if node is not last:
            last.replace_all_uses_with(node)
        graph.graph.eliminate_dead_code()


def _adds_nothing(graph: fx.GraphModule, node: fx.Node) -> bool:
    """Returns whether `node` is a convolution without bias, so that zeros stay zeros."""
    conv = module_of(graph, node, nn.Conv2d)
    return conv is not None and not bool(bias_of(conv).any())


def _as_convolution(made: Affine) -> nn.Conv2d:
    return convolution(made.kernel, made.bias, made.stride, made.padding)
