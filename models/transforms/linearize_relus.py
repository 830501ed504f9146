"""ReLU -> m ReLU + (1 - m) identity.

    y = m ReLU(x) + (1 - m) x

with a public mask m for each ReLU layer. All ones keeps the ReLU. All zeros removes the layer and saves its
communication rounds. Any other mask gives a `MaskedReLU`. A layer with a mask keeps the positions that both
masks keep.

Approximate: it computes another function, whose weights are usually trained again. The choice of positions is
made elsewhere (`pibench.models.allocation`). Refuses names that are no ReLU of the network.
"""

from collections.abc import Mapping

import torch
from torch import Tensor, fx, nn

from pibench.models.graph.moves import (
    bypass,
    finish,
    insert_module,
    module_of,
    relu_nodes,
    replace_module,
    source,
    trace,
)
from pibench.models.graph.relu import MaskedReLU


def both(mask: Tensor, other: Tensor) -> Tensor:
    """Returns the positions where both masks ([C, H, W], [C, 1, 1] or [C]) are set."""
    shaped = [m.view(-1, 1, 1) if m.dim() == 1 and mask.dim() != other.dim() else m for m in (mask, other)]
    return shaped[0] & shaped[1]


def linearize_relus(model: nn.Module, keep: Mapping[str, Tensor | bool]) -> fx.GraphModule:
    """Evaluates each ReLU only where `keep` says so.

    `keep` maps the name of a ReLU (its module's, such as "layer1.0.relu1") to a boolean mask [C, H, W] or
    [C], to True (the whole layer) or to False (no position). ReLUs without an entry stay unchanged.
    """
    graph = trace(model)
    relus = relu_nodes(graph)
    if unknown := sorted(set(keep) - set(relus)):
        raise ValueError(f"no ReLU named {unknown} in this network; its ReLUs are {list(relus)}")
    for name, kept in keep.items():
        node = relus[name]
        if isinstance(kept, Tensor) and kept.dtype != torch.bool:
            raise TypeError(f"the mask of {name} is {kept.dtype}, not boolean")
        masked = module_of(graph, node, MaskedReLU)
        if isinstance(kept, Tensor) and masked is not None:
            kept = both(kept, masked.mask)
        if not isinstance(kept, Tensor):
            if not kept:
                bypass(node)
        elif not kept.any():
            bypass(node)
        elif not kept.all():
            if node.op == "call_module":
                replace_module(graph, node, MaskedReLU(kept))
            else:
                new = insert_module(graph, name, MaskedReLU(kept), source(node), node)
                node.replace_all_uses_with(new)
                graph.graph.erase_node(node)
    return finish(graph)
