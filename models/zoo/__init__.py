"""The networks of the private-inference literature; every ReLU is a module of its own."""

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

__all__ = [
    "VGG",
    "ZOO",
    "ResNet",
    "WideResNet",
    "resnet18",
    "resnet20",
    "resnet32",
    "resnet34",
    "vgg16",
    "wrn_22_8",
]
