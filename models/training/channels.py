"""The channels that a network can lose: statistics of its inner values, and the search under a floor."""

from collections.abc import Callable, Iterable, Sequence

import torch
from torch import Tensor, nn

from pibench.models.training.taps import run_tapped
from pibench.models.transforms.prune_channels import Statistics, greedy_channels, prune_channels

GRAIN = 16
"""A search looks at so many sizes of a layer."""


@torch.no_grad()
def channel_statistics(
    model: nn.Module, convs: Sequence[str], batches: Iterable[Tensor]
) -> dict[str, Statistics]:
    """Returns mean and covariance of the inputs of these convolutions over images [N, 3, H, W] and pixels."""
    count: dict[str, int] = {}
    total: dict[str, Tensor] = {}
    outer: dict[str, Tensor] = {}
    for x in batches:
        _, _, before = run_tapped(model, x, (), convs)
        for name in convs:
            values = before[name].double().transpose(0, 1).flatten(1)
            count[name] = count.get(name, 0) + values.shape[1]
            total[name] = total.get(name, 0) + values.sum(1)
            outer[name] = outer.get(name, 0) + values @ values.T
    found = {}
    for name in convs:
        mean = total[name] / count[name]
        found[name] = Statistics(mean.cpu(), (outer[name] / count[name] - torch.outer(mean, mean)).cpu())
    return found


def search_channels(
    model: nn.Module,
    convs: Sequence[str],
    statistics: dict[str, Statistics],
    accuracy: Callable[[nn.Module], float],
    drop: float,
) -> dict[str, list[int]]:
    """Returns the input channels that each convolution keeps; those that keep all are left out.

    The layers are searched in order, each on the network that the earlier choices have made. Bisection finds
    the fewest channels with which the network is still at its floor. The floor falls linearly, from the
    accuracy of `model` to `drop` below it at the last layer. Source: the binary structural search of CaP
    (arXiv 2108.13728).
    """
    first = accuracy(model)
    kept: dict[str, list[int]] = {}
    for place, name in enumerate(convs, start=1):
        floor = first - drop * place / len(convs)
        conv = model.get_submodule(name)
        step = max(1, conv.in_channels // GRAIN)
        sizes = [*range(step, conv.in_channels, step), conv.in_channels]
        low, high = 0, len(sizes) - 1
        while low < high:
            middle = (low + high) // 2
            tried = _greedy(conv, statistics[name], sizes[middle])
            if accuracy(prune_channels(model, kept | {name: tried}, statistics)) >= floor:
                high = middle
            else:
                low = middle + 1
        if high < len(sizes) - 1:
            kept[name] = _greedy(conv, statistics[name], sizes[high])
    return kept


def _greedy(conv: nn.Module, statistics: Statistics, count: int) -> list[int]:
    return greedy_channels(conv.weight.detach().cpu(), statistics.covariance, count)
