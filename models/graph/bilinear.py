"""The factors of a bilinear projection, as layers.

    Y = L^T X R

X [c1, c2] holds the C = c1 c2 channels of a pixel, row after row; Y [u1, u2] holds those of the result. L
mixes rows and R mixes columns. As one convolution its kernel would be the Kronecker product of both,

    W[(a, b), (d, e), m, n] = L[a, d, m, n] R[b, e].

As two it needs u1 c1 k^2 + u2 c2 numbers instead of u1 u2 c1 c2 k^2. A vector of C features is the same with
one pixel. Source: arXiv 2011.01391. The place of the kernel's taps (in L) is ours.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class RowsConv2d(nn.Module):
    """Convolves the rows of X by one kernel `weight` [u1, c1, k, k], the same for all `columns` c2.

    [N, c1 c2, H, W] -> [N, u1 c2, H', W']. The columns lie below each other in one high image of c1 channels,
    with zeros between them, so that the kernel is stored once. A grouped convolution would repeat it. In
    training the columns are more images of the batch, which computes the same and is quicker: the high image
    of few channels is slow in torch, and the dense convolution of the Kronecker product has c2 times as many
    products.
    """

    def __init__(
        self,
        weight: Tensor,
        columns: int,
        stride: tuple[int, int] = (1, 1),
        padding: tuple[int, int] = (0, 0),
    ) -> None:
        super().__init__()
        self.weight = nn.Parameter(weight.detach().clone())
        self.columns, self.stride, self.padding = columns, stride, padding

    def period(self, height: int) -> tuple[int, int]:
        """Returns the rows of the high image from one column to the next, and the output rows of a column.

        The zeros after a column are the padding of its lower and of the next one's upper edge. Every column
        starts at a multiple of the stride.
        """
        kernel, stride, padding = self.weight.shape[2], self.stride[0], self.padding[0]
        out = (height + 2 * padding - kernel) // stride + 1
        period = height + padding
        while period % stride or period // stride < out:
            period += 1
        return period, out

    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            # the channels come last here, as they do in the memory of a training
            images = x.movedim(1, -1).unflatten(-1, (-1, self.columns)).movedim(-1, 1).flatten(0, 1)
            y = F.conv2d(images.movedim(-1, 1), self.weight, None, self.stride, self.padding)
            return y.movedim(1, -1).unflatten(0, (-1, self.columns)).movedim(1, -1).flatten(-2).movedim(-1, 1)
        height = x.shape[2]
        period, out = self.period(height)
        gap, rows = period - height, period // self.stride[0]
        high = F.pad(x.unflatten(1, (-1, self.columns)), (0, 0, 0, gap)).flatten(2, 3)
        high = high[:, :, : self.columns * period - gap]  # the convolution pads the last column itself
        y = F.conv2d(high, self.weight, None, self.stride, self.padding)
        y = F.pad(y, (0, 0, 0, rows - out)).unflatten(2, (self.columns, rows))
        return y[:, :, :, :out].flatten(1, 2)

    def extra_repr(self) -> str:
        shape = list(self.weight.shape)
        return f"{shape}, columns={self.columns}, stride={self.stride}, padding={self.padding}"


class ColumnsConv2d(nn.Module):
    """Mixes the columns of X at each pixel by one matrix `weight` [u2, c2, 1, 1], the same for all `rows`.

    [N, u1 c2, H, W] -> [N, u1 u2, H, W]. `bias` [u1 u2] may be None. In training a matrix product computes
    the same as the grouped convolution, in half the time.
    """

    def __init__(self, weight: Tensor, rows: int, bias: Tensor | None = None) -> None:
        super().__init__()
        self.weight = nn.Parameter(weight.detach().clone())
        self.bias = None if bias is None else nn.Parameter(bias.detach().clone())
        self.rows = rows

    @property
    def repeated(self) -> Tensor:
        """The kernel [u1 u2, c2, 1, 1] of the grouped convolution that computes the same."""
        return self.weight.repeat(self.rows, 1, 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            y = F.linear(x.movedim(1, -1).unflatten(-1, (self.rows, -1)), self.weight[:, :, 0, 0]).flatten(-2)
            return (y if self.bias is None else y + self.bias).movedim(-1, 1)
        return F.conv2d(x, self.repeated, self.bias, groups=self.rows)

    def extra_repr(self) -> str:
        return f"{list(self.weight.shape)}, rows={self.rows}, bias={self.bias is not None}"


class BilinearLinear(nn.Module):
    """Maps features [N, c1 c2] to L^T X R + bias, [N, u1 u2].

    `left` [u1, c1] is L^T, `right` [u2, c2] is R^T, `bias` is [u1 u2].
    """

    def __init__(self, left: Tensor, right: Tensor, bias: Tensor) -> None:
        super().__init__()
        self.left = nn.Parameter(left.detach().clone())
        self.right = nn.Parameter(right.detach().clone())
        self.bias = nn.Parameter(bias.detach().clone())

    def forward(self, x: Tensor) -> Tensor:
        columns = x.unflatten(1, (self.left.shape[1], self.right.shape[1])).transpose(1, 2)
        mixed = F.linear(columns, self.left).transpose(1, 2)
        return torch.flatten(F.linear(mixed, self.right), 1) + self.bias

    def extra_repr(self) -> str:
        return f"{list(self.left.shape)}, {list(self.right.shape)}"
