"""The way back from a published network to one that trains: BatchNorm is put in again.

A published network has its BatchNorm folded (`pibench.models.transforms.fold_batchnorm`). With the mean mu
and the variance v of a convolution's output y = W * x + b over some images, and for every s > 0,

    BN(s (W * x)) = y   if BN has   mean s (mu - b),   variance s^2 v,
                                    gamma = sqrt(s^2 v + eps) / s,   beta = mu.

In eval mode the network thus computes what it did, exactly. BatchNorm undoes s, but training sees another s
as another rate. Here it gives every filter the norm that a random one has, sqrt(2 fan_in / fan_out). At the
published baseline of width 16 this is, within a factor of two, where weight decay and gradients balance at a
rate of 0.05, that of most phases that start from it.

A lone BatchNorm is published as a depthwise convolution y = k x + t. With the mean and the variance of its
input it has gamma = k sqrt(v + eps) and beta = t + k mu.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from pibench.models.graph.moves import module_of, source, trace
from pibench.models.training.statistics import set_batchnorm
from pibench.models.training.taps import run_tapped
from pibench.models.transforms.fold_batchnorm import obstacle


@dataclass
class _Place:
    """A BatchNorm of the original, its own convolution if it has one, and the published layer of both.

    `sums` [3, C] are over all images and positions: ones, values and their squares.
    """

    norm: nn.BatchNorm2d
    conv: nn.Conv2d | None
    published: nn.Conv2d
    sums: Tensor = field(default_factory=lambda: torch.zeros(3, 1, dtype=torch.float64))

    def add(self, values: Tensor) -> None:
        """Adds up what BatchNorm will see, [N, C, H, W]."""
        values = values.double()
        moments = (torch.ones_like(values), values, values.square())
        self.sums = self.sums + torch.stack([moment.sum((0, 2, 3)) for moment in moments])

    def put(self) -> None:
        """Gives the convolution and BatchNorm their weights and statistics."""
        assert self.published.bias is not None
        kernel, shift = self.published.weight.double(), self.published.bias.double()
        count, values, squares = self.sums
        mean = values / count
        variance = (squares / count - mean.square()).clamp(min=0)
        if self.conv is None:
            k = kernel.flatten()
            set_batchnorm(self.norm, mean, variance, k * (variance + self.norm.eps).sqrt(), shift + k * mean)
            return
        s = _scale(self.conv, kernel)
        self.conv.weight.copy_(kernel * s.view(-1, 1, 1, 1))
        if self.conv.bias is not None:
            self.conv.bias.zero_()
        scaled = s.square() * variance
        set_batchnorm(self.norm, s * (mean - shift), scaled, (scaled + self.norm.eps).sqrt() / s, mean)


@torch.no_grad()
def unfolded(original: nn.Module, published: nn.Module, batches: Iterable[Tensor]) -> nn.Module:
    """Returns `original`, in place and in eval mode, with the weights of `published` and its BatchNorm anew.

    `published` is the same network with BatchNorm folded, its modules under the names of the original's.
    `batches` [N, 3, H, W] give the statistics. Raises ValueError for a network of another structure.
    """
    graph, folded = trace(original.eval()), dict(published.named_modules())
    own, places = dict(original.named_modules()), dict[str, _Place]()
    for node in graph.graph.nodes:
        if module_of(graph, node, nn.BatchNorm2d) is None:
            continue
        first = source(node)
        conv = None if obstacle(graph, first) else own[str(first.target)]
        name = str(node.target if conv is None else first.target)
        layer, norm = folded.get(name), own[str(node.target)]
        shape = conv.weight.shape if conv else (norm.num_features, 1, 1, 1)
        if not isinstance(layer, nn.Conv2d) or layer.weight.shape != shape:
            raise ValueError(f"the published network is of another structure: its {name} does not fit")
        places[name] = _Place(norm, conv, layer)
        del folded[name]
    for name, layer in folded.items():
        if isinstance(layer, nn.Conv2d | nn.Linear):  # without BatchNorm
            own[name].load_state_dict(layer.state_dict())
    lone = [name for name, place in places.items() if place.conv is None]
    for images in batches:
        _, after, before = run_tapped(published, images, places.keys() - lone, lone)
        for name, values in (after | before).items():
            places[name].add(values)
    for place in places.values():
        place.put()
    return original


def _scale(conv: nn.Conv2d, kernel: Tensor) -> Tensor:
    """Returns s [O]: it gives each filter of `kernel` the norm of a random one; a filter of zeros stays."""
    norms = kernel.flatten(1).norm(dim=1)
    fan_in, fan_out = kernel[0].numel(), conv.out_channels // conv.groups * kernel[0, 0].numel()
    return torch.where(norms > 0, (2 * fan_in / fan_out) ** 0.5 / norms, torch.ones_like(norms))
