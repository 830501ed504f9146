"""Reads files that end, and writes files that appear complete or not at all, one writer after the other."""

import errno
import glob
import json
import os
import secrets
import stat
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout
from pydantic_core import from_json

SPARE_BYTES = 1 << 20
"""What must fit into a folder beside a copy of the file that is there."""
STALE_S = 3600.0
"""The age at which an unfinished file has lost its writer: to write one takes seconds."""


def target_of(path: Path) -> Path:
    """Returns the file that `path` stands for: itself, or what a link leads to.

    Raises OSError for a folder, a pipe or a device, which cannot be replaced by a file, and for a link that
    leads to itself.
    """
    target = Path(os.path.realpath(path))
    with suppress(FileNotFoundError):
        mode = target.stat().st_mode
        if stat.S_ISDIR(mode):
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
        if not stat.S_ISREG(mode):
            raise OSError(errno.EINVAL, "It is a pipe or a device, not a file", str(path))
    return target


def read_file(path: Path) -> bytes:
    """Returns the content of a file.

    Raises OSError when it cannot be read, and for a pipe or a device, whose content may never end.
    """
    return target_of(path).read_bytes()


def parse_json(text: str | bytes, finite: bool = True) -> Any:
    """Returns what a text in JSON stands for.

    Raises ValueError, with one clause, for any other text. Texts that nest more than 200 deep or that are no
    Unicode are such ones, and with `finite` those that hold NaN or an infinity.
    """
    content = from_json(text, allow_inf_nan=not finite)
    if finite:
        json.dumps(content, allow_nan=False)  # 1e999 is read as infinity
    return content


def replace_file(path: Path, data: bytes) -> None:
    """Writes `data` to `path` in one step: readers see the old file or the new one, never a part.

    Makes the folder if it is missing. A link stays, and the file that it leads to is replaced. Files that a
    killed writer of the same path left unfinished an hour ago are removed. Raises OSError when it cannot
    write; the old file is then intact.
    """
    target = target_of(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    for left in target.parent.glob(f".{glob.escape(target.name)}.*.tmp"):
        with suppress(OSError):
            if time.time() - left.stat().st_mtime > STALE_S:
                left.unlink()
    # Threads, and processes of several computers with one folder, may write at once: a random name.
    temporary = target.with_name(f".{target.name}.{secrets.token_hex(8)}.tmp")
    try:
        with open(temporary, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, target)
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def writing(path: Path, error: type[Exception], remedy: str) -> Iterator[None]:
    """Raises `error` for an OSError: one sentence that names `path`, the reason and the remedy."""
    try:
        yield
    except OSError as reason:
        raise error(f"{path} cannot be written ({reason.strerror or reason}): {remedy}") from reason


def demand_room(path: Path) -> None:
    """Raises OSError unless `replace_file` could write `path` now, and a megabyte more than it holds.

    Whoever measures for minutes calls it first. It leaves nothing behind but the folder.
    """
    target = target_of(path)
    held = target.stat().st_size if target.exists() else 0
    trial = target.with_name(f".{target.name}.room")
    try:
        replace_file(trial, bytes(held + SPARE_BYTES))
    finally:
        with suppress(OSError):
            trial.unlink(missing_ok=True)


@contextmanager
def locked(path: Path, waiting: Callable[[], object] = lambda: None) -> Iterator[None]:
    """Keeps other processes and threads out while the file `path`, made for it, is locked.

    Calls `waiting` once if another one has it, then waits. The lock goes with the process, however it ends;
    the file stays. Raises OSError when it cannot be made.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(path)
    try:
        lock.acquire(blocking=False)
    except Timeout:
        waiting()
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


@contextmanager
def changing(path: Path) -> Iterator[None]:
    """Lets one process or thread at a time read `path` and replace it, by whichever link it is reached."""
    target = target_of(path)
    with locked(target.with_name(f".{target.name}.lock")):
        yield
