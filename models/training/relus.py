"""The forms of ReLUs during training.

`TrainingReLU` is `MaskedReLU` in one operation:

    y = max(x, lower),   lower = 0 where the mask is set, -inf elsewhere

`lower` is stored [1, C, H, W], so that it follows a network into channels_last memory. A mask in another
memory format than the activation more than doubles the time of an epoch.

`PixelReLU` gives 0 instead of x where the mask is not set, for masks of pixels.

`SoftReLU` is SNL's: y = a ReLU(x) + (1 - a) x with a trained slope a in [0, 1] for every position.

`HysteresisReLU` is AutoReP's while it chooses, `FittedReLU` afterwards: y = m ReLU(x) + (1 - m) p(x) with a
quadratic p that follows the values.
"""

import copy
from collections.abc import Iterable, Mapping
from math import pi, sqrt

import torch
from torch import Tensor, fx, nn

from pibench.models.graph.polynomial import SPREAD, Coefficients, fitted
from pibench.models.transforms import linearize_relus


class _Maximum(torch.autograd.Function):
    """Computes the maximum with ReLU's gradient at ties (0); torch.maximum's own gradient there is a half."""

    @staticmethod
    def forward(ctx, x: Tensor, lower: Tensor) -> Tensor:
        y = torch.maximum(x, lower)
        ctx.save_for_backward(y, lower)
        return y

    @staticmethod
    def backward(ctx, gradient: Tensor) -> tuple[Tensor, None]:
        y, lower = ctx.saved_tensors
        # y - lower is y on the mask and infinite elsewhere. It avoids a comparison: boolean results are slow.
        return torch.ops.aten.threshold_backward(gradient, y - lower, 0), None


class TrainingReLU(nn.Module):
    """Applies ReLU where its mask is set, like `MaskedReLU`; the mask can be exchanged."""

    def __init__(self, mask: Tensor) -> None:
        super().__init__()
        self.register_buffer("lower", torch.zeros(1, *mask.shape))
        self.set_mask(mask)

    @property
    def mask(self) -> Tensor:
        """The boolean mask, in the shape of one image's activation."""
        return self.lower[0] == 0

    @torch.no_grad()
    def set_mask(self, mask: Tensor) -> None:
        """Exchanges the mask, boolean [C, H, W]."""
        self.lower.copy_(torch.where(mask, 0.0, -torch.inf))

    def forward(self, x: Tensor) -> Tensor:
        return _Maximum.apply(x, self.lower.to(x.dtype))


class PixelReLU(TrainingReLU):
    """Applies ReLU where its mask is set and gives 0 elsewhere: m ReLU(x)."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) * (self.lower == 0).to(x.dtype)


class SoftReLU(nn.Module):
    """Computes a ReLU(x) + (1 - a) x = x - a min(x, 0) with a slope a for every position, at first 1."""

    def __init__(self, shape: tuple[int, ...]) -> None:
        super().__init__()
        self.alpha = nn.Parameter(torch.ones(1, *shape))

    def forward(self, x: Tensor) -> Tensor:
        return x - self.alpha.to(x.dtype) * x.clamp(max=0)


EDGE = 2.0


class Quadratic(nn.Module):
    """The quadratic nearest to ReLU for the values that a layer has seen: [N, C, H, W] -> the same shape.

    Mean and mean square of the values are running ones, as in BatchNorm; the values count as normal ones
    (`pibench.models.graph.polynomial.fitted`). No gradient goes through the coefficients. The deviation
    is taken `SPREAD` times as large.

    `escaped` is, after a forward pass in training, the sum of squares by which values are farther than `EDGE`
    such deviations from the mean, an image. A quadratic is far above ReLU there, and values that leave grow
    from layer to layer ("escaping activations": Sisyphus, arXiv 2107.12342).
    """

    def __init__(self, momentum: float = 0.1) -> None:
        super().__init__()
        self.momentum = momentum
        self.escaped: Tensor | None = None
        self.register_buffer("mean", torch.zeros(()))
        self.register_buffer("square", torch.ones(()))

    def coefficients(self) -> Coefficients:
        """Returns c0, c1, c2 for the values so far."""
        mean = self.mean.item()
        return fitted(mean, SPREAD * max(self.square.item() - mean**2, 1e-12) ** 0.5)

    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            with torch.no_grad():
                variance, mean = torch.var_mean(x.float(), correction=0)
                self.mean.lerp_(mean, self.momentum)
                self.square.lerp_(variance + mean**2, self.momentum)
        mean, std = self.mean, SPREAD * (self.square - self.mean**2).clamp(min=1e-12).sqrt()
        if self.training:
            beyond = ((x.float() - mean).abs() / std - EDGE).clamp(min=0)
            self.escaped = beyond.square().sum() / len(x)
        t = mean / std
        density = torch.exp(-t * t / 2) / sqrt(2 * pi)
        share = (1 + torch.erf(t / sqrt(2))) / 2
        h0, h1, h2 = mean * share + std * density, std * share, std * density / 2
        c0, c1, c2 = h0 - h1 * t + h2 * (t * t - 1), h1 / std - 2 * h2 * t / std, h2 / std**2
        inner = torch.addcmul(c1.to(x.dtype), x, c2.to(x.dtype))
        return torch.addcmul(c0.to(x.dtype), x, inner)


class _Indicator(torch.autograd.Function):
    """Gives the kept positions; the gradient goes straight to the scores."""

    @staticmethod
    def forward(ctx, score: Tensor, kept: Tensor) -> Tensor:
        return kept.clone()

    @staticmethod
    def backward(ctx, gradient: Tensor) -> tuple[Tensor, None]:
        return gradient, None


class HysteresisReLU(SoftReLU):
    """Computes m ReLU(x) + (1 - m) p(x), where m follows a trained score a of every position with hysteresis.

    Training decides by `rank` which positions are kept. Source: AutoReP (ICCV 2023, arXiv 2308.10134).
    """

    def __init__(self, shape: tuple[int, ...], threshold: float = 3e-3) -> None:
        super().__init__(shape)
        self.threshold = threshold
        self.kept: torch.Tensor
        self.register_buffer("kept", torch.ones(1, *shape))
        self.quadratic = Quadratic()

    @torch.no_grad()
    def rank(self) -> Tensor:
        """Returns the scores, `threshold` higher where a ReLU is kept and `threshold` lower elsewhere."""
        return self.alpha + self.threshold * (2 * self.kept - 1)

    def forward(self, x: Tensor) -> Tensor:
        kept = _Indicator.apply(self.alpha, self.kept).to(x.dtype)
        return torch.lerp(self.quadratic(x), x.relu(), kept)


class FittedReLU(TrainingReLU):
    """Applies ReLU where its mask is set and a fitted quadratic elsewhere."""

    def __init__(self, mask: Tensor) -> None:
        super().__init__(mask)
        self.quadratic = Quadratic()

    def forward(self, x: Tensor) -> Tensor:
        return torch.lerp(self.quadratic(x), x.relu(), (self.lower == 0).to(x.dtype))


class CutReLU(nn.Identity):
    """Marks the place of a removed ReLU layer, so that the value there can still be read."""


def named_relus(model: nn.Module) -> dict[str, nn.Module]:
    """Returns the ReLUs of any form by name, in the order of the network."""
    kinds = (nn.ReLU, TrainingReLU, SoftReLU, CutReLU)
    return {name: module for name, module in model.named_modules() if isinstance(module, kinds)}


def exchange_relus(model: nn.Module, modules: Mapping[str, nn.Module]) -> None:
    """Puts other ReLUs into the network, in place and by name."""
    for name, module in modules.items():
        model.set_submodule(name, module.train(model.training))


def mask_relus(model: nn.Module, masks: Mapping[str, Tensor]) -> None:
    """Turns every ReLU named in `masks` ([C, H, W] each) into a `TrainingReLU`, in place."""
    exchange_relus(model, {name: TrainingReLU(mask) for name, mask in masks.items()})


def cut_relus(model: nn.Module, names: Iterable[str]) -> nn.Module:
    """Returns a copy of `model` without the ReLUs of these names."""
    copied = copy.deepcopy(model)
    exchange_relus(copied, {name: CutReLU() for name in names})
    return copied


def masks_of(model: nn.Module) -> dict[str, Tensor]:
    """Returns the masks of a network in training."""
    return {name: relu.mask for name, relu in named_relus(model).items() if isinstance(relu, TrainingReLU)}


def deployed_relus(model: nn.Module) -> fx.GraphModule:
    """Returns the graph of `model` with `MaskedReLU`, `ReLU` or nothing in place of every `TrainingReLU`.

    `CutReLU` becomes nothing. The model itself does not change.
    """
    keep: dict[str, Tensor | bool] = {name: mask.cpu().contiguous() for name, mask in masks_of(model).items()}
    keep |= {name: False for name, relu in named_relus(model).items() if isinstance(relu, CutReLU)}
    learnt = {name: model.get_submodule(name) for name in keep}
    exchange_relus(model, {name: nn.ReLU() for name in keep})
    try:
        return linearize_relus(model, keep)
    finally:
        exchange_relus(model, learnt)
