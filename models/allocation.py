"""Policy: the number of ReLUs that each layer keeps, and the blocks that become shallow. No torch."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from math import floor, prod

from pibench.models.layout import Layout
from pibench.models.published import SENET_SENSITIVITY


def allocate(sizes: Sequence[int], sensitivity: Sequence[float], budget: int) -> list[int]:
    """Shares a budget of ReLUs among layers by SENet's rule.

        r_l = min(size_l, c eta_l),   sum_l r_l = budget

    The share beyond a full layer's size goes to the other layers, by a larger c. Fractions are cut. The
    remaining ReLUs go to the largest fractions, so that the sum is exact. Layers of sensitivity 0 get ReLUs
    only when all others are full, in proportion to their sizes. Source: arXiv 2301.09254. Raises ValueError
    for numbers that do not fit together, and for a budget larger than the network.
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
    """Returns the number of ReLUs of a budget that each layer keeps, by `allocate`.

    Shapes are those of one image's activations. Raises ValueError as `allocate` does.
    """
    sizes = [prod(shape) for shape in shapes.values()]
    counts = allocate(sizes, [sensitivity[name] for name in shapes], budget)
    return dict(zip(shapes, counts, strict=True))


@dataclass(frozen=True)
class Stretch:
    """ReLU layers that leave a linear stretch when they are empty, and what merging it then saves.

    `saved` is in multiplications for one image.
    """

    relus: tuple[str, ...]
    saved: float


def allocate_merging(
    shapes: Mapping[str, tuple[int, ...]],
    sensitivity: Mapping[str, float],
    budget: int,
    stretches: Iterable[Stretch],
    price: float,
) -> dict[str, int]:
    """Shares a budget as `allocate_layers` does, but keeps a stretch linear where merging it pays.

    A ReLU is worth `price` multiplications, for example its measured seconds over those of a multiplication.
    Emptying a stretch pays if

        saved > price * (sum of the ReLUs that the rule gives its layers).

    Its ReLUs go to the other layers by the same rule. Among several stretches the one with the largest
    difference is emptied. A stretch does not count if the other layers have no room for the whole budget. The
    choice is ours. Raises ValueError as `allocate` does.
    """
    plain = allocate_layers(shapes, sensitivity, budget)
    best, gain = plain, 0.0
    for stretch in stretches:
        others = {name: shape for name, shape in shapes.items() if name not in stretch.relus}
        gained = stretch.saved - price * sum(plain[name] for name in stretch.relus)
        if gained > gain and budget <= sum(map(prod, others.values())):
            shared = allocate_layers(others, sensitivity, budget)
            best, gain = {name: shared.get(name, 0) for name in shapes}, gained
    return best


def published_sensitivity(layout: Layout) -> dict[str, float]:
    """Returns SENet's published sensitivity for each ReLU of a network.

    It was measured on ResNet-18; training measures the sensitivity instead. Source: arXiv 2301.09254.
    """
    return at_depth(SENET_SENSITIVITY, layout.relus)


def at_depth(known: Sequence[float], names: Sequence[str]) -> dict[str, float]:
    """Returns a value for each name, from values `known` of ResNet-18's parts of that kind, in their order.

    A network with another number of such parts takes the value at the same relative depth, interpolated
    linearly. The interpolation is ours.
    """
    result = {}
    for index, name in enumerate(names):
        place, rest = divmod(index * (len(known) - 1), max(1, len(names) - 1))
        share = rest / max(1, len(names) - 1)
        result[name] = known[place] + (share * (known[place + 1] - known[place]) if rest else 0.0)
    return result


def least_sensitive_blocks(
    n: int, layout: Layout, sensitivity: Mapping[str, float] | None = None
) -> tuple[str, ...]:
    """Returns the n blocks with the least sensitive mid ReLU, in network order.

    The mid ReLU is the one between the convolutions of a block. `sensitivity` is by ReLU; the default is
    SENet's published one. Raises ValueError for a network with fewer residual blocks.
    """
    blocks = layout.blocks
    if not blocks:
        raise ValueError("the network has no residual blocks, so none can become shallow or be merged")
    if not 0 <= n <= len(blocks):
        raise ValueError(f"{n} blocks asked for, the network has {len(blocks)}")
    known = published_sensitivity(layout) if sensitivity is None else sensitivity
    chosen = sorted(range(len(blocks)), key=lambda index: (known[blocks[index].mid], index))[:n]
    return tuple(blocks[index].name for index in sorted(chosen))
