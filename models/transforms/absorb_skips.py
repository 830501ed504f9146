"""x + Conv(x) -> Conv(x), and Conv'(x) + Conv(x) -> Conv(x).

Two convolutions of one input with the same stride s,

    (W * x)[i] + (V * x)[i] = sum_m W[m] x[s i - p + d m] + sum_n V[n] x[s i - q + d n],

read the same pixel where d m - p = d n - q. Their sum is therefore one convolution. Its kernel is W with V
added at the taps m = n + (p - q) / d. Under "same" padding, 2 p = d (k - 1) with k odd, these taps are the
centre of W. A 1x1 shortcut is one tap there. The identity is the 1x1 kernel with a one for each channel (a
Dirac).

Exact. Refuses a convolution with an even kernel or a padding other than "same" (output sizes would agree only
by accident), unequal strides, groups in one of two convolutions, and a result with other users.
"""

from collections.abc import Collection

import torch
from torch import Tensor, fx, nn

from pibench.models.graph.convolution import bias_of, convolution, padding_obstacle, padding_of
from pibench.models.graph.moves import (
    addends,
    finish,
    module_of,
    replace_module,
    sharing,
    sole_user,
    source,
    trace,
)


def dirac(kernel: Tensor, groups: int = 1) -> Tensor:
    """Returns the 1x1 kernel [C, C / groups, 1, 1] of the identity, in the type of `kernel`."""
    channels, per_group = kernel.shape[:2]
    one = kernel.new_zeros(channels, per_group, 1, 1)
    index = torch.arange(channels)
    one[index, index % per_group] = 1
    return one


def placed(kernel: Tensor, shortcut: Tensor) -> Tensor:
    """Adds `shortcut` [O, C, h, w] at the centre of `kernel` [O, C, H, W]; sizes odd, h <= H, w <= W."""
    total = kernel.clone()
    top, left = ((big - small) // 2 for big, small in zip(kernel.shape[2:], shortcut.shape[2:], strict=True))
    total[:, :, top : top + shortcut.shape[2], left : left + shortcut.shape[3]] += shortcut
    return total


def _same_padding_obstacle(conv: nn.Conv2d) -> str | None:
    if reason := padding_obstacle(conv):
        return reason
    for k, d, p in zip(conv.kernel_size, conv.dilation, padding_of(conv), strict=True):
        if k % 2 == 0:
            return f"its kernel {conv.kernel_size} is even"
        if 2 * p != d * (k - 1):
            return f"its padding {conv.padding} is not 'same' for the kernel {conv.kernel_size}"
    return None


def obstacle(conv: nn.Conv2d, shortcut: nn.Conv2d | None) -> str | None:
    """Returns why `shortcut` (None is the identity) cannot go into the kernel of `conv`, or None."""
    if reason := _same_padding_obstacle(conv):
        return reason
    if shortcut is None:
        if conv.stride != (1, 1):
            return f"an identity skip needs stride 1, not {conv.stride}"
        if conv.in_channels != conv.out_channels:
            return f"an identity skip needs equal channels, not {conv.in_channels} -> {conv.out_channels}"
        return None
    if reason := _same_padding_obstacle(shortcut):
        return f"shortcut: {reason}"
    if shortcut.stride != conv.stride:
        return f"the strides {conv.stride} and {shortcut.stride} differ"
    if conv.groups != 1 or shortcut.groups != 1:
        return f"grouped convolutions ({conv.groups} and {shortcut.groups} groups) are not added"
    for big, small, d, e in zip(
        conv.kernel_size, shortcut.kernel_size, conv.dilation, shortcut.dilation, strict=True
    ):
        if small > big:
            return f"the shortcut's kernel {shortcut.kernel_size} is larger than {conv.kernel_size}"
        if small > 1 and d != e:
            return f"the dilations {conv.dilation} and {shortcut.dilation} differ"
    return None


def _refusal(graph: fx.GraphModule, deep: object, skip: object) -> str | None:
    """Returns why the sum of the nodes `deep` and `skip` is not one convolution of one input."""
    conv = module_of(graph, deep, nn.Conv2d)
    if conv is None:
        return f"{deep} is no convolution"
    if reason := sharing(graph, deep):
        return reason
    if skip is source(deep):
        return obstacle(conv, None)
    shortcut = module_of(graph, skip, nn.Conv2d)
    if shortcut is None or source(skip) is not source(deep):
        return f"{skip} is neither the input of {deep} nor a convolution of it"
    if sole_user(skip) is None:
        return f"{skip} has other users"
    return obstacle(conv, shortcut)


def absorb_skips(model: nn.Module, names: Collection[str] | None = None) -> fx.GraphModule:
    """Replaces each sum of a convolution and its skip by one convolution.

    `names` lists the fx names of the additions to absorb. If one of them is not possible, ValueError gives
    the reason. None absorbs all that are possible.
    """
    graph = trace(model)
    missing = set(names or ())
    for node in list(graph.graph.nodes):
        values = addends(node)
        if values is None or (names is not None and node.name not in names):
            continue
        missing.discard(node.name)
        reasons = []
        for deep, skip in (values, values[::-1]):
            reason = _refusal(graph, deep, skip)
            if reason is None:
                _absorb(graph, node, deep, skip)
                break
            reasons.append(reason)
        else:
            if names is not None:
                raise ValueError(f"cannot absorb {node.name}: {'; '.join(reasons)}")
    if missing:
        raise ValueError(f"no addition of two values named {sorted(missing)} in this network")
    return finish(graph)


@torch.no_grad()
def _absorb(graph: fx.GraphModule, node: fx.Node, deep: fx.Node, skip: fx.Node) -> None:
    conv = module_of(graph, deep)
    bias = bias_of(conv)
    if skip is source(deep):
        shortcut = dirac(conv.weight, conv.groups)
    else:
        shortcut = module_of(graph, skip).weight
        bias = bias + bias_of(module_of(graph, skip))
    kernel = placed(conv.weight, shortcut)
    new = convolution(kernel, bias, conv.stride, padding_of(conv), conv.dilation, conv.groups)
    replace_module(graph, deep, new)
    node.replace_all_uses_with(deep)
    graph.graph.erase_node(node)
