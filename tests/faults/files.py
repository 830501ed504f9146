"""Files that are damaged, forged, or no files: named and left as they are, or read for what they say."""

from __future__ import annotations

import json
import os
import pickle
import struct
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from results_factory import make_accuracy_row, make_row, make_sensitivity
from safetensors.torch import load_file, save_file

from faults import formats, garbles
from faults.fault import Fault, Observed
from faults.formats import FORMATS
from faults.stage import Stage
from pibench.models import data
from pibench.models.training.rows import put_row
from pibench.store.results import Store

DRAWS = {"bench": 12, "accuracy": 8, "manifest": 6, "tries": 4}
"""Draws of each change of JSON."""
FLIPS = {"checkpoint": 6, "weights": 4, "images": 5, "signed": 5}
"""Draws of each damage to bytes; two for other files."""
NO_FILES = ("absent", "folder", "pipe", "loop", "device", "dangling")
REPORTED = ("bench.json", "accuracy.json", "tries.json", "sensitivity.json")
REPORT_DRAWS = 6


def faults(seed: int) -> Iterator[Fault]:
    """Yields the faults of this family."""
    for name, known in FORMATS.items():
        table = name.endswith("-table")
        for garble in garbles.BYTES:
            yield _fault("truncate" if garble.startswith("cut") else "garble", name, garble)
        if name != "exported":  # a user's own file, which nobody has a checksum of
            for garble in garbles.DRAWN:
                for turn in range(1 if table else FLIPS.get(name, 2)):
                    yield _fault("garble", name, f"{garble}-{turn}")
        if known.text:
            for garble in garbles.TEXTS:
                yield _fault("garble", name, garble)
            for garble in garbles.SHAPES:
                for turn in range(DRAWS[name]):
                    yield _fault("garble", name, f"{garble}-{turn}")
        for what in NO_FILES if name != "signed" else ():  # to sign it one has to read it
            yield Fault(
                *("garble", f"{name}-{what}", "files.no_file", {"name": name, "what": what}),
                (*known.names, "plots" if table else known.names[0]),
            )
    for name in TENSORS:
        yield Fault("garble", f"tensors-{name}", "files.tensors", {"name": name}, FORMATS["signed"].names)
    for name in LABELS:
        yield Fault("garble", f"labels-{name}", "files.labels", {"name": name}, ("test",))
    for name in PICKLES:
        for checked in (True, False):
            yield Fault("garble", f"pickle-{name}-{'checked' if checked else 'unchecked'}", "files.forged",
                        {"name": name, "checked": checked}, ("test",))  # fmt: skip
    for name in REPORTED:
        for garble in (*garbles.SHAPES, *garbles.DRAWN):
            for turn in range(REPORT_DRAWS if name == "bench.json" else 2):
                yield Fault("garble", f"report-{name}-{garble}-{turn}", "files.reported",
                            {"name": name, "garble": f"{garble}-{turn}"}, (name.replace(".", r"\."),),
                            seconds=30.0)  # fmt: skip
    for command in ("compare", "merge"):
        for garble in ("cut-0.5", "null", "deep-list", "noise", "replaced-0", "enlarged-0"):
            yield Fault("garble", f"{command}-{garble}", "files.commanded",
                        {"command": command, "garble": garble}, (r"bench\.json",))  # fmt: skip


def _fault(kind: str, name: str, garble: str) -> Fault:
    arguments = {"name": name, "garble": garble}
    return Fault(kind, f"{name}-{garble}", "files.garbled", arguments, FORMATS[name].names)


def garbled(stage: Stage, name: str, garble: str) -> Observed:
    """A file is damaged and read; what was read is true, and the file is as it was."""
    known = FORMATS[name]
    path = known.make(stage.folder)
    original = known.read(path) if known.compared else None
    content = garbles.garble(garble, path.read_bytes(), stage.rng)
    path.write_bytes(content)
    observed = stage.attempt(lambda: known.read(path), lambda value: known.true(value, original, path))
    if not path.is_file() or path.read_bytes() != content:
        return replace(observed, lost=(f"{path.name} as it was",))
    return observed


def no_file(stage: Stage, name: str, what: str) -> Observed:
    """In a file's place is nothing, or something else."""
    known = FORMATS[name]
    path = known.make(stage.folder)
    path.unlink()
    _put(path, what)
    absent = what in ("absent", "dangling")
    return stage.attempt(lambda: known.read(path), lambda value: absent and not value)


def _put(path: Path, what: str) -> None:
    """Puts something else into a file's place."""
    if what == "folder":
        path.mkdir()
    elif what == "pipe":
        os.mkfifo(path)
    elif what == "loop":
        path.symlink_to(path)
    elif what == "device":
        path.symlink_to("/dev/zero")
    elif what == "dangling":
        path.symlink_to(path.with_name("nowhere"))


def _one(change: Callable[[torch.Tensor], torch.Tensor]) -> Callable[[dict[str, Any]], None]:
    def work(tensors: dict[str, Any]) -> None:
        name = next(name for name, tensor in tensors.items() if tensor.dim() == 4)
        tensors[name] = change(tensors[name])

    return work


TENSORS: dict[str, Callable[[dict[str, Any]], object]] = {
    "nan": _one(lambda t: t * float("nan")),
    "inf": _one(lambda t: t / 0.0),
    "one-nan": _one(lambda t: torch.where(torch.arange(t.numel()).view(t.shape) == 1, float("nan"), t)),
    "integers": _one(lambda t: torch.ones_like(t, dtype=torch.int64)),
    "booleans": _one(lambda t: t > 0),
    "doubled": _one(lambda t: torch.cat([t, t])),
    "flat": _one(lambda t: t.flatten()),
    "empty": _one(lambda t: t[:0]),
    "scalar": _one(lambda t: t.flatten()[0].clone()),
    "none": dict.clear,
    "one-less": dict.popitem,
    "one-more": lambda tensors: tensors.__setitem__("stranger", torch.ones(3)),
}
"""Tensors of a weights file that is listed with its own checksum."""


def tensors(stage: Stage, name: str) -> Observed:
    """A weights file with a right checksum holds tensors that no network may have."""
    path = FORMATS["signed"].make(stage.folder)
    there = load_file(path)
    (size,) = struct.unpack("<Q", path.read_bytes()[:8])
    header = json.loads(path.read_bytes()[8 : 8 + size]).get("__metadata__")
    TENSORS[name](there)
    save_file({key: tensor.contiguous() for key, tensor in there.items()}, path, metadata=header)
    return stage.attempt(lambda: FORMATS["signed"].read(path), lambda _: False)


LABELS: dict[str, Any] = {
    "too-large": [0, 1, 2, 3, 4, 250],
    "negative": [0, 1, 2, 3, 4, -3],
    "fractions": [0.5] * 6,
    "text": ["cat"] * 6,
    "few": [1, 2],
    "none": None,
    "huge": [2**70] * 6,
    "nested": [[1, 2, 3, 4, 5, 6]],
    "booleans": [True] * 6,
}


def labels(stage: Stage, name: str) -> Observed:
    """A file of CIFAR-100 has labels that do not exist."""
    path = stage.folder / data.FOLDER / "test"
    path.parent.mkdir()
    content = formats.cifar(LABELS[name])
    if LABELS[name] is None:
        content = pickle.dumps({b"data": np.zeros((6, 3072), np.uint8)}, protocol=4)
    path.write_bytes(content)
    return stage.attempt(lambda: data.load_cifar100(stage.folder, "test", None), lambda _: False)


class _Call:
    """Pickles as a call of a function."""

    def __init__(self, function: Callable[..., Any], *arguments: Any) -> None:
        self._call = function, arguments

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return self._call


def _array(shape: tuple[int, ...], kind: str, content: bytes) -> bytes:
    """Returns the pickle of an array whose state says this."""
    good = np.zeros(3, np.uint8)
    reconstruct, arguments, _ = good.__reduce__()

    class Forged:
        def __reduce__(self) -> tuple[Any, ...]:
            return reconstruct, arguments, (1, shape, np.dtype(kind), False, content)

    return pickle.dumps({b"data": Forged(), b"fine_labels": [1]}, protocol=4)


PICKLES: dict[str, Callable[[], bytes]] = {
    "system": lambda: pickle.dumps(_Call(os.system, "touch forged"), protocol=4),
    "exit": lambda: pickle.dumps(_Call(os._exit, 3), protocol=4),
    "getattr": lambda: pickle.dumps(_Call(getattr, os, "getcwd"), protocol=2),
    "deep": lambda: b"\x80\x04" + b"(" * 100_000 + b".",
    "deep-tuple": lambda: b"\x80\x04N" + b"\x85" * 1_000_000 + b".",
    "long": lambda: b"\x80\x04\x8e" + struct.pack("<Q", 1 << 60) + b"x.",
    "frame": lambda: b"\x80\x04\x95" + struct.pack("<Q", 1 << 62) + b"N.",
    "memo": lambda: b"\x80\x04Nr\xff\xff\xff\x7f.",
    "array-large": lambda: _array((1 << 40,), "u1", b"\0" * 16),
    "array-negative": lambda: _array((-4,), "u1", b"\0" * 16),
    "array-short": lambda: _array((4, 3072), "u1", b"\0" * 16),
    "array-objects": lambda: _array((2,), "O", b"\x41" * 16),
    "array-dates": lambda: _array((2,), "M8[s]", b"\x41" * 16),
    "stop": lambda: b".",
    "text": lambda: pickle.dumps("text"),
    "self": lambda: b"\x80\x04]\x94h\x00a.",
}


def forged(stage: Stage, name: str, checked: bool) -> Observed:
    """A file of CIFAR-100 is a pickle that somebody made; with checksums it is not even parsed."""
    path = stage.folder / data.FOLDER / "test"
    path.parent.mkdir()
    path.write_bytes(PICKLES[name]())
    checksums = data.MD5 if checked else None
    observed = stage.attempt(lambda: data.load_cifar100(stage.folder, "test", checksums), lambda _: False)
    if Path("forged").exists():
        return replace(observed, answered=True, right=False)
    return observed


def _results(folder: Path) -> Path:
    """Makes a results folder with everything that a report reads."""
    for variant in ("baseline", "senet-0.09"):
        for engine in ("stock", "lean"):
            Store(folder / "bench.json").add(make_row(variant, engine, count=2))
        put_row(folder / "accuracy.json", make_accuracy_row(variant))
    formats.FORMATS["tries"].make(folder)
    run = folder / "training" / "w16-s0-long"
    run.mkdir(parents=True)
    (run / "sensitivity.json").write_text(json.dumps(make_sensitivity()))
    return folder


def reported(stage: Stage, name: str, garble: str) -> Observed:
    """A report is made of a folder with a damaged file."""
    folder = _results(stage.folder / "results")
    path = next(folder.rglob(name))
    content = garbles.garble(garble, path.read_bytes(), stage.rng)
    path.write_bytes(content)
    seen = stage.command("report", "--results", str(folder), "--quiet").observed(25.0)
    return seen if path.read_bytes() == content else replace(seen, lost=(f"{name} as it was",))


def commanded(stage: Stage, command: str, garble: str) -> Observed:
    """Two results files are compared or merged, and one is damaged."""
    good, bad = _results(stage.folder / "good"), _results(stage.folder / "bad")
    path = bad / "bench.json"
    path.write_bytes(garbles.garble(garble, path.read_bytes(), stage.rng))
    places = [str(good), str(bad)]
    arguments = ["compare", *places] if command == "compare" else ["merge", *places, "-o", "both"]
    return stage.command(*arguments).observed(15.0)
