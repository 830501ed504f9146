"""The initialisation that the residual networks' authors use."""

from torch import nn


def initialise(model: nn.Module) -> None:
    """Draws every convolution from N(0, 2 / fan_out) (He et al., ICCV 2015), in place, biases zero."""
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
            if module.bias is not None:
                nn.init.zeros_(module.bias)


def check_sizes(classes: int, width: int) -> None:
    """Raises ValueError unless both are positive whole numbers."""
    for name, value in (("classes", classes), ("width", width)):
        if not isinstance(value, int) or value < 1:
            raise ValueError(f"{name} must be a positive whole number, not {value!r}")
