"""y -> y g(w * mean(y)): channels are weighed before they are added to a skip.

    ReLU(BN(Conv(x)) + shortcut)  ->  ReLU(ECA(BN(Conv(x))) + shortcut)

ECA (`pibench.models.graph.attention`) multiplies each channel by a gate of the channels' means. It adds few
weights and operations. Under MPC it is a chain of rounds, for which the next layer waits: a product for the
window, comparisons for the gate, a product of two secrets.

Approximate: it computes another function, whose weights are learnt. Source: ECA-Net (arXiv 1910.03151), with
its sigmoid, or with a hard sigmoid (ours, for its fewer comparisons). Refuses names that are no convolution
that is called once, and an unknown gate.
"""

from collections.abc import Collection
from contextlib import nullcontext

import torch
from torch import fx, nn

from pibench.models.graph.attention import EfficientAttention
from pibench.models.graph.moves import callers, finish, insert_module, module_of, sole_user, trace


def attend_channels(
    model: nn.Module, convs: Collection[str], gate: str = "sigmoid", seed: int | None = 0
) -> fx.GraphModule:
    """Puts attention after each convolution named in `convs`, or after its BatchNorm, as `NAME_attention`.

    New weights are drawn by an own generator, seeded by `seed`. None draws from torch's global generator.
    Raises ValueError for a name that is no convolution called once, and for an unknown gate.
    """
    graph = trace(model)
    with nullcontext() if seed is None else torch.random.fork_rng(devices=[]):
        if seed is not None:
            torch.manual_seed(seed)
        for name in convs:
            found = callers(graph, name)
            conv = module_of(graph, found[0], nn.Conv2d) if len(found) == 1 else None
            if conv is None:
                raise ValueError(f"no convolution named {name!r} that is called once in this network")
            node, user = found[0], sole_user(found[0])
            if module_of(graph, user, nn.BatchNorm2d) is not None:
                node = user
            like = {"device": conv.weight.device, "dtype": conv.weight.dtype}
            attention = EfficientAttention(conv.out_channels, gate, **like)
            new = insert_module(graph, f"{name}_attention", attention, node, node.next)
            node.replace_all_uses_with(new, lambda user, new=new: user is not new)
    return finish(graph)
