"""Pixels that are publicly 0."""

from torch import Tensor, nn


class PixelMask(nn.Module):
    """Sets pixels to 0 in every channel: y[c, i, j] = m[i, j] x[c, i, j].

    `mask` m is boolean [H, W]. It is a buffer, so it is saved with the weights. The mask is public: under MPC
    each party multiplies its own share, without a message.
    """

    def __init__(self, mask: Tensor) -> None:
        super().__init__()
        self.register_buffer("mask", mask.detach().clone())

    def forward(self, x: Tensor) -> Tensor:
        """Maps x [N, C, H, W] to the same shape."""
        return x * self.mask

    def extra_repr(self) -> str:
        return f"mask={list(self.mask.shape)}, kept={int(self.mask.count_nonzero())}/{self.mask.numel()}"
