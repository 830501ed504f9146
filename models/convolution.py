"""Conv2d from a kernel and back: the common ground of the transforms that rewrite convolutions."""

from torch import Tensor, nn

Pair = tuple[int, int]


def convolution(
    kernel: Tensor,
    bias: Tensor | None,
    stride: Pair = (1, 1),
    padding: Pair = (0, 0),
    dilation: Pair = (1, 1),
    groups: int = 1,
) -> nn.Conv2d:
    """Returns the Conv2d with this kernel [O, C / groups, H, W] and bias [O]; draws no random number."""
    out_channels, in_channels, height, width = kernel.shape
    conv = nn.utils.skip_init(
        nn.Conv2d,
        in_channels * groups,
        out_channels,
        (height, width),
        stride=stride,
        padding=padding,
        dilation=dilation,
        groups=groups,
        bias=bias is not None,
        device=kernel.device,
        dtype=kernel.dtype,
    )
    conv.weight = nn.Parameter(kernel.detach().clone())
    if bias is not None:
        conv.bias = nn.Parameter(bias.detach().clone())
    return conv


def bias_of(conv: nn.Conv2d) -> Tensor:
    """Returns the bias [O], zeros when the convolution has none."""
    return conv.weight.new_zeros(conv.out_channels) if conv.bias is None else conv.bias


def padding_of(conv: nn.Conv2d) -> Pair:
    """Returns the zeros added at each side (height, width), also of padding="same" and "valid".

    Raises ValueError where the two sides of an axis differ ("same" with an even kernel).
    """
    if conv.padding == "valid":
        return (0, 0)
    if conv.padding == "same":
        spans = [d * (k - 1) for k, d in zip(conv.kernel_size, conv.dilation, strict=True)]
        if any(span % 2 for span in spans):
            raise ValueError("padding='same' with an even kernel pads its sides differently")
        return (spans[0] // 2, spans[1] // 2)
    return conv.padding


def padding_obstacle(conv: nn.Conv2d) -> str | None:
    """Says why the padding of `conv` is not the same number of zeros at both sides, None when it is."""
    if conv.padding_mode != "zeros":
        return f"its padding mode is {conv.padding_mode!r}, not zeros"
    try:
        padding_of(conv)
    except ValueError as error:
        return str(error)
    return None
