"""Conv2 . Conv1 -> Conv.

With y[j] = b1 + sum_m W1[m] x[s1 j - p + d1 m] and z[i] = b2 + sum_n W2[n] y[s2 i + d2 n] (no padding),

    z[i] = b2 + sum_n W2[n] b1 + sum_{m,n} W2[n] W1[m] x[s1 s2 i - p + d1 m + s1 d2 n].

This is one convolution of stride s1 s2 and padding p. Its kernel at tap t is the sum of W2[n] W1[m] over d1 m
+ s1 d2 n = t. It is the transposed convolution of W2 by W1 with stride s1 d2 and dilation d1, of size d1 (k1
- 1) + s1 d2 (k2 - 1) + 1. Where g = gcd(d1, s1 d2) > 1 only every g-th tap is used. The merged kernel is then
made without the zeros, with dilation g.

Exact. Refuses a second convolution that pads (at its zeros Conv1 would give other values: see hoist_padding),
groups in both convolutions, a first convolution with other users, and factors of low rank (factorize_convs),
which it would multiply out again.
"""

from collections.abc import Collection
from math import gcd

import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F

from pibench.models.graph.convolution import (
    FACTOR_OF,
    MERGED,
    Pair,
    bias_of,
    convolution,
    followers,
    padding_obstacle,
    padding_of,
)
from pibench.models.graph.moves import finish, module_of, replace_module, source, trace


def dense(kernel: Tensor, groups: int) -> Tensor:
    """Maps a grouped kernel [O, C / groups, H, W] to the equal [O, C, H, W], zero off the blocks."""
    if groups == 1:
        return kernel
    out_channels, per_group, height, width = kernel.shape
    full = kernel.new_zeros(out_channels, per_group * groups, height, width)
    rows = out_channels // groups
    for group in range(groups):
        out, into = slice(group * rows, (group + 1) * rows), slice(group * per_group, (group + 1) * per_group)
        full[out, into] = kernel[out]
    return full


def dilation_after(k1: int, d1: int, k2: int, s1d2: int) -> int:
    """Returns the largest step g that divides all taps d1 m + s1 d2 n of the merged kernel."""
    return gcd(d1 if k1 > 1 else 0, s1d2 if k2 > 1 else 0) or 1


def merged(
    kernel1: Tensor, bias1: Tensor, kernel2: Tensor, bias2: Tensor, stride: Pair, dilation: Pair
) -> tuple[Tensor, Tensor]:
    """Returns kernel [O, C, H, W] and bias [O] of Conv2 . Conv1.

    The inputs are kernel1 [M, C, h1, w1], bias1 [M], kernel2 [O, M, h2, w2] and bias2 [O]. For each axis
    `stride` is s1 d2 / g and `dilation` is d1 / g, where g is the merged dilation.
    """
    kernel = F.conv_transpose2d(kernel2, kernel1, stride=stride, dilation=dilation)
    return kernel, bias2 + torch.einsum("omhw,m->o", kernel2, bias1)


def obstacle(first: nn.Conv2d, second: nn.Conv2d) -> str | None:
    """Returns why `second` after `first` cannot be merged with it, or None if it can."""
    if reason := padding_obstacle(first) or padding_obstacle(second):
        return reason
    if padding_of(second) != (0, 0):
        return f"the second convolution pads by {padding_of(second)}: hoist the padding first (approximate)"
    if first.groups != 1 and second.groups != 1:
        return f"both convolutions are grouped ({first.groups} and {second.groups} groups)"
    return None


def merge_convs(model: nn.Module, names: Collection[str] | None = None) -> fx.GraphModule:
    """Merges convolutions with the convolution before them.

    `names` lists the module names of the second convolutions. If one of them is not possible, ValueError
    gives the reason. None merges all that are possible; factors of low rank stay. The merged convolution has
    the second one's name.
    """
    graph = trace(model)
    factors = {
        module_of(graph, node): node.meta[FACTOR_OF] for node in graph.graph.nodes if FACTOR_OF in node.meta
    }

    def reason(first: nn.Conv2d, second: nn.Conv2d) -> str | None:
        factored = factors.get(first) or factors.get(second)
        if factored is None:
            return obstacle(first, second)
        return f"{factored} is of low rank, and merging would multiply its factors out: choose one of the two"

    for node in followers(graph, names, "merge", reason):
        _merge(graph, node)
    return finish(graph)


@torch.no_grad()
def _merge(graph: fx.GraphModule, node: fx.Node) -> None:
    first, second = module_of(graph, source(node)), module_of(graph, node)
    s1d2 = tuple(s * d for s, d in zip(first.stride, second.dilation, strict=True))
    g = tuple(map(dilation_after, first.kernel_size, first.dilation, second.kernel_size, s1d2))
    # A kernel of one tap never uses its step, for which // may give 0.
    step1 = tuple(max(d // h, 1) for d, h in zip(first.dilation, g, strict=True))
    step2 = tuple(max(s // h, 1) for s, h in zip(s1d2, g, strict=True))
    kernel, bias = merged(
        dense(first.weight, first.groups),
        bias_of(first),
        dense(second.weight, second.groups),
        bias_of(second),
        step2,
        step1,
    )
    stride = tuple(a * b for a, b in zip(first.stride, second.stride, strict=True))
    replace_module(graph, node, convolution(kernel, bias, stride, padding_of(first), g))
    node.args, node.kwargs = (source(source(node)),), {}
    node.meta[MERGED] = True
