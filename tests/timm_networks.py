"""The timm networks that the front door must take, with random weights."""

from __future__ import annotations

import torch
from torch import nn

from pibench.measure.network import import_timm

CONVOLUTIONAL = (
    *("resnet18", "mobilenetv2_050", "densenet121", "vgg11", "repvgg_a0", "efficientnet_lite0"),
    *("mobilenetv3_small_050", "ghostnet_050", "resnetv2_50", "darknet17", "regnetx_002", "cspresnet50"),
    *("seresnet18", "dla34", "hardcorenas_a", "tinynet_e", "res2net50_26w_4s"),
)
OUT_OF_SCOPE = {
    "convnext_atto": "layer_norm",
    "poolformer_s12": "group_norm",
    "edgenext_xx_small": "layer_norm",
    "vit_tiny_patch16_224": "layer_norm",
    "mixer_s32_224": "layer_norm",
    "deit_tiny_patch16_224": "layer_norm",
}

timm = import_timm("a test")


def network(name: str) -> nn.Module:
    """A network with random weights and BatchNorm statistics from a fixed seed."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = timm.create_model(name, num_classes=10).eval()
        for module in model.modules():
            if getattr(module, "running_mean", None) is not None:
                module.running_mean.normal_(0, 0.1)
                module.running_var.uniform_(0.5, 1.5)
    return model
