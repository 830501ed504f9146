"""Wide residual networks, pre-activation (Zagoruyko and Komodakis, BMVC 2016)."""

import torch
from torch import Tensor, nn

from pibench.models.layout import Block, Layout
from pibench.models.zoo.initialise import check_sizes, initialise


class PreActivationBlock(nn.Module):
    """Computes Conv(ReLU(BN(Conv(ReLU(BN(x)))))) + shortcut, both convolutions 3x3.

    The shortcut is x itself, or a 1x1 convolution of ReLU(BN(x)) if stride or channels change: [N, C, H, W]
    -> [N, O, H / stride, W / stride]. `end` names the module at the end of the deep branch.
    """

    end = "conv2"

    def __init__(self, in_channels: int, out_channels: int, stride: int = 1) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(in_channels)
        self.relu1 = nn.ReLU()
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, stride, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(out_channels)
        self.relu2 = nn.ReLU()
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1, bias=False)
        self.shortcut = None
        if stride != 1 or in_channels != out_channels:
            self.shortcut = nn.Conv2d(in_channels, out_channels, 1, stride, bias=False)

    def enter(self, x: Tensor) -> Tensor:
        """Returns the input of the deep branch's convolutions: the activated input."""
        return self.relu1(self.bn1(x))

    def deep(self, entered: Tensor) -> Tensor:
        """Returns the output of the deep branch, [N, O, H / stride, W / stride]."""
        return self.conv2(self.relu2(self.bn2(self.conv1(entered))))

    def leave(self, deep: Tensor, x: Tensor, entered: Tensor) -> Tensor:
        """Adds x, or the shortcut of the activated input, to the output of the deep branch."""
        return deep + (x if self.shortcut is None else self.shortcut(entered))

    def forward(self, x: Tensor) -> Tensor:
        entered = self.enter(x)
        return self.leave(self.deep(entered), x, entered)


class WideResNet(nn.Module):
    """A 3x3 stem of `width` channels, three groups of (depth - 4) / 6 blocks, BN, ReLU, pooling, linear.

    Group i has `factor` `width` 2^i channels. Images [N, 3, H, W] of any size -> logits [N, classes].
    """

    def __init__(self, depth: int, factor: int, classes: int, width: int) -> None:
        super().__init__()
        check_sizes(classes=classes, width=width)
        blocks, rest = divmod(depth - 4, 6)
        if rest or blocks < 1:
            raise ValueError(f"a wide ResNet has depth 6 n + 4, not {depth}")
        self.conv1 = nn.Conv2d(3, width, 3, padding=1, bias=False)
        self.groups = ["group1", "group2", "group3"]
        channels = width
        for index, group in enumerate(self.groups):
            out_channels = factor * width * 2**index
            layers = []
            for block in range(blocks):
                layers.append(PreActivationBlock(channels, out_channels, 2 if index and not block else 1))
                channels = out_channels
            self.add_module(group, nn.Sequential(*layers))
        self.bn = nn.BatchNorm2d(channels)
        self.relu = nn.ReLU()
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(channels, classes)
        initialise(self)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv1(x)
        for group in self.groups:
            x = self.get_submodule(group)(x)
        return self.fc(torch.flatten(self.avgpool(self.relu(self.bn(x))), 1))

    def layout(self) -> Layout:
        """Returns the network's blocks, ReLUs and stage outputs.

        The first ReLU after a group activates its output; there it is compared with a teacher's.
        """
        names = [f"{group}.{index}" for group in self.groups for index in range(len(getattr(self, group)))]
        blocks = tuple(
            Block(name, *(f"{name}.{part}" for part in ("conv1", "relu2", "conv2", "relu1")))
            for name in names
        )
        convolutions, before = {}, "conv1"
        for block in blocks:
            convolutions |= {block.other: before, block.mid: block.conv1}
            before = block.conv2
        ends = (*(f"{group}.0.relu1" for group in self.groups[1:]), "relu")
        return Layout(convolutions | {"relu": before}, ends, blocks)


def wrn_22_8(classes: int = 100, width: int = 16) -> WideResNet:
    """Returns WRN-22-8: 1,392,640 ReLUs on 32x32 images at the stem's usual width of 16.

    Its groups are 8, 16 and 32 `width` wide. Papers that do not count the last ReLU layer give 1,359,872.
    """
    return WideResNet(22, 8, classes, width)
