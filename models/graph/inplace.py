"""In-place operators -> operators that return a new value.

    F.relu(y, inplace=True),   y.relu_(),   y += z      (and nn.ReLU(inplace=True))

These change y itself: every later use of y, under any name, sees the new value. In the form v = relu(y), v =
y + z they leave y alone, and the later uses of y become uses of v. Only then do the users of a node tell
everything, as all transforms assume. A statement `self.relu(y)` would have no users and would be dropped as
dead.

The rewriting follows the memory in which each value may lie. Identity and dropout that is off return their
input itself. Known layers and arithmetic return new memory. All other operators (flatten, view, slices,
dropout while training, unknown ones) may return new memory or the memory of an input. If such a value is used
after the change, its content depends on the memory layout. The network is then refused.

Exact for values of one type: y += z keeps the type of y, but y + z takes the wider one.
"""

import inspect
import operator
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx, nn
from torch.nn import functional as F

from pibench.models.graph.polynomial import PolynomialReLU
from pibench.models.graph.relu import MaskedReLU

ASSIGNMENTS = {
    operator.iadd: operator.add,
    operator.isub: operator.sub,
    operator.imul: operator.mul,
    operator.itruediv: operator.truediv,
    operator.ifloordiv: operator.floordiv,
    operator.imod: operator.mod,
    operator.ipow: operator.pow,
    operator.iand: operator.and_,
    operator.ior: operator.or_,
    operator.ixor: operator.xor,
}
"""Python's augmented assignments, which change a tensor, and their out-of-place forms."""

_METHODS = {f"__{function.__name__}__" for function in ASSIGNMENTS}

# Functions and methods whose result never lies in the memory of an argument.
_NEW = {
    *(function.__name__ for function in ASSIGNMENTS.values()),
    *("subtract", "multiply", "div", "divide", "true_divide", "neg", "square", "sqrt", "rsqrt", "abs", "exp"),
    *("log", "lerp", "clamp", "clamp_min", "clamp_max", "clip", "maximum", "minimum", "where", "masked_fill"),
    *("relu", "relu6", "elu", "selu", "celu", "leaky_relu", "rrelu", "threshold", "hardtanh", "hardsigmoid"),
    *("hardswish", "silu", "mish", "gelu", "softplus", "sigmoid", "tanh", "softmax", "log_softmax"),
    *("conv1d", "conv2d", "conv3d", "conv_transpose2d", "linear", "matmul", "mm", "bmm"),
    *("batch_norm", "group_norm", "layer_norm", "max_pool2d", "avg_pool2d", "adaptive_max_pool2d"),
    *("adaptive_avg_pool2d", "cat", "concat", "concatenate", "stack", "mean", "sum", "clone"),
}
_NEW_MODULES = {
    f"torch.nn.modules.{name}"
    for name in ("activation", "batchnorm", "conv", "linear", "normalization", "pooling")
}
_DROPOUTS = {"dropout", "dropout1d", "dropout2d", "dropout3d", "alpha_dropout", "feature_alpha_dropout"}
_NUMBERS = {"size", "dim", "ndimension", "numel", "nelement", "stride", "item"}
_NUMBER_ATTRIBUTES = {"shape", "ndim"}


@dataclass(frozen=True)
class _Value:
    """The knowledge about a node's value.

    `memory` holds the origins of the memory in which it may lie: nodes, or names of stored tensors; it is
    empty for numbers. Values of one `identity` are one tensor.
    """

    memory: frozenset[fx.Node | str]
    identity: fx.Node | str


def out_of_place(target: Any) -> Any:
    """Returns the out-of-place form of a known in-place function or method, or None for other targets."""
    if isinstance(target, str):
        return target[:-1] if _known_in_place(target) else None
    if target in ASSIGNMENTS:
        return ASSIGNMENTS[target]
    name = _name(target)
    return getattr(torch, name[:-1], getattr(F, name[:-1], None)) if _known_in_place(name) else None


def rewrite_inplace(graph: fx.GraphModule) -> None:
    """Makes all operators of `graph` out of place; changes the graph itself.

    Raises ValueError for an operator without a known out-of-place form, and where the value of a later use is
    unclear.
    """
    changing = {name for name, module in graph.named_modules() if getattr(module, "inplace", None) is True}
    for name in changing:
        graph.get_submodule(name).inplace = False
    values: dict[fx.Node, _Value] = {}
    for node in graph.graph.nodes:
        changed = _rewritten(node, changing)
        if changed in values and values[changed].memory:
            _redirect(node, changed, values)
            values[node] = _Value(frozenset({node}), node)
        else:  # also `n += 1` of a number, which makes another one
            values[node] = _value(graph, node, values)


def _rewritten(node: fx.Node, changing: set[str]) -> Any:
    """Makes `node` out of place; returns the argument that it changed, or None if it changes nothing."""
    if node.op == "call_module":
        return node.args[0] if node.target in changing else None
    if node.op not in ("call_function", "call_method"):
        return None
    first = node.args[0] if node.args else node.kwargs.get("input")
    if node.op == "call_function" and _argument(node, "inplace", False):
        if "inplace" in node.kwargs:
            node.update_kwarg("inplace", False)
        else:
            node.update_arg(_parameters(node.target).index("inplace"), False)
        return first
    form = out_of_place(node.target)
    if form is not None:
        node.target = form
        return first
    name = _name(node.target)
    if _named_in_place(name) or node.target is operator.setitem or node.kwargs.get("out") is not None:
        raise ValueError(
            f"cannot trace {node.name}: {name} changes a value in place and has no known out-of-place form; "
            "write the network without it"
        )
    return None


def _redirect(node: fx.Node, changed: fx.Node, values: dict[fx.Node, _Value]) -> None:
    """Turns the later uses of `changed`, under any name, into uses of `node`."""
    memory, identity = values[changed].memory, values[changed].identity
    for origin in memory:
        if isinstance(origin, str):
            raise ValueError(
                f"cannot trace {node.name}: it changes {origin}, a tensor of the network, in place, so that "
                "the next run would differ; write the network without it"
            )
    for other, value in values.items():
        later = [user for user in other.users if user is not node and user not in values]
        if value.identity == identity:
            for user in later:
                user.replace_input_with(other, node)
        elif later and value.memory & memory:
            raise ValueError(
                f"cannot trace {node.name}: it changes {changed.name} in place, then {later[0].name} uses "
                f"{other.name}, which may or may not lie in the same memory; make {node.name} out of place"
            )


def _value(graph: fx.GraphModule, node: fx.Node, values: dict[fx.Node, _Value]) -> _Value:
    """Returns the knowledge about the value of `node`, an operator that changes nothing."""
    inputs = [values[argument] for argument in node.all_input_nodes]
    new = _Value(frozenset({node}), node)
    if node.op == "get_attr":
        return _Value(frozenset({node.target}), node.target)
    if node.op == "call_module":
        module = graph.get_submodule(node.target)
        dropout = isinstance(module, nn.modules.dropout._DropoutNd)
        if isinstance(module, nn.Identity) or (dropout and (not module.training or module.p == 0)):
            return inputs[0]
        if isinstance(module, MaskedReLU | PolynomialReLU) or type(module).__module__ in _NEW_MODULES:
            return new
    if node.op in ("call_function", "call_method"):
        name = _name(node.target)
        attribute = node.target is getattr and node.args[1] in _NUMBER_ATTRIBUTES
        arithmetic = getattr(node.target, "__module__", None) == "_operator"
        if attribute or name in _NUMBERS or (arithmetic and not any(value.memory for value in inputs)):
            return _Value(frozenset(), node)
        if name in _DROPOUTS and "training" in _parameters(node.target):
            off = not _argument(node, "training", True) or _argument(node, "p", 0.5) == 0
            return inputs[0] if off else new
        if name in _NEW:
            return new
    memory = frozenset().union(*(value.memory for value in inputs))
    return _Value(memory, node) if memory else new


def _name(target: Any) -> str:
    """Returns the name of a method, or of a function of torch or `operator`; "" for another function."""
    if isinstance(target, str):
        return target
    known = (getattr(target, "__module__", None) or "torch").split(".")[0] in ("torch", "_operator")
    return getattr(target, "__name__", "") if known else ""


def _named_in_place(name: str) -> bool:
    """Returns whether a name is an in-place one by torch's convention (and_, or_ belong to `operator`)."""
    return name in _METHODS or (name.endswith("_") and not name.endswith("__") and name not in _NEW)


def _known_in_place(name: str) -> bool:
    return _named_in_place(name) and name[:-1] in _NEW | _DROPOUTS


def _parameters(function: Any) -> list[str]:
    """Returns the names of a function's parameters in order; empty for methods and builtin functions."""
    try:
        return list(inspect.signature(function).parameters)
    except (TypeError, ValueError):
        return []


def _argument(node: fx.Node, name: str, default: Any) -> Any:
    """Returns an argument in a call of a function that has a signature."""
    known = dict(zip(_parameters(node.target), node.args, strict=False)) | dict(node.kwargs)
    return known.get(name, default)
