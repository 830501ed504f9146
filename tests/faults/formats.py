"""The files of the suite: how a good one is made and read, and how to see that what was read is true."""

from __future__ import annotations

import hashlib
import json
import pickle
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from networks import Block
from results_factory import make_accuracy_row, make_row
from safetensors import safe_open

from faults.stage import ROOT
from pibench.figures.data import CSVS
from pibench.figures.drawing import draw, read_tables
from pibench.measure.network import network as named_network
from pibench.models import data
from pibench.models.rows import read_rows, read_tries
from pibench.models.training.files import Checkpoints
from pibench.models.training.rows import put_row
from pibench.models.variants import VARIANTS
from pibench.models.weights import file_name, load, read_weights, save_weights
from pibench.store.results import Store
from pibench.store.results import read_rows as read_measured

WEIGHTS = file_name("senet-0.09", 2)
IDENTITY = {"phase": "baseline", "seed": 0}
CIFAR_IMAGES = 6


@dataclass(frozen=True)
class Format:
    """A kind of file.

    `make(folder)` writes a good one and returns its path. `read(path)` reads it through the suite.
    `true(value, original, path)` tells whether a value that was read from a damaged file is true: usually
    that of the undamaged file, unless the format is not `compared`. `names` are what a clear error names.
    `text` is true for JSON.
    """

    make: Callable[[Path], Path]
    read: Callable[[Path], Any]
    true: Callable[[Any, Any, Path], bool]
    names: tuple[str, ...]
    text: bool = False
    compared: bool = True


def _bench(folder: Path) -> Path:
    path = folder / "bench.json"
    for variant in ("baseline", "senet-0.09"):
        Store(path).add(make_row(variant, "lean", count=2))
    return path


def _accuracy(folder: Path) -> Path:
    path = folder / "accuracy.json"
    for variant in ("baseline", "senet-0.09"):
        put_row(path, make_accuracy_row(variant))
    return path


def _tries(folder: Path) -> Path:
    path = folder / "tries.json"
    rows = [
        {
            **{"variant": "senet-0.09", "width": 16, "seed": seed, "epochs": 90, "accuracy_heldout": 0.6},
            **{"plan": "long", "epochs_scale": 1.0, "precision": "bfloat16", "changes": {"tune.lr": 0.1}},
        }
        for seed in (0, 1)
    ]
    path.write_text(json.dumps(rows, indent=1))
    return path


def network(seed: int = 0) -> torch.nn.Module:
    """Returns a small variant with weights of its own."""
    torch.manual_seed(seed)
    model = VARIANTS["senet-0.09"].build(width=2, weights=None)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.01 * torch.randn_like(parameter))
    return model


def _weights(folder: Path) -> Path:
    save_weights(network(), folder / WEIGHTS)
    return folder / WEIGHTS


def _manifest(folder: Path) -> Path:
    _weights(folder)
    return folder / "manifest.json"


def sign(path: Path) -> None:
    """Lists a weights file in the manifest as it is now."""
    manifest = path.parent / "manifest.json"
    entries = json.loads(manifest.read_text())
    entries[path.name]["sha256"] = hashlib.sha256(path.read_bytes()).hexdigest()
    manifest.write_text(json.dumps(entries))


def _tensors(path: Path) -> dict[str, torch.Tensor]:
    """Reads a weights file and builds the network; returns its tensors."""
    load(path)
    return dict(read_weights(path).tensors)


def _signed(path: Path) -> dict[str, torch.Tensor]:
    sign(path)
    return _tensors(path)


def _is_usable(value: Mapping[str, torch.Tensor], original: Any, path: Path) -> bool:
    """Tells whether tensors are those of the file, by a reader of others, and finite."""
    with safe_open(path, "pt") as file:
        there = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a mapping)
    finite = all(bool(t.isfinite().all()) for t in there.values() if t.is_floating_point())
    return finite and same_tensors(value, there)


def same_tensors(one: Mapping[str, torch.Tensor], other: Mapping[str, torch.Tensor]) -> bool:
    """Tells whether two states hold the same bits."""
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def state(turn: int) -> dict[str, Any]:
    """Returns the state of a training after epoch `turn`, as a checkpoint holds it."""
    model = {"weight": torch.full((64, 64), float(turn)), "bias": torch.arange(64.0) + turn}
    return {"model": model, "history": [{"epoch": each} for each in range(turn)]}


def _checkpoint(folder: Path) -> Path:
    path = folder / "baseline.pt"
    Checkpoints(path, IDENTITY).save(state(3))
    return path


def read_checkpoint(path: Path) -> Any:
    """Reads a checkpoint through the suite."""
    return Checkpoints(path, IDENTITY).load()


def _same_state(value: Any, original: Any, path: Path) -> bool:
    return (
        value is not None
        and same_tensors(value["model"], original["model"])
        and value["history"] == original["history"]
    )


def cifar(labels: Any = None) -> bytes:
    """Returns a small file of CIFAR-100."""
    images = np.random.default_rng(0).integers(0, 256, (CIFAR_IMAGES, 3072), dtype=np.uint8)
    entries = {b"data": images, b"fine_labels": list(range(CIFAR_IMAGES)) if labels is None else labels}
    return pickle.dumps(entries, protocol=4)


def _cifar(folder: Path) -> Path:
    path = folder / data.FOLDER / "test"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(cifar())
    return path


def _read_cifar(path: Path, checksums: Mapping[str, str] | None) -> Any:
    return data.load_cifar100(path.parent.parent, "test", checksums)


def _same_images(value: Any, original: Any, path: Path) -> bool:
    return torch.equal(value[0], original[0]) and torch.equal(value[1], original[1])


def _are_labels(value: Any, original: Any, path: Path) -> bool:
    """Tells whether these can be images of CIFAR-100 with labels: nobody knows more of such a file."""
    images, labels = value
    return images.shape[1:] == (3, 32, 32) and bool(((labels >= 0) & (labels < 100)).all())


FIGURES = {"summary": "latency_vs_relus", "layers": "linear_vs_relu", "accuracy": "accuracy_vs_relus"}
"""Tables, and a figure that is drawn from each."""


def _table(name: str) -> Callable[[Path], Path]:
    def make(folder: Path) -> Path:
        for path in (ROOT / "results" / "reference").glob("*.csv"):
            shutil.copy(path, folder)
        for each in CSVS:  # a table that the reference has not got yet
            if not (folder / f"{each}.csv").exists():
                (folder / f"{each}.csv").write_text("none\n")
        return folder / f"{name}.csv"

    return make


def _draw(path: Path) -> str:
    tables = read_tables(path.parent, path.parent / "no weights")
    return draw(FIGURES[path.stem], tables, path.parent / "plots", (".svg",))


def _exported(folder: Path) -> Path:
    path = folder / "net.pt2"
    example = (torch.zeros(2, 3, 8, 8),)
    torch.export.save(torch.export.export(Block().eval(), example), path)
    return path


def _answer(path: Path) -> torch.Tensor:
    found = named_network(path.name, shape=(3, 8, 8), folder=path.parent)
    with torch.no_grad():
        return found.model(torch.ones(2, 3, 8, 8))


def _same_text(value: Any, original: Any, path: Path) -> bool:
    """Tells whether the rows are those of the file, by a plain reader of JSON."""
    content = json.loads(path.read_text())
    return value == (content["rows"] if isinstance(content, dict) else content)


def _same_tensors(value: Any, original: Any, path: Path) -> bool:
    return same_tensors(value, original)


def _anything(value: Any, original: Any, path: Path) -> bool:
    """Accepts every figure: what a damaged table says is what is drawn."""
    return True


ORIGINAL_MD5 = hashlib.md5(cifar(), usedforsecurity=False).hexdigest()
FORMATS: dict[str, Format] = {
    "bench": Format(_bench, read_measured, _same_text, (r"bench\.json",), text=True),
    "accuracy": Format(_accuracy, read_rows, _same_text, (r"accuracy\.json",), text=True),
    "tries": Format(_tries, read_tries, _same_text, (r"tries\.json",), text=True),
    "manifest": Format(
        _manifest,
        lambda path: _tensors(path.parent / WEIGHTS),
        _same_tensors,
        (r"manifest\.json", r"senet-0\.09-w2"),
        text=True,
    ),
    "weights": Format(_weights, _tensors, _same_tensors, (r"senet-0\.09-w2",)),
    "signed": Format(_weights, _signed, _is_usable, (r"senet-0\.09-w2",)),
    "checkpoint": Format(_checkpoint, read_checkpoint, _same_state, (r"baseline\.pt",)),
    "cifar": Format(_cifar, lambda p: _read_cifar(p, {"test": ORIGINAL_MD5}), _same_images, ("test",)),
    "images": Format(_cifar, lambda path: _read_cifar(path, None), _are_labels, ("test",)),
    "exported": Format(_exported, _answer, _anything, (r"net\.pt2",), compared=False),
    **{
        f"{name}-table": Format(_table(name), _draw, _anything, (rf"{name}\.csv",), compared=False)
        for name in FIGURES
    },
}
