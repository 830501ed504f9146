"""Masks of ReLUs: the kept positions of a layer, or of the entire network."""

from collections.abc import Mapping, Sequence
from math import prod
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F


def _mask(shape: Sequence[int], positions: Tensor) -> Tensor:
    mask = torch.zeros(prod(shape), dtype=torch.bool)
    mask[positions] = True
    return mask.view(*shape)


def random_masks(
    shapes: Mapping[str, Sequence[int]], counts: Mapping[str, int], seed: int = 0
) -> dict[str, Tensor]:
    """Draws a mask for each layer with exactly its count of kept positions, from a seeded generator.

    Raises ValueError for a count that does not fit a layer.
    """
    if set(shapes) != set(counts):
        raise ValueError(f"layers {sorted(set(shapes) ^ set(counts))} have only one of shape and count")
    generator = torch.Generator().manual_seed(seed)
    masks = {}
    for name, shape in shapes.items():
        if not 0 <= counts[name] <= prod(shape):
            raise ValueError(f"{name} has {prod(shape)} ReLUs, {counts[name]} cannot be kept")
        masks[name] = _mask(shape, torch.randperm(prod(shape), generator=generator)[: counts[name]])
    return masks


def random_network_masks(
    shapes: Mapping[str, Sequence[int]], budget: int, seed: int = 0
) -> dict[str, Tensor]:
    """Draws masks that keep `budget` positions of the entire network, all equally likely.

    Raises ValueError for a budget larger than the network.
    """
    total = sum(prod(shape) for shape in shapes.values())
    if not 0 <= budget <= total:
        raise ValueError(f"a budget of {budget} ReLUs is not between 0 and all {total} of them")
    kept = torch.zeros(total, dtype=torch.bool)
    kept[torch.randperm(total, generator=torch.Generator().manual_seed(seed))[:budget]] = True
    parts = kept.split([prod(shape) for shape in shapes.values()])
    return {
        name: part.view(*shape).clone() for (name, shape), part in zip(shapes.items(), parts, strict=True)
    }


def pixel_masks(shapes: Mapping[str, Sequence[int]], budget: int, seed: int = 0) -> dict[str, Tensor]:
    """Draws masks of pixels, the same in every channel, that keep about `budget` positions of the network.

    One map of random scores is averaged to the size of each layer [C, H, W]. The highest pixels stay: the
    same share of every layer, rounded to whole pixels and at least one. Layers of one size have the same
    mask. Layers without pixels are kept. Source: arXiv 2309.06626. Raises ValueError for a budget larger than
    the network.
    """
    total = sum(prod(shape) for shape in shapes.values())
    if not 0 <= budget <= total:
        raise ValueError(f"a budget of {budget} ReLUs is not between 0 and all {total} of them")
    maps = {tuple(shape[1:]) for shape in shapes.values() if len(shape) == 3}
    largest = [max((size[axis] for size in maps), default=1) for axis in (0, 1)]
    scores = torch.rand(1, 1, *largest, generator=torch.Generator().manual_seed(seed))
    kept: dict[tuple[int, ...], Tensor] = {}
    for size in maps:
        pooled = F.adaptive_avg_pool2d(scores, size)[0, 0]
        count = max(1, round(budget * pooled.numel() / total))
        kept |= largest_masks({size: pooled}, {size: count})
    return {
        name: kept[tuple(shape[1:])].expand(*shape).clone()
        if len(shape) == 3
        else torch.ones(*shape, dtype=torch.bool)
        for name, shape in shapes.items()
    }


def all_kept(shapes: Mapping[str, Sequence[int]]) -> dict[str, Tensor]:
    """Returns masks that keep everything."""
    return {name: torch.ones(*shape, dtype=torch.bool) for name, shape in shapes.items()}


def largest_masks(scores: Mapping[Any, Tensor], counts: Mapping[Any, int]) -> dict[Any, Tensor]:
    """Keeps in each layer the positions with the largest scores, as many as its count says.

    Among equal scores it keeps the first. Raises ValueError for a count that does not fit a layer.
    """
    masks = {}
    for name, score in scores.items():
        if not 0 <= counts[name] <= score.numel():
            raise ValueError(f"{name} has {score.numel()} ReLUs, {counts[name]} cannot be kept")
        order = score.flatten().argsort(descending=True, stable=True)
        masks[name] = _mask(score.shape, order[: counts[name]])
    return masks


def largest_network_masks(scores: Mapping[str, Tensor], budget: int) -> dict[str, Tensor]:
    """Keeps the `budget` positions of the entire network that have the largest scores."""
    together = torch.cat([score.flatten() for score in scores.values()])
    kept = largest_masks({"network": together}, {"network": budget})["network"]
    parts = kept.split([score.numel() for score in scores.values()])
    return {
        name: part.view(score.shape).clone()
        for (name, score), part in zip(scores.items(), parts, strict=True)
    }
