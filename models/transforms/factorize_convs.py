"""Conv -> two or three thinner convolutions of low rank.

With the kernel W [O, C, h, w] of a convolution and the rank r,

    channel   W[o, c, m, n] ~ sum_r V[o, r] U[r, c, m, n]      h x w from C to r, then 1 x 1 from r to O
    spatial   W[o, c, m, n] ~ sum_r V[o, r, n] U[r, c, m]      h x 1 from C to r, then 1 x w from r to O
    tucker    W[o, c, m, n] ~ sum_{p, q} A[o, p] G[p, q, m, n] B[q, c]
                                                               1 x 1 from C to q, h x w, 1 x 1 from p to O

channel and spatial are truncated singular value decompositions of W as a matrix ([O, C h w] and [O w, C h]).
No other kernels of that form and rank are nearer (Eckart-Young). tucker is Tucker-2: the leading left
singular vectors of the unfoldings along O and C, refined by alternating least squares
(`tensorly.partial_tucker`, HOOI).

Approximate unless the rank is full. Under MPC a layer becomes two or three, each with its own round, with
fewer weights and operations. Sources: TRP (arXiv 1812.02402, 2004.14566) for channel and spatial, Kim et al.
(arXiv 1511.06530) for Tucker-2. Refuses grouped and dilated convolutions, paddings other than zeros, ranks
outside 1 to the largest, and a convolution that `merge_convs` or `shallow_blocks` has made, whose inverse
this is.
"""

from collections.abc import Callable, Mapping, Sequence
from math import sqrt
from typing import NamedTuple

import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F

from pibench.models.graph.convolution import (
    FACTOR_OF,
    MERGED,
    bias_of,
    convolution,
    padding_obstacle,
    padding_of,
)
from pibench.models.graph.moves import callers, finish, insert_module, module_of, source, trace

FORMS = ("channel", "spatial", "tucker")


class Rank(NamedTuple):
    """The inner channels of a factored layer; `into` (tucker only) are those after its first 1 x 1."""

    out: int
    into: int = 0


def matrix_of(kernel: Tensor, form: str) -> Tensor:
    """Returns the matrix that `form` decomposes: [O, C h w] for channel, [O w, C h] for spatial."""
    out_channels, in_channels, height, width = kernel.shape
    if form == "channel":
        return kernel.reshape(out_channels, -1)
    return kernel.permute(0, 3, 1, 2).reshape(out_channels * width, in_channels * height)


def largest_rank(kernel: Tensor, form: str) -> Rank:
    """Returns the rank at which a factored kernel [O, C, h, w] is the kernel itself."""
    out_channels, in_channels, height, width = kernel.shape
    if form == "tucker":
        taps = height * width
        return Rank(min(out_channels, in_channels * taps), min(in_channels, out_channels * taps))
    return Rank(min(matrix_of(kernel, form).shape))


def rank_of_energy(kernel: Tensor, form: str, energy: float) -> Rank:
    """Returns the smallest rank whose singular values hold the share `energy` of the sum of squares.

    `energy` is in (0, 1]. For tucker each of the two unfoldings is judged separately.
    """
    if not 0 < energy <= 1:
        raise ValueError(f"an energy is above 0 and at most 1, not {energy}")

    def smallest(matrix: Tensor) -> int:
        squares = torch.linalg.svdvals(matrix.double()).square()
        return int((squares.cumsum(0) < energy * squares.sum() * (1 - 1e-12)).sum()) + 1

    if form != "tucker":
        return Rank(smallest(matrix_of(kernel, form)))
    return Rank(smallest(kernel.flatten(1)), smallest(kernel.transpose(0, 1).flatten(1)))


def rank_of_share(kernel: Tensor, form: str, share: float) -> Rank:
    """Returns the rank that is a share in (0, 1] of the kernel's outputs, at least 1 and at most the largest.

    For tucker the inner channels after the first 1 x 1 are the same share of the kernel's inputs.
    """
    if not 0 < share <= 1:
        raise ValueError(f"a share of channels is above 0 and at most 1, not {share}")
    most = largest_rank(kernel, form)
    outputs, inputs = (max(1, round(share * size)) for size in kernel.shape[:2])
    return Rank(min(outputs, most.out), min(inputs, most.into))


def truncated(kernel: Tensor, form: str, rank: Rank) -> tuple[Tensor, Tensor]:
    """Returns the kernel of `rank` near `kernel`, and the direction in which its nuclear norm grows.

    With M = U S V^T, the matrix of `form`, they are U_r S_r V_r^T and U_r V_r^T. For tucker the unfoldings
    along O and C are truncated one after the other, and the direction is the mean of both. Both results have
    the shape of `kernel`.
    """
    if form != "tucker":
        near, direction = _truncated(matrix_of(kernel, form), rank.out)
        return _kernel_of(near, kernel.shape, form), _kernel_of(direction, kernel.shape, form)
    near, along_out = _truncated(kernel.flatten(1), rank.out)
    near = near.view(kernel.shape).transpose(0, 1)
    shape = near.shape
    near, along_in = _truncated(near.flatten(1), rank.into)
    direction = along_out.view(kernel.shape) + along_in.view(shape).transpose(0, 1)
    return near.view(shape).transpose(0, 1), direction / 2


def _truncated(matrix: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    left, values, right = torch.linalg.svd(matrix, full_matrices=False)
    left, right = left[:, :rank], right[:rank]
    return (left * values[:rank]) @ right, left @ right


def _kernel_of(matrix: Tensor, shape: torch.Size, form: str) -> Tensor:
    """Returns the kernel of a matrix, the inverse of `matrix_of`."""
    out_channels, in_channels, height, width = shape
    if form == "channel":
        return matrix.view(shape)
    return matrix.view(out_channels, width, in_channels, height).permute(0, 2, 3, 1)


def factors(kernel: Tensor, form: str, rank: Rank) -> tuple[Tensor, ...]:
    """Returns the kernels of the layers that replace `kernel` [O, C, h, w], the first layer first."""
    out_channels, in_channels, height, width = kernel.shape
    if form == "tucker":
        import tensorly  # slow to import, and every other transform does without
        from tensorly.decomposition import partial_tucker

        with tensorly.backend_context("pytorch"):
            (core, (out, into)), _ = partial_tucker(kernel.double(), list(rank), modes=[0, 1], tol=1e-12)
        made = (into.T[:, :, None, None], core, out[:, :, None, None])
        return tuple(each.to(kernel.dtype) for each in made)
    left, values, right = torch.linalg.svd(matrix_of(kernel.double(), form), full_matrices=False)
    root = values[: rank.out].sqrt()  # split evenly, so that neither factor is much larger
    left, right = left[:, : rank.out] * root, root[:, None] * right[: rank.out]
    if form == "channel":
        made = (right.reshape(rank.out, in_channels, height, width), left[:, :, None, None])
    else:
        second = left.reshape(out_channels, width, rank.out).permute(0, 2, 1)
        made = (right.reshape(rank.out, in_channels, height, 1), second[:, :, None, :])
    return tuple(each.to(kernel.dtype) for each in made)


def drawn_factors(kernel: Tensor, form: str, rank: Rank) -> tuple[Tensor, ...]:
    """Returns kernels of the shapes of `factors`, drawn from torch's global generator.

    Every filter has a random direction and the norm sqrt(2). Thin layers thus keep the size of their input,
    which a drawn norm would not do for one or two filters.
    """
    out_channels, in_channels, height, width = kernel.shape
    shapes = {
        "channel": [(rank.out, in_channels, height, width), (out_channels, rank.out, 1, 1)],
        "spatial": [(rank.out, in_channels, height, 1), (out_channels, rank.out, 1, width)],
        "tucker": [
            *((rank.into, in_channels, 1, 1), (rank.out, rank.into, height, width)),
            (out_channels, rank.out, 1, 1),
        ],
    }[form]
    made = (kernel.new_empty(shape).normal_() for shape in shapes)
    return tuple(sqrt(2) * F.normalize(each.flatten(1)).view(each.shape) for each in made)


def obstacle(conv: nn.Conv2d) -> str | None:
    """Returns why a convolution cannot be factored, or None if it can."""
    if conv.groups != 1:
        return f"it has {conv.groups} groups"
    if conv.dilation != (1, 1):
        return f"it is dilated by {conv.dilation}"
    return padding_obstacle(conv)


def suitable(model: nn.Module, form: str) -> list[str]:
    """Returns the convolutions that `form` is used for: larger than 1 x 1 and not of the image, in order.

    channel and spatial leave strided ones alone, as TRP does. Tucker-2 takes them too.
    """
    graph = model if isinstance(model, fx.GraphModule) else trace(model)
    found = []
    for node in graph.graph.nodes:
        conv = module_of(graph, node, nn.Conv2d)
        if conv is None or source(node).op == "placeholder" or len(callers(graph, node.target)) > 1:
            continue
        if MERGED in node.meta:
            continue
        unstrided = conv.stride == (1, 1) or form == "tucker"
        if unstrided and max(conv.kernel_size) > 1 and obstacle(conv) is None:
            found.append(node.target)
    return found


def factorize_convs(
    model: nn.Module,
    form: str,
    ranks: Mapping[str, Rank | Sequence[int] | Sequence[float] | int | float] | float,
    fit: bool = True,
) -> fx.GraphModule:
    """Replaces each convolution named in `ranks` by its factored form (one of `FORMS`).

    A rank may be a share of channels (a float, see `rank_of_share`); tucker takes one of the outputs and one
    of the inputs, too. If `ranks` is one share, all `suitable` convolutions have it. The new layers are named
    `NAME_0`, `NAME_1` ...; the last one has the bias. Without `fit` the function makes only the structure,
    for weights that come from elsewhere. It draws them from torch's global generator. Raises ValueError for a
    name that is not a convolution called once, for an obstacle, and for a rank out of range.
    """
    if form not in FORMS:
        raise ValueError(f"unknown form {form!r}: known are {', '.join(FORMS)}")
    graph = trace(model)
    if not isinstance(ranks, Mapping):
        ranks = dict.fromkeys(suitable(graph, form), float(ranks))
    for name, rank in ranks.items():
        found = callers(graph, name)
        conv = module_of(graph, found[0], nn.Conv2d) if len(found) == 1 else None
        if conv is None:
            raise ValueError(f"no convolution named {name!r} that is called once in this network")
        if reason := obstacle(conv):
            raise ValueError(f"cannot factor {name}: {reason}")
        if MERGED in found[0].meta:
            raise ValueError(
                f"cannot factor {name}: it was merged of several convolutions, and low rank takes it apart "
                "again: choose one of the two"
            )
        most = largest_rank(conv.weight, form)
        wanted = _rank(conv.weight, form, rank)
        if not (1 <= wanted.out <= most.out and min(1, most.into) <= wanted.into <= most.into):
            raise ValueError(f"{name} has a rank from 1 to {_said(most)} as {form}, not {_said(wanted)}")
        _replace(graph, found[0], form, factors if fit else drawn_factors, wanted)
    return finish(graph)


def _rank(kernel: Tensor, form: str, rank: Rank | Sequence[int] | Sequence[float] | int | float) -> Rank:
    if isinstance(rank, int):
        return Rank(rank, rank if form == "tucker" else 0)
    if isinstance(rank, float):
        return rank_of_share(kernel, form, rank)
    if all(isinstance(each, float) for each in rank):
        out, into = (rank_of_share(kernel, form, share) for share in rank)
        return Rank(out.out, into.into)
    return Rank(*rank)


def _said(rank: Rank) -> str:
    return f"{rank.out} and {rank.into}" if rank.into else str(rank.out)


@torch.no_grad()
def _replace(
    graph: fx.GraphModule, node: fx.Node, form: str, make: Callable[..., tuple[Tensor, ...]], rank: Rank
) -> None:
    conv, value = module_of(graph, node), source(node)
    name, stride, padding = node.target, conv.stride, padding_of(conv)
    kernels = make(conv.weight, form, rank)
    bias = None if conv.bias is None else bias_of(conv)
    one, none = (1, 1), (0, 0)
    steps = {
        "channel": [(stride, padding), (one, none)],
        "spatial": [((stride[0], 1), (padding[0], 0)), ((1, stride[1]), (0, padding[1]))],
        "tucker": [(one, none), (stride, padding), (one, none)],
    }[form]
    for place, (kernel, (along, around)) in enumerate(zip(kernels, steps, strict=True)):
        last = place == len(kernels) - 1
        layer = convolution(kernel, bias if last else None, along, around)
        value = insert_module(graph, f"{name}_{place}", layer, value, node)
        value.meta[FACTOR_OF] = name
    node.replace_all_uses_with(value)
    graph.graph.erase_node(node)
