"""results/accuracy.json: one row for each variant, width and seed, measured on the deployed network."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor

from pibench.models.cost import count_macs, count_relus
from pibench.models.files import changing
from pibench.models.machine import cpu_name
from pibench.models.manifest import FOLDER, read_listed
from pibench.models.rows import check_row, read_rows, row_key
from pibench.models.training.files import TrainingError, write_bytes, writing
from pibench.models.training.images import accuracy
from pibench.models.training.loop import Outcome
from pibench.models.training.run import Run, Trained
from pibench.models.variants import VARIANTS
from pibench.models.weights import file_name, load, save_weights

Row = dict[str, Any]

PUBLISHED_WIDTH = 16
"""Up to here weights are part of the project: 1.4 MB a network. One of width 64 has 22 MB."""


def find_row(
    rows: Sequence[Row],
    variant: str,
    width: int,
    seed: int,
    changes: Mapping[str, Any] = MappingProxyType({}),
) -> Row | None:
    """Returns the row of a variant and of a plan with `changes`, or None if there is none."""
    key = row_key({"variant": variant, "width": width, "seed": seed, "changes": dict(changes)})
    return next((row for row in rows if row_key(row) == key), None)


def put_row(path: Path, row: Row) -> None:
    """Puts a row into accuracy.json; replaces the row of the same variant, width, seed and changes.

    Other processes may do the same at the same time. Raises ResultsError for a row that breaks the schema.
    """
    check_row(row)
    with writing(path), changing(path):
        _write(path, [*(old for old in read_rows(path) if row_key(old) != row_key(row)), row])


def update_row(path: Path, variant: str, width: int, seed: int, additions: Mapping[str, Any]) -> None:
    """Adds to a row of accuracy.json; other processes may do the same at the same time.

    Raises TrainingError if the row does not exist.
    """
    with writing(path), changing(path):
        rows = read_rows(path)
        row = find_row(rows, variant, width, seed)
        if row is None:
            raise TrainingError(f"{path} has no row of {variant}, width {width}, seed {seed}: train it first")
        row |= additions
        check_row(row)
        _write(path, rows)


def _write(path: Path, rows: Sequence[Row]) -> None:
    place = {name: index for index, name in enumerate(VARIANTS)}
    ranked = sorted(
        rows, key=lambda row: (row["width"], place.get(row["variant"], len(place)), *row_key(row)[2:])
    )
    write_bytes(path, (json.dumps(ranked, indent=1) + "\n").encode())


def machine(device: torch.device) -> str:
    """Returns the name of the processor or GPU of the training."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    threads = torch.get_num_threads()
    return f"{cpu_name() or 'unknown processor'}, {threads} thread{'s' * (threads > 1)}"


def weights_path(folder: Path, run: Run, name: str) -> Path:
    """Returns the path of the weights: in `folder` if they are published, else beside their checkpoints."""
    published = is_published(run.width, run.setting.seed, run.tried)
    return (folder if published else run.checkpoints) / file_name(name, run.width, run.network)


def is_published(width: int, seed: int, tried: bool) -> bool:
    """Returns whether the weights of a row, or of a try, are part of the project."""
    return seed == 0 and width <= PUBLISHED_WIDTH and not tried


def stored_row(row: Row, path: Path) -> Trained:
    """Returns the network of a finished row from its weights file.

    The row tells the sum of its seconds alone: each epoch gets an equal share.
    """
    listed, model = read_listed(path), load(path)
    mean = row["wall_s"] / row["epochs"]
    digest = hashlib.sha256(listed).hexdigest()
    outcomes = tuple(
        Outcome(name, digest, ({"wall_s": mean},) * epochs, {}) for name, epochs in row["phases"].items()
    )
    return Trained(model, outcomes, decisions=model.meta["decisions"])


def finish_row(
    run: Run,
    name: str,
    trained: Trained,
    test: tuple[Tensor, Tensor] | None,
    facts: Mapping[str, Any],
    weights: Path = FOLDER,
) -> Row:
    """Stores a trained network's weights and returns its row.

    The row judges the network that anybody builds from the stored file: half-precision weights, BatchNorm
    folded, masks, computed in float32. `test` are images uint8 and labels; only this function reads them. A
    try has none, because test images must not influence the choice among tries.
    """
    images, size = run.setting.images, run.setting.images.size
    path = weights_path(weights, run, name)
    model, decisions = run.deployed(run.variant(name), trained)
    try:
        save_weights(model, path, decisions)
    except (OSError, SafetensorError) as error:
        raise TrainingError(
            f"{path} cannot be written ({error}): make room, then run the same command to go on"
        ) from error
    model = load(path)
    example = torch.zeros(1, 3, size, size)
    relus, macs = count_relus(model, example), count_macs(model, example)
    model = model.to(run.setting.device, memory_format=torch.channels_last)
    where = run.setting.device
    return {
        "variant": name,
        "width": run.width,
        "seed": run.setting.seed,
        "epochs": trained.epochs,
        "relus": relus,
        "macs": macs,
        "accuracy_heldout": accuracy(model, images.heldout, images.heldout_labels),
        **({} if test is None else {"accuracy_test": accuracy(model, *(part.to(where) for part in test))}),
        "wall_s": round(trained.seconds, 1),
        "machine": machine(where),
        "phases": {phase.name: len(phase.history) for phase in trained.phases},
        **facts,
    }
