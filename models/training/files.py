"""Files that appear complete or not at all, and the checkpoints from which training continues."""

import dataclasses
import hashlib
import io
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pibench.models import files
from pibench.models.files import parse_json, read_file, replace_file


class TrainingError(RuntimeError):
    """Raised when training cannot go on: a loss that is not a number, a full disk, a foreign checkpoint."""


_MARK = b"sha256 "


def writing(path: Path) -> AbstractContextManager[None]:
    """Raises TrainingError for an OSError: one sentence that names `path`, the reason and the remedy."""
    remedy = "make room or allow writing there, then run the same command to go on"
    return files.writing(path, TrainingError, remedy)


def make_folder(path: Path) -> None:
    """Makes a folder if it is missing; raises TrainingError when it cannot be made."""
    with writing(path):
        path.mkdir(parents=True, exist_ok=True)


def write_bytes(path: Path, content: bytes) -> None:
    """Replaces `path` by `content` in one step.

    Raises TrainingError when it cannot; the old file is then intact.
    """
    try:
        replace_file(path, content)
    except OSError as error:
        raise TrainingError(
            f"{path} cannot be written ({error.strerror or error}; {len(content) / 1e6:.1f} MB are needed): "
            "what was there before is intact; make room, then run the same command to go on"
        ) from error


def write_lines(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Replaces `path` by one line of JSON for each row."""
    write_bytes(path, "".join(json.dumps(row) + "\n" for row in rows).encode())


def digest(tensors: Mapping[str, Tensor]) -> str:
    """Returns the SHA-256 of names, shapes, types and values."""
    result = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        value = tensor.detach().cpu().contiguous()
        result.update(f"{name} {value.dtype} {list(value.shape)} ".encode())
        result.update(value.reshape(-1).view(torch.uint8).numpy().tobytes())
    return result.hexdigest()


def architecture(tensors: Mapping[str, Tensor]) -> str:
    """Returns a short digest of names and shapes; it is equal for networks with exchangeable states."""
    text = json.dumps([[name, list(tensor.shape)] for name, tensor in sorted(tensors.items())])
    return hashlib.sha256(text.encode()).hexdigest()[:16]


@contextmanager
def locked(path: Path, waiting: Callable[[], object] = lambda: None) -> Iterator[None]:
    """Keeps other processes out while the file `path`, made for it, is locked.

    Calls `waiting` once if another process has the lock, then waits. The lock ends with the process, in every
    case. Raises TrainingError when the file cannot be made.
    """
    make_folder(path.parent)
    with writing(path):
        path.touch()
    with files.locked(path, waiting):  # what `waiting` raises is no matter of writing
        yield


def sealed(content: bytes) -> bytes:
    """Returns a file of torch.save with its SHA-256 at the end, as the comment of the zip archive that it is.

    Such an archive ends with the length of its comment, in two bytes, and the comment. torch reads it as
    before.
    """
    mark = _MARK + hashlib.sha256(content).hexdigest().encode()
    return content[:-2] + len(mark).to_bytes(2, "little") + mark


def _unsealed(content: bytes) -> bytes:
    """Returns what `sealed` was given; raises ValueError, with one clause, for anything else."""
    size = len(_MARK) + 64
    body, mark = content[:-size], content[-size:]
    if not mark.startswith(_MARK):
        raise ValueError("it has no checksum at its end: it is cut off, or older than checksums")
    original = body[:-2] + bytes(2)
    if mark != _MARK + hashlib.sha256(original).hexdigest().encode():
        raise ValueError("its SHA-256 is not the one at its end")
    return original


def _read(path: Path, device: str | torch.device) -> tuple[dict[str, Any], dict[str, Any]]:
    """Returns the identity and the state of a checkpoint.

    Nothing is parsed before its checksum is right. Raises FileNotFoundError if there is none, TrainingError
    if it is damaged or cannot be loaded.
    """
    remedy = "remove it to train this phase again"
    try:
        content = _unsealed(read_file(path))
    except FileNotFoundError:
        raise
    except (OSError, ValueError) as error:
        raise TrainingError(
            f"{path} is no checkpoint of this project or is damaged ({error}): {remedy}"
        ) from error
    try:
        state = torch.load(io.BytesIO(content), map_location=device, weights_only=True)
        return dict(parse_json(state.pop("identity"))), state
    except Exception as error:  # torch promises no type
        reason = " ".join(str(error).split()) or type(error).__name__
        raise TrainingError(
            f"{path} cannot be loaded ({reason:.200}): free memory of the device {device}, or {remedy}"
        ) from error


def read_history(path: Path, wanted: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Returns the epochs of a checkpoint whose identity contains `wanted`; empty for any other file."""
    try:
        identity, state = _read(path, "cpu")
    except (FileNotFoundError, TrainingError):
        return []
    return list(state["history"]) if wanted.items() <= identity.items() else []


@dataclasses.dataclass(frozen=True)
class Checkpoints:
    """The checkpoint of one phase: its `path`, and the `identity` of its training (JSON values)."""

    path: Path
    identity: Mapping[str, Any]

    def save(self, state: Mapping[str, Any]) -> None:
        """Replaces the checkpoint in one step."""
        buffer = io.BytesIO()
        torch.save({"identity": json.dumps(self.identity, sort_keys=True), **state}, buffer)
        write_bytes(self.path, sealed(buffer.getvalue()))

    def same(self, device: str | torch.device = "cpu") -> dict[str, Any] | None:
        """Returns the checkpoint, or None if there is none or it belongs to another training."""
        try:
            return self.load(device)
        except TrainingError:
            return None

    def load(self, device: str | torch.device = "cpu") -> dict[str, Any] | None:
        """Returns the checkpoint, or None if there is none.

        Raises TrainingError if it belongs to another training or is damaged.
        """
        try:
            identity, state = _read(self.path, device)
        except FileNotFoundError:
            return None
        wanted = json.loads(json.dumps(self.identity))
        differing = [key for key in sorted({*identity, *wanted}) if identity.get(key) != wanted.get(key)]
        if differing:
            details = "; ".join(
                f"{key} {json.dumps(identity.get(key))} there, {json.dumps(wanted.get(key))} here"
                for key in differing
            )
            raise TrainingError(
                f"{self.path} belongs to another training ({details}): remove it to train this phase again"
            )
        return state
