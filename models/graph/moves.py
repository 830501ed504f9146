"""Basic moves on a torch.fx graph, shared by all transforms."""

import copy
import inspect
import operator
from collections.abc import Callable
from typing import Any

import torch
from torch import fx, nn
from torch.nn import functional as F

from pibench.models.graph.inplace import ASSIGNMENTS, rewrite_inplace
from pibench.models.graph.polynomial import PolynomialReLU
from pibench.models.graph.relu import MaskedReLU

_RELUS = {F.relu, torch.relu, "relu"}
_ADDITIONS = {operator.add, torch.add, "add"}


class _Proxy(fx.Proxy):
    """A value under tracing that records `y += z` as an assignment; torch's own proxy records y = y + z."""


def _recorded(function: Callable) -> Callable:
    def record(self: _Proxy, *operands: Any) -> fx.Proxy:
        return self.tracer.create_proxy("call_function", function, (self, *operands), {})

    return record


for _function in (*ASSIGNMENTS, operator.setitem):
    setattr(_Proxy, f"__{_function.__name__}__", _recorded(_function))


class _Tracer(fx.Tracer):
    """Traces down to the modules of torch.nn, to `MaskedReLU` and to `PolynomialReLU`."""

    def is_leaf_module(self, module: nn.Module, qualified_name: str) -> bool:
        ours = isinstance(module, MaskedReLU | PolynomialReLU)
        return ours or super().is_leaf_module(module, qualified_name)

    def proxy(self, node: fx.Node) -> fx.Proxy:
        return _Proxy(node, self)


def trace(model: nn.Module) -> fx.GraphModule:
    """Returns the graph of a deep copy of `model`; the model itself is never changed.

    Modules of torch.nn, `MaskedReLU` and `PolynomialReLU` become single nodes with positional arguments. A
    GraphModule is copied. No operator of the graph works in place (see `pibench.models.graph.inplace`).
    Raises ValueError for modules with forward hooks, for a forward that draws random numbers, and for
    networks that cannot be written without in-place changes.
    """
    for name, module in model.named_modules():
        if module._forward_hooks or module._forward_pre_hooks:
            hooked = f"module {name!r}" if name else "the network itself"
            raise ValueError(
                f"cannot trace: {hooked} has forward hooks, which a graph loses; remove them first"
            )
    copied = copy.deepcopy(model)
    if not isinstance(copied, fx.GraphModule):
        before = torch.get_rng_state()
        copied = fx.GraphModule(copied, _Tracer().trace(copied), type(model).__name__)
        if not torch.equal(before, torch.get_rng_state()):
            raise ValueError(
                f"cannot trace: the forward of {type(model).__name__} draws random numbers, which a graph "
                "would freeze to one draw; draw only if self.training"
            )
    for node in copied.graph.nodes:
        if node.op == "call_module" and node.kwargs:
            forward = inspect.signature(copied.get_submodule(node.target).forward)
            bound = forward.bind(*node.args, **node.kwargs)
            node.args, node.kwargs = bound.args, bound.kwargs
    rewrite_inplace(copied)
    copied.recompile()
    return copied


def module_of(
    graph: fx.GraphModule, node: object, kind: type | tuple[type, ...] = nn.Module
) -> nn.Module | None:
    """Returns the module that `node` calls if it is a `kind`, else None (also if `node` is not a node)."""
    if not isinstance(node, fx.Node) or node.op != "call_module":
        return None
    module = graph.get_submodule(node.target)
    return module if isinstance(module, kind) else None


def callers(graph: fx.GraphModule, target: str) -> list[fx.Node]:
    """Returns the nodes that call the module named `target`, in the graph's order."""
    return [node for node in graph.graph.nodes if node.op == "call_module" and node.target == target]


def relu_nodes(graph: fx.GraphModule) -> dict[str, fx.Node]:
    """Returns the ReLUs in order, named by module (by node if functional or called more than once)."""
    found = {}
    for node in graph.graph.nodes:
        if module_of(graph, node, (nn.ReLU, MaskedReLU)) is not None:
            found[node.target if len(callers(graph, node.target)) == 1 else node.name] = node
        elif node.op in ("call_function", "call_method") and node.target in _RELUS:
            found[node.name] = node
    return found


def addends(node: fx.Node) -> tuple[fx.Node, fx.Node] | None:
    """Returns the two values whose sum is `node`, or None if it is not a plain sum of two values."""
    if node.op not in ("call_function", "call_method") or node.target not in _ADDITIONS:
        return None
    named = dict(node.kwargs)
    if named.pop("alpha", 1) != 1:
        return None
    values = (*node.args, *(named.pop(name) for name in ("input", "other") if name in named))
    if len(values) != 2 or named or not all(isinstance(value, fx.Node) for value in values):
        return None
    return values


def sole_user(node: fx.Node) -> fx.Node | None:
    """Returns the only node that uses `node`, or None if there are none or several."""
    return next(iter(node.users)) if len(node.users) == 1 else None


def source(node: fx.Node) -> fx.Node:
    """Returns the node that is the first argument of `node`; a call by keyword `input` counts."""
    return node.args[0] if node.args else node.kwargs["input"]


def sharing(graph: fx.GraphModule, node: fx.Node) -> str | None:
    """Returns why more than one user depends on the module that `node` calls, or None."""
    if sole_user(node) is None:
        return f"{node} has other users"
    if len(callers(graph, node.target)) > 1:
        return f"{node.target} is called more than once"
    return None


def replace_module(graph: fx.GraphModule, node: fx.Node, module: nn.Module) -> None:
    """Makes `node` call `module`; other callers of its former module keep that one."""
    if len(callers(graph, node.target)) > 1:
        node.target = fresh_name(graph, node.target)
    module.train(graph.training)
    graph.add_submodule(node.target, module)


def fresh_name(graph: fx.GraphModule, name: str) -> str:
    """Returns `name`, or the first of `name_1`, `name_2` ... that is free."""
    taken = {known for known, _ in graph.named_modules()}
    number, candidate = 0, name
    while candidate in taken:
        number += 1
        candidate = f"{name}_{number}"
    return candidate


def insert_module(
    graph: fx.GraphModule, name: str, module: nn.Module, after: fx.Node, before: fx.Node
) -> fx.Node:
    """Inserts a new node before `before` that calls `module` on the value of `after`; returns the node.

    The module is added as `name`, or as a free name like it.
    """
    name = fresh_name(graph, name)
    module.train(graph.training)
    graph.add_submodule(name, module)
    with graph.graph.inserting_before(before):
        return graph.graph.call_module(name, (after,))


def bypass(node: fx.Node) -> None:
    """Gives the users of `node` its first argument and erases the node."""
    node.replace_all_uses_with(source(node))
    node.graph.erase_node(node)


def finish(graph: fx.GraphModule) -> fx.GraphModule:
    """Removes dead nodes and unused modules, checks the graph, recompiles and returns it."""
    graph.graph.eliminate_dead_code()
    graph.delete_all_unused_submodules()
    graph.graph.lint()
    graph.recompile()
    return graph
