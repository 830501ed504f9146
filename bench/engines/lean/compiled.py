"""Compiles kernels by numba; its cache on disk saves half a minute, and never keeps the engine from starting.

numba keeps what it has compiled beside the source or, where it cannot write there, in the user's folder of
caches. It raises an error when it can write in neither, when a file there is cut off (by a process or a
machine that stopped while it wrote) and when the disk is full. It runs whatever machine code a file holds, so
one flipped bit ends the process or changes an answer. Here every file gets a seal, its checksum at its end,
which numba does not read; a file without a right seal is never given to numba.
"""

from __future__ import annotations

import hashlib
import os
import stat
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from pathlib import Path
from typing import Any

from numba import config, njit

from pibench.models.files import replace_file

SEAL_BYTES = hashlib.sha256().digest_size


def compiled(signatures: Any | Sequence[Any], **options: Any) -> Callable[[Callable[..., Any]], Any]:
    """Decorates a kernel: it is taken from the cache, or compiled for its signatures.

    A damaged cache is removed and made anew. If there is no place for a cache, a folder for temporary files
    of this user serves as one. If that fails too, the kernel is compiled for this process alone.
    """

    def decorate(function: Callable[..., Any]) -> Any:
        for place in list(_PLACES):
            for forgets in (False, True):
                try:
                    with place():
                        if forgets or _unsealed(function):
                            _forget(function)
                        kernel = njit(signatures, cache=True, **options)(function)
                        for path, content in _unsealed(function).items():  # numba has just written them
                            replace_file(path, content + hashlib.sha256(content).digest())
                        return kernel
                except OSError:  # it takes no file; the other kernels need not try it again
                    _PLACES.remove(place)
                    break
                except Exception:  # a damaged file raises anything
                    continue
        return njit(signatures, **options)(function)

    return decorate


def _cached(function: Callable[..., Any], unfinished: str = "") -> list[Path]:
    """Returns the files that the cache holds of a function; with "*" those, too, that are not finished."""
    folder = Path(njit(cache=True)(function).stats.cache_path)
    name = f"{Path(function.__code__.co_filename).stem}.{function.__qualname__}"
    return sorted(folder.glob(f"{name}-*.nb[ic]{unfinished}"))


def _forget(function: Callable[..., Any]) -> None:
    """Removes what the cache holds of a function, also what a killed process left unfinished."""
    for path in _cached(function, "*"):
        with suppress(FileNotFoundError):
            path.unlink()


def _unsealed(function: Callable[..., Any]) -> dict[Path, bytes]:
    """Returns what the cache holds of a function without a right seal, by file.

    A seal is the SHA-256 of all that is before it.
    """
    found = {}
    for path in _cached(function):
        with suppress(FileNotFoundError):  # another process makes it anew
            content = path.read_bytes()
            if hashlib.sha256(content[:-SEAL_BYTES]).digest() != content[-SEAL_BYTES:]:
                found[path] = content
    return found


@contextmanager
def _in_private_folder() -> Iterator[None]:
    """Makes numba keep its cache in a folder for temporary files, which no other user may write.

    Raises OSError for a folder that belongs to others: its files would be run.
    """
    folder = Path(tempfile.gettempdir()) / f"pibench-kernels-{os.getuid()}"
    folder.mkdir(mode=0o700, exist_ok=True)
    found = folder.lstat()
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid() or found.st_mode & 0o077:
        raise PermissionError(f"{folder} is not this user's alone")
    before, config.CACHE_DIR = config.CACHE_DIR, str(folder)
    try:
        yield
    finally:
        config.CACHE_DIR = before


_PLACES: list[Callable[[], AbstractContextManager[None]]] = [nullcontext, _in_private_folder]
"""Where caches are tried: where numba puts them, then the private folder."""
