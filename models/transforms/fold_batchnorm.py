"""BatchNorm . Conv -> Conv, and BatchNorm1d . Linear -> Linear.

With frozen statistics BatchNorm is affine in each channel:

    BN(y) = s (y - mu) + beta,   s = gamma / sqrt(var + eps)

so that, with y = W * x + b,

    BN(W * x + b) = (s W) * x + (s (b - mu) + beta).

A convolution whose groups share one kernel (`ColumnsConv2d`) becomes a grouped one, because every output has
its own scale.

Without a convolution to fold into (before an activation, or if the convolution has other users) BatchNorm
becomes the 1x1 depthwise convolution with kernel s and bias beta - s mu: a linear layer like any other.

On vectors [N, F] the same holds for BatchNorm1d and a linear layer, with W x for W * x.

Exact. Refuses a BatchNorm in training mode or without running statistics, because its output depends on the
batch. Also refuses a BatchNorm1d without its own linear layer, or after one whose input may have more axes
than [N, F]. The BatchNorm then scales another axis than the linear layer's features.
"""

import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F

from pibench.models.graph.bilinear import ColumnsConv2d
from pibench.models.graph.convolution import bias_of, convolution, linear, padding_obstacle, padding_of
from pibench.models.graph.moves import bypass, finish, module_of, replace_module, sharing, source, trace
from pibench.models.graph.relu import MaskedReLU

_POINTWISE_MODULES = (nn.Linear, nn.BatchNorm1d, nn.ReLU, MaskedReLU, nn.Dropout, nn.Identity)
_POINTWISE = {F.relu, torch.relu, "relu", F.dropout}


def affine(norm: nn.BatchNorm1d | nn.BatchNorm2d) -> tuple[Tensor, Tensor]:
    """Returns scale s and shift t, both [C], with BN(y) = s y + t."""
    s = torch.rsqrt(norm.running_var + norm.eps)
    if norm.weight is not None:
        s = s * norm.weight
    t = -s * norm.running_mean
    return s, t if norm.bias is None else t + norm.bias


def folded(kernel: Tensor, bias: Tensor, s: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
    """Maps kernel [O, C, ...], bias [O], scale and shift [O] to the kernel and bias of s (W * x + b) + t."""
    return kernel * s.view(-1, *[1] * (kernel.dim() - 1)), s * bias + t


def depthwise(s: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
    """Maps scale and shift [C] to the kernel [C, 1, 1, 1] and bias [C] of a depthwise 1x1 convolution."""
    return s.view(-1, 1, 1, 1), t


def convolution_of(graph: fx.GraphModule, node: fx.Node) -> nn.Conv2d | None:
    """Returns the convolution that `node` calls, or None; a kernel that groups share is written out."""
    layer = module_of(graph, node, (nn.Conv2d, ColumnsConv2d))
    if isinstance(layer, ColumnsConv2d):
        return convolution(layer.repeated, layer.bias, groups=layer.rows)
    return layer


def obstacle(graph: fx.GraphModule, first: fx.Node) -> str | None:
    """Returns why the BatchNorm2d after `first` cannot go into it, or None if it can."""
    conv = convolution_of(graph, first)
    if conv is None:
        return f"{first} is no convolution"
    if reason := padding_obstacle(conv):
        return reason
    return sharing(graph, first)


def linear_obstacle(graph: fx.GraphModule, first: fx.Node, second: fx.Node) -> str | None:
    """Returns why the BatchNorm1d `second` cannot go into `first`, or None if it can."""
    layer = module_of(graph, first, nn.Linear)
    if layer is None:
        return f"its input {first} is no linear layer"
    if reason := sharing(graph, first):
        return f"its input {reason}"
    if layer.out_features != module_of(graph, second).num_features or not gives_vectors(graph, source(first)):
        return f"it may scale another axis than the features of {first}: flatten that one's input from axis 1"
    return None


def gives_vectors(graph: fx.GraphModule, node: fx.Node) -> bool:
    """Returns whether the value of `node` is certainly [N, F]: flattened, then pointwise or linear."""
    while module_of(graph, node, _POINTWISE_MODULES) is not None or node.target in _POINTWISE:
        node = source(node)
    if flatten := module_of(graph, node, nn.Flatten):
        return (flatten.start_dim, flatten.end_dim) == (1, -1)
    if node.target in ("view", "reshape"):
        return len(node.args) == 3  # self, N, F
    if node.target not in (torch.flatten, "flatten"):
        return False
    positional = dict(zip(("input", "start_dim", "end_dim"), node.args, strict=False))
    bounds = positional | dict(node.kwargs)
    return (bounds.get("start_dim", 0), bounds.get("end_dim", -1)) == (1, -1)


def fold_batchnorm(model: nn.Module) -> fx.GraphModule:
    """Folds every BatchNorm into the layer before it.

    Makes a lone BatchNorm2d a depthwise 1x1 convolution.
    """
    graph = trace(model)
    for node in list(graph.graph.nodes):
        norm = module_of(graph, node, nn.modules.batchnorm._BatchNorm)
        if norm is None:
            continue
        if norm.training or norm.running_mean is None:
            raise ValueError(
                f"{node.target} takes its statistics from the batch, so it cannot be folded: call "
                "model.eval() first and keep track_running_stats on"
            )
        first = source(node)
        s, t = affine(norm)
        if isinstance(norm, nn.BatchNorm1d):
            if reason := linear_obstacle(graph, first, node):
                raise ValueError(f"cannot fold {node.target}: {reason}")
            layer = module_of(graph, first)
            new = linear(*folded(layer.weight, bias_of(layer), s, t))
        elif not isinstance(norm, nn.BatchNorm2d):
            raise ValueError(f"cannot fold {node.target}: a {type(norm).__name__} is no BatchNorm1d or 2d")
        elif obstacle(graph, first):
            kernel, bias = depthwise(s, t)
            replace_module(graph, node, convolution(kernel, bias, groups=norm.num_features))
            continue
        else:
            conv = convolution_of(graph, first)
            kernel, bias = folded(conv.weight, bias_of(conv), s, t)
            new = convolution(kernel, bias, conv.stride, padding_of(conv), conv.dilation, conv.groups)
        replace_module(graph, first, new)
        bypass(node)
    return finish(graph)
