"""BatchNorm . Conv -> Conv.

With the statistics frozen, BatchNorm is affine in each channel:

    BN(y) = s (y - mu) + beta,   s = gamma / sqrt(var + eps)

so that, with y = W * x + b,

    BN(W * x + b) = (s W) * x + (s (b - mu) + beta).

With no convolution to fold into (before an activation, or where the convolution has other users) BatchNorm
becomes the 1x1 depthwise convolution with kernel s and bias beta - s mu: a linear layer like any other.

Exact. Refuses a BatchNorm in training mode or without running statistics, whose output depends on the batch.
"""

import torch
from torch import Tensor, fx, nn

from models.convolution import bias_of, convolution, padding_obstacle, padding_of
from models.graph import callers, finish, module_of, replace_module, sole_user, source, trace


def affine(norm: nn.BatchNorm2d) -> tuple[Tensor, Tensor]:
    """Returns scale s and shift t, both [C], with BN(y) = s y + t."""
    s = torch.rsqrt(norm.running_var + norm.eps)
    if norm.weight is not None:
        s = s * norm.weight
    t = -s * norm.running_mean
    return s, t if norm.bias is None else t + norm.bias


def folded(kernel: Tensor, bias: Tensor, s: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
    """Maps kernel [O, C, H, W], bias [O], scale and shift [O] to the kernel and bias of s (W * x + b) + t."""
    return kernel * s.view(-1, 1, 1, 1), s * bias + t


def depthwise(s: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
    """Maps scale and shift [C] to the kernel [C, 1, 1, 1] and bias [C] of a depthwise 1x1 convolution."""
    return s.view(-1, 1, 1, 1), t


def obstacle(graph: fx.GraphModule, first: fx.Node, second: fx.Node) -> str | None:
    """Says why the BatchNorm `second` cannot go into `first`, None when it can."""
    conv = module_of(graph, first, nn.Conv2d)
    if conv is None:
        return f"{first} is no convolution"
    if reason := padding_obstacle(conv):
        return reason
    if sole_user(first) is not second:
        return f"the convolution {first} has other users"
    if len(callers(graph, first.target)) > 1:
        return f"the convolution {first.target} is called more than once"
    return None


def fold_batchnorm(model: nn.Module) -> fx.GraphModule:
    """Folds every BatchNorm2d into the convolution before it, or makes it a depthwise 1x1 convolution."""
    graph = trace(model)
    for node in list(graph.graph.nodes):
        norm = module_of(graph, node, nn.BatchNorm2d)
        if norm is None:
            continue
        if norm.training or norm.running_mean is None:
            raise ValueError(
                f"{node.target} takes its statistics from the batch, so it cannot be folded: call "
                "model.eval() first and keep track_running_stats on"
            )
        first = source(node)
        s, t = affine(norm)
        if obstacle(graph, first, node):
            kernel, bias = depthwise(s, t)
            replace_module(graph, node, convolution(kernel, bias, groups=norm.num_features))
        else:
            conv = module_of(graph, first)
            kernel, bias = folded(conv.weight, bias_of(conv), s, t)
            new = convolution(kernel, bias, conv.stride, padding_of(conv), conv.dilation, conv.groups)
            replace_module(graph, first, new)
            node.replace_all_uses_with(first)
            graph.graph.erase_node(node)
    return finish(graph)
