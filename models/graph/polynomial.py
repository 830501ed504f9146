"""A ReLU that is evaluated where a public mask is set; elsewhere a quadratic stands for it."""

from __future__ import annotations

from collections.abc import Sequence
from math import erf, exp, pi, sqrt

import torch
from torch import Tensor, nn

Coefficients = tuple[float, float, float]
"""c0, c1 and c2 of c0 + c1 x + c2 x^2."""
SPREAD = 2.0
"""A quadratic is fitted to values with so many times the deviation of the layer's own.

Fitted to the deviation itself, it magnifies a value of z deviations by 0.2 z + 0.5, and a skip hands it to
the next quadratic. Ours.
"""


def fitted(mean: float, std: float) -> Coefficients:
    """Returns the quadratic nearest to ReLU in the mean square, for normal values of this mean and deviation.

    With t = mean / std, the density f and the distribution F of a standard normal value z = (x - mean) / std,
    the three coefficients of Hermite's polynomials 1, z, z^2 - 1 are E[ReLU] = mean F(t) + std f(t),
    E[ReLU z] = std F(t) and E[ReLU (z^2 - 1)] / 2 = std f(t) / 2.

    >>> [round(c, 4) for c in fitted(0.0, 1.0)]
    [0.1995, 0.5, 0.1995]
    """
    t = mean / std
    density, share = exp(-t * t / 2) / sqrt(2 * pi), (1 + erf(t / sqrt(2))) / 2
    h0, h1, h2 = mean * share + std * density, std * share, std * density / 2
    return h0 - h1 * t + h2 * (t * t - 1), h1 / std - 2 * h2 * t / std, h2 / std**2


class PolynomialReLU(nn.Module):
    """Applies ReLU where a public mask is set and a quadratic with public coefficients elsewhere.

        y = m ReLU(x) + (1 - m) (c0 + c1 x + c2 x^2),   m in {0, 1}

    `mask` is boolean, in the shape of one image's activation [C, H, W]; `coefficients` are (c0, c1, c2), the
    same for the whole layer. Under MPC a position that is not kept costs a square instead of a comparison.
    Source: AutoReP (ICCV 2023, arXiv 2308.10134). Raises TypeError for a mask that is not boolean.
    """

    def __init__(self, mask: Tensor, coefficients: Sequence[float]) -> None:
        super().__init__()
        if mask.dtype != torch.bool:
            raise TypeError(f"a ReLU mask is boolean, this one is {mask.dtype}")
        self.coefficients: Coefficients = tuple(map(float, coefficients))
        self.register_buffer("mask", mask.detach().clone())

    def forward(self, x: Tensor) -> Tensor:
        """Maps x [N, *shape] to the same shape."""
        c0, c1, c2 = self.coefficients
        rest = (c2 * (x * x) + (c1 - 1) * x + c0).masked_fill(self.mask, 0)
        return torch.where(self.mask, torch.relu(x), x) + rest

    def extra_repr(self) -> str:
        kept = f"kept={int(self.mask.count_nonzero())}/{self.mask.numel()}"
        return f"mask={list(self.mask.shape)}, {kept}, coefficients={self.coefficients}"
