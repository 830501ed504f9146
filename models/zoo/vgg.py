"""VGG with batch normalisation (Simonyan and Zisserman, ICLR 2015, configuration D)."""

from collections import OrderedDict

import torch
from torch import Tensor, nn

from pibench.models.layout import Layout
from pibench.models.zoo.initialise import check_sizes, initialise

_CONVOLUTIONS = (2, 2, 3, 3, 3)
_FACTORS = (1, 2, 4, 8, 8)


class VGG(nn.Module):
    """Five groups of 3x3 convolutions with BatchNorm and ReLU, each with 2x2 max pooling at its end.

    The classifier is one linear layer. With `hidden` two linear layers of 64 `width` (4,096 at width 64) with
    ReLU and dropout come before it, as in the paper. Average pooling to 1x1 before the classifier makes the
    image size free (it does nothing at 32x32): [N, 3, H, W], H and W at least 32, -> logits [N, classes].
    """

    def __init__(self, classes: int, width: int, hidden: bool = False) -> None:
        super().__init__()
        check_sizes(classes=classes, width=width)
        features: OrderedDict[str, nn.Module] = OrderedDict()
        channels = 3
        for group, (count, factor) in enumerate(zip(_CONVOLUTIONS, _FACTORS, strict=True), start=1):
            for index in range(1, count + 1):
                features[f"conv{group}_{index}"] = nn.Conv2d(
                    channels, factor * width, 3, padding=1, bias=False
                )
                channels = factor * width
                features[f"bn{group}_{index}"] = nn.BatchNorm2d(channels)
                features[f"relu{group}_{index}"] = nn.ReLU()
            features[f"pool{group}"] = nn.MaxPool2d(2)
        self.features = nn.Sequential(features)
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        classifier: OrderedDict[str, nn.Module] = OrderedDict()
        if hidden:
            for index in (1, 2):
                classifier[f"fc{index}"] = nn.Linear(channels, 64 * width)
                channels = 64 * width
                classifier[f"relu{index}"] = nn.ReLU()
                classifier[f"dropout{index}"] = nn.Dropout()
        classifier["fc"] = nn.Linear(channels, classes)
        self.classifier = nn.Sequential(classifier)
        initialise(self)

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(torch.flatten(self.avgpool(self.features(x)), 1))

    def layout(self) -> Layout:
        """Returns the network's ReLUs and group outputs; it has no residual blocks.

        The ReLUs of hidden linear layers count as the last convolution's.
        """
        relus = [name for name, module in self.named_modules() if isinstance(module, nn.ReLU)]
        last = f"features.conv{len(_CONVOLUTIONS)}_{_CONVOLUTIONS[-1]}"
        convolutions = {
            name: name.replace("relu", "conv") if name.startswith("features.") else last for name in relus
        }
        ends = (f"features.relu{group}_{count}" for group, count in enumerate(_CONVOLUTIONS, start=1))
        return Layout(convolutions, tuple(ends))


def vgg16(classes: int = 100, width: int = 64, hidden: bool = False) -> VGG:
    """Returns VGG-16: 276,480 ReLUs on 32x32 images at width 64, 284,672 with the `hidden` linear layers."""
    return VGG(classes, width, hidden)
