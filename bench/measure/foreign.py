"""Makes a user's own network in a separate process: `python -P -m pibench.measure.foreign NAME FILE`.

The process starts in the user's folder. The user's modules are imported only there, under their own names, so
that a user's `models` or `data` never meets another process. It hands over the network's graph: torch.nn's
modules and torch's functions. The reader of the file makes nothing else.
"""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import pickle
import sys
import traceback
import warnings
from pathlib import Path
from types import ModuleType
from typing import Any, BinaryIO

import torch
from torch import fx, nn
from torch.utils import _pytree as pytree

from pibench.links.lifeline import end_with_parent
from pibench.models.graph.moves import trace

KNOWN = ("torch", "pibench.models.graph", "collections", "_operator", "operator", "math")
"""The modules whose names a handed-over network may bear."""
BATCH = 5
"""Images of the batch that is exported: few networks have a size of 5 of their own."""
REFUSED = ("torch.hub", "torch.utils.cpp_extension", "torch.package", "torch.serialization")


class ForeignError(ValueError):
    """Raised when a user's code does not give a network, or gives one that cannot be handed over."""


class _Unpickler(pickle.Unpickler):
    """Makes the parts of a graph of torch's own modules and functions; refuses every other name."""

    def find_class(self, module: str, name: str) -> Any:
        inside = any(module == known or module.startswith(f"{known}.") for known in KNOWN)
        if (module, name) == ("builtins", "getattr") or (module, name) == ("builtins", "set"):
            return super().find_class(module, name)
        if not inside or module.startswith(REFUSED):
            raise pickle.UnpicklingError(f"{module}.{name} is no part of torch")
        return super().find_class(module, name)


def read_network(path: Path) -> tuple[nn.Module, tuple[int, ...] | None]:
    """Reads a network from a file of torch.export (`.pt2`) or one that `main` wrote.

    Returns it with the shape of one input, or None if the network does not state it. Raises ForeignError for
    a file that is neither.
    """
    if path.suffix == ".pt2":
        return _read_exported(path)
    with path.open("rb") as file:
        return _read_handed(file)


def _read_handed(file: BinaryIO) -> tuple[nn.Module, tuple[int, ...] | None]:
    try:
        handed = _Unpickler(file).load()
    except pickle.UnpicklingError as error:
        raise ForeignError(f"the network cannot be handed over: {error}") from error
    return handed["network"], handed["shape"]


def _read_exported(path: Path) -> tuple[nn.Module, tuple[int, ...] | None]:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch's own warning about its file format
            exported = torch.export.load(path)
        inputs = exported.example_inputs[0]
    except Exception as error:  # torch promises no type
        raise ForeignError(
            f"{path.name} is no file of torch.export.save: {str(error).splitlines()[0]}"
        ) from error
    if len(inputs) != 1:
        raise ForeignError(f"{path.name} takes {len(inputs)} inputs: export a network that takes one")
    module = exported.module(check_guards=False)  # a batch of any size
    graph = module.graph
    graph.set_codegen(fx.graph.CodeGen())  # a plain function of one tensor
    final = next(node for node in graph.nodes if node.op == "output")
    final.args = (pytree.tree_unflatten(list(final.args[0]), exported.call_spec.out_spec),)
    return fx.GraphModule(module, graph), tuple(inputs[0].shape[1:])


def imported(place: str) -> ModuleType:
    """Imports a module of the user's, by its dotted name or by the path of its file."""
    if not place.endswith(".py"):
        return importlib.import_module(place)
    path = Path(place).resolve()
    sys.path.insert(1, str(path.parent))
    spec = importlib.util.spec_from_file_location(path.stem, path)
    if spec is None or spec.loader is None:
        raise ForeignError(f"{place} is no Python file")
    module = importlib.util.module_from_spec(spec)
    sys.modules[path.stem] = module
    spec.loader.exec_module(module)
    return module


def made_by(name: str) -> nn.Module:
    """Returns the network of `module:factory`: a module, or the result of a function without arguments."""
    place, _, attribute = name.partition(":")
    found: Any = imported(place)
    for part in attribute.split("."):
        if not hasattr(found, part):
            import difflib

            close = difflib.get_close_matches(part, dir(found), n=1)
            hint = f" (did you mean {close[0]!r}?)" if close else ""
            raise ForeignError(f"{place} has no {part!r}{hint}")
        found = getattr(found, part)
    if not isinstance(found, nn.Module) and callable(found):
        needed = [
            parameter.name
            for parameter in inspect.signature(found).parameters.values()
            if parameter.default is parameter.empty
            and parameter.kind not in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD)
        ]
        if needed:
            raise ForeignError(
                f"{attribute} needs {', '.join(needed)}: name a function without arguments that calls it"
            )
        torch.manual_seed(0)
        found = found()
    if not isinstance(found, nn.Module):
        raise ForeignError(f"{name} gives a {type(found).__name__}: it must give a torch.nn.Module")
    return found


def shape_said(model: nn.Module) -> tuple[int, ...] | None:
    """Returns the shape of one input if a network states it as timm and Lightning do, else None."""
    said = getattr(model, "pretrained_cfg", None)
    if isinstance(said, dict) and said.get("input_size"):
        return tuple(said["input_size"])
    example = getattr(model, "example_input_array", None)
    return tuple(example.shape[1:]) if isinstance(example, torch.Tensor) else None


def hand_over(model: nn.Module, shape: tuple[int, ...] | None, path: Path) -> None:
    """Writes a network to `path` as a traced graph, or by torch.export if one input's `shape` is known."""
    try:
        graph = trace(model)
        for node in graph.graph.nodes:
            node.meta = {}  # traces of the user's code
        with path.open("wb") as file:
            pickle.dump({"network": fx.GraphModule(graph, graph.graph), "shape": shape_said(model)}, file)
        with path.open("rb") as file:
            _read_handed(file)
    except Exception:  # control flow by shapes, hooks, functions of the user's own
        path.unlink(missing_ok=True)
        if shape is None:
            raise
        images = torch.zeros(BATCH, *shape)
        batch = ({0: torch.export.Dim.AUTO},)
        torch.export.save(
            torch.export.export(model, (images,), dynamic_shapes=batch), path.with_suffix(".pt2")
        )


def main(name: str, path: str, *shape: str) -> int:
    """Writes the network to `path`; an error is the last line of standard error."""
    sys.path.insert(0, str(Path.cwd()))
    try:
        model = made_by(name).eval()
        hand_over(model, tuple(map(int, shape)) or shape_said(model), Path(path))
    except Exception as error:
        frames = [frame for frame in traceback.extract_tb(error.__traceback__) if _own(frame.filename)]
        where = f" (line {frames[-1].lineno} of {Path(frames[-1].filename).name})" if frames else ""
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        print(f"{reason}{where}", file=sys.stderr)
        return 1
    return 0


def _own(filename: str) -> bool:
    """Returns whether a line of a traceback is in the user's folder."""
    return Path(filename).resolve().is_relative_to(Path.cwd()) and "site-packages" not in filename


if __name__ == "__main__":
    end_with_parent()
    sys.exit(main(*sys.argv[1:]))
