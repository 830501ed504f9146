"""Trained weights on disk: safetensors files, listed with their SHA-256 in a manifest beside them.

A file holds the state of a finished network (BatchNorm folded, skips absorbed), including its masks. Its
header holds the decisions that made it (`pibench.models.decisions`): `load` builds the network from the file
alone. The header of older files holds only which ReLUs are whole or masked. The requested variant gives the
rest.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, fx, nn

from pibench.models.cost import relu_shapes
from pibench.models.decisions import Decisions, Step, tensor_name
from pibench.models.files import parse_json
from pibench.models.graph.moves import trace
from pibench.models.manifest import WeightsError, read_listed, replace_listed
from pibench.models.transforms import BY_NAME
from pibench.models.zoo import ZOO


@dataclass(frozen=True)
class Checkpoint:
    """The content of a weights file: tensors by name, and the decisions that made the network.

    An older file has no `decisions`; its `relus` map each remaining ReLU to its mask (True if whole).
    """

    path: Path
    tensors: Mapping[str, Tensor]
    decisions: Decisions | None = None
    relus: Mapping[str, Tensor | bool] = field(default_factory=dict)


def file_name(variant: str, width: int, network: str = "resnet18") -> str:
    """Returns the name of the weights file of a variant of a network (default: ResNet-18)."""
    return f"{variant}{'' if network == 'resnet18' else f'-{network}'}-w{width}.safetensors"


def save_weights(
    model: nn.Module,
    path: str | Path,
    decisions: Decisions | None = None,
    dtype: torch.dtype = torch.float16,
) -> None:
    """Writes a finished network and its decisions to `path`, and its SHA-256 to the manifest there.

    The default `decisions` are those in the `meta` of a network from `Variant.build`. Floating-point tensors
    are stored as `dtype`; masks stay boolean. A file appears complete or not at all.
    """
    path, graph = Path(path), trace(model)
    decisions = model.meta["decisions"] if decisions is None else decisions
    tensors = {
        name: (tensor.to(dtype) if tensor.is_floating_point() else tensor).detach().cpu().contiguous()
        for name, tensor in graph.state_dict().items()
    }
    if missing := sorted(decisions.tensors() - tensors.keys()):
        raise ValueError(f"the decisions name a tensor that the network has not: {missing[0]}")
    content = save(tensors, metadata={"decisions": decisions.to_json()})
    replace_listed(path, content, decisions.classes, decisions.image_size)


def read_weights(path: str | Path) -> Checkpoint:
    """Reads a weights file that its manifest lists.

    Raises WeightsError if it differs from the manifest, or holds a number that is not finite.
    """
    path = Path(path)
    read_listed(path)
    try:
        with safe_open(path, "pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a mapping)
            header = file.metadata() or {}
        for name, tensor in tensors.items():
            if tensor.is_floating_point() and not tensor.double().isfinite().all():
                raise ValueError(f"{name} holds values that are no finite numbers")
        if "decisions" in header:
            decisions = Decisions.from_json(header["decisions"])
            if missing := sorted(decisions.tensors() - tensors.keys()):
                raise ValueError(f"its decisions name a tensor that it has not: {missing[0]}")
            return Checkpoint(path, tensors, decisions)
        kinds = parse_json(header["relus"])
        relus = {name: True if kind == "whole" else tensors[f"{name}.mask"] for name, kind in kinds.items()}
    except (SafetensorError, KeyError, TypeError, ValueError, AttributeError) as error:
        raise WeightsError(
            f"{path.name} is no weights file of this project: {error}; restore it from git, or train it again"
        ) from error
    return Checkpoint(path, tensors, relus=relus)


def apply(model: nn.Module, steps: Iterable[Step], tensors: Mapping[str, Tensor] | None = None) -> nn.Module:
    """Returns `model` after the transforms of `steps`; `tensors` replace the names in their arguments.

    Raises ValueError for an unknown transform, TypeError for unknown arguments, and the errors of the
    transforms.
    """
    for step in steps:
        if step.transform not in BY_NAME:
            raise ValueError(f"unknown transform {step.transform!r}: known are {', '.join(BY_NAME)}")
        arguments = {name: _resolved(value, tensors or {}) for name, value in step.arguments.items()}
        model = BY_NAME[step.transform](model, **arguments)
    return model


def _resolved(value: Any, tensors: Mapping[str, Tensor]) -> Any:
    """Returns an argument with tensors in place of their names."""
    name = tensor_name(value)
    if name is not None:
        return tensors[name]
    if isinstance(value, Mapping):
        return {key: _resolved(inner, tensors) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_resolved(inner, tensors) for inner in value]
    return value


def rebuilt(decisions: Decisions, stored: Checkpoint) -> fx.GraphModule:
    """Returns the network that `decisions` describe, with the tensors of a file, in eval mode.

    torch's global generator does not change. Raises WeightsError when they do not fit each other.
    """
    if decisions.network not in ZOO:
        raise WeightsError(
            f"{stored.path.name} holds a network that is not known, {decisions.network!r}: "
            f"known are {', '.join(ZOO)}"
        )
    try:
        with torch.random.fork_rng(devices=[]), torch.no_grad():
            model = ZOO[decisions.network](classes=decisions.classes, width=decisions.width).eval()
            model = apply(model, decisions.steps, stored.tensors)
            relu_shapes(model, torch.zeros(1, 3, decisions.image_size, decisions.image_size))
    except Exception as error:  # transforms promise no type for arguments that nobody would give them
        reason = " ".join(str(error).split()) or type(error).__name__
        raise WeightsError(f"{stored.path.name} cannot be rebuilt from its decisions: {reason}") from error
    put_weights(model, stored)
    return model


def load(path: str | Path) -> fx.GraphModule:
    """Returns the network of a weights file in eval mode, built from the file alone.

    Its `meta` holds its `decisions`. Raises WeightsError for a damaged file, and for an older one, which does
    not describe its network.
    """
    stored = read_weights(path)
    if stored.decisions is None:
        raise WeightsError(
            f"{stored.path.name} is older than decisions in weights files: build its variant with it, "
            "`variant(name).build(width, weights=path)`"
        )
    model = rebuilt(stored.decisions, stored)
    model.meta.update(variant=stored.decisions.variant, trained=True, decisions=stored.decisions)
    return model.requires_grad_(False).eval()


def put_weights(model: nn.Module, checkpoint: Checkpoint) -> None:
    """Copies the tensors into `model`, in place and in its types.

    Raises WeightsError if names or shapes differ, or if whole numbers stand where others belong.
    """
    state = model.state_dict()
    problems = [f"{name} is missing" for name in state.keys() - checkpoint.tensors.keys()]
    problems += [f"{name} is unknown" for name in checkpoint.tensors.keys() - state.keys()]
    problems += [
        f"{name} is {list(checkpoint.tensors[name].shape)} instead of {list(tensor.shape)}"
        for name, tensor in state.items()
        if name in checkpoint.tensors and checkpoint.tensors[name].shape != tensor.shape
    ]
    problems += [
        f"{name} is of {checkpoint.tensors[name].dtype} instead of {tensor.dtype}"
        for name, tensor in state.items()
        if name in checkpoint.tensors and _kind(checkpoint.tensors[name]) != _kind(tensor)
    ]
    if problems:
        raise WeightsError(
            f"{checkpoint.path.name} was made for another architecture: {sorted(problems)[0]}"
            + (f", and {len(problems) - 1} more differences" if len(problems) > 1 else "")
        )
    model.load_state_dict({name: checkpoint.tensors[name].to(tensor.dtype) for name, tensor in state.items()})


def _kind(tensor: Tensor) -> str:
    """Returns what the values of a tensor are, whatever their size."""
    if tensor.is_floating_point():
        return "real"
    return "truth" if tensor.dtype == torch.bool else "complex" if tensor.is_complex() else "whole"
