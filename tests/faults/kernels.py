"""The cache of compiled kernels: killed writers, damaged files, full disks. The kernel computes anyway."""

from __future__ import annotations

import importlib.util
import signal
import time
from collections.abc import Iterator
from pathlib import Path

from faults import garbles
from faults.disk import FREE, Narrow
from faults.fault import Fault, Observed
from faults.stage import ANSWER_S, Stage

SOURCE = """
from numba import int64
from pibench.engines.lean.compiled import compiled

@compiled(int64(int64))
def doubled(a):
    return 2 * a
"""
NAMES = ("kernel", "cache")
DELAYS = (0.0, 0.05, 0.1, 0.15, 0.2, 0.3)


def faults(seed: int) -> Iterator[Fault]:
    """Yields the faults of this family."""
    for suffix in ("nbi", "nbc"):
        for garble in (*garbles.BYTES, "flip-0", "flip-1", "scatter-0"):
            kind = "truncate" if garble.startswith("cut") else "garble"
            arguments = {"suffix": suffix, "garble": garble}
            yield Fault(kind, f"kernel-{suffix}-{garble}", "kernels.garbled", arguments, NAMES, "lean")
    for delay in DELAYS:
        yield Fault("kill", f"compiler-{1000 * delay:g}ms", "kernels.killed", {"delay": delay}, NAMES, "lean")
    for free in FREE:
        yield Fault("disk", f"kernel-{free}", "kernels.full", {"free": free}, NAMES, "lean")


def _source(folder: Path) -> Path:
    path = folder / "kernel.py"
    path.write_text(SOURCE)
    return path


def _double(path: Path) -> int:
    """Imports a file with a kernel as a new process would, and computes."""
    spec = importlib.util.spec_from_file_location("kernel", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.doubled(21)


def garbled(stage: Stage, suffix: str, garble: str) -> Observed:
    """A file of the cache is damaged between two processes."""
    path = _source(stage.folder)
    _double(path)
    (cached,) = stage.folder.rglob(f"kernel.doubled-*.{suffix}")
    cached.write_bytes(garbles.garble(garble, cached.read_bytes(), stage.rng))
    return stage.attempt(lambda: _double(path), lambda result: result == 42)


def killed(stage: Stage, delay: float) -> Observed:
    """A process is killed while it compiles; another one goes on."""
    path = _source(stage.folder)
    child = stage.fork(lambda: _double(path))
    time.sleep(delay)
    child.send(signal.SIGKILL)
    child.wait(ANSWER_S)
    return stage.attempt(lambda: _double(path), lambda result: result == 42)


def full(stage: Stage, free: int) -> Observed:
    """The disk of the cache has no room."""
    narrow = Narrow(stage.folder / "disk", "full", free)
    path = _source(stage.folder / "disk")

    def work() -> int:
        with narrow:
            return _double(path)

    return stage.attempt(work, lambda result: result == 42)
