"""Lowers a torch network to the program that parties run.

`pibench.program.capture` exports the network as a graph of ATen operators. `lower` walks it with one small
rule for each operator. A rule turns the node into operators of `pibench.program.ir`. A node that depends only
on stored tensors is computed at once. An operator that only moves elements becomes one `Rearrange`. Its index
comes from running the operator itself on positions. The finished program is then run once on the example in
float64, before any process is started. This run finds NaN and values beyond fixed point, and it sums the
chance of a wrong local truncation.
"""

from __future__ import annotations

import math
import operator
import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import singledispatch
from math import prod
from typing import Any, cast

import torch
from torch import Tensor, fx, nn
from torch._ops import OpOverload

from pibench.program import ir
from pibench.program.approximations import GELU, HARD_SIGMOID, SIGMOID, SILU, TANH
from pibench.program.capture import BATCH, Captured, ExportError, capture, is_inert_dropout, plain
from pibench.program.outputs import Output
from pibench.program.plaintext import evaluate

__all__ = ["FRACTION_BITS", "VALUE_LIMIT", "ExportError", "Lowered", "lower"]

FRACTION_BITS = 16
VALUE_LIMIT = 2.0**30  # |z| < 2^62 at the double scale of a product, the bound of both engines
aten = torch.ops.aten


@dataclass(frozen=True, eq=False)
class Lowered:
    """A network ready for parties.

    `program` is public. `weights` (float64) belong to party 0. `largest` is the largest absolute value under
    each name of the program, for the example. `truncation_failures` is the expected number of wrong local
    truncations in one inference of one image, under a two-party engine that truncates locally (facts:
    |v| / 2^32 for each product).
    """

    program: ir.Program
    weights: dict[str, Tensor]
    largest: dict[str, float]
    truncation_failures: float

    def on(self, images: Tensor) -> Lowered:
        """Returns the same network with the values that it takes on other images [N, ...].

        Raises ExportError as `lower` does for values that are NaN, infinite or 2^30 or more.
        """
        labels = {step.name: f"the value of {step.name!r}" for step in self.program.steps}
        return _valued(self.program, self.weights, images.detach().to("cpu", torch.float64), labels)

    def calibrated(self) -> Lowered:
        """Returns the same network whose program tells the bounds of its values on the example.

        A bound is the exponent of a power of two, at least 0. All parties and the dealer learn it.
        """
        bounds = {name: max(0, math.frexp(largest)[1]) for name, largest in self.largest.items()}
        return replace(self, program=replace(self.program, bounds=bounds))

    def demand(self, limits: Mapping[str, float]) -> None:
        """Raises ExportError if a value reaches its limit; limits are by the names of the program.

        So do biases, and the differences of values to the knots with which a step compares them.
        """
        reaches = self._reaches()
        for name, limit in limits.items():
            if reaches.get(name, 0.0) >= limit:
                raise ExportError(
                    f"the value of {name!r} reaches {reaches[name]:.3g}, beyond the "
                    f"2^{math.log2(limit):.0f} that this engine can hold there; normalise the network or its "
                    "input"
                )

    def _reaches(self) -> dict[str, float]:
        """Maps each name to the largest absolute number that an engine must hold at that value's scale."""
        reaches = dict(self.largest)
        for step in self.program.steps:
            op, own = step.operator, 0.0
            if isinstance(op, ir.PiecewiseLinear):
                source = step.inputs[0]
                compared = self.largest[source] + max(map(abs, op.knots))
                reaches[source] = max(reaches[source], compared)
            elif isinstance(op, ir.Convolution | ir.Linear | ir.Affine | ir.Shift) and op.bias is not None:
                own = self.weights[op.bias].abs().max().item()
            reaches[step.name] = max(reaches[step.name], own)
        return reaches


def lower(model: nn.Module, example: Tensor, output: int | str | None = None) -> Lowered:
    """Lowers `model` for inputs shaped like `example` [N, ...].

    `output` chooses one of several outputs, by its number or its name. Raises ExportError for a network that
    cannot be captured, an operator without a lowering, a model that does not fit the example, NaN or infinite
    values, and values of 2^30 or more.
    """
    if isinstance(model, Output) and output is None:
        output = model.key
        model = model.network
    if not isinstance(model, nn.Module) or not isinstance(example, Tensor):
        raise ExportError(
            "a torch.nn.Module and a tensor are needed, "
            f"not {type(model).__name__} and {type(example).__name__}"
        )
    if not example.is_floating_point():
        raise ExportError(f"the example must hold floating-point numbers, not {example.dtype}")
    example = plain(example, "the example")
    if example.dim() < 2 or not example.numel():
        raise ExportError(
            f"the example must be a batch [N, ...] of at least one input, not {list(example.shape)}"
        )
    return _Walk(capture(model, example, _RULES.__contains__, _moves, output)).finish(example)


@dataclass(frozen=True, eq=False)
class _Value:
    """The value of a node: the elements of the value `key`, in the order of `index`.

    `shape` is the node's, with the batch of the capture. `index` [*shape] counts the elements of the whole
    batch of `key`, with -1 for a zero. None means all of them in their order.
    """

    key: str
    shape: tuple[int, ...]
    index: Tensor | None = None


@dataclass(frozen=True)
class _Origin:
    """The origin of a step: its name (one call of a module or function has one name) and its label."""

    call: str
    base: str
    label: str


Rule = Callable[["_Walk", fx.Node], None]
_RULES: dict[Any, Rule] = {}


def lowers(*targets: Any) -> Callable[[Rule], Rule]:
    """Registers the rule for ATen operators."""

    def register(rule: Rule) -> Rule:
        _RULES.update(dict.fromkeys(targets, rule))
        return rule

    return register


class _Walk:
    """Walks a captured graph and collects the steps; `known` maps a node to a `_Value` or a stored tensor."""

    def __init__(self, captured: Captured) -> None:
        self.steps: dict[str, ir.Step] = {}
        self.weights: dict[str, Tensor] = {}
        self.origins: dict[str, _Origin] = {}
        self.shapes: dict[str, tuple[int, ...]] = {}
        self.names = captured.names
        self.known: dict[fx.Node, Any] = dict(captured.stored)
        self.made: dict[tuple[str, tuple[int, ...], bytes | None], str] = {}
        self.input = captured.input_name
        self.shapes[self.input] = tuple(captured.input.meta["val"].shape[1:])
        self.known[captured.input] = _Value(self.input, tuple(captured.input.meta["val"].shape))
        for node in captured.nodes:
            self._visit(node)
        answer = self.known[captured.output]
        if not isinstance(answer, _Value):
            raise ExportError("the network must return one tensor that depends on its input, the logits")
        if answer.shape[:1] != (BATCH,):
            raise self.refuse(
                captured.output, "mixes the images of a batch; return [N, ...], one row an image"
            )
        self.output = self.key_of(captured.output)

    def _visit(self, node: fx.Node) -> None:
        rule = _RULES.get(node.target)
        depends = any(_holds_value(self.known.get(source)) for source in node.all_input_nodes)
        random = torch.Tag.nondeterministic_seeded in getattr(node.target, "tags", ())
        if random and not is_inert_dropout(node):
            raise self.refuse(node, "draws random numbers, which would be frozen; draw only if self.training")
        if node.op == "get_attr" or (rule is None and _IGNORED.match(str(node.target))):
            self.known[node] = None
            return
        try:
            if not depends:
                self.known[node] = self._computed(node)
            elif rule is None:
                raise self.refuse(
                    node, f"has no lowering. {_remedy(node)} Known operators are listed in docs/operators.md."
                )
            else:
                rule(self, node)
        except ExportError:
            raise
        except Exception as error:
            reason = str(error).splitlines()[0] if str(error) else ""
            raise self.refuse(
                node,
                f"is used in a form that has no lowering ({type(error).__name__}: {reason}). "
                "The known forms are listed in docs/operators.md.",
            ) from error

    def _computed(self, node: fx.Node) -> Any:
        """Computes a node that depends only on stored tensors."""
        args, given = fx.map_arg((node.args, dict(node.kwargs)), self._plain)
        kwargs = dict(given)  # torch.fx's own dictionary cannot be changed
        if kwargs.get("dtype") in (torch.float32, torch.float16, torch.bfloat16):
            kwargs["dtype"] = torch.float64
        with torch.no_grad():
            value = _operator(node)(*args, **kwargs)
        if isinstance(value, Tensor) and value.is_floating_point():
            value = value.double()
        return value

    def _plain(self, node: fx.Node) -> Any:
        value = self.known[node]
        if isinstance(value, _Value):
            raise ValueError(f"{node.name} is no stored tensor")
        return value

    # Questions of rules.

    def arguments(self, node: fx.Node) -> dict[str, Any]:
        """Binds a call's arguments by the operator's schema; nodes of stored tensors become these."""
        bound = {}
        for number, argument in enumerate(_operator(node)._schema.arguments):
            if number < len(node.args):
                bound[argument.name] = node.args[number]
            else:
                bound[argument.name] = node.kwargs.get(argument.name, argument.default_value)
        return bound

    def is_value(self, item: Any) -> bool:
        """Returns whether an argument is a secret value of the network."""
        return isinstance(item, fx.Node) and isinstance(self.known[item], _Value)

    def constant(self, item: Any) -> Any:
        """Returns a stored tensor (float64) or a number for an argument that is one."""
        return self.known[item] if isinstance(item, fx.Node) else item

    def refuse(self, node: fx.Node, reason: str) -> ExportError:
        return ExportError(f"{_label(node)} {reason}")

    # Values and steps.

    def shape_of(self, key: str) -> tuple[int, ...]:
        """Returns the shape of one image's value."""
        return self.shapes[key]

    def index_of(self, value: _Value) -> Tensor:
        """Returns the positions of a value's elements in its source."""
        if value.index is not None:
            return value.index
        return torch.arange(BATCH * prod(self.shapes[value.key])).view(value.shape)

    def key_of(self, node: fx.Node, shape: Sequence[int] | None = None) -> str:
        """Returns the name of `node`'s value in the program, in the shape of one image.

        `shape` may be another shape with the same number of elements. The method emits the Rearrange that
        this needs.
        """
        return self.key_of_value(node, self.known[node], shape)

    def key_of_value(self, node: fx.Node, value: _Value, shape: Sequence[int] | None = None) -> str:
        wanted = tuple(self.per_image(node, value) if shape is None else shape)
        self._demand_elements(node, wanted)
        size = prod(self.shapes[value.key])
        index = None
        if value.index is not None:
            rows = value.index.reshape(BATCH, -1)
            starts = torch.arange(BATCH)[:, None] * size
            own = torch.where(rows < 0, -1, rows - starts)
            if not bool((own == own[:1]).all()) or own.min() < -1 or own.max() >= size:
                raise self.refuse(node, "mixes the images of a batch; keep the batch as the first dimension")
            if own.shape[1] != size or not torch.equal(own[0], torch.arange(size)):
                index = own[0].contiguous()
        if index is None and wanted == self.shapes[value.key]:
            return value.key
        same = (value.key, wanted, None if index is None else index.numpy().tobytes())
        if same not in self.made:
            flat = None if index is not None else _flattened(self.shapes[value.key], wanted)
            op = flat or ir.Rearrange(wanted, None if index is None else index.numpy())
            self.made[same] = self.step(node, op, [value.key], wanted)
        return self.made[same]

    def per_image(self, node: fx.Node, value: _Value | None = None) -> tuple[int, ...]:
        """Returns the shape of one image's value, also for a batch that was merged with other dimensions."""
        shape = value.shape if value is not None else tuple(node.meta["val"].shape)
        if not shape or shape[0] % BATCH:
            raise self.refuse(node, "moves the batch away; keep the batch as the first dimension")
        return shape[1:] if shape[0] == BATCH else (shape[0] // BATCH, *shape[1:])

    def step(self, node: fx.Node, op: ir.Operator, inputs: Sequence[str], shape: Sequence[int]) -> str:
        """Appends a step and returns its provisional name."""
        self._demand_elements(node, shape)
        key = f"%{len(self.steps)}"
        shapes = tuple(self.shapes[name] for name in inputs)
        self.steps[key] = ir.Step(key, op, tuple(inputs), shapes, tuple(shape))
        self.shapes[key] = tuple(shape)
        self.origins[key] = _origin(node)
        return key

    def _demand_elements(self, node: fx.Node, shape: Sequence[int]) -> None:
        if not prod(shape):
            raise self.refuse(
                node, f"has no elements: its shape is {list(shape)} an image; give it one output or more"
            )

    def emit(self, node: fx.Node, op: ir.Operator, *inputs: str, shape: Sequence[int] | None = None) -> str:
        """Appends a step with the value of `node`; `shape` is one image's, if it differs from the node's."""
        key = self.step(node, op, inputs, self.per_image(node) if shape is None else shape)
        self.known[node] = _Value(key, tuple(node.meta["val"].shape))
        return key

    def emit_first(self, node: fx.Node, op: ir.Operator, source: str, shape: Sequence[int]) -> None:
        """Appends a step with the first (or only) result of `node`."""
        key = self.step(node, op, [source], shape)
        value = node.meta["val"]
        first = value[0] if isinstance(value, tuple | list) else value
        self.known[node] = _Value(key, tuple(first.shape))

    def alias(self, node: fx.Node, source: fx.Node) -> None:
        """Gives `node` the value of `source`."""
        self.known[node] = self.known[source]

    def keep(self, node: fx.Node, name: str, tensor: Tensor, source: Any = None) -> str:
        """Keeps a stored tensor for party 0, under the network's name for it or one made from the node's."""
        key = self.names.get(source) if isinstance(source, fx.Node) else None
        key = key or f"{_origin(node).base}.{name}"
        number, wanted = 0, key
        while key in self.weights and not _equal(self.weights[key], tensor):
            number += 1
            key = f"{wanted}_{number}"
        if not tensor.isfinite().all():
            raise ExportError(f"{key} holds NaN or infinity; repair the weights")
        if tensor.numel() and tensor.abs().max() >= VALUE_LIMIT:
            raise ExportError(
                f"{key} holds {tensor.abs().max():.3g}, beyond the 2^30 of fixed point; rescale it"
            )
        self.weights[key] = tensor.detach()
        return key

    def foldable(self, source: fx.Node) -> ir.Step | None:
        """Returns the step with stored weights that computes `source`, if `source` has one user.

        Else None.
        """
        value = self.known[source]
        step = self.steps.get(value.key)
        if step is None or len(source.users) != 1 or value.index is not None:
            return None
        return step if isinstance(step.operator, _SCALED) else None

    # The finished program.

    def finish(self, example: Tensor) -> Lowered:
        """Drops unused steps, names the others, and runs the program on the example."""
        used, kept = {self.output}, []
        for step in reversed(self.steps.values()):
            if step.name in used:
                used.update(step.inputs)
                kept.append(step)
        kept.reverse()
        renamed = self._renamed(kept)
        steps = tuple(
            replace(step, name=renamed[step.name], inputs=tuple(renamed[name] for name in step.inputs))
            for step in kept
        )
        labels = {renamed[step.name]: self.origins[step.name].label for step in kept}
        for step in steps:
            if (number := _largest_number(step.operator)) >= VALUE_LIMIT:
                raise ExportError(
                    f"{labels[step.name]} uses the number {number:.3g}, beyond the 2^30 of fixed point; "
                    "rescale it"
                )
        program = ir.Program(self.input, self.shapes[self.input], steps, renamed[self.output])
        weights = {name: self.weights[name] for step in steps for name in ir.stored_of(step.operator)}
        return _valued(program, weights, example, labels)

    def _renamed(self, steps: Sequence[ir.Step]) -> dict[str, str]:
        """Names the last step of each call after the call, and the earlier ones after their operation."""
        last = {self.origins[step.name].call: step.name for step in steps}
        taken: Counter[str] = Counter({self.input: 1})
        names = {self.input: self.input}
        bases = {}
        for step in steps:
            origin = self.origins[step.name]
            final = last[origin.call] == step.name
            bases[step.name] = origin.base if final else f"{origin.base}_{step.kind}"
        for final in (True, False):  # a call's own name has priority over the name of another's part
            for step in steps:
                origin = self.origins[step.name]
                if (last[origin.call] == step.name) is final:
                    base = name = bases[step.name]
                    while taken[name]:
                        name = f"{base}_{taken[base]}"
                        taken[base] += 1
                    taken[name] += 1
                    names[step.name] = name
        return names


def _holds_value(item: Any) -> bool:
    return isinstance(item, _Value) or (isinstance(item, tuple) and any(isinstance(i, _Value) for i in item))


def _equal(one: Tensor, other: Tensor) -> bool:
    return one is other or (one.shape == other.shape and torch.equal(one, other))


_IGNORED = re.compile(r"aten\.(_assert|sym_|_local_scalar)|.*_guard|.*_operator_(enter|exit)")


def _largest_number(op: ir.Operator) -> float:
    """Returns the largest absolute public number of an operator."""
    if isinstance(op, ir.Scale):
        return abs(op.factor)
    if isinstance(op, ir.Combine):
        return max(map(abs, op.factors))
    if isinstance(op, ir.PiecewiseLinear):
        return max(map(abs, (op.slope, op.offset, *op.knots, *op.jumps)))
    if isinstance(op, ir.Weigh):
        return float(abs(op.factors).max())
    return 0.0


def _flattened(shape: tuple[int, ...], wanted: tuple[int, ...]) -> ir.Flatten | None:
    """Returns the Flatten that turns `shape` into `wanted` (both without the batch), if there is one."""
    for start in range(len(wanted)):
        end = start + len(shape) - len(wanted)
        if end > start and (*shape[:start], prod(shape[start : end + 1]), *shape[end + 1 :]) == wanted:
            return ir.Flatten(start + 1, end + 1)
    return None


def _valued(
    program: ir.Program, weights: dict[str, Tensor], example: Tensor, labels: dict[str, str]
) -> Lowered:
    """Runs the program on the example, checks every value, and sums the law of local truncation."""
    largest: dict[str, float] = {}
    failures = 0.0

    def check(name: str, label: str, value: Tensor) -> None:
        if not value.isfinite().all():
            raise ExportError(f"{label} gives NaN or infinity; repair the weights or the example")
        largest[name] = value.abs().max().item() if value.numel() else 0.0
        if largest[name] >= VALUE_LIMIT:
            raise ExportError(
                f"{label} reaches {largest[name]:.3g}, beyond the 2^30 of fixed point; "
                "normalise the network or its input"
            )

    def note(step: ir.Step, value: Tensor) -> None:
        nonlocal failures
        check(step.name, labels[step.name], value)
        failures += _wrong_truncations(step.operator, step, value, weights)

    check(program.input, f"the input {program.input!r}", example)
    evaluate(program, weights, example, note)
    return Lowered(program, weights, largest, failures / len(example))


@singledispatch
def _wrong_truncations(op: ir.Operator, step: ir.Step, value: Tensor, weights: Mapping[str, Tensor]) -> float:
    """Returns the expected number of wrong local truncations in a step, of the whole batch.

    An element whose integer is v 2^s before the division fails with probability |v| 2^s / 2^64.
    """
    return 0.0


def _failures(products: Tensor, bits: int = 2 * FRACTION_BITS) -> float:
    return products.abs().sum().item() * 2.0 ** (bits - 64)


@_wrong_truncations.register(ir.Convolution)
@_wrong_truncations.register(ir.Linear)
@_wrong_truncations.register(ir.Affine)
def _(
    op: ir.Convolution | ir.Linear | ir.Affine, step: ir.Step, value: Tensor, weights: Mapping[str, Tensor]
) -> float:
    if op.bias is None:
        return _failures(value)
    bias = weights[op.bias]
    return _failures(value - (bias.view(1, -1, 1, 1) if isinstance(op, ir.Convolution) else bias))


@_wrong_truncations.register(ir.Multiply)
@_wrong_truncations.register(ir.Square)
@_wrong_truncations.register(ir.Scale)
def _(
    op: ir.Multiply | ir.Square | ir.Scale, step: ir.Step, value: Tensor, weights: Mapping[str, Tensor]
) -> float:
    return _failures(value)


@_wrong_truncations.register(ir.PiecewiseLinear)
@_wrong_truncations.register(ir.Combine)
@_wrong_truncations.register(ir.Weigh)
def _(
    op: ir.PiecewiseLinear | ir.Combine | ir.Weigh,
    step: ir.Step,
    value: Tensor,
    weights: Mapping[str, Tensor],
) -> float:
    return 0.0 if op.integer else _failures(value - getattr(op, "offset", 0.0))


@_wrong_truncations.register
def _(op: ir.AveragePool, step: ir.Step, value: Tensor, weights: Mapping[str, Tensor]) -> float:
    return _failures(value * prod(op.kernel), FRACTION_BITS)


@_wrong_truncations.register
def _(op: ir.Mean, step: ir.Step, value: Tensor, weights: Mapping[str, Tensor]) -> float:
    return _failures(value * (step.input_size // step.size), FRACTION_BITS)


# Names.


def _origin(node: fx.Node) -> _Origin:
    """Returns the call of a module of torch.nn, or of a function, to which a node belongs."""
    step = (node.meta.get("custom") or {}).get("step")
    call, function = node.meta.get("torch_fn") or (node.name, node.name)
    function = re.sub(r"_\d+$", "", function.rsplit(".", 1)[-1]).strip("_") or node.name
    stack = list((node.meta.get("nn_module_stack") or {}).items())
    path, kind = stack[-1][1] if stack else ("", "")
    kind = kind if isinstance(kind, str) else f"{kind.__module__}.{kind.__qualname__}"
    path = path.removeprefix("traced.")
    kind_name = kind.rsplit(".", 1)[-1]
    leaf = bool(path) and (kind.startswith("torch.nn.modules") or kind_name == "MaskedReLU")
    leaf = leaf and kind_name not in ("Sequential", "ModuleList")
    if leaf:
        return _Origin(step or stack[-1][0], step or re.sub(r"\W", "_", path), f"node {path!r} ({kind_name})")
    where = f" of module {path!r} ({kind_name})" if path and kind_name != "Wrapper" else ""
    base = step or function
    return _Origin(step or f"{path} {call}", base, f"node {base!r} ({function}){where}")


def _label(node: fx.Node) -> str:
    return _origin(node).label


def _remedy(node: fx.Node) -> str:
    return "Replace it by known operators, or add a rule to bench/program/lower.py and to the engines."


def _operator(node: fx.Node) -> OpOverload[..., Any]:
    """Returns the ATen operator that a node calls; nothing else in an exported graph has a schema."""
    return cast(OpOverload[..., Any], node.target)


def _operands(node: fx.Node) -> tuple[Any, ...]:
    """Returns a node's arguments in order, as the operator's schema (not torch.fx) describes them."""
    return node.args


def _pair(value: int | Sequence[int]) -> tuple[int, int]:
    pair = (value, value) if isinstance(value, int) else tuple(value)
    return cast(tuple[int, int], pair if len(pair) == 2 else pair * 2)  # torch takes one or two


# Moves: operators that only place elements, run on positions.


def _move(walk: _Walk, node: fx.Node) -> None:
    """Runs an operator on the positions of its inputs' elements; padding and stored zeros are -1."""
    sources = [source for source in node.all_input_nodes if walk.is_value(source)]
    base, indices = _together(walk, node, list(dict.fromkeys(sources)))

    def positions(source: fx.Node) -> Any:
        if source in indices:
            return indices[source]
        stored = walk.known[source]
        if isinstance(stored, Tensor) and stored.is_floating_point():
            return torch.full(stored.shape, -1)
        return stored

    args, kwargs = fx.map_arg((node.args, dict(node.kwargs)), positions)
    found = _run_on_positions(node.target, args, kwargs)
    if _holds_numbers(walk, node):
        _add_stored(walk, node, _Value(base, tuple(found.shape), found))
    elif isinstance(found, Tensor):
        walk.known[node] = _Value(base, tuple(found.shape), found)
        _flatten_at_once(walk, node, sources)
    else:
        walk.known[node] = tuple(_Value(base, tuple(part.shape), part) for part in found)


def _holds_numbers(walk: _Walk, node: fx.Node) -> bool:
    """Returns whether a move places stored numbers other than 0 among values."""
    stored = [walk.known[source] for source in node.all_input_nodes if not walk.is_value(source)]
    return any(isinstance(each, Tensor) and each.is_floating_point() and bool(each.any()) for each in stored)


def _add_stored(walk: _Walk, node: fx.Node, values: _Value) -> None:
    """Adds the stored numbers that a move places between its values."""

    def numbers(source: fx.Node) -> Any:
        known = walk.known[source]
        return torch.zeros(known.shape, dtype=torch.float64) if isinstance(known, _Value) else known

    args, kwargs = fx.map_arg((node.args, dict(node.kwargs)), numbers)
    row = _trimmed(_row(walk, node, _operator(node)(*args, **kwargs)))
    op = ir.Shift(walk.keep(node, "shift", row), tuple(row.shape))
    walk.emit(node, op, walk.key_of_value(node, values))


def _moves(target: Any) -> bool:
    """Returns whether an operator only places elements, and so may return its argument itself."""
    return _RULES.get(target) in (_move, _same, _pad)


def _run_on_positions(target: Any, args: Any, kwargs: Any) -> Any:
    try:
        return target(*args, **kwargs)
    except RuntimeError:  # some operators take only floating-point numbers; float64 counts to 2^53
        args, kwargs = torch.utils._pytree.tree_map_only(Tensor, _as_float, (args, kwargs))
        return target(*args, **kwargs).long()


def _as_float(tensor: Tensor) -> Tensor:
    return tensor.double() if tensor.dtype == torch.int64 else tensor


def _absent(walk: _Walk, node: fx.Node, stored: Tensor) -> Tensor:
    if stored.any():
        raise walk.refuse(node, "chooses stored numbers other than 0; multiply by masks and add them instead")
    return torch.full(stored.shape, -1)


def _together(walk: _Walk, node: fx.Node, sources: list[fx.Node]) -> tuple[str, dict[fx.Node, Tensor]]:
    """Returns one value with the elements of all `sources`, and the positions of each source in it."""
    values = [walk.known[source] for source in sources]
    keys = list(dict.fromkeys(value.key for value in values))
    indices = [walk.index_of(value) for value in values]
    if len(keys) == 1:
        return keys[0], dict(zip(sources, indices, strict=True))
    sizes = [prod(walk.shape_of(key)) for key in keys]
    rows = [
        key
        if len(walk.shape_of(key)) == 1
        else walk.step(node, cast(ir.Flatten, _flattened(walk.shape_of(key), (size,))), [key], (size,))
        for key, size in zip(keys, sizes, strict=True)
    ]
    total = sum(sizes)
    base = walk.step(node, ir.Concatenate(1), rows, (total,))
    placed = {}
    for source, value, index in zip(sources, values, indices, strict=True):
        at = keys.index(value.key)
        size = sizes[at]
        moved = index // size * total + sum(sizes[:at]) + index % size
        placed[source] = torch.where(index < 0, -1, moved)
    return base, placed


def _flatten_at_once(walk: _Walk, node: fx.Node, sources: list[fx.Node]) -> None:
    """Makes a plain flattening a separate step at the place where the network has it."""
    value, shapes = walk.known[node], walk.shape_of(walk.known[node].key)
    source = walk.known[sources[0]]
    as_it_was = source.index is None and source.shape == (BATCH, *shapes) and value.shape[0] == BATCH
    if as_it_was and _flattened(shapes, value.shape[1:]) and _in_order(value.index):
        walk.known[node] = _Value(walk.key_of(node), value.shape)


def _in_order(index: Tensor) -> bool:
    return torch.equal(index.flatten(), torch.arange(index.numel()))


def _packet(*names: str) -> list[Any]:
    """Returns all overloads of the ATen operators of these names."""
    return [
        getattr(getattr(aten, name), overload)
        for name in names
        if hasattr(aten, name)
        for overload in getattr(aten, name).overloads()
        if "out" not in overload
    ]


lowers(
    *_packet(
        *("view", "reshape", "_unsafe_view", "view_as", "reshape_as", "flatten", "unflatten", "permute"),
        *("transpose", "t", "numpy_T", "mT", "swapaxes", "swapdims", "movedim", "moveaxis", "squeeze"),
        *("unsqueeze", "expand", "expand_as", "repeat", "tile", "select", "slice", "narrow", "split"),
        *("split_with_sizes", "chunk", "tensor_split", "unbind", "flip", "roll", "rot90", "unfold"),
        *("pixel_shuffle", "pixel_unshuffle", "channel_shuffle", "upsample_nearest1d", "upsample_nearest2d"),
        *(
            "index_select",
            "index",
            "_unsafe_index",
            "gather",
            "diagonal",
            "repeat_interleave",
            "im2col",
            "take_along_dim",
        ),
        *("reflection_pad1d", "reflection_pad2d", "replication_pad1d", "replication_pad2d"),
        *("select_scatter", "slice_scatter", "atleast_2d", "atleast_3d", "hsplit", "vsplit", "dsplit"),
        *("stack", "hstack", "vstack", "dstack", "column_stack", "_upsample_nearest_exact2d", "squeeze_copy"),
        *("view_copy", "permute_copy", "expand_copy", "slice_copy", "select_copy", "unsqueeze_copy"),
    )
)(_move)


@lowers(*_packet("constant_pad_nd", "pad"))
def _pad(walk: _Walk, node: fx.Node) -> None:
    a = walk.arguments(node)
    if a.get("mode", "constant") != "constant":
        _move(walk, node)
        return
    if a["value"]:
        raise walk.refuse(node, f"pads with {a['value']}; pad with zeros")
    source = walk.known[a["self"]]
    found = torch.constant_pad_nd(walk.index_of(source), a["pad"], -1)
    walk.known[node] = _Value(source.key, tuple(found.shape), found)


@lowers(*_packet("masked_fill"))
def _masked_fill(walk: _Walk, node: fx.Node) -> None:
    a = walk.arguments(node)
    source = walk.known[a["self"]]
    if walk.is_value(a["mask"]) or walk.constant(a["value"]) != 0:
        raise walk.refuse(
            node, "fills with something else than 0 or where a secret says; use a stored mask and 0"
        )
    found = torch.where(walk.constant(a["mask"]), -1, walk.index_of(source))
    walk.known[node] = _Value(source.key, tuple(found.shape), found)


@lowers(*_packet("cat", "concat", "concatenate"))
def _concatenate(walk: _Walk, node: fx.Node) -> None:
    a = walk.arguments(node)
    shape = tuple(node.meta["val"].shape)
    dim = a["dim"] % len(shape)
    if dim == 0:
        raise walk.refuse(node, "concatenates along the batch; use another dimension")
    if all(walk.is_value(part) for part in a["tensors"]) and shape[0] == BATCH:
        walk.emit(node, ir.Concatenate(dim), *(walk.key_of(part) for part in a["tensors"]))
    else:
        _move(walk, node)


@lowers(
    *_packet("clone", "contiguous", "alias", "detach", "lift_fresh_copy", "positive", "type_as", "identity"),
    *_packet("dropout", "feature_dropout", "alpha_dropout", "native_dropout", "_to_copy", "to"),
    *_packet(
        "conj", "resolve_conj", "resolve_neg", "lift_fresh", "float", "double", "_assert_tensor_metadata"
    ),
)
def _same(walk: _Walk, node: fx.Node) -> None:
    dtype = node.meta["val"].dtype if isinstance(node.meta.get("val"), Tensor) else torch.float64
    if not dtype.is_floating_point:
        raise walk.refuse(node, f"turns values into {dtype}; keep them floating-point numbers")
    source = node.all_input_nodes[0]
    if "dropout" in str(node.target) and not is_inert_dropout(node):
        raise walk.refuse(node, "drops at random; call it with training=self.training")
    walk.alias(node, source)


@lowers(operator.getitem)
def _item(walk: _Walk, node: fx.Node) -> None:
    parts, number = walk.known[_operands(node)[0]], _operands(node)[1]
    if isinstance(parts, _Value):
        if number and not node.users:
            walk.known[node] = None
        elif number:
            raise walk.refuse(node, "uses the indices or statistics beside a value; only values are lowered")
        else:
            walk.alias(node, _operands(node)[0])
    else:
        walk.known[node] = parts[number]


@lowers(*_packet("zeros_like", "ones_like", "full_like", "new_zeros", "new_ones", "new_full", "empty_like"))
def _filled(walk: _Walk, node: fx.Node) -> None:
    """Returns a tensor of known numbers in the shape of a value."""
    name = _operator(node)._schema.name
    fill = walk.arguments(node).get("fill_value", 1.0 if "ones" in name else 0.0)
    walk.known[node] = torch.full(tuple(node.meta["val"].shape), float(fill), dtype=torch.float64)


# Linear layers.


def _maps(walk: _Walk, node: fx.Node, source: fx.Node, rank: int) -> tuple[str, tuple[int, ...]]:
    """Returns a value as maps, with its sizes [N, C, H, W].

    A signal [C, L] (`rank` 1) becomes maps [C, 1, L], and a single map [H, W] (`rank` 2) becomes [1, H, W].
    """
    shape = walk.known[source].shape
    if shape[0] != BATCH or len(shape) not in (3, rank + 2):
        raise walk.refuse(node, f"takes {list(shape[1:])} an image; bring images to [C, H, W] or [C, L]")
    added = (shape[1], 1, shape[2]) if rank == 1 else (1, *shape[1:])
    wanted = shape[1:] if len(shape) == 4 else added
    return walk.key_of(source, wanted), (BATCH, *wanted)


def _rank(node: fx.Node) -> int:
    """Returns the number of dimensions over which an operator of this name pools."""
    return 1 if "1d" in str(node.target) else 2


def _sizes(value: int | Sequence[int], rank: int, neutral: int) -> tuple[int, int]:
    """Returns an option as a pair; for one-dimensional operators the first entry is `neutral`."""
    values = (value,) if isinstance(value, int) else tuple(value)
    return (neutral, values[0]) if rank == 1 else _pair(values if len(values) > 1 else values[0])


@lowers(*_packet("conv1d", "conv2d", "convolution"))
def _convolution(walk: _Walk, node: fx.Node) -> None:
    a = walk.arguments(node)
    if walk.is_value(a["weight"]):
        raise walk.refuse(node, "takes a computed kernel; only stored kernels are lowered")
    if a.get("transposed"):
        raise walk.refuse(node, "is transposed; use nearest upsampling and a convolution")
    kernel, bias = walk.constant(a["weight"]), walk.constant(a["bias"])
    rank = kernel.dim() - 2
    if rank > 2:
        raise walk.refuse(node, f"is a convolution over {rank} dimensions; one and two are lowered")
    if len(walk.known[a["input"]].shape) != rank + 2:
        shape = list(walk.known[a["input"]].shape[1:])
        raise walk.refuse(
            node, f"reads the batch as channels, as it takes {shape} an image; add a dimension for channels"
        )
    source, (_, channels, height, width) = _maps(walk, node, a["input"], rank)
    kernel = kernel if rank == 2 else kernel[:, :, None]
    stride, dilation = _sizes(a["stride"], rank, 1), _sizes(a["dilation"], rank, 1)
    padding = a["padding"]
    if isinstance(padding, str):
        spans = [
            d * (k - 1) if padding == "same" else 0 for d, k in zip(dilation, kernel.shape[2:], strict=True)
        ]
        if any(span % 2 for span in spans):
            pads = [part for span in reversed(spans) for part in (span // 2, span - span // 2)]
            index = torch.constant_pad_nd(
                torch.arange(BATCH * channels * height * width).view(BATCH, channels, height, width), pads, -1
            )
            source = walk.key_of_value(node, _Value(source, tuple(index.shape), index))
            spans = [0, 0]
        padding = tuple(span // 2 for span in spans)
    else:
        padding = _sizes(padding, rank, 0)
    op = ir.Convolution(
        walk.keep(node, "weight", kernel, a["weight"]),
        None if bias is None else walk.keep(node, "bias", bias, a["bias"]),
        tuple(kernel.shape),
        stride,
        padding,
        dilation,
        a["groups"],
    )
    out = walk.per_image(node)
    walk.emit(node, op, source, shape=out if rank == 2 else (out[0], 1, out[1]))


def _linear(
    walk: _Walk, node: fx.Node, source: fx.Node, weight: Tensor, bias: Any, names: tuple[Any, Any]
) -> None:
    bias = walk.constant(bias)
    bias = None if bias is None else bias.expand(weight.shape[0])
    op = ir.Linear(
        walk.keep(node, "weight", weight, names[0]),
        None if bias is None else walk.keep(node, "bias", bias, names[1]),
        (weight.shape[0], weight.shape[1]),
    )
    walk.emit(node, op, walk.key_of(source))


@lowers(aten.linear.default)
def _plain_linear(walk: _Walk, node: fx.Node) -> None:
    a = walk.arguments(node)
    if walk.is_value(a["weight"]):
        raise walk.refuse(node, _TWO_SECRETS)
    _linear(walk, node, a["input"], walk.constant(a["weight"]), a["bias"], (a["weight"], a["bias"]))


@lowers(aten.addmm.default)
def _addmm(walk: _Walk, node: fx.Node) -> None:
    a = walk.arguments(node)
    if walk.is_value(a["mat2"]) or walk.is_value(a["self"]) or a["beta"] != 1 or a["alpha"] != 1:
        raise walk.refuse(node, _TWO_SECRETS)
    _linear(walk, node, a["mat1"], walk.constant(a["mat2"]).t().contiguous(), a["self"], (None, a["self"]))


@lowers(aten.mm.default, aten.matmul.default)
def _matmul(walk: _Walk, node: fx.Node) -> None:
    left, right = _operands(node)[:2]
    if walk.is_value(left) and walk.is_value(right):
        raise walk.refuse(node, _TWO_SECRETS)
    if walk.is_value(right) or walk.constant(right).dim() != 2:
        raise walk.refuse(node, "multiplies by a matrix in a form that is not lowered; use nn.Linear")
    _linear(walk, node, left, walk.constant(right).t().contiguous(), None, (None, None))


_TWO_SECRETS = (
    "multiplies two computed matrices (attention): this is out of scope, as parties here run convolutional "
    "networks; use convolutions or linear layers"
)


@lowers(*_packet("bmm", "baddbmm", "scaled_dot_product_attention"))
def _attention(walk: _Walk, node: fx.Node) -> None:
    raise walk.refuse(node, _TWO_SECRETS)


@lowers(
    *_packet("softmax", "_softmax", "log_softmax", "_log_softmax", "_safe_softmax"),
    *_packet("layer_norm", "native_layer_norm", "group_norm", "native_group_norm", "instance_norm"),
    *_packet("rms_norm", "var", "std", "var_mean", "std_mean", "norm", "linalg_vector_norm"),
)
def _out_of_scope(walk: _Walk, node: fx.Node) -> None:
    name = str(node.target).split(".")[1].strip("_")
    remedy = "return the logits" if "softmax" in name else "train with BatchNorm, which folds away"
    raise walk.refuse(node, f"is out of scope: {name} divides by what it computes from a secret; {remedy}")


# Scale and shift with stored tensors.


def _row(walk: _Walk, node: fx.Node, stored: Any) -> Tensor:
    """Returns a stored tensor with the dimensions of one image's value; refuses one entry for each image."""
    rank = len(node.meta["val"].shape)
    tensor = stored if isinstance(stored, Tensor) else torch.tensor(float(stored), dtype=torch.float64)
    tensor = tensor.reshape((1,) * (rank - tensor.dim()) + tuple(tensor.shape)).double()
    if tensor.shape[0] != 1:
        if not _equal(tensor, tensor[:1].expand_as(tensor)):
            raise walk.refuse(
                node,
                f"uses a stored tensor of shape {list(tensor.shape)}, one part an image; store it for one",
            )
        tensor = tensor[:1]
    return tensor[0]


def _scaled(
    walk: _Walk, node: fx.Node, source: fx.Node, scale: Any, shift: Any, names: tuple[Any, Any] = (None, None)
) -> None:
    """Emits `x * scale + shift`, folded into the layer before it if that layer has no other use.

    Either may be None. Without such a layer a scale of channels is a 1x1 depthwise convolution, and any other
    scale is an `Affine`. A shift alone is free.
    """
    scale = None if scale is None else _row(walk, node, scale)
    shift = None if shift is None else _row(walk, node, shift)
    out = tuple(node.meta["val"].shape)
    value = walk.known[source]
    if value.shape != out:
        index = walk.index_of(value).expand(out)
        value = _Value(value.key, out, index)
    elif _folded(walk, node, source, scale, shift):
        return
    key = walk.key_of_value(node, value)
    shape = walk.shape_of(key)
    if scale is None:
        shift = _trimmed(shift)
        walk.emit(node, ir.Shift(walk.keep(node, "shift", shift, names[1]), tuple(shift.shape)), key)
        return
    parts = [part for part in (scale, shift) if part is not None]
    op: ir.Operator
    if (
        len(shape) == 3
        and out[0] == BATCH
        and all(part.shape[1:] == (1, 1) for part in parts)
        and scale.numel() > 1
    ):
        weight = scale.expand(shape[0], 1, 1).reshape(-1, 1, 1, 1)
        bias = None if shift is None else shift.expand(shape[0], 1, 1).reshape(-1)
        op = ir.Convolution(
            walk.keep(node, "weight", weight.contiguous()),
            None if bias is None else walk.keep(node, "bias", bias.contiguous()),
            tuple(weight.shape),
            groups=shape[0],
        )
    else:
        joint: Any = torch.broadcast_shapes  # torch leaves it untyped
        common_shape = joint(*(part.shape for part in parts))
        common = _trimmed(torch.broadcast_to(scale, common_shape))
        bias = None if shift is None else shift.expand(common_shape)
        op = ir.Affine(
            walk.keep(node, "weight", common.contiguous(), names[0] if shift is None else None),
            None if bias is None else walk.keep(node, "bias", _trimmed(bias).contiguous()),
            tuple(common.shape),
        )
    walk.emit(node, op, key)


def _trimmed(tensor: Tensor) -> Tensor:
    """Drops leading dimensions of size 1, except the last dimension."""
    while tensor.dim() > 1 and tensor.shape[0] == 1:
        tensor = tensor[0]
    return tensor.reshape(1) if tensor.dim() == 0 else tensor


def _folded(walk: _Walk, node: fx.Node, source: fx.Node, scale: Tensor | None, shift: Tensor | None) -> bool:
    """Folds a scale and shift into the layer with this only use; returns whether it could."""
    step = walk.foldable(source)
    if step is None:
        return False
    op, rank = step.operator, len(walk.known[source].shape) - 1
    if isinstance(op, ir.Convolution | ir.Linear):
        channel = 0 if isinstance(op, ir.Convolution) else rank - 1
        outputs = op.weight_shape[0]
        rows = []
        for part in (scale, shift):
            if part is not None and any(size > 1 for dim, size in enumerate(part.shape) if dim != channel):
                return False
            rows.append(None if part is None else part.reshape(-1).expand(outputs))
        weight, bias = walk.weights[op.weight], None if op.bias is None else walk.weights[op.bias]
        if rows[0] is not None:
            weight = weight * rows[0].view(-1, *[1] * (weight.dim() - 1))
            bias = None if bias is None else bias * rows[0]
        if rows[1] is not None:
            bias = rows[1] if bias is None else bias + rows[1]
        names = (op.weight, op.bias or re.sub(r"weight(_\d+)?$", "", op.weight) + "bias")
        op = replace(
            op,
            weight=_refreshed(walk, step, names[0], weight),
            bias=None if bias is None else _refreshed(walk, step, names[1], bias.contiguous()),
        )
    elif isinstance(op, ir.Shift) and scale is None and shift is not None:
        both = _trimmed(walk.weights[op.bias] + shift)
        op = ir.Shift(_refreshed(walk, step, op.bias, both), tuple(both.shape))
    else:
        return False
    walk.steps[step.name] = replace(step, operator=op)
    walk.known[node] = walk.known[source]
    return True


def _refreshed(walk: _Walk, step: ir.Step, name: str, tensor: Tensor) -> str:
    """Replaces a stored tensor that only `step` uses; gives it a new name if other steps use it."""
    shared = any(
        name in ir.stored_of(other.operator) for other in walk.steps.values() if other.name != step.name
    )
    if not shared:
        walk.weights.pop(name, None)
    number, wanted = 0, name
    while name in walk.weights:
        number += 1
        name = f"{wanted}_{number}"
    if not tensor.isfinite().all() or tensor.abs().max() >= VALUE_LIMIT:
        raise ExportError(
            f"{name}, with the scale and shift after it, holds NaN, infinity or more than 2^30; "
            "repair the weights or the statistics"
        )
    walk.weights[name] = tensor
    return name


_SCALED = (ir.Convolution, ir.Linear, ir.Shift)


@lowers(
    *_packet("batch_norm", "native_batch_norm", "_native_batch_norm_legit_no_training", "cudnn_batch_norm")
)
@lowers(*_packet("_native_batch_norm_legit", "_batch_norm_no_update", "_batch_norm_impl_index"))
def _batch_norm(walk: _Walk, node: fx.Node) -> None:
    a = walk.arguments(node)
    mean, variance = walk.constant(a.get("running_mean")), walk.constant(a.get("running_var"))
    if a.get("training") or mean is None:
        raise walk.refuse(
            node, "uses the statistics of the batch at hand; train it with track_running_stats=True"
        )
    weight, bias = walk.constant(a["weight"]), walk.constant(a["bias"])
    scale = (variance + a["eps"]).rsqrt() * (1.0 if weight is None else weight)
    shift = (0.0 if bias is None else bias) - mean * scale
    source = a["input"]
    rank = len(walk.known[source].shape)
    along = (-1, *[1] * (rank - 2))
    _scaled_known(walk, node, source, scale.view(along), shift.view(along))


def _scaled_known(walk: _Walk, node: fx.Node, source: fx.Node, scale: Tensor, shift: Tensor) -> None:
    """Emits a scale and shift for an operator that may return several results, with the value first."""
    if isinstance(node.meta["val"], tuple | list):
        node.meta = node.meta | {"val": node.meta["val"][0]}
    _scaled(walk, node, source, scale, shift)


# ReLU and activations made of ReLUs.


_RELUS = {aten.relu.default, aten.relu_.default}


@lowers(aten.relu.default)
def _relu(walk: _Walk, node: fx.Node) -> None:
    walk.emit(node, ir.Relu(), walk.key_of(_operands(node)[0]))


def _masked(walk: _Walk, node: fx.Node, source: fx.Node, mask: Tensor) -> None:
    """Emits a ReLU of `source` at the positions of a stored boolean mask, which broadcasts to it."""
    shape = walk.per_image(node)
    kept = _row(walk, node, mask.double()).bool().expand(shape).flatten().nonzero().flatten()
    if kept.numel() == 0:
        walk.alias(node, source)
    else:
        op = ir.Relu(None if kept.numel() == prod(shape) else kept.cpu().numpy())
        walk.emit(node, op, walk.key_of(source))


def _rectified_source(walk: _Walk, rectified: Any, plain: Any) -> bool:
    """Returns whether one argument is the ReLU of the other."""
    if not (walk.is_value(rectified) and walk.is_value(plain)):
        return False
    if rectified.target not in _RELUS:
        return False
    one, other = walk.known[rectified.args[0]], walk.known[plain]
    return one is other or (one.key == other.key and one.index is None and other.index is None)


@lowers(aten.where.self, aten.where.ScalarOther, aten.where.ScalarSelf)
def _where(walk: _Walk, node: fx.Node) -> None:
    condition, one, other = _operands(node)
    if walk.is_value(condition):
        raise walk.refuse(node, _SECRET_CHOICE)
    mask = walk.constant(condition)
    if _rectified_source(walk, one, other):
        _masked(walk, node, other, mask)
    elif _rectified_source(walk, other, one):
        _masked(walk, node, one, ~mask)
    else:
        shape = tuple(node.meta["val"].shape)
        values = [side for side in (one, other) if walk.is_value(side)]
        base, indices = _together(walk, node, list(dict.fromkeys(values)))
        sides = []
        for side in (one, other):
            stored = None if walk.is_value(side) else torch.as_tensor(walk.constant(side)).double()
            sides.append(indices[side] if stored is None else _absent(walk, node, stored))
        index = torch.where(mask, sides[0], sides[1])
        walk.known[node] = _Value(base, shape, index.expand(shape))


_SECRET_CHOICE = "chooses by a secret value; write it with relu, such as relu(x) - a * relu(-x)"


@lowers(*_packet("gt", "lt", "ge", "le", "eq", "ne", "sign", "sgn", "argmax", "topk", "sort"))
def _comparison(walk: _Walk, node: fx.Node) -> None:
    raise walk.refuse(node, _SECRET_CHOICE)


def _piecewise(walk: _Walk, node: fx.Node, source: fx.Node, op: ir.PiecewiseLinear) -> None:
    walk.emit(node, op, walk.key_of(source))


@lowers(*_packet("clamp", "clamp_min", "clamp_max", "hardtanh", "relu6", "clip"))
def _clamp(walk: _Walk, node: fx.Node) -> None:
    a = walk.arguments(node)
    low, high = a.get("min", a.get("min_val")), a.get("max", a.get("max_val"))
    if node.target is aten.relu6.default:
        low, high = 0.0, 6.0
    if any(isinstance(bound, fx.Node) for bound in (low, high)):
        raise walk.refuse(node, "clamps to tensors; clamp to numbers")
    # No value reaches a bound at 2^30 or beyond, such as infinity: that side is open.
    low = None if low is None or low <= -VALUE_LIMIT else float(low)
    high = None if high is None or high >= VALUE_LIMIT else float(high)
    bounds = [(low, 1.0)] if low is not None else []
    bounds += [(high, -1.0)] if high is not None else []
    if not bounds:
        walk.alias(node, a["self"])
        return
    if bounds == [(0.0, 1.0)]:
        walk.emit(node, ir.Relu(), walk.key_of(a["self"]))
        return
    slope, offset = (1.0, 0.0) if low is None else (0.0, low)
    knots, jumps = zip(*bounds, strict=True)
    _piecewise(walk, node, a["self"], ir.PiecewiseLinear(slope, knots, jumps, offset))


@lowers(aten.leaky_relu.default, aten.rrelu.default)
def _leaky(walk: _Walk, node: fx.Node) -> None:
    a = walk.arguments(node)
    slope = a["negative_slope"] if "negative_slope" in a else (a["lower"] + a["upper"]) / 2
    _piecewise(walk, node, a["self"], ir.PiecewiseLinear(slope, (0.0,), (1.0 - slope,)))


@lowers(aten.abs.default)
def _absolute(walk: _Walk, node: fx.Node) -> None:
    _piecewise(walk, node, _operands(node)[0], ir.PiecewiseLinear(-1.0, (0.0,), (2.0,)))


@lowers(
    aten.hardsigmoid.default, aten.sigmoid.default, aten.silu.default, aten.gelu.default, aten.tanh.default
)
def _smooth(walk: _Walk, node: fx.Node) -> None:
    curves = {"hardsigmoid": HARD_SIGMOID, "sigmoid": SIGMOID, "silu": SILU, "gelu": GELU, "tanh": TANH}
    _piecewise(walk, node, _operands(node)[0], curves[str(node.target).split(".")[1]])


@lowers(aten.hardswish.default)
def _hard_swish(walk: _Walk, node: fx.Node) -> None:
    x = walk.key_of(_operands(node)[0])
    gate = walk.step(node, HARD_SIGMOID, [x], walk.shape_of(x))
    walk.emit(node, ir.Multiply(), x, gate)


@lowers(aten.prelu.default)
def _prelu(walk: _Walk, node: fx.Node) -> None:
    """Emits `relu(x) + a (x - relu(x))` with secret slopes a."""
    source, slopes = _operands(node)
    x = walk.key_of(source)
    shape = walk.shape_of(x)
    positive = walk.step(node, ir.Relu(), [x], shape)
    negative = walk.step(node, ir.Combine((1.0, -1.0)), [x, positive], shape)
    slopes = walk.constant(slopes)
    walk.known[node] = _Value(negative, tuple(node.meta["val"].shape))
    rank = len(node.meta["val"].shape)
    _scaled_of(walk, node, negative, slopes.view(-1, *[1] * (rank - 2)))
    scaled = walk.known[node].key
    walk.emit(node, ir.Add(), positive, scaled)


def _scaled_of(walk: _Walk, node: fx.Node, key: str, scale: Tensor) -> None:
    """Emits the product of stored numbers and a value that belongs to no node."""
    shape = walk.shape_of(key)
    if len(shape) == 3 and scale.numel() > 1:
        weight = scale.reshape(-1, 1, 1, 1)
        name = walk.keep(node, "weight", weight)
        walk.emit(node, ir.Convolution(name, None, (weight.shape[0], 1, 1, 1), groups=shape[0]), key)
    else:
        row = _trimmed(scale)
        walk.emit(node, ir.Affine(walk.keep(node, "weight", row), None, tuple(row.shape)), key)


# Pooling.


@dataclass(frozen=True)
class _Axis:
    """The windows along one axis: the positions that each one reads (-1 for padding), and its divisor."""

    positions: list[list[int]]
    counts: list[int]


def _axis(size: int, out: int, kernel: int, stride: int, padding: int, dilation: int, padded: bool) -> _Axis:
    """Returns the windows of a pooling.

    With `padded` they count padding up to the padded edge, as torch does.
    """
    positions, counts = [], []
    for i in range(out):
        start = i * stride - padding
        read = [start + j * dilation for j in range(kernel)]
        positions.append([at if 0 <= at < size else -1 for at in read])
        inside = sum(at >= 0 for at in positions[-1])
        counts.append(min(start + kernel, size + padding) - start if padded else inside)
    return _Axis(positions, counts)


def _adaptive_axis(size: int, out: int) -> _Axis:
    """Returns the windows of an adaptive pooling: floor(i S / s) up to ceil((i + 1) S / s)."""
    spans = [range(i * size // out, -(-(i + 1) * size // out)) for i in range(out)]
    longest = max(map(len, spans))
    return _Axis([[*span] + [-1] * (longest - len(span)) for span in spans], list(map(len, spans)))


def _windows(walk: _Walk, node: fx.Node, source: str, axes: tuple[_Axis, _Axis], repeat: bool) -> str:
    """Emits the elements of all windows [C, h, w, k]; a gap in a window is 0, or with `repeat` a copy."""
    channels, height, width = walk.shape_of(source)
    filled = []
    for axis in axes:
        positions = axis.positions
        if repeat:
            positions = [[at if at >= 0 else max(row) for at in row] for row in positions]
        filled.append(torch.tensor(positions))
    rows, columns = filled
    at = rows[:, None, :, None] * width + columns[None, :, None, :]
    at = torch.where((rows[:, None, :, None] < 0) | (columns[None, :, None, :] < 0), -1, at).flatten(2)
    index = at[None] + torch.arange(channels).view(-1, 1, 1, 1) * height * width
    index = torch.where(at[None] < 0, -1, index)
    return walk.step(node, ir.Rearrange(tuple(index.shape), index.flatten().numpy()), [source], index.shape)


def _averaged(
    walk: _Walk, node: fx.Node, source: str, axes: tuple[_Axis, _Axis], divisor: int | None
) -> None:
    """Emits an average over windows with different divisors."""
    windows = _windows(walk, node, source, axes, repeat=False)
    shape = walk.shape_of(windows)[:3]
    total = walk.step(node, ir.Sum((4,), False), [windows], shape)
    rows, columns = (torch.tensor(axis.counts, dtype=torch.float64) for axis in axes)
    factors = 1.0 / (rows[:, None] * columns) if divisor is None else torch.full(shape[1:], 1.0 / divisor)
    walk.emit(node, ir.Weigh(factors.double().numpy()), total, shape=shape)


def _largest(walk: _Walk, node: fx.Node, source: str, axes: tuple[_Axis, _Axis]) -> None:
    """Emits a maximum over windows of different sizes."""
    windows = _windows(walk, node, source, axes, repeat=True)
    channels, height, width, window = walk.shape_of(windows)
    rows = walk.step(
        node, ir.Rearrange((channels, height * width, window)), [windows], (channels, height * width, window)
    )
    walk.emit(node, ir.MaxPool((1, window), (1, window)), rows, shape=(channels, height * width, 1))


def _outputs(node: fx.Node) -> tuple[int, int]:
    """Returns the height and width of a pooling's output; a signal has one row."""
    value = node.meta["val"]
    shape = (value[0] if isinstance(value, tuple | list) else value).shape
    return (1, shape[-1]) if _rank(node) == 1 else tuple(shape[-2:])


def _emit_pool(walk: _Walk, node: fx.Node, op: ir.Operator, source: str) -> None:
    channels = walk.shape_of(source)[0]
    walk.emit(node, op, source, shape=(channels, *_outputs(node)))


@lowers(*_packet("avg_pool1d", "avg_pool2d"))
def _avg_pool(walk: _Walk, node: fx.Node) -> None:
    a = walk.arguments(node)
    rank = _rank(node)
    source, (_, _, *sizes) = _maps(walk, node, a["self"], rank)
    kernel = _sizes(a["kernel_size"], rank, 1)
    stride, padding = _sizes(a["stride"] or a["kernel_size"], rank, 1), _sizes(a["padding"], rank, 0)
    out = _outputs(node)
    plain = all(
        (size + 2 * p - k) // s + 1 == o
        for size, p, k, s, o in zip(sizes, padding, kernel, stride, out, strict=True)
    )
    divisor = a.get("divisor_override")
    included = a["count_include_pad"] or not any(padding)
    if plain and included and divisor in (None, prod(kernel)):
        _emit_pool(walk, node, ir.AveragePool(kernel, stride, padding), source)
        return
    axes = tuple(
        _axis(size, o, k, s, p, 1, a["count_include_pad"])
        for size, o, k, s, p in zip(sizes, out, kernel, stride, padding, strict=True)
    )
    _averaged(walk, node, source, cast(tuple[_Axis, _Axis], axes), divisor)


@lowers(*_packet("max_pool1d", "max_pool2d", "max_pool2d_with_indices", "max_pool1d_with_indices"))
def _max_pool(walk: _Walk, node: fx.Node) -> None:
    a = walk.arguments(node)
    rank = _rank(node)
    source, (_, _, *sizes) = _maps(walk, node, a["self"], rank)
    kernel, dilation = _sizes(a["kernel_size"], rank, 1), _sizes(a["dilation"], rank, 1)
    stride, padding = _sizes(a["stride"] or a["kernel_size"], rank, 1), _sizes(a["padding"], rank, 0)
    out = _outputs(node)
    numbers = list(zip(sizes, out, kernel, stride, padding, dilation, strict=True))
    if all((size + 2 * p - d * (k - 1) - 1) // s + 1 == o for size, o, k, s, p, d in numbers):
        op = ir.MaxPool(kernel, stride, padding, dilation)
        walk.emit_first(node, op, source, (walk.shape_of(source)[0], *out))
        return
    axes = tuple(_axis(size, o, k, s, p, d, False) for size, o, k, s, p, d in numbers)
    _largest_first(walk, node, source, cast(tuple[_Axis, _Axis], axes))


def _largest_first(walk: _Walk, node: fx.Node, source: str, axes: tuple[_Axis, _Axis]) -> None:
    if isinstance(node.meta["val"], tuple | list):
        node.meta = node.meta | {"val": node.meta["val"][0]}
    _largest(walk, node, source, axes)


def _adaptive_axes(walk: _Walk, node: fx.Node, sizes: Sequence[int]) -> tuple[int, int] | tuple[_Axis, _Axis]:
    """Returns the window of an adaptive pooling if all have one size, else the windows of both axes."""
    out = _outputs(node)
    if all(size % wanted == 0 for size, wanted in zip(sizes, out, strict=True)):
        return sizes[0] // out[0], sizes[1] // out[1]
    return _adaptive_axis(sizes[0], out[0]), _adaptive_axis(sizes[1], out[1])


@lowers(*_packet("adaptive_avg_pool1d", "adaptive_avg_pool2d", "_adaptive_avg_pool2d"))
def _adaptive_avg_pool(walk: _Walk, node: fx.Node) -> None:
    source, (_, _, *sizes) = _maps(walk, node, _operands(node)[0], _rank(node))
    axes = _adaptive_axes(walk, node, sizes)
    if isinstance(axes[0], int):
        _emit_pool(walk, node, ir.AveragePool(axes, axes), source)
    else:
        _averaged(walk, node, source, axes, None)


@lowers(*_packet("adaptive_max_pool1d", "adaptive_max_pool2d"))
def _adaptive_max_pool(walk: _Walk, node: fx.Node) -> None:
    source, (_, channels, *sizes) = _maps(walk, node, _operands(node)[0], _rank(node))
    axes = _adaptive_axes(walk, node, sizes)
    if isinstance(axes[0], int):
        walk.emit_first(node, ir.MaxPool(axes, axes), source, (channels, *_outputs(node)))
    else:
        _largest_first(walk, node, source, axes)


def _dims(walk: _Walk, node: fx.Node, source: fx.Node, dims: Any) -> tuple[int, ...]:
    shape = walk.known[source].shape
    dims = (dims,) if isinstance(dims, int) else tuple(dims or ())
    dims = tuple(sorted(dim % len(shape) for dim in dims)) if dims else (0,)
    if 0 in dims or shape[0] != BATCH:
        raise walk.refuse(
            node, f"{_VERBS[str(node.target).split('.')[1]]} the batch; name the other dimensions"
        )
    return tuple(dims)


_VERBS = {
    "mean": "averages over",
    "sum": "sums over",
    "amax": "takes the maximum over",
    "max": "takes the maximum over",
}


@lowers(aten.mean.dim, aten.mean.default)
def _mean(walk: _Walk, node: fx.Node) -> None:
    a = walk.arguments(node)
    dims = _dims(walk, node, a["self"], a.get("dim"))
    walk.emit(node, ir.Mean(dims, bool(a.get("keepdim"))), walk.key_of(a["self"]))


@lowers(aten.sum.dim_IntList, aten.sum.default)
def _sum(walk: _Walk, node: fx.Node) -> None:
    a = walk.arguments(node)
    dims = _dims(walk, node, a["self"], a.get("dim"))
    walk.emit(node, ir.Sum(dims, bool(a.get("keepdim"))), walk.key_of(a["self"]))


@lowers(aten.amax.default, aten.max.dim, aten.max.default)
def _amax(walk: _Walk, node: fx.Node) -> None:
    """Emits the maximum over dimensions, which become the columns of one pooling."""
    a = walk.arguments(node)
    dims = _dims(walk, node, a["self"], a.get("dim"))
    value = walk.known[a["self"]]
    rest = [dim for dim in range(1, len(value.shape)) if dim not in dims]
    window = prod(value.shape[dim] for dim in dims)
    rows = prod(value.shape[dim] for dim in rest)
    index = walk.index_of(value).permute(0, *rest, *dims).reshape(BATCH, rows, 1, window)
    source = walk.key_of_value(node, _Value(value.key, tuple(index.shape), index))
    walk.emit_first(node, ir.MaxPool((1, window), (1, window)), source, (rows, 1, 1))


# Arithmetic.


def _broadcast(walk: _Walk, node: fx.Node, source: fx.Node) -> str:
    """Returns a value repeated to the shape of `node`."""
    value, shape = walk.known[source], tuple(node.meta["val"].shape)
    if value.shape == shape:
        return walk.key_of(source)
    return walk.key_of_value(node, _Value(value.key, shape, walk.index_of(value).expand(shape)))


@lowers(*_packet("add", "sub", "subtract"), aten.rsub.Scalar, aten.rsub.Tensor)
def _add(walk: _Walk, node: fx.Node) -> None:
    a = walk.arguments(node)
    left, right, alpha = a["self"], a["other"], a["alpha"]
    signs = [1.0, float(alpha)]
    name = _operator(node)._schema.name
    if name.endswith(("sub", "subtract")):
        signs = [-float(alpha), 1.0] if "rsub" in name else [1.0, -float(alpha)]
    if walk.is_value(left) and walk.is_value(right):
        if signs == [1.0, 1.0] and _masked_sum(walk, node, left, right):
            return
        keys = [_broadcast(walk, node, side) for side in (left, right)]
        walk.emit(node, ir.Add() if signs == [1.0, 1.0] else ir.Combine(tuple(signs)), *keys)
        return
    value, sign, stored, factor = (left, signs[0], right, signs[1])
    if walk.is_value(right):
        value, sign, stored, factor = (right, signs[1], left, signs[0])
    constant = walk.constant(stored)
    shift = constant * factor
    if (
        not torch.as_tensor(shift).any()
        and sign == 1.0
        and walk.known[value].shape == tuple(node.meta["val"].shape)
    ):
        walk.alias(node, value)
    elif sign == 1.0:
        _scaled(walk, node, value, None, shift, (None, stored if factor == 1.0 else None))
    else:
        key = walk.step(node, ir.Combine((sign,)), [_broadcast(walk, node, value)], walk.per_image(node))
        row = _trimmed(_row(walk, node, shift))
        walk.emit(node, ir.Shift(walk.keep(node, "shift", row), tuple(row.shape)), key)


def _masked_sum(walk: _Walk, node: fx.Node, left: fx.Node, right: fx.Node) -> bool:
    """Lowers `m relu(x) + (1 - m) x` and `x + m (relu(x) - x)` with a stored 0/1 mask to a masked ReLU."""
    for one, other in ((left, right), (right, left)):
        gated, plain = _gated(walk, one), _gated(walk, other)
        if gated is None:
            continue
        mask, rectified = gated
        if plain is not None and _rectified_source(walk, rectified, plain[1]):
            joint: Any = torch.broadcast_tensors  # torch leaves it untyped
            if not torch.equal(*joint(mask, 1.0 - plain[0])):
                continue
            _masked(walk, node, plain[1], mask)
            return True
        if rectified.target is aten.sub.Tensor and len(rectified.args) == 2:
            above, below = _operands(rectified)
            if _rectified_source(walk, above, below) and walk.known[below] is walk.known[other]:
                _masked(walk, node, other, mask)
                return True
    return False


def _gated(walk: _Walk, node: fx.Node) -> tuple[Tensor, fx.Node] | None:
    """Returns the mask and the value of a product with a stored tensor of zeros and ones."""
    if node.target is not aten.mul.Tensor:
        return None
    for mask, value in (_operands(node), _operands(node)[::-1]):
        if walk.is_value(value) and isinstance(mask, fx.Node) and isinstance(walk.known[mask], Tensor):
            stored = walk.known[mask].double()
            if ((stored == 0) | (stored == 1)).all():
                return stored, value
    return None


@lowers(aten.neg.default)
def _negative(walk: _Walk, node: fx.Node) -> None:
    walk.emit(node, ir.Combine((-1.0,)), walk.key_of(_operands(node)[0]))


@lowers(*_packet("mul", "multiply"))
def _multiply(walk: _Walk, node: fx.Node) -> None:
    left, right = _operands(node)[:2]
    if not walk.is_value(left):
        left, right = right, left
    if not walk.is_value(right):
        _by_constant(walk, node, left, walk.constant(right), right)
        return
    one, other = walk.known[left], walk.known[right]
    if one is other or (one.key == other.key and one.index is None and other.index is None):
        walk.emit(node, ir.Square(), walk.key_of(left))
        return
    shape = tuple(node.meta["val"].shape)
    if one.shape != shape:
        left, right = right, left
    x = _broadcast(walk, node, left)
    y = walk.known[right]
    small = (
        y.shape
        if len(y.shape) == len(shape)
        else (y.shape[0], *[1] * (len(shape) - len(y.shape)), *y.shape[1:])
    )
    if y.shape[0] != shape[0] or len(y.shape) != len(shape):
        walk.emit(node, ir.Multiply(), x, _broadcast(walk, node, right))
    else:
        walk.emit(node, ir.Multiply(), x, walk.key_of(right, small[1:] if shape[0] == BATCH else None))


def _by_constant(walk: _Walk, node: fx.Node, value: fx.Node, factor: Any, name: Any = None) -> None:
    """Emits the product with a number, which is public, or with a stored tensor, which is secret."""
    if isinstance(factor, int | float):
        walk.emit(node, ir.Scale(float(factor)), walk.key_of(value))
    elif not isinstance(factor, Tensor):
        raise walk.refuse(node, "multiplies by something that is neither a number nor a tensor")
    elif factor.dim() and ((factor == 0) | (factor == 1)).all():
        row = _row(walk, node, factor.double())
        if not _kept_alone(walk, node, value, row):
            walk.emit(node, ir.Weigh(_trimmed(row).numpy()), _broadcast(walk, node, value))
    else:
        _scaled(walk, node, value, factor, None, (name, None))


def _kept_alone(walk: _Walk, node: fx.Node, source: fx.Node, mask: Tensor) -> bool:
    """Lowers `m * relu(x)` with a ReLU that is evaluated where m is 1 alone; returns whether it could.

    These elements are picked out, rectified and put back between zeros. An engine then sends nothing for the
    others, which it would have to truncate.
    """
    value, shape = walk.known[source], walk.per_image(node)
    step = walk.steps.get(value.key)
    if step is None or value.index is not None or len(source.users) != 1:
        return False
    if not isinstance(step.operator, ir.Relu) or step.operator.kept is None or step.shape != shape:
        return False
    kept = torch.from_numpy(step.operator.kept)
    if not torch.equal(mask.expand(shape).flatten().nonzero().flatten(), kept):
        return False
    count = (len(kept),)
    picked = walk.step(node, ir.Rearrange(count, step.operator.kept), step.inputs, count)
    rectified = walk.step(node, ir.Relu(), [picked], count)
    index = torch.full((prod(shape),), -1)
    index[kept] = torch.arange(len(kept))
    walk.emit(node, ir.Rearrange(shape, index.numpy()), rectified)
    return True


@lowers(*_packet("div", "divide", "true_divide"))
def _divide(walk: _Walk, node: fx.Node) -> None:
    a = walk.arguments(node)
    if walk.is_value(a["other"]):
        raise walk.refuse(node, "divides by a secret value, which is out of scope; divide by a number")
    if a.get("rounding_mode"):
        raise walk.refuse(node, "rounds what it divides; divide without rounding_mode")
    divisor = walk.constant(a["other"])
    if isinstance(divisor, int | float) and not divisor:
        raise walk.refuse(node, "divides by 0; divide by another number")
    _by_constant(walk, node, a["self"], 1.0 / divisor)


@lowers(*_packet("reciprocal", "rdiv", "rsqrt", "sqrt", "exp", "log"))
def _secret_function(walk: _Walk, node: fx.Node) -> None:
    raise walk.refuse(node, "is out of scope on a secret value; use ReLUs, products and sums")


@lowers(*_packet("square"), aten.pow.Tensor_Scalar)
def _power(walk: _Walk, node: fx.Node) -> None:
    exponent = walk.arguments(node).get("exponent", 2)
    if exponent not in (1, 2, 3, 4, 8):
        raise walk.refuse(node, f"raises to the power {exponent}; only powers 2, 3, 4 and 8 are lowered")
    x = walk.key_of(_operands(node)[0])
    shape = walk.shape_of(x)
    if exponent == 1:
        walk.alias(node, _operands(node)[0])
    elif exponent == 3:
        walk.emit(node, ir.Multiply(), x, walk.step(node, ir.Square(), [x], shape))
    else:
        for _ in range(int(math.log2(exponent)) - 1):
            x = walk.step(node, ir.Square(), [x], shape)
        walk.emit(node, ir.Square(), x)


@lowers(*_packet("maximum", "minimum"), aten.max.other, aten.min.other)
def _maximum(walk: _Walk, node: fx.Node) -> None:
    """Emits `max(x, y) = y + relu(x - y)` or `min(x, y) = x - relu(x - y)`."""
    left, right = _operands(node)
    if not (walk.is_value(left) and walk.is_value(right)):
        raise walk.refuse(node, "compares with a stored tensor; use clamp with a number")
    x, y = _broadcast(walk, node, left), _broadcast(walk, node, right)
    shape = walk.per_image(node)
    above = walk.step(node, ir.Combine((1.0, -1.0)), [x, y], shape)
    positive = walk.step(node, ir.Relu(), [above], shape)
    least = "min" in _operator(node)._schema.name
    walk.emit(node, ir.Combine((1.0, -1.0)), x, positive) if least else walk.emit(node, ir.Add(), y, positive)
