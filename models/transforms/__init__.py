"""Transforms map a network to a network: one file, one idea. No transform changes its argument.

A policy (which parts to keep, which blocks) is an argument after the model. Bind it with `functools.partial`
to get a `Transform`.
"""

from collections.abc import Callable

from torch import fx, nn

from pibench.models.transforms.absorb_skips import absorb_skips
from pibench.models.transforms.attend_channels import attend_channels
from pibench.models.transforms.average_pools import average_pools
from pibench.models.transforms.bilinear_layers import bilinear_layers
from pibench.models.transforms.factorize_convs import factorize_convs
from pibench.models.transforms.fold_batchnorm import fold_batchnorm
from pibench.models.transforms.gate_relus import gate_relus
from pibench.models.transforms.hoist_padding import hoist_padding
from pibench.models.transforms.linearize_relus import linearize_relus
from pibench.models.transforms.mask_pixels import mask_pixels
from pibench.models.transforms.merge_convs import merge_convs
from pibench.models.transforms.merge_linear_stretches import merge_linear_stretches
from pibench.models.transforms.polynomial_relus import polynomial_relus
from pibench.models.transforms.prune_channels import prune_channels
from pibench.models.transforms.shallow_blocks import shallow_blocks

Transform = Callable[[nn.Module], fx.GraphModule]

EXACT = (fold_batchnorm, absorb_skips, merge_convs, merge_linear_stretches)
APPROXIMATE = (
    *(hoist_padding, linearize_relus, shallow_blocks, average_pools, bilinear_layers, mask_pixels),
    *(factorize_convs, attend_channels, polynomial_relus, prune_channels, gate_relus),
)

BY_NAME: dict[str, Callable[..., fx.GraphModule]] = {
    transform.__name__: transform for transform in (*EXACT, *APPROXIMATE)
}
"""The transforms that a weights file may name; arguments after the model are JSON or its tensors."""

__all__ = [
    "APPROXIMATE",
    "BY_NAME",
    "EXACT",
    "Transform",
    "absorb_skips",
    "attend_channels",
    "average_pools",
    "bilinear_layers",
    "factorize_convs",
    "fold_batchnorm",
    "gate_relus",
    "hoist_padding",
    "linearize_relus",
    "mask_pixels",
    "merge_convs",
    "merge_linear_stretches",
    "polynomial_relus",
    "prune_channels",
    "shallow_blocks",
]
