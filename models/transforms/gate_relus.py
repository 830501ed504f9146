"""ReLU(BN(W * x)) -> BN(W * x) t(g * x): a fixed gate of the convolution's input decides what passes.

    y = BN(W * x),   ReLU(y)  ->  y t(z),   z = s N(g * x) + 1/2,   t(z) = min(max(z, 0), 1)

The ramp t stands for the step 1[z > 1/2], because no engine has a step apart from its ReLU. g has the shape,
stride and padding of W. It is drawn once and never trained, and neither are s and 1/2, which stand in the
place of BatchNorm's scale and shift. N is BatchNorm without them. It takes g * x to mean 0 and deviation 1.

A ReLU is 0 where it switches; a gate is not, so it magnifies what x is off by, the more the steeper the ramp.
ReLUs after a sum have no W of their own and are not gated: gates on the skips would magnify errors from block
to block.

Under MPC a gate costs both knots of the ramp, a product of two secrets, and a second convolution.

Approximate: it computes another function, whose other weights are learnt. Source: gated ReLU networks (arXiv
2309.15096). Ours: the ramp and N. Refuses names that are no plain ReLU or no convolution called once, and a
ReLU that does not follow its convolution with BatchNorm at most between them.
"""

from __future__ import annotations

import operator
from collections.abc import Mapping
from contextlib import nullcontext
from math import prod

import torch
from torch import fx, nn

from pibench.models.graph.moves import callers, finish, insert_module, module_of, relu_nodes, source, trace
from pibench.models.graph.relu import MaskedReLU

SLOPE = 1.0
"""s, the slope of the ramp in deviations of g * x: the ramp is as wide as one deviation.

With 10 fractional bits ResNet-18 with seeded weights loses up to 0.5, 0.9, 1.9 and 7.3 % of its answer at
slopes of 1/2, 1, 2 and 4 (widths 8 and 16). With gates after the sums too it loses 10 % at 1/2 and 43 % at 1.
"""


def obstacle(graph: fx.GraphModule, name: str, conv: str) -> str | None:
    """Returns why the ReLU `name` cannot have a gate of the input of `conv`, or None if it can."""
    relu = relu_nodes(graph).get(name)
    if relu is None:
        return "no ReLU of this network has this name"
    if module_of(graph, relu, MaskedReLU) is not None:
        return "it has a mask; gate ReLUs before masks are chosen"
    found = callers(graph, conv)
    if len(found) != 1 or module_of(graph, found[0], nn.Conv2d) is None:
        return f"{conv!r} is no convolution that is called once"
    before = source(relu)
    if module_of(graph, before, nn.BatchNorm2d) is not None:
        before = source(before)
    return None if before is found[0] else f"more than BatchNorm stands between {conv} and it"


def gate_relus(model: nn.Module, convs: Mapping[str, str], seed: int | None = 0) -> fx.GraphModule:
    """Replaces each ReLU of `convs` by a gate that reads the input of the convolution that `convs` names.

    New layers are called `RELU_gate`, `RELU_gate_bn` and `RELU_gate_ramp`; their parameters take no gradient.
    g is drawn from N(0, 1 / fan_in) by an own generator, seeded by `seed`. None draws from torch's global
    generator. Raises ValueError with the reason for a ReLU that cannot be gated.
    """
    graph = trace(model)
    with nullcontext() if seed is None else torch.random.fork_rng(devices=[]):
        if seed is not None:
            torch.manual_seed(seed)
        for name, conv in convs.items():
            if reason := obstacle(graph, name, conv):
                raise ValueError(f"cannot gate {name}: {reason}")
            _gate(graph, name, relu_nodes(graph)[name], callers(graph, conv)[0])
    return finish(graph)


def _gate(graph: fx.GraphModule, name: str, relu: fx.Node, called: fx.Node) -> None:
    conv = module_of(graph, called, nn.Conv2d)
    like = {"device": conv.weight.device, "dtype": conv.weight.dtype}
    g = nn.Conv2d(
        *(conv.in_channels, conv.out_channels, conv.kernel_size, conv.stride, conv.padding, conv.dilation),
        groups=conv.groups,
        bias=False,
        padding_mode=conv.padding_mode,
        **like,
    )
    nn.init.normal_(g.weight, std=prod(g.weight.shape[1:]) ** -0.5)
    norm = nn.BatchNorm2d(conv.out_channels, **like)
    nn.init.constant_(norm.weight, SLOPE)
    nn.init.constant_(norm.bias, 0.5)
    node = source(called)
    for ending, layer in (("", g), ("_bn", norm), ("_ramp", nn.Hardtanh(0.0, 1.0))):
        node = insert_module(graph, f"{name}_gate{ending}", layer.requires_grad_(False), node, relu)
    with graph.graph.inserting_before(relu):
        product = graph.graph.call_function(operator.mul, (source(relu), node))
    relu.replace_all_uses_with(product)
    graph.graph.erase_node(relu)
