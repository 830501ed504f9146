"""The order of a network's values in memory while it trains."""

import torch
from torch import nn

SAFE_CHANNELS = 16
"""From so many channels on the kernel below has its full block, with AVX2 (8) and with AVX-512 (16)."""


def memory_format(model: nn.Module) -> torch.memory_format:
    """Returns channels_last, the faster order for convolutions, or the usual one where that is broken.

    On x86 the gradient of a 1x1 convolution with a stride is written past its buffer if the values are
    float32, channels_last, and of fewer channels than a block (uxlfoundation/oneDNN, issue 6035). The process
    dies, or the gradient is wrong without a word.
    """
    broken = any(
        isinstance(module, nn.Conv2d)
        and module.kernel_size == (1, 1)
        and module.stride != (1, 1)
        and module.in_channels < SAFE_CHANNELS
        for module in model.modules()
    )
    return torch.contiguous_format if broken else torch.channels_last
