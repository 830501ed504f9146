"""The networks of the private-inference literature; every ReLU is its own module."""

from functools import cache

import torch

from pibench.models.layout import Layout
from pibench.models.zoo.resnet import ResNet, resnet18, resnet20, resnet32, resnet34
from pibench.models.zoo.vgg import VGG, vgg16
from pibench.models.zoo.wide_resnet import WideResNet, wrn_22_8

ZOO = {
    "resnet18": resnet18,
    "resnet34": resnet34,
    "resnet20": resnet20,
    "resnet32": resnet32,
    "wrn_22_8": wrn_22_8,
    "vgg16": vgg16,
}


@cache
def layout_of(network: str) -> Layout:
    """Returns the layout of a network of `ZOO`, which no size changes.

    Raises ValueError that names the known networks.
    """
    if network not in ZOO:
        raise ValueError(f"unknown network {network!r}: known are {', '.join(ZOO)}")
    with torch.device("meta"):
        return ZOO[network](width=1).layout()


__all__ = [
    "VGG",
    "ZOO",
    "ResNet",
    "WideResNet",
    "layout_of",
    "resnet18",
    "resnet20",
    "resnet32",
    "resnet34",
    "vgg16",
    "wrn_22_8",
]
