"""Captures a torch network as a graph of ATen operators, by `torch.export`.

`capture` copies the network and exports it for a batch of `BATCH` images. It returns the graph with all
tensors that the network stores. torch decomposes the operators for which `pibench.program.lower` has no rule.
Shapes are constants in the graph, module paths are in its metadata, and no operator works in place. A network
that cannot be captured is refused in one sentence, which names the line of the network's own code.
"""

from __future__ import annotations

import copy
import linecache
import logging
import random
import traceback
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from torch import fx, nn
from torch._ops import OpOverload
from torch.export.graph_signature import InputKind
from torch.nn.utils import prune
from torch.utils import _pytree as pytree

from pibench.models.graph.moves import trace
from pibench.program.outputs import OutputError, choose, outputs_of

BATCH = 5
"""Images in the batch that is exported: a prime that few networks use as a size of their own."""


class ExportError(ValueError):
    """Raised when a node cannot be lowered; the text says which one, why, and what to do instead."""


@dataclass(frozen=True, eq=False)
class Captured:
    """A captured network: its nodes in order, its stored tensors, its input with its name, its chosen output.

    `stored` maps a node to its tensor (float64 if it holds floating-point numbers). `names` maps it to the
    name under which the network keeps the tensor.
    """

    nodes: tuple[fx.Node, ...]
    stored: dict[fx.Node, torch.Tensor]
    names: dict[fx.Node, str]
    input: fx.Node
    input_name: str
    output: fx.Node


def capture(
    model: nn.Module,
    example: torch.Tensor,
    known: Callable[[Any], bool],
    moves: Callable[[Any], bool],
    output: int | str | None = None,
) -> Captured:
    """Exports `model` for inputs shaped like `example` [N, ...].

    Operators that are not `known` are decomposed. With in-place operators in the network, those that `moves`
    selects are decomposed too, because they may return their argument itself. `output` chooses one of several
    outputs, by its number or its name. Raises ExportError for a network that cannot be exported. The model
    itself is never changed.
    """
    copied = copied_for_export(model)
    first = example[:1].to(torch.float64, copy=True)
    images = first.expand(BATCH, *first.shape[1:]).contiguous()
    with _described_failures(copied, example), _deterministic():
        exported = torch.export.export(copied, (images,))
        _erase_dropout(exported.graph)
        _write_out_of_place(exported.graph, moves)
        exported.graph_module.recompile()
        if not all(_is_plain(node, known) for node in exported.graph.nodes):
            table = torch.export.default_decompositions()
            for operator in [each for each in table if known(each) and not moves(each)]:
                del table[operator]
            exported = exported.run_decompositions(table)
    name = copied.input_name if isinstance(copied, _Stepwise) else None
    return _bound(exported, name, output)


@torch.no_grad()
def answer_of(model: nn.Module, images: torch.Tensor, output: int | str | None = None) -> torch.Tensor:
    """Returns what the network itself answers to `images` [N, ...] in float64, `output` of several.

    Raises ExportError if the network fails on them.
    """
    copied, images = copied_for_export(model), images.to("cpu", torch.float64)
    with _described_failures(copied, images):
        answer = copied(images)
    return choose(outputs_of(answer, torch.Tensor), output)


def plain(tensor: torch.Tensor, name: str) -> torch.Tensor:
    """Returns the numbers of a tensor: float64, on the CPU, without gradient or a class of its own.

    Raises ExportError, with the `name` of the tensor, for one that holds no numbers in rows.
    """
    if (reason := _obstacle(tensor)) is not None:
        raise ExportError(f"{name} {reason}")
    return _bare(tensor).to("cpu", torch.float64)


def _bare(tensor: torch.Tensor) -> torch.Tensor:
    """Returns a tensor without gradient or a class of its own, whose methods may return anything."""
    with torch._C.DisableTorchFunctionSubclass():
        return tensor.detach().as_subclass(torch.Tensor)


def _obstacle(tensor: torch.Tensor) -> str | None:
    """Returns why the numbers of a tensor cannot be read row by row, with the remedy; None if they can."""
    if nn.parameter.is_lazy(tensor):
        return "has no shape yet; run the network once on the example"
    if tensor.is_meta:
        return "is on the meta device and holds no numbers; load the numbers first"
    if tensor.is_nested or tensor.layout != torch.strided:
        kind = "nested" if tensor.is_nested else str(tensor.layout).removeprefix("torch.")
        return f"is no dense tensor ({kind}); make it dense, as .to_dense() does"
    if tensor.is_quantized:
        return "is quantised; give its numbers, as .dequantize() does"
    if type(tensor).__torch_dispatch__ is not torch.Tensor.__torch_dispatch__:
        return f"is a {type(tensor).__name__}, which computes in its own way; give a plain tensor"
    return None


def _demand_plain(model: nn.Module) -> None:
    """Raises ExportError for a scripted module, and for stored tensors without numbers in rows."""
    for path, module in model.named_modules():
        if isinstance(module, torch.jit.ScriptModule):
            what = f"module {path!r}" if path else "the network"
            raise ExportError(
                f"{what} is TorchScript, which cannot be captured; give the module from which it was made"
            )
        kept: dict[str, Any] = {**module._parameters, **module._buffers, **vars(module)}
        for name, tensor in kept.items():
            if isinstance(tensor, torch.Tensor) and (reason := _obstacle(tensor)) is not None:
                raise ExportError(f"the stored tensor {f'{path}.{name}'.lstrip('.')!r} {reason}")


def copied_for_export(model: nn.Module) -> nn.Module:
    """Returns a copy of `model` in float64 and in eval mode, without wrappers around it or its weights."""
    model = _unwrapped(model)
    _demand_plain(model)
    memo: dict[int, torch.Tensor] = {}
    for module in model.modules():
        # A weight that a hook computes is not a leaf, and torch copies only leaves.
        kept = [*vars(module).values(), *module._buffers.values()]
        memo |= {id(each): _bare(each).clone() for each in kept if isinstance(each, torch.Tensor)}
        for parameter in module._parameters.values():
            if parameter is not None and type(parameter) is not nn.Parameter:
                memo[id(parameter)] = nn.Parameter(_bare(parameter).clone(), requires_grad=False)
    try:
        copied = trace(model) if isinstance(model, fx.GraphModule) else copy.deepcopy(model, memo)
    except Exception as error:  # whatever the network's own way to be copied raises
        raise ExportError(
            f"the network cannot be copied ({_first_line(error)}); make it with plain modules and tensors"
        ) from error
    copied = copied.eval().cpu().double()
    for module in list(copied.modules()):
        _bake_weights(module)
        for name, child in list(module.named_children()):
            if (inner := _unwrapped(child)) is not child:
                setattr(module, name, inner)
    return _Stepwise(copied) if isinstance(copied, fx.GraphModule) else copied


def _unwrapped(model: nn.Module) -> nn.Module:
    """Returns the network inside DataParallel and `torch.compile`."""
    while True:
        if isinstance(model, nn.DataParallel | nn.parallel.DistributedDataParallel):
            model = model.module
        elif hasattr(model, "_orig_mod"):
            model = cast(nn.Module, model._orig_mod)  # torch.compile keeps the network there
        else:
            return model


def _bake_weights(module: nn.Module) -> None:
    """Replaces weights that a hook computes at each call by their present values.

    Parametrized weights are left to the export: removing them would change the class that copies share.
    """
    for hook in list(module._forward_pre_hooks.values()):
        name: Any = getattr(hook, "_tensor_name", getattr(hook, "name", None))
        if isinstance(hook, prune.BasePruningMethod):
            prune.remove(module, name)  # type: ignore[no-untyped-call]  # torch leaves it untyped
        elif type(hook).__name__ == "WeightNorm":
            nn.utils.remove_weight_norm(module, name)
        elif type(hook).__name__ == "SpectralNorm":
            nn.utils.remove_spectral_norm(module, name)


class _Stepwise(nn.Module):
    """Runs a `torch.fx` graph node by node, so that every exported part of a node has its name."""

    def __init__(self, graph: fx.GraphModule) -> None:
        super().__init__()
        self.traced = graph
        self.input_name = next(node.name for node in graph.graph.nodes if node.op == "placeholder")
        for node in graph.graph.nodes:
            node.meta["custom"] = {"step": node.name}

    def forward(self, *inputs: Any) -> Any:
        with fx.traceback.preserve_node_meta():
            return fx.Interpreter(self.traced).run(*inputs)


def is_inert_dropout(node: fx.Node) -> bool:
    """Returns whether a node is a dropout that is switched off: it returns its argument itself."""
    return "dropout" in str(node.target) and False in (*node.args, *node.kwargs.values())


def _erase_dropout(graph: fx.Graph) -> None:
    """Removes dropout that is switched off; torch would decompose it to a copy, which loses an alias."""
    for node in list(graph.nodes):
        if is_inert_dropout(node) and "native" not in str(node.target):
            node.replace_all_uses_with(node.args[0])
            graph.erase_node(node)


def _write_out_of_place(graph: fx.Graph, moves: Callable[[Any], bool]) -> None:
    """Writes `relu_(x)` as `relu(x)` where `x` is only an argument of this call.

    Later uses of the changed tensor already use the result. `x` has no other name: it was just computed and
    has no other use. torch decomposes all other in-place calls, which is slower.
    """
    for node in graph.nodes:
        schema = getattr(node.target, "_schema", None)
        if node.op != "call_function" or schema is None or not schema.is_mutable or not node.args:
            continue
        packet, overload = schema.name.removeprefix("aten::"), schema.overload_name or "default"
        plain = getattr(torch.ops.aten, packet.removesuffix("_"), None)
        changed = node.args[0]
        fresh = (
            isinstance(changed, fx.Node)
            and len(changed.users) == 1
            and changed.op == "call_function"
            and not any(argument.alias_info for argument in cast(OpOverload, changed.target)._schema.returns)
            and not moves(changed.target)
        )
        if packet.endswith("_") and overload in getattr(plain, "overloads", list)() and fresh:
            node.target = getattr(plain, overload)


def _is_plain(node: fx.Node, known: Callable[[Any], bool]) -> bool:
    """Returns whether a node of an exported graph needs no decomposition: it is known and not in place."""
    return node.op != "call_function" or known(node.target)


def _bound(
    exported: torch.export.ExportedProgram, input_name: str | None, output: int | str | None
) -> Captured:
    """Connects the nodes of an exported graph to the tensors that they stand for."""
    stored: dict[fx.Node, torch.Tensor] = {}
    names: dict[fx.Node, str] = {}
    inputs = []
    placeholders = {node.name: node for node in exported.graph.nodes if node.op == "placeholder"}
    for spec in exported.graph_signature.input_specs:
        node = placeholders[spec.arg.name]
        if spec.kind == InputKind.USER_INPUT:
            inputs.append(node)
            continue
        kept = exported.constants if spec.target in exported.constants else exported.state_dict
        value = kept[spec.target].detach()
        stored[node] = value.double() if value.is_floating_point() else value
        names[node] = spec.target.removeprefix("traced.")
    nodes = tuple(node for node in exported.graph.nodes if node.op not in ("placeholder", "output"))
    return Captured(nodes, stored, names, inputs[0], input_name or inputs[0].name, _chosen(exported, output))


def _chosen(exported: torch.export.ExportedProgram, output: int | str | None) -> fx.Node:
    """Returns the node of the chosen output."""
    final = next(node for node in exported.graph.nodes if node.op == "output").args[0]
    kinds = [spec.kind.name for spec in exported.graph_signature.output_specs]
    values = [value for value, kind in zip(final, kinds, strict=True) if kind == "USER_OUTPUT"]
    found = outputs_of(pytree.tree_unflatten(values, exported.call_spec.out_spec), fx.Node)
    if not found:
        raise ExportError("the network must return one tensor that depends on its input; return the logits")
    try:
        return choose(found, output)
    except OutputError as error:
        raise ExportError(str(error)) from error


@contextmanager
def _deterministic() -> Iterator[None]:
    """Raises ExportError if Python's or numpy's global generator is used: the export would freeze a draw."""
    before = random.getstate(), np.random.get_state()
    yield
    after = random.getstate(), np.random.get_state()
    if before[0] != after[0] or any(np.any(a != b) for a, b in zip(before[1], after[1], strict=True)):
        random.setstate(before[0])
        np.random.set_state(before[1])
        raise ExportError(
            "the network's forward draws random numbers, which would be frozen to one draw; "
            "draw only if self.training"
        )


@contextmanager
def _described_failures(copied: nn.Module, example: torch.Tensor) -> Iterator[None]:
    """Turns any error of a network, or of its export, into one sentence; torch's own log is not shown.

    `copied` is the network as it runs here, for inputs like `example` [N, ...].
    """
    loud = logging.getLogger("torch")
    level = loud.level
    loud.setLevel(logging.CRITICAL)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            try:
                yield
            except ExportError:
                raise
            except Exception as error:
                raise ExportError(_sentence(error, copied, example)) from error
    finally:
        loud.setLevel(level)


def _sentence(error: Exception, copied: nn.Module, example: torch.Tensor) -> str:
    """Returns a sentence: the line of the network's code at which the capture failed, why, and what to do."""
    where = own_line(traceback.extract_tb(error.__traceback__))
    reason, kind = _first_line(error), type(error).__name__
    if ("missing" in reason and "argument" in reason) or "too many positional" in reason:
        return (
            f"the network must take one input ({reason}); bind the others before the export, "
            "as functools.partial does, in a module whose forward takes the images alone"
        )
    if "DataDependent" in kind or "data-dependent" in str(error):
        return (
            f"{where} depends on values, which are secret; write it without a branch or .item(), "
            "with torch.where and a stored mask, or decide before the network is built"
        )
    if isinstance(error, OverflowError) or "Overflow when unpacking" in reason:
        return f"{where} uses a whole number beyond 2^63, and fixed point holds less than 2^30; rescale it"
    if "numpy" in reason or "FakeTensor" in reason or "fake tensor" in reason:
        return f"{where} leaves torch ({reason}); compute it by torch's own operators"
    own = _failure(copied, example)
    if own is None:
        return (
            f"{where} cannot be captured for a batch of {BATCH} ({kind}: {reason}); "
            "write it by plain operators of torch"
        )
    shape = list(example.shape)
    if len(shape) < 4 and _failure(copied, example[None]) is None:
        return (
            f"the network takes one image of shape {shape} and not a batch of that shape; "
            f"give images[None], of shape {[1, *shape]}"
        )
    where = own_line(traceback.extract_tb(own.__traceback__))
    return (
        f"{where} raises {type(own).__name__} ({_first_line(own)}): the network does not fit its input, "
        "or needs more than eval mode; make it run on such images first"
    )


@torch.no_grad()
def _failure(network: nn.Module, images: torch.Tensor) -> Exception | None:
    """Returns the error that a network raises on images, or None."""
    try:
        network(images.to(torch.float64))
    except Exception as error:
        return error
    return None


_FOREIGN = tuple(str(Path(root).resolve()) for root in (torch.__path__[0], Path(__file__).parent.parent))


def own_line(frames: list[traceback.FrameSummary]) -> str:
    """Returns the innermost line of a traceback outside torch and this package, with its code."""
    own = [
        frame
        for frame in frames
        if not frame.filename.startswith(("<", *_FOREIGN)) and f"{Path('/')}functorch" not in frame.filename
    ]
    if not own:
        return "the network"
    code = linecache.getline(own[-1].filename, own[-1].lineno or 0).strip()
    return f"line {own[-1].lineno} of {Path(own[-1].filename).name} ({code})"


def _first_line(error: Exception) -> str:
    return str(error).splitlines()[0] if str(error) else type(error).__name__
