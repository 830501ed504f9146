"""m ReLU(x) + (1 - m) x -> m ReLU(x) + (1 - m) (c0 + c1 x + c2 x^2).

The positions that a `MaskedReLU` leaves unchanged get a quadratic, with public coefficients for each layer
(`pibench.models.graph.polynomial`). Under MPC a quadratic needs a square and, with its truncations, one to
three rounds more a layer; a mask that leaves the positions linear needs nothing there.

Approximate: it computes another function, whose weights are trained again. Source: AutoReP (ICCV 2023, arXiv
2308.10134); one set of coefficients a layer is ours. Refuses coefficients for a name that is no ReLU of the
network, and masks of channels.
"""

from collections.abc import Mapping, Sequence

from torch import fx, nn

from pibench.models.graph.moves import finish, module_of, relu_nodes, replace_module, trace
from pibench.models.graph.polynomial import SPREAD, PolynomialReLU, fitted
from pibench.models.graph.relu import MaskedReLU


def polynomial_relus(
    model: nn.Module, coefficients: Mapping[str, Sequence[float]] | None = None
) -> fx.GraphModule:
    """Puts quadratics where masked ReLUs are linear.

    `coefficients` are those of each layer, by the name of its ReLU; a layer that is not named, and every
    layer without them, takes those for a normal input of deviation 8 with a small constant: so sums with a
    skip do not grow from block to block. Layers without a mask stay as they are.
    """
    graph = trace(model)
    relus = relu_nodes(graph)
    known = {} if coefficients is None else coefficients
    _, slope, curvature = fitted(0.0, 4 * SPREAD)
    untrained = (curvature, slope, curvature)
    if unknown := sorted(set(known) - set(relus)):
        raise ValueError(f"no ReLU named {unknown} in this network; its ReLUs are {list(relus)}")
    for name, node in relus.items():
        masked = module_of(graph, node, MaskedReLU)
        if masked is None:
            continue
        if masked.per_channel:
            raise ValueError(f"cannot put a quadratic beside {name}: its mask is one of channels")
        replace_module(graph, node, PolynomialReLU(masked.mask, known.get(name, untrained)))
    return finish(graph)
