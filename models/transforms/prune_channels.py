"""Channels between two convolutions are removed, and the second convolution compensates for them.

    conv1 -> [BatchNorm] -> [ReLU] -> conv2      keeps the outputs S of conv1 and the inputs S of conv2

W [O, C] is the kernel of conv2 at one tap. mu [C] and Sigma [C, C] are mean and covariance of its input x.
The kept channels predict the others best, in the least-squares sense, by

    W' = W Sigma_{.S} Sigma_SS^-1,     b' = b + sum over taps of (W mu - W' mu_S).

This is the conditional mean of W x given x_S at one pixel. Every output is then scaled about its mean so that
its variance stays the same, with the taps taken as independent. The kept channels are the greedy choice of
the largest

    tr(W Sigma_{.S} Sigma_SS^-1 Sigma_S. W^T),

the part of the outputs' variance that the kept channels explain. Without statistics the transform only makes
the structure, for weights that come from elsewhere.

Approximate; exact if the removed channels are linear functions of the kept ones and conv2 does not pad.
Source: CaP, compensation-aware pruning (arXiv 2108.13728). The greedy search by Cholesky updates and the
floor of the pivots are ours. Refuses a second convolution whose input is used elsewhere, or whose input is
not a chain of BatchNorm and ReLU after a convolution, and groups in either convolution.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, fx, nn

from pibench.models.graph.convolution import bias_of, convolution, padding_of
from pibench.models.graph.moves import (
    bypass,
    callers,
    finish,
    module_of,
    replace_module,
    sharing,
    source,
    trace,
)
from pibench.models.graph.relu import MaskedReLU

FLOOR = 1e-9
"""Share of a channel's variance below which the unexplained rest counts as zero."""


@dataclass(frozen=True)
class Statistics:
    """Mean [C] and covariance [C, C] of a convolution's input over images and pixels, float64."""

    mean: Tensor
    covariance: Tensor


def greedy_channels(kernel: Tensor, covariance: Tensor, count: int) -> list[int]:
    """Returns the `count` inputs of `kernel` [O, C, h, w] to keep, in rising order.

    The function takes one channel at a time: the one that adds most to the explained variance of the outputs.
    R is the covariance that the channels taken so far leave unexplained. Channel c adds |W R_c|^2 / R_cc,
    summed over outputs and taps. Among equal channels it takes the first. Raises ValueError for a count out
    of range.
    """
    channels = kernel.shape[1]
    if not 1 <= count <= channels:
        raise ValueError(f"1 to {channels} channels can be kept, not {count}")
    rows = kernel.double().permute(0, 2, 3, 1).reshape(-1, channels)
    left = covariance.double().clone()
    floor = FLOOR * left.diagonal().clamp(min=0)
    taken = torch.zeros(channels, dtype=torch.bool)
    for _ in range(count):
        pivots = left.diagonal()
        gain = (rows @ left).square().sum(0) / pivots.clamp(min=torch.finfo(left.dtype).tiny)
        gain = torch.where(pivots > floor, gain, 0.0).masked_fill(taken, -1.0)
        chosen = int(gain.argmax())
        taken[chosen] = True
        if pivots[chosen] > floor[chosen]:
            column = left[:, chosen] / pivots[chosen].sqrt()
            left = left - torch.outer(column, column)
    return taken.nonzero().flatten().tolist()


def compensated(
    kernel: Tensor, bias: Tensor, kept: Sequence[int], statistics: Statistics
) -> tuple[Tensor, Tensor]:
    """Returns the kernel [O, |S|, h, w] and bias [O] for the kept inputs of `kernel` [O, C, h, w]."""
    mean, covariance = statistics.mean.double(), statistics.covariance.double()
    inside = covariance[kept][:, kept]
    # The pseudo-inverse: kept channels may depend on each other.
    predict = covariance[:, kept] @ torch.linalg.pinv(inside, hermitian=True, rtol=FLOOR)
    whole = kernel.double()
    new = torch.einsum("ochw,cs->oshw", whole, predict)
    before = torch.einsum("ochw,cd,odhw->o", whole, covariance, whole)
    after = torch.einsum("oshw,st,othw->o", new, inside, new)
    scale = torch.where(after > FLOOR * before, (before / after).sqrt(), 1.0)
    old_mean = torch.einsum("ochw,c->o", whole, mean)
    new = new * scale[:, None, None, None]
    new_bias = bias.double() + old_mean - torch.einsum("oshw,s->o", new, mean[kept])
    return new.to(kernel.dtype), new_bias.to(bias.dtype)


def producers(graph: fx.GraphModule, name: str) -> list[fx.Node]:
    """Returns the chain of nodes from the convolution before `name` to `name` itself.

    Raises ValueError with the reason if the input of `name` cannot lose channels.
    """
    found = callers(graph, name)
    if len(found) != 1 or module_of(graph, found[0], nn.Conv2d) is None:
        raise ValueError(f"no convolution named {name!r} that is called once in this network")
    chain = [found[0]]
    while True:
        node = source(chain[0])
        if module_of(graph, node) is None:
            raise ValueError(f"cannot prune the input of {name}: {node} is no layer of channels")
        if reason := sharing(graph, node):
            raise ValueError(f"cannot prune the input of {name}: {reason}")
        chain.insert(0, node)
        if module_of(graph, node, nn.Conv2d) is not None:
            break
        if module_of(graph, node, (nn.BatchNorm2d, nn.ReLU, MaskedReLU, nn.Identity)) is None:
            raise ValueError(f"cannot prune the input of {name}: {node.target} mixes channels or pixels")
    for end in (chain[0], chain[-1]):
        if module_of(graph, end).groups != 1:
            raise ValueError(f"cannot prune the input of {name}: {end.target} is grouped")
    return chain


def prune_channels(
    model: nn.Module,
    kept: Mapping[str, Sequence[int] | float],
    statistics: Mapping[str, Statistics] | None = None,
) -> fx.GraphModule:
    """Removes all input channels but `kept` of each convolution named there, and their producers.

    A share in place of channels keeps so many of them, the first ones, at least one.

    `statistics` describe the inputs of the convolutions, by the same names. Later prunings do not change
    earlier layers. The statistics may therefore be taken once if no two named convolutions feed each other.
    """
    graph = trace(model)
    for name, channels in kept.items():
        if isinstance(channels, float):
            whole = module_of(graph, producers(graph, name)[-1]).in_channels
            channels = range(max(1, round(channels * whole)))
        _prune(graph, name, list(channels), None if statistics is None else statistics[name])
    return finish(graph)


@torch.no_grad()
def _prune(graph: fx.GraphModule, name: str, kept: list[int], statistics: Statistics | None) -> None:
    first, *between, last = producers(graph, name)
    conv1, conv2 = module_of(graph, first), module_of(graph, last)
    if not kept or sorted(set(kept)) != kept or kept[0] < 0 or kept[-1] >= conv2.in_channels:
        raise ValueError(f"{name} has the input channels 0 to {conv2.in_channels - 1}: {kept} are no choice")
    bias1 = None if conv1.bias is None else conv1.bias[kept]
    thin = convolution(conv1.weight[kept], bias1, conv1.stride, padding_of(conv1), conv1.dilation)
    replace_module(graph, first, thin)
    for node in between:
        if (norm := module_of(graph, node, nn.BatchNorm2d)) is not None:
            replace_module(graph, node, _thinner_norm(norm, kept))
        elif (relu := module_of(graph, node, MaskedReLU)) is not None:
            mask = relu.mask[kept]
            if mask.any():
                replace_module(graph, node, nn.ReLU() if mask.all() else MaskedReLU(mask))
            else:
                bypass(node)
    kernel, bias = conv2.weight[:, kept], bias_of(conv2)
    if statistics is not None:
        kernel, bias = compensated(conv2.weight, bias, kept, statistics)
    keep_bias = conv2.bias is not None or statistics is not None
    thin = convolution(kernel, bias if keep_bias else None, conv2.stride, padding_of(conv2), conv2.dilation)
    replace_module(graph, last, thin)


def _thinner_norm(norm: nn.BatchNorm2d, kept: list[int]) -> nn.BatchNorm2d:
    """Returns a BatchNorm of the kept channels, with their parameters and statistics."""
    like = norm.running_mean
    thin = nn.BatchNorm2d(
        len(kept), norm.eps, norm.momentum, norm.affine, device=like.device, dtype=like.dtype
    )
    state = {key: value[kept] if value.dim() else value for key, value in norm.state_dict().items()}
    thin.load_state_dict(state)
    return thin
