"""A ReLU that is evaluated only where a public mask is set."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn


class MaskedReLU(nn.Module):
    """Applies ReLU where a public mask is set and leaves the other positions unchanged.

        y = m ReLU(x) + (1 - m) x,   m in {0, 1}

    `mask` is boolean. It has one entry for each position, in the shape of one image's activation ([C, H, W],
    or [F] after a linear layer). Or it has one entry for each channel ([C] or [C, 1, 1], broadcast over the
    pixels on use). It is a buffer, so it is saved with the weights. The mask is public: a position that is
    not kept costs no comparison under MPC. Source: SENet (arXiv 2301.09254), SNL (ICML 2022).
    """

    def __init__(self, mask: Tensor) -> None:
        super().__init__()
        if mask.dtype != torch.bool:
            raise TypeError(f"a ReLU mask is boolean, this one is {mask.dtype}")
        if mask.dim() not in (1, 3):
            raise ValueError(f"a ReLU mask has the shape [C, H, W], [C, 1, 1] or [C], not {list(mask.shape)}")
        self.register_buffer("mask", mask.detach().clone())

    @property
    def per_channel(self) -> bool:
        """True if the mask has one entry for each channel, the same for all pixels."""
        return self.mask.dim() == 1 or self.mask.shape[1:] == (1, 1)

    def expanded(self, shape: Sequence[int]) -> Tensor:
        """Returns the mask in the shape of one image's activation; raises ValueError if it does not fit."""
        shape = torch.Size(shape)
        if self.mask.shape == shape:
            return self.mask
        if self.per_channel and len(shape) == 3 and shape[0] == self.mask.shape[0]:
            return self.mask.view(-1, 1, 1).expand(shape)
        raise ValueError(
            f"a ReLU mask of shape {list(self.mask.shape)} does not fit an activation of shape {list(shape)} "
            "(without the batch): the image size or width differs from the one it was made for"
        )

    def kept(self, shape: Sequence[int]) -> int:
        """Returns the number of positions of an activation of `shape` (no batch) that are compared."""
        return int(self.expanded(shape).count_nonzero())

    def forward(self, x: Tensor) -> Tensor:
        """Maps x [N, *shape] to the same shape."""
        return torch.where(self.expanded(x.shape[1:]), torch.relu(x), x)

    def extra_repr(self) -> str:
        return f"mask={list(self.mask.shape)}, kept={int(self.mask.count_nonzero())}/{self.mask.numel()}"
