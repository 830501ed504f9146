"""Makes Conv2d and Linear from a kernel, and reads them back, for the transforms that rewrite them."""

from collections.abc import Callable, Collection, Iterator

from torch import Tensor, fx, nn

from pibench.models.graph.moves import callers, module_of, sharing, source

Pair = tuple[int, int]
FACTOR_OF, MERGED = "factor_of", "merged"
"""Marks in the `meta` of a convolution's node: the convolution of which it is a factor; that it was merged.

Low rank and merging are inverse to each other, and each refuses what the other one has made.
"""


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
    conv = nn.Conv2d(
        in_channels * groups,
        out_channels,
        (height, width),
        stride=stride,
        padding=padding,
        dilation=dilation,
        groups=groups,
        bias=bias is not None,
        device="meta",  # `nn.utils.skip_init` would import sympy
    )
    conv.weight = nn.Parameter(kernel.detach().clone())
    if bias is not None:
        conv.bias = nn.Parameter(bias.detach().clone())
    return conv


def linear(matrix: Tensor, bias: Tensor) -> nn.Linear:
    """Returns the Linear with this matrix [O, C] and bias [O]; draws no random number."""
    layer = nn.Linear(matrix.shape[1], len(matrix), device="meta")
    layer.weight = nn.Parameter(matrix.detach().clone())
    layer.bias = nn.Parameter(bias.detach().clone())
    return layer


def bias_of(layer: nn.Conv2d | nn.Linear) -> Tensor:
    """Returns the bias [O], or zeros if the layer has none."""
    return layer.weight.new_zeros(len(layer.weight)) if layer.bias is None else layer.bias


def padding_of(conv: nn.Conv2d) -> Pair:
    """Returns the zeros added at each side (height, width), also for padding="same" and "valid".

    Raises ValueError if the two sides of an axis differ ("same" with an even kernel).
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
    """Returns why the padding of `conv` is not the same number of zeros at both sides, or None if it is."""
    if conv.padding_mode != "zeros":
        return f"its padding mode is {conv.padding_mode!r}, not zeros"
    try:
        padding_of(conv)
    except ValueError as error:
        return str(error)
    return None


def followers(
    graph: fx.GraphModule,
    names: Collection[str] | None,
    action: str,
    obstacle: Callable[[nn.Conv2d, nn.Conv2d], str | None],
    last_first: bool = False,
) -> Iterator[fx.Node]:
    """Yields each convolution whose input is a convolution without other users.

    `obstacle(first, second)` may return why a pair is left alone. `names` lists the module names of the
    second convolutions. If one of them is not possible, ValueError "cannot `action` ..." gives the reason.
    None yields all that are possible. The caller may change the graph between two results.
    """
    missing = set(names or ())
    nodes = list(graph.graph.nodes)
    for node in reversed(nodes) if last_first else nodes:
        second = module_of(graph, node, nn.Conv2d)
        if second is None or (names is not None and node.target not in names):
            continue
        missing.discard(node.target)
        first = module_of(graph, source(node), nn.Conv2d)
        if first is None:
            reason = f"its input {source(node)} is no convolution"
        elif reason := sharing(graph, source(node)):
            reason = f"its input {reason}"
        elif len(callers(graph, node.target)) > 1:
            reason = f"{node.target} is called more than once"
        else:
            reason = obstacle(first, second)
        if reason is None:
            yield node
        elif names is not None:
            raise ValueError(f"cannot {action} {node.target}: {reason}")
    if missing:
        raise ValueError(f"no convolution named {sorted(missing)} in this network")
