"""The initialisation that the residual networks' authors use."""

from torch import nn


def initialise(model: nn.Module) -> None:
    """Draws every convolution from N(0, 2 / fan_out) (He et al., ICCV 2015), in place, biases zero.

    Weights on the meta device have no values: torch would import its compiler to draw none.
    """
    for module in model.modules():
        if isinstance(module, nn.Conv2d) and not module.weight.is_meta:
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
            if module.bias is not None:
                nn.init.zeros_(module.bias)


def check_sizes(**sizes: int) -> None:
    """Raises ValueError for the first size that is not a positive whole number."""
    for name, value in sizes.items():
        if not isinstance(value, int) or value < 1:
            raise ValueError(f"{name} must be a positive whole number, not {value!r}")
