"""A residual block that learns to be shallow.

    y = g deep(x) + (1 - g) shallow(x),   then ReLU(y + shortcut(x))

deep is the block's Conv BN ReLU Conv BN. shallow is one 3x3 convolution of the block's stride with BN. In a
block that activates first, deep is Conv BN ReLU Conv of the activated input, shallow is one convolution of
the same input with a bias, and no ReLU follows the sum. The gate g falls from 1 to 0 while the network is
trained. At 0 the deep branch is no longer computed. The rest is then exactly the block that
`pibench.models.transforms.shallow_blocks` makes. After arXiv 2304.13274, which does not publish the gate's
form, its schedule, the kernel or the start: those are ours.

The start is the least-squares fit of deep's output. With the patches a(x) [9 C + 1] of the input (the last
entry 1) and the outputs d(x) [O] at all positions of all images,

    K = argmin sum |K a - d|^2,   K (sum a a^T) = sum d a^T.

The BatchNorm after it, if there is one, gets the statistics of K's output, so that it changes nothing.
"""

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pibench.models.training.statistics import set_batchnorm
from pibench.models.training.taps import run_tapped


class GatedBlock(nn.Module):
    """A residual block of the zoo and its shallow replacement; `gate` is set from outside and not saved.

    Its parts keep the block's names. `end` names the module at the end of the deep branch.
    """

    def __init__(self, block: nn.Module, shallow: nn.Conv2d, shallow_bn: nn.BatchNorm2d | None) -> None:
        super().__init__()
        self.kind, self.end = type(block), block.end
        self.shortcut = None
        for name, part in block.named_children():
            setattr(self, name, part)
        self.shallow, self.shallow_bn = shallow, shallow_bn
        self.gate = 1.0

    def forward(self, x: Tensor) -> Tensor:
        """Maps x [N, C, H, W] to gate deep(x) + (1 - gate) shallow(x) plus the block's shortcut."""
        entered = self.kind.enter(self, x)
        y = self.shallow(entered)
        if self.shallow_bn is not None:
            y = self.shallow_bn(y)
        if self.gate > 0:
            y = torch.lerp(y, self.kind.deep(self, entered), self.gate)
        return self.kind.leave(self, y, x, entered)


def put_gate(model: nn.Module, structured: nn.Module, block: str) -> GatedBlock:
    """Makes a block of `model` a gated one, in place, with the shallow branch of `structured`; returns it."""
    branch = structured.get_submodule(block)
    gate = GatedBlock(model.get_submodule(block), branch.shallow, getattr(branch, "shallow_bn", None))
    model.set_submodule(block, gate)
    return gate


class LeastSquares:
    """Sums the normal equations of a 3x3 convolution batch by batch, in float64."""

    def __init__(self, channels: int, outputs: int, stride: tuple[int, int]) -> None:
        self.stride = stride
        self.gram = torch.zeros(9 * channels + 1, 9 * channels + 1, dtype=torch.float64)
        self.right = torch.zeros(9 * channels + 1, outputs, dtype=torch.float64)

    def add(self, x: Tensor, y: Tensor) -> None:
        """Adds inputs x [N, C, H, W] and their target outputs y [N, O, H', W']."""
        patches = F.unfold(x.double(), 3, padding=1, stride=self.stride).transpose(1, 2).flatten(0, 1)
        patches = F.pad(patches, (0, 1), value=1.0)
        wanted = y.double().flatten(2).transpose(1, 2).flatten(0, 1)
        self.gram += (patches.T @ patches).cpu()
        self.right += (patches.T @ wanted).cpu()

    def solve(self) -> tuple[Tensor, Tensor]:
        """Returns kernel [O, C, 3, 3] and bias [O] of least squared error.

        The shortest if there are several.
        """
        solution = torch.linalg.pinv(self.gram, hermitian=True, rtol=1e-10) @ self.right
        return solution[:-1].T.reshape(self.right.shape[1], -1, 3, 3).contiguous(), solution[-1]

    def statistics(self, kernel: Tensor) -> tuple[Tensor, Tensor]:
        """Returns mean and variance [O] of the kernel's outputs, without bias, over all added patches."""
        count, weights = self.gram[-1, -1], kernel.flatten(1).T
        mean = self.gram[-1, :-1] @ weights / count
        square = (weights * (self.gram[:-1, :-1] @ weights)).sum(0) / count
        return mean, (square - mean**2).clamp(min=0)


@torch.no_grad()
def fit_shallow(reference: nn.Module, blocks: Mapping[str, GatedBlock], batches: Iterable[Tensor]) -> None:
    """Sets the shallow branch of each block to the least-squares fit of `reference`'s deep branch, in place.

    `blocks` are named as in `reference`, a network of the zoo in eval mode. `batches` are normalised images
    [N, 3, H, W].
    """
    sums = {
        name: LeastSquares(block.shallow.in_channels, block.shallow.out_channels, block.shallow.stride)
        for name, block in blocks.items()
    }
    ends = {name: f"{name}.{block.end}" for name, block in blocks.items()}
    firsts = {name: f"{name}.conv1" for name in blocks}
    for x in batches:
        _, outputs, inputs = run_tapped(reference, x, list(ends.values()), list(firsts.values()))
        for name, squares in sums.items():
            squares.add(inputs[firsts[name]], outputs[ends[name]])
    for name, block in blocks.items():
        kernel, bias = sums[name].solve()
        block.shallow.weight.copy_(kernel)
        norm = block.shallow_bn
        if norm is None:
            block.shallow.bias.copy_(bias)
            continue
        mean, variance = sums[name].statistics(kernel)
        set_batchnorm(norm, mean, variance, (variance + norm.eps).sqrt(), mean + bias)
