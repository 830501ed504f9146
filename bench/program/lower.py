"""Lowers a torch network to the program that parties run, by torch.fx.

`lower` walks the traced graph, in which nothing is done in place, once with the example in float64. One small
function for each operator turns its node into an operator of `pibench.program.ir`; the walk itself gives the
shapes, finds NaN and values beyond fixed point, and sums the chance of a wrong local truncation, all before
any process is started.
"""

from __future__ import annotations

import copy
import math
import operator
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

import torch
import torch.nn.functional as F
from torch import fx, nn

from pibench.models.graph.moves import trace
from pibench.models.graph.relu import MaskedReLU
from pibench.program import ir

FRACTION_BITS = 16
VALUE_LIMIT = 2.0**30  # |z| < 2^62 at the double scale of a product, the bound of both engines


class ExportError(ValueError):
    """Says which node cannot be lowered, why, and what to do instead."""


@dataclass(frozen=True, eq=False)
class Lowered:
    """A network ready for parties.

    `program` is public; `weights` (float64) are party 0's; `logits` is the plaintext answer to the example
    in float64; `largest` the largest absolute value under each name of the program; `truncation_failures`
    the expected number of wrong local truncations in one inference of one image under a two-party engine
    that truncates locally (facts: |v| / 2^32 for each product).
    """

    program: ir.Program
    weights: dict[str, torch.Tensor]
    logits: torch.Tensor
    largest: dict[str, float]
    truncation_failures: float

    def demand(self, limits: Mapping[str, float]) -> None:
        """Raises ExportError if a value reaches its limit, by the names of the program."""
        for name, limit in limits.items():
            if self.largest.get(name, 0.0) >= limit:
                raise ExportError(
                    f"the value of {name!r} reaches {self.largest[name]:.3g}, beyond the "
                    f"2^{math.log2(limit):.0f} that this engine can hold there; normalise the network or its "
                    "input, or use engine='stock'"
                )


def lower(model: nn.Module, example: torch.Tensor) -> Lowered:
    """Lowers `model` for inputs shaped like `example` [N, ...].

    Raises ExportError for an operator without a lowering, a model that does not fit the example, NaN or
    infinite values, and values of 2^30 or more.
    """
    if not isinstance(model, nn.Module) or not isinstance(example, torch.Tensor):
        raise ExportError(
            "a torch.nn.Module and a tensor are needed, "
            f"not {type(model).__name__} and {type(example).__name__}"
        )
    if not example.is_floating_point():
        raise ExportError(f"the example must hold floating-point numbers, not {example.dtype}")
    if example.dim() < 2 or len(example) < 1:
        raise ExportError(
            f"the example must be a batch [N, ...] of at least one input, not {list(example.shape)}"
        )
    try:
        graph = trace(copy.deepcopy(model).eval()).double()
    except (fx.proxy.TraceError, TypeError, ValueError) as error:
        raise ExportError(
            f"the network cannot be traced ({str(error).splitlines()[0]}); "
            "its forward must not depend on values"
        ) from error
    walk = _Lowering(graph)
    logits = walk.run(example.to(torch.float64, copy=True))
    return Lowered(
        ir.Program(walk.input_name, tuple(example.shape[1:]), tuple(walk.steps), walk.output_name),
        walk.weights,
        logits.detach(),
        walk.largest,
        walk.truncation_failures / len(example),
    )


Rule = Callable[["_Lowering", fx.Node, Any], None]
_RULES: dict[Any, Rule] = {}


def lowers(*targets: Any) -> Callable[[Rule], Rule]:
    """Registers the rule for module types, functions, and names of tensor methods."""

    def register(rule: Rule) -> Rule:
        _RULES.update(dict.fromkeys(targets, rule))
        return rule

    return register


class _Lowering(fx.Interpreter):
    """Interprets a graph in float64 and emits a step for each node that computes."""

    def __init__(self, graph: fx.GraphModule) -> None:
        super().__init__(graph)
        self.steps: list[ir.Step] = []
        self.weights: dict[str, torch.Tensor] = {}
        self.names: dict[fx.Node, str] = {}  # node -> the value it stands for
        self.input_name = self.output_name = ""
        self.extra_traceback = False  # the message names the node already
        self.largest: dict[str, float] = {}
        self.truncation_failures = 0.0

    def run_node(self, node: fx.Node) -> Any:
        try:
            with torch.no_grad():
                value = super().run_node(node)
        except Exception as error:
            reason = str(error).splitlines()[0] if str(error) else type(error).__name__
            raise ExportError(f"{_label(node, self)} does not fit its input: {reason}") from error
        self.env[node] = value
        if node.op == "placeholder":
            if self.input_name:
                raise ExportError("the network must take one input; bind the others before the export")
            self.input_name = self.names[node] = node.name
        elif node.op == "output":
            if node.args[0] not in self.names:
                raise ExportError("the network must return one tensor; return the logits alone")
            self.output_name = self.names[node.args[0]]
            return value
        elif node.op != "get_attr":
            self._lower(node)
        if isinstance(value, torch.Tensor) and node.op != "get_attr":
            self._check(node, value)
        return value

    def _lower(self, node: fx.Node) -> None:
        module = self.fetch_attr(node.target) if node.op == "call_module" else None
        rule = _RULES.get(type(module) if module is not None else node.target)
        if rule is None:
            raise ExportError(
                f"{_label(node, self)} has no lowering. {_remedy(module, node)} "
                "Known operators are listed in docs/operators.md."
            )
        foreign = [n.name for n in node.all_input_nodes if n not in self.names and n.op != "get_attr"]
        try:
            if foreign:
                raise ValueError(f"uses {foreign[0]!r}, which is no value of the network")
            rule(self, node, module)
        except ExportError:
            raise
        except Exception as error:
            raise ExportError(
                f"{_label(node, self)} is used in a form that has no lowering "
                f"({type(error).__name__}: {error}). The known forms are listed in docs/operators.md."
            ) from error

    def _check(self, node: fx.Node, value: torch.Tensor) -> None:
        if not value.isfinite().all():
            raise ExportError(f"{_label(node, self)} gives NaN or infinity; repair its weights or its input")
        largest = value.abs().max().item() if value.numel() else 0.0
        if largest >= VALUE_LIMIT:
            raise ExportError(
                f"{_label(node, self)} reaches {largest:.3g}, beyond the 2^30 that 16-bit fixed point "
                "in a 64-bit ring can multiply; normalise the network or its input"
            )
        if node in self.names:
            name = self.names[node]
            self.largest[name] = max(largest, self.largest.get(name, 0.0))

    # What the rules below use.

    def emit(self, node: fx.Node, op: ir.Operator, *inputs: fx.Node) -> None:
        """Appends the step of `node`."""
        shapes = tuple(tuple(self.env[i].shape[1:]) for i in inputs)
        self.steps.append(
            ir.Step(
                node.name, op, tuple(self.names[i] for i in inputs), shapes, tuple(self.env[node].shape[1:])
            )
        )
        self.names[node] = node.name

    def alias(self, node: fx.Node, source: fx.Node) -> None:
        """Makes `node` stand for the value of `source`."""
        self.names[node] = self.names[source]

    def secret(self, node: fx.Node, name: str, source: Any) -> str | None:
        """Keeps a weight (a parameter, or the node that fetches one) under a name."""
        if source is None:
            return None
        if isinstance(source, fx.Node):
            if source.op != "get_attr":
                raise ExportError(
                    f"{_label(node, self)} takes a computed {name}; only stored weights are lowered"
                )
            key, source = source.target, self.env[source]
        else:
            key = f"{node.target}.{name}"
        if not source.isfinite().all():
            raise ExportError(f"{key} holds NaN or infinity; repair the weights")
        if source.numel() and source.abs().max() >= VALUE_LIMIT:
            raise ExportError(
                f"{key} holds {source.abs().max():.3g}, beyond the 2^30 of fixed point; rescale it"
            )
        self.weights[key] = source.detach()
        return key

    def truncated(self, products: torch.Tensor, divisor_bits: float = 2 * FRACTION_BITS) -> None:
        """Adds the chance that a local truncation of `products` fails.

        An element whose integer is v 2^s before the division fails with probability |v| 2^s / 2^64.
        """
        self.truncation_failures += products.abs().sum().item() * 2.0 ** (divisor_bits - 64)

    def refuse(self, node: fx.Node, reason: str) -> ExportError:
        return ExportError(f"{_label(node, self)} {reason}")


def _label(node: fx.Node, walk: _Lowering) -> str:
    if node.op == "call_module":
        return f"node {node.target!r} ({type(walk.fetch_attr(node.target)).__name__})"
    target = (
        node.target if isinstance(node.target, str) else getattr(node.target, "__name__", str(node.target))
    )
    return f"node {node.name!r} ({target})"


def _remedy(module: nn.Module | None, node: fx.Node) -> str:
    if isinstance(module, nn.modules.batchnorm._BatchNorm):
        return "Fold it first with pibench.models.transforms.fold_batchnorm."
    if node.target in ("view", "reshape", "size"):
        return "Write torch.flatten(x, 1) instead."
    return "Replace it by known operators, or add a rule to bench/program/lower.py and to both engines."


def _arguments(node: fx.Node, names: str, **defaults: Any) -> dict[str, Any]:
    """Binds a call's arguments to `names` (in order), with the defaults of the torch function."""
    bound = dict(zip(names.split(), node.args, strict=False)) | dict(node.kwargs)
    return defaults | bound


def _source(node: fx.Node) -> fx.Node:
    return node.args[0] if node.args else node.kwargs["input"]


def _pair(value: int | Sequence[int]) -> tuple[int, int]:
    pair = (value, value) if isinstance(value, int) else tuple(value)
    return pair if len(pair) == 2 else pair * 2


# Linear layers.


def _convolution(
    walk: _Lowering,
    node: fx.Node,
    source: fx.Node,
    weight: Any,
    bias: Any,
    kernel: torch.Tensor,
    stride: Any,
    padding: Any,
    dilation: Any,
    groups: int,
) -> None:
    stride, dilation = _pair(stride), _pair(dilation)
    if padding == "valid":
        padding = 0
    elif padding == "same":
        spans = [d * (k - 1) for d, k in zip(dilation, kernel.shape[2:], strict=True)]
        if any(span % 2 for span in spans):
            raise walk.refuse(node, "pads unevenly ('same' with an even kernel); pad symmetrically")
        padding = tuple(span // 2 for span in spans)
    op = ir.Convolution(
        walk.secret(node, "weight", weight),
        walk.secret(node, "bias", bias),
        tuple(kernel.shape),
        stride,
        _pair(padding),
        dilation,
        groups,
    )
    walk.emit(node, op, source)
    walk.truncated(_without_bias(walk, node, op.bias, (1, -1, 1, 1)))


def _without_bias(walk: _Lowering, node: fx.Node, bias: str | None, view: tuple[int, ...]) -> torch.Tensor:
    value = walk.env[node]
    return value if bias is None else value - walk.weights[bias].view(view)


@lowers(nn.Conv2d)
def _conv2d(walk: _Lowering, node: fx.Node, conv: nn.Conv2d) -> None:
    if conv.padding_mode != "zeros":
        raise walk.refuse(node, f"pads with {conv.padding_mode!r}; only zeros are lowered")
    source = _source(node)
    _convolution(
        walk,
        node,
        source,
        conv.weight,
        conv.bias,
        conv.weight,
        conv.stride,
        conv.padding,
        conv.dilation,
        conv.groups,
    )


@lowers(F.conv2d)
def _functional_conv2d(walk: _Lowering, node: fx.Node, _: None) -> None:
    a = _arguments(
        node,
        "input weight bias stride padding dilation groups",
        bias=None,
        stride=1,
        padding=0,
        dilation=1,
        groups=1,
    )
    kernel = walk.env[a["weight"]]
    _convolution(
        walk,
        node,
        a["input"],
        a["weight"],
        a["bias"],
        kernel,
        a["stride"],
        a["padding"],
        a["dilation"],
        a["groups"],
    )


@lowers(nn.Linear)
def _linear(walk: _Lowering, node: fx.Node, linear: nn.Linear) -> None:
    source = _source(node)
    _emit_linear(walk, node, source, linear.weight, linear.bias, linear.weight)


@lowers(F.linear)
def _functional_linear(walk: _Lowering, node: fx.Node, _: None) -> None:
    a = _arguments(node, "input weight bias", bias=None)
    _emit_linear(walk, node, a["input"], a["weight"], a["bias"], walk.env[a["weight"]])


def _emit_linear(
    walk: _Lowering, node: fx.Node, source: fx.Node, weight: Any, bias: Any, matrix: torch.Tensor
) -> None:
    op = ir.Linear(walk.secret(node, "weight", weight), walk.secret(node, "bias", bias), tuple(matrix.shape))
    walk.emit(node, op, source)
    walk.truncated(_without_bias(walk, node, op.bias, (-1,)))


# ReLU.


@lowers(nn.ReLU, F.relu, torch.relu, "relu")
def _relu(walk: _Lowering, node: fx.Node, _: nn.ReLU | None) -> None:
    source = _source(node)
    walk.emit(node, ir.Relu(), source)


@lowers(MaskedReLU)
def _masked_relu(walk: _Lowering, node: fx.Node, module: MaskedReLU) -> None:
    source = _source(node)
    shape = tuple(walk.env[source].shape[1:])
    kept = module.kept_positions(shape)
    if kept.numel() == 0:
        walk.alias(node, source)
    else:
        walk.emit(node, ir.Relu(None if kept.numel() == prod(shape) else kept.cpu().numpy()), source)


# Pooling.


def _average_pool(
    walk: _Lowering, node: fx.Node, source: fx.Node, kernel: Any, stride: Any, padding: Any
) -> None:
    op = ir.AveragePool(_pair(kernel), _pair(stride or kernel), _pair(padding))
    walk.emit(node, op, source)
    walk.truncated(walk.env[node] * prod(op.kernel), FRACTION_BITS)


@lowers(nn.AvgPool2d, F.avg_pool2d)
def _avg_pool2d(walk: _Lowering, node: fx.Node, module: nn.AvgPool2d | None) -> None:
    names = "input kernel_size stride padding ceil_mode count_include_pad divisor_override"
    a = _arguments(
        node, names, stride=None, padding=0, ceil_mode=False, count_include_pad=True, divisor_override=None
    )
    if module is not None:
        a |= {name: getattr(module, name) for name in names.split()[1:]}
    if a["ceil_mode"] or a["divisor_override"] or (any(_pair(a["padding"])) and not a["count_include_pad"]):
        raise walk.refuse(
            node,
            "uses ceil_mode, divisor_override or count_include_pad=False; only plain windows are lowered",
        )
    _average_pool(walk, node, a["input"], a["kernel_size"], a["stride"], a["padding"])


@lowers(nn.MaxPool2d, F.max_pool2d, torch.max_pool2d)
def _max_pool2d(walk: _Lowering, node: fx.Node, module: nn.MaxPool2d | None) -> None:
    names = "input kernel_size stride padding dilation ceil_mode return_indices"
    a = _arguments(node, names, stride=None, padding=0, dilation=1, ceil_mode=False, return_indices=False)
    if module is not None:
        a |= {name: getattr(module, name) for name in names.split()[1:]}
    if a["ceil_mode"] or a["return_indices"]:
        raise walk.refuse(node, "uses ceil_mode or return_indices; only plain windows are lowered")
    kernel = _pair(a["kernel_size"])
    op = ir.MaxPool(kernel, _pair(a["stride"] or kernel), _pair(a["padding"]), _pair(a["dilation"]))
    walk.emit(node, op, a["input"])


def _adaptive_window(walk: _Lowering, node: fx.Node, source: fx.Node, output_size: Any) -> tuple[int, int]:
    """Gives the window of an adaptive pooling, which must divide its input evenly."""
    sizes = tuple(walk.env[source].shape[-2:])
    wanted = output_size if isinstance(output_size, tuple | list) else (output_size, output_size)
    wanted = tuple(size if want is None else want for want, size in zip(wanted, sizes, strict=True))
    if any(size % want for want, size in zip(wanted, sizes, strict=True)):
        raise walk.refuse(
            node, f"pools {sizes} to {wanted} in uneven windows; choose an input size that divides evenly"
        )
    return sizes[0] // wanted[0], sizes[1] // wanted[1]


@lowers(nn.AdaptiveAvgPool2d, F.adaptive_avg_pool2d)
def _adaptive_avg_pool2d(walk: _Lowering, node: fx.Node, module: nn.AdaptiveAvgPool2d | None) -> None:
    a = _arguments(node, "input output_size")
    size = module.output_size if module is not None else a["output_size"]
    window = _adaptive_window(walk, node, a["input"], size)
    _average_pool(walk, node, a["input"], window, window, 0)


@lowers(nn.AdaptiveMaxPool2d, F.adaptive_max_pool2d)
def _adaptive_max_pool2d(walk: _Lowering, node: fx.Node, module: nn.AdaptiveMaxPool2d | None) -> None:
    a = _arguments(node, "input output_size return_indices", return_indices=False)
    if module.return_indices if module is not None else a["return_indices"]:
        raise walk.refuse(node, "returns indices; only values are lowered")
    size = module.output_size if module is not None else a["output_size"]
    window = _adaptive_window(walk, node, a["input"], size)
    walk.emit(node, ir.MaxPool(window, window), a["input"])


# Arithmetic.


@lowers(operator.add, torch.add, "add")
def _add(walk: _Lowering, node: fx.Node, _: None) -> None:
    a = _arguments(node, "input other", alpha=1)
    left, right = a["input"], a["other"]
    if not (isinstance(left, fx.Node) and isinstance(right, fx.Node)) or a["alpha"] != 1:
        raise walk.refuse(node, "adds a constant or a multiple; put it into the bias or weight of a layer")
    _same_shape(walk, node, left, right)
    walk.emit(node, ir.Add(), left, right)


@lowers(operator.mul, torch.mul, torch.multiply, "mul", "multiply")
def _multiply(walk: _Lowering, node: fx.Node, _: None) -> None:
    a = _arguments(node, "input other")
    left, right = a["input"], a["other"]
    if isinstance(right, fx.Node) and not isinstance(left, fx.Node):
        left, right = right, left
    _computed(walk, node, *(side for side in (left, right) if isinstance(side, fx.Node)))
    if isinstance(right, int | float):
        walk.emit(node, ir.Scale(float(right)), left)
    elif not isinstance(right, fx.Node):
        raise walk.refuse(node, "multiplies by something that is neither a number nor a value of the network")
    elif walk.names.get(left) == walk.names.get(right):
        walk.emit(node, ir.Square(), left)
    else:
        _same_shape(walk, node, left, right)
        walk.emit(node, ir.Multiply(), left, right)
    walk.truncated(walk.env[node])


@lowers(torch.square, "square", torch.pow, operator.pow, "pow")
def _square(walk: _Lowering, node: fx.Node, _: None) -> None:
    a = _arguments(node, "input exponent", exponent=2)
    if a["exponent"] != 2:
        raise walk.refuse(node, f"raises to the power {a['exponent']}; only squares are lowered")
    walk.emit(node, ir.Square(), a["input"])
    walk.truncated(walk.env[node])


def _same_shape(walk: _Lowering, node: fx.Node, left: fx.Node, right: fx.Node) -> None:
    for side in (left, right):
        if side not in walk.names:
            raise walk.refuse(
                node, f"uses the stored tensor {side.target!r}; only computed values are combined"
            )
    if walk.env[left].shape != walk.env[right].shape:
        raise walk.refuse(
            node,
            f"broadcasts {list(walk.env[left].shape)} with {list(walk.env[right].shape)}; "
            "expand them to one shape",
        )


def _computed(walk: _Lowering, node: fx.Node, *sides: fx.Node) -> None:
    for side in sides:
        if side not in walk.names:
            raise walk.refuse(
                node, f"uses the stored tensor {side.target!r}; only computed values are combined"
            )


# Shapes.


@lowers(torch.cat, torch.concat, torch.concatenate)
def _concatenate(walk: _Lowering, node: fx.Node, _: None) -> None:
    a = _arguments(node, "tensors dim", dim=0)
    dim = a.get("axis", a["dim"]) % walk.env[node].dim()
    if dim == 0:
        raise walk.refuse(node, "concatenates along the batch; use another dimension")
    walk.emit(node, ir.Concatenate(dim), *a["tensors"])


@lowers(nn.Flatten, torch.flatten, "flatten")
def _flatten(walk: _Lowering, node: fx.Node, module: nn.Flatten | None) -> None:
    a = _arguments(node, "input start_dim end_dim", start_dim=0, end_dim=-1)
    if module is not None:
        a |= {"start_dim": module.start_dim, "end_dim": module.end_dim}
    dims = walk.env[a["input"]].dim()
    start, end = a["start_dim"] % dims, a["end_dim"] % dims
    if start == 0:
        raise walk.refuse(node, "flattens the batch away; start at dimension 1")
    walk.emit(node, ir.Flatten(start, end), a["input"])


@lowers(torch.mean, "mean")
def _mean(walk: _Lowering, node: fx.Node, _: None) -> None:
    a = _arguments(node, "input dim keepdim", dim=None, keepdim=False)
    value = walk.env[a["input"]]
    dims = a.get("axis", a["dim"])
    dims = (dims,) if isinstance(dims, int) else dims
    dims = tuple(sorted(dim % value.dim() for dim in dims)) if dims else (0,)
    if 0 in dims:
        raise walk.refuse(node, "averages over the batch; name the other dimensions")
    walk.emit(node, ir.Mean(dims, a["keepdim"]), a["input"])
    walk.truncated(walk.env[node] * prod(value.shape[dim] for dim in dims), FRACTION_BITS)


@lowers(nn.Identity, nn.Dropout, nn.Dropout2d, F.dropout, F.dropout2d)
def _identity(walk: _Lowering, node: fx.Node, module: nn.Module | None) -> None:
    a = _arguments(node, "input p training", training=module is None)
    if a["training"] and module is None:
        raise walk.refuse(node, "drops at random; call it with training=False")
    walk.alias(node, a["input"])
