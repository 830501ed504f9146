"""Trained weights on disk: safetensors files, listed with their SHA-256 in a manifest beside them.

A file holds the state of a finished network (BatchNorm folded, skips absorbed), masks included, and in its
header which ReLU layers are whole and which are gone, so that the structure can be made again before the
weights are put in.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn

from pibench.models.files import replace_file
from pibench.models.graph.moves import module_of, relu_nodes, trace
from pibench.models.graph.relu import MaskedReLU

FOLDER = Path(__file__).with_name("trained")


class WeightsError(RuntimeError):
    """Raised when a weights file is missing, damaged or made for another network."""


@dataclass(frozen=True)
class Checkpoint:
    """What a weights file holds: tensors by name, and each remaining ReLU's mask (True if whole)."""

    path: Path
    tensors: Mapping[str, Tensor]
    relus: Mapping[str, Tensor | bool]


def file_name(variant: str, width: int) -> str:
    """Returns the name of the weights file of a variant at a width."""
    return f"{variant}-w{width}.safetensors"


def read_manifest(folder: Path = FOLDER) -> dict[str, dict]:
    """Returns the manifest: file name -> {"sha256", "classes", "image_size"}, empty if there is none."""
    path = folder / "manifest.json"
    if not path.exists():
        return {}
    try:
        return json.loads(path.read_text())
    except json.JSONDecodeError as error:
        raise WeightsError(f"{path} is no JSON ({error}): restore it from git") from error


def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def save_weights(
    model: nn.Module,
    path: str | Path,
    dtype: torch.dtype = torch.float16,
    classes: int = 100,
    image_size: int = 32,
) -> None:
    """Writes the weights and masks of a finished network to `path`, its SHA-256 to the manifest there.

    Floating-point tensors are stored as `dtype`; masks stay boolean. A file appears complete or not at all.
    """
    path = Path(path)
    graph = trace(model)
    relus = {
        name: "masked" if module_of(graph, node, MaskedReLU) is not None else "whole"
        for name, node in relu_nodes(graph).items()
    }
    tensors = {
        name: (tensor.to(dtype) if tensor.is_floating_point() else tensor).detach().cpu().contiguous()
        for name, tensor in graph.state_dict().items()
    }
    replace_file(path, save(tensors, metadata={"relus": json.dumps(relus)}))
    manifest = read_manifest(path.parent)
    manifest[path.name] = {"sha256": _sha256(path), "classes": classes, "image_size": image_size}
    replace_file(
        path.parent / "manifest.json", (json.dumps(manifest, indent=2, sort_keys=True) + "\n").encode()
    )


def read_weights(path: str | Path) -> Checkpoint:
    """Reads a weights file after checking it against the manifest beside it; WeightsError if it differs."""
    path = Path(path)
    entry = read_manifest(path.parent).get(path.name)
    if entry is None:
        raise WeightsError(
            f"{path.name} is not listed in {path.parent / 'manifest.json'}: its checksum is unknown"
        )
    if not path.exists():
        raise WeightsError(f"{path.parent / 'manifest.json'} lists {path.name}, but the file is missing")
    if _sha256(path) != entry["sha256"]:
        raise WeightsError(
            f"{path.name} is damaged: its SHA-256 is not the manifest's; restore both from git, or train it "
            "again"
        )
    try:
        with safe_open(path, "pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (no mapping)
            kinds = json.loads(file.metadata()["relus"])
    except (SafetensorError, KeyError, TypeError) as error:
        raise WeightsError(f"{path.name} is no weights file of this project: {error}") from error
    relus = {name: True if kind == "whole" else tensors[f"{name}.mask"] for name, kind in kinds.items()}
    return Checkpoint(path, tensors, relus)


def put_weights(model: nn.Module, checkpoint: Checkpoint) -> None:
    """Copies the tensors into `model`, in place, in its types; WeightsError if names or shapes differ."""
    state = model.state_dict()
    problems = [f"{name} is missing" for name in state.keys() - checkpoint.tensors.keys()]
    problems += [f"{name} is unknown" for name in checkpoint.tensors.keys() - state.keys()]
    problems += [
        f"{name} is {list(checkpoint.tensors[name].shape)} instead of {list(tensor.shape)}"
        for name, tensor in state.items()
        if name in checkpoint.tensors and checkpoint.tensors[name].shape != tensor.shape
    ]
    if problems:
        raise WeightsError(
            f"{checkpoint.path.name} was made for another architecture: {sorted(problems)[0]}"
            + (f", and {len(problems) - 1} more differences" if len(problems) > 1 else "")
        )
    model.load_state_dict({name: checkpoint.tensors[name].to(tensor.dtype) for name, tensor in state.items()})
