"""Residual networks with basic blocks (He et al., CVPR 2016)."""

from collections import OrderedDict
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from pibench.models.layout import Block, Layout
from pibench.models.zoo.initialise import check_sizes, initialise


class BasicBlock(nn.Module):
    """Computes ReLU(BN(Conv(ReLU(BN(Conv(x))))) + shortcut(x)), both convolutions 3x3.

    The shortcut is the identity, or a 1x1 convolution with BatchNorm if stride or channels change (the
    paper's option B): [N, C, H, W] -> [N, O, H / stride, W / stride]. `end` names the module at the end of
    the deep branch.
    """

    end = "bn2"

    def __init__(self, in_channels: int, out_channels: int, stride: int = 1) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(out_channels)
        self.relu1 = nn.ReLU()
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(out_channels)
        self.shortcut = None
        if stride != 1 or in_channels != out_channels:
            conv = nn.Conv2d(in_channels, out_channels, 1, stride, bias=False)
            self.shortcut = nn.Sequential(OrderedDict(conv=conv, bn=nn.BatchNorm2d(out_channels)))
        self.relu2 = nn.ReLU()

    def enter(self, x: Tensor) -> Tensor:
        """Returns the input of the deep branch: the block's input itself."""
        return x

    def deep(self, entered: Tensor) -> Tensor:
        """Returns the output of the deep branch, [N, O, H / stride, W / stride]."""
        return self.bn2(self.conv2(self.relu1(self.bn1(self.conv1(entered)))))

    def leave(self, deep: Tensor, x: Tensor, entered: Tensor) -> Tensor:
        """Adds the shortcut of x to the output of the deep branch, and activates."""
        return self.relu2(deep + (x if self.shortcut is None else self.shortcut(x)))

    def forward(self, x: Tensor) -> Tensor:
        entered = self.enter(x)
        return self.leave(self.deep(entered), x, entered)


class ResNet(nn.Module):
    """A stem, one stage of basic blocks for each entry of `blocks`, average pooling to 1x1, one linear layer.

    Stage i has `width` 2^i channels. Every stage but the first halves the image. The stem is "cifar" (3x3,
    stride 1) or "imagenet" (7x7, stride 2, then 3x3 max pooling of stride 2). Images [N, 3, H, W] of any size
    that leaves at least one pixel -> logits [N, classes].
    """

    def __init__(self, blocks: Sequence[int], classes: int, width: int, stem: str = "cifar") -> None:
        super().__init__()
        check_sizes(classes=classes, width=width)
        if stem not in ("cifar", "imagenet"):
            raise ValueError(f"unknown stem {stem!r}: known are 'cifar' and 'imagenet'")
        if stem == "cifar":
            self.conv1 = nn.Conv2d(3, width, 3, padding=1, bias=False)
        else:
            self.conv1 = nn.Conv2d(3, width, 7, stride=2, padding=3, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.relu = nn.ReLU()
        self.maxpool = nn.MaxPool2d(3, stride=2, padding=1) if stem == "imagenet" else None
        self.stages = [f"layer{index + 1}" for index in range(len(blocks))]
        channels = width
        for index, (stage, count) in enumerate(zip(self.stages, blocks, strict=True)):
            out_channels = width * 2**index
            layers = []
            for block in range(count):
                layers.append(BasicBlock(channels, out_channels, 2 if index and not block else 1))
                channels = out_channels
            self.add_module(stage, nn.Sequential(*layers))
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(channels, classes)
        initialise(self)

    def forward(self, x: Tensor) -> Tensor:
        x = self.relu(self.bn1(self.conv1(x)))
        if self.maxpool is not None:
            x = self.maxpool(x)
        for stage in self.stages:
            x = self.get_submodule(stage)(x)
        return self.fc(torch.flatten(self.avgpool(x), 1))

    def layout(self) -> Layout:
        """Returns the network's blocks, ReLUs and stage outputs."""
        names = [f"{stage}.{index}" for stage in self.stages for index in range(len(getattr(self, stage)))]
        blocks = tuple(
            Block(name, *(f"{name}.{part}" for part in ("conv1", "relu1", "conv2", "relu2")))
            for name in names
        )
        convolutions = {"relu": "conv1"}
        for block in blocks:
            convolutions |= {block.mid: block.conv1, block.other: block.conv2}
        ends = tuple(f"{stage}.{len(getattr(self, stage)) - 1}.relu2" for stage in self.stages)
        return Layout(convolutions, ends, blocks)


def resnet18(classes: int = 100, width: int = 64, stem: str = "cifar") -> ResNet:
    """Returns ResNet-18: 557,056 ReLUs on 32x32 images at width 64, the stem's included."""
    return ResNet((2, 2, 2, 2), classes, width, stem)


def resnet34(classes: int = 100, width: int = 64, stem: str = "cifar") -> ResNet:
    """Returns ResNet-34: 966,656 ReLUs on 32x32 images at width 64."""
    return ResNet((3, 4, 6, 3), classes, width, stem)


def resnet20(classes: int = 100, width: int = 16) -> ResNet:
    """Returns ResNet-20 for CIFAR: 188,416 ReLUs on 32x32 images at width 16.

    Its shortcuts are 1x1 convolutions (option B). He et al. pad with zero channels on CIFAR (option A), which
    has the same ReLUs and fewer parameters. Private-inference papers train option B, and it needs no slicing
    of shares.
    """
    return ResNet((3, 3, 3), classes, width)


def resnet32(classes: int = 100, width: int = 16) -> ResNet:
    """Returns ResNet-32 for CIFAR: 303,104 ReLUs on 32x32 images at width 16, shortcuts as in `resnet20`."""
    return ResNet((5, 5, 5), classes, width)
