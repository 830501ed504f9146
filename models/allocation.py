"""Policy: how many ReLUs each layer keeps, at which positions, and which blocks become shallow."""

from collections.abc import Mapping, Sequence
from math import floor, prod

import torch
from torch import Tensor

from pibench.models.published import SENET_SENSITIVITY

RESNET18_BLOCKS = tuple(f"layer{stage}.{block}" for stage in (1, 2, 3, 4) for block in (0, 1))
RESNET18_RELUS = ("relu", *(f"{block}.relu{index}" for block in RESNET18_BLOCKS for index in (1, 2)))


def allocate(sizes: Sequence[int], sensitivity: Sequence[float], budget: int) -> list[int]:
    """Shares a budget of ReLUs among layers by SENet's rule.

        r_l = min(size_l, c eta_l),   sum_l r_l = budget

    What a full layer cannot take goes to the others, by raising c. Fractions are cut and the ReLUs that
    are left go to the largest of them, so that the sum is exact. Layers of sensitivity 0 are given ReLUs, in
    proportion to their sizes, only when all others are full. Source: arXiv 2301.09254. Raises ValueError for
    numbers that do not fit together, and for a budget larger than the network.
    """
    if len(sizes) != len(sensitivity):
        raise ValueError(f"{len(sizes)} layers but {len(sensitivity)} sensitivities")
    if any(size < 0 for size in sizes) or not all(0 <= eta < float("inf") for eta in sensitivity):
        raise ValueError("sizes and sensitivities are finite and not negative")
    if not 0 <= budget <= sum(sizes):
        raise ValueError(f"a budget of {budget} ReLUs is not between 0 and all {sum(sizes)} of them")
    result = [0] * len(sizes)
    for weights in (
        sensitivity,
        [0.0 if eta else float(size) for size, eta in zip(sizes, sensitivity, strict=True)],
    ):
        active = [layer for layer in range(len(sizes)) if weights[layer] > 0 and result[layer] < sizes[layer]]
        while active:
            c = (budget - sum(result)) / sum(weights[layer] for layer in active)
            full = [layer for layer in active if c * weights[layer] >= sizes[layer]]
            if not full:
                break
            for layer in full:
                result[layer] = min(sizes[layer], budget - sum(result))
            active = [layer for layer in active if layer not in full]
        if active:
            shares = {layer: c * weights[layer] for layer in active}
            for layer, share in shares.items():
                result[layer] = floor(share)
            by_fraction = sorted(active, key=lambda layer: floor(shares[layer]) - shares[layer])
            for layer in by_fraction[: budget - sum(result)]:
                result[layer] += 1
    return result


def allocate_layers(
    shapes: Mapping[str, tuple[int, ...]], sensitivity: Mapping[str, float], budget: int
) -> dict[str, int]:
    """Returns how many ReLUs of a budget each layer keeps, by `allocate`.

    Shapes are those of one image's activations. Raises ValueError as `allocate` does.
    """
    sizes = [prod(shape) for shape in shapes.values()]
    counts = allocate(sizes, [sensitivity[name] for name in shapes], budget)
    return dict(zip(shapes, counts, strict=True))


def stages(names: Sequence[str]) -> dict[str, tuple[str, ...]]:
    """Groups module names by stage, the part before the first dot; those without a dot are the "stem"'s."""
    groups: dict[str, list[str]] = {}
    for name in names:
        groups.setdefault(name.split(".")[0] if "." in name else "stem", []).append(name)
    return {stage: tuple(members) for stage, members in groups.items()}


def least_sensitive_blocks(
    n: int, blocks: Sequence[str] = RESNET18_BLOCKS, sensitivity: Sequence[float] = SENET_SENSITIVITY[1::2]
) -> tuple[str, ...]:
    """Returns the n blocks whose mid ReLU (between their convolutions) is least sensitive, in network order.

    `sensitivity` gives the mid ReLU's for each block; by default those of ResNet-18.
    """
    if len(blocks) != len(sensitivity):
        raise ValueError(f"{len(blocks)} blocks but {len(sensitivity)} sensitivities")
    if not 0 <= n <= len(blocks):
        raise ValueError(f"{n} blocks asked for, the network has {len(blocks)}")
    chosen = sorted(range(len(blocks)), key=lambda block: (sensitivity[block], block))[:n]
    return tuple(blocks[block] for block in sorted(chosen))


def _mask(shape: Sequence[int], positions: Tensor) -> Tensor:
    mask = torch.zeros(prod(shape), dtype=torch.bool)
    mask[positions] = True
    return mask.view(*shape)


def random_masks(
    shapes: Mapping[str, Sequence[int]], counts: Mapping[str, int], seed: int = 0
) -> dict[str, Tensor]:
    """Draws a mask for each layer with exactly its count of positions kept, from a seeded generator."""
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
    """Draws masks that keep `budget` positions of the entire network, every position being equally likely."""
    total = sum(prod(shape) for shape in shapes.values())
    if not 0 <= budget <= total:
        raise ValueError(f"a budget of {budget} ReLUs is not between 0 and all {total} of them")
    kept = torch.zeros(total, dtype=torch.bool)
    kept[torch.randperm(total, generator=torch.Generator().manual_seed(seed))[:budget]] = True
    parts = kept.split([prod(shape) for shape in shapes.values()])
    return {
        name: part.view(*shape).clone() for (name, shape), part in zip(shapes.items(), parts, strict=True)
    }


def largest_masks(scores: Mapping[str, Tensor], counts: Mapping[str, int]) -> dict[str, Tensor]:
    """Keeps in each layer its count of positions, those of the largest scores (of equals, the first)."""
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
