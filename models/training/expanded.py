"""A convolution whose kernel is a product of three while it learns.

    W = L * K * R,    W[p, c, m, n] = sum_oi L[p, o] K[o, i, m, n] R[i, c]

R and L are 1x1 convolutions before and after the convolution K, with nothing in between: three linear layers
in a row, K with `factor` times as many channels on both sides. They compute what one convolution W computes,
and the gradient takes another path to it. W is multiplied out in each step, so that the values pass one
convolution. In the end W stays. After ExpandNets (arXiv 1811.10495), whose start is random. This one starts
at the W that is there: L and R are semi-orthogonal and K = L^T W R^T.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize


class Expansion(nn.Module):
    """Maps L [O, f O], K [f O, f C, k, k] and R [f C, C] to the kernel W [O, C, k, k], and back."""

    def __init__(self, factor: int) -> None:
        super().__init__()
        self.factor = factor

    def forward(self, left: Tensor, middle: Tensor, right: Tensor) -> Tensor:
        """Returns the product, in the type of the factors."""
        with torch.autocast(middle.device.type, enabled=False):
            return torch.einsum("po,oikl,ic->pckl", left, middle, right)

    def right_inverse(self, kernel: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Returns factors of the kernel. The outer ones are the same at every call."""
        outputs, inputs = kernel.shape[:2]
        generator = torch.Generator().manual_seed(0)
        left, right = (
            nn.init.orthogonal_(
                torch.empty(narrow, self.factor * narrow, dtype=torch.float64), generator=generator
            ).to(kernel)
            for narrow in (outputs, inputs)
        )
        return left, torch.einsum("po,pckl,ic->oikl", left, kernel, right.T), right.T.contiguous()


def expand(convolution: nn.Conv2d, factor: int) -> None:
    """Makes the kernel a product of three, in place; the convolution computes the same as before.

    Raises ValueError for a factor below 1 and for groups.
    """
    if factor < 1:
        raise ValueError(f"a kernel is expanded by a factor of 1 or more, not by {factor}")
    if convolution.groups != 1:
        raise ValueError(f"a kernel of {convolution.groups} groups cannot be expanded: its factors mix all")
    parametrize.register_parametrization(convolution, "weight", Expansion(factor))


def set_kernel(convolution: nn.Conv2d, kernel: Tensor) -> None:
    """Sets the kernel of a convolution, in place, whether it is a product or not."""
    if parametrize.is_parametrized(convolution, "weight"):
        convolution.weight = kernel.to(convolution.weight)
    else:
        convolution.weight.copy_(kernel)


def multiplied_out(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Returns the state of a network with each product of three as one kernel, computed in float64."""
    plain, mark = dict(state), ".parametrizations.weight.original"
    for key in [key for key in state if key.endswith(f"{mark}0")]:
        name = key.removesuffix(f"{mark}0")
        factors = [plain.pop(f"{name}{mark}{at}") for at in range(3)]
        product = Expansion(1)(*(factor.double() for factor in factors))
        plain[f"{name}.weight"] = product.to(factors[1].dtype)
    return plain
