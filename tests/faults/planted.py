"""Failures that the campaign must find, and successes that it must not call failures."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import tempfile
import time

from faults.fault import Observed
from faults.stage import Stage


def answer(stage: Stage, given: float) -> Observed:
    """An answer that is right if it is 2."""
    return stage.attempt(lambda: given, lambda result: result == 2)


def hang(stage: Stage, length: float) -> Observed:
    """A call that does not return for so many seconds."""
    return stage.attempt(lambda: time.sleep(length))


def process(stage: Stage) -> Observed:
    """A process that outlives its driver, in a session of its own."""
    subprocess.Popen(["sleep", "600"], start_new_session=True)
    return stage.attempt(lambda: 2)


def folder(stage: Stage) -> Observed:
    """A folder that stays in TMPDIR."""
    tempfile.mkdtemp(prefix="pibench-")
    return stage.attempt(lambda: 2)


def row(stage: Stage) -> Observed:
    """Two rows are added to a file, and one of them is lost; the call itself succeeds."""
    path = stage.folder / "rows.json"
    for name in ("one", "two"):
        path.write_text(json.dumps([name]))
    there = json.loads(path.read_text())
    return Observed(answered=True, right=True, lost=tuple({"one", "two"} - set(there)))


def inside(stage: Stage) -> Observed:
    """An error that comes from inside, although its text names the file."""
    return stage.attempt(lambda: {}["bench.json"])


def nameless(stage: Stage) -> Observed:
    """An error of the suite's own that does not name the thing."""
    from pibench.links.link import parse_link

    return stage.attempt(lambda: parse_link("no link at all"))


def command(stage: Stage, text: str, code: int) -> Observed:
    """A command that ends with an exit status and these words."""

    def work() -> int:
        os.write(2, text.encode())
        return code

    return stage.fork(work).observed(5)


def traceback(stage: Stage) -> Observed:
    """A command that fails with a traceback, whose last line even names the file."""

    def work() -> None:
        raise FileNotFoundError("bench.json")

    return stage.fork(work).observed(5)


def crash(stage: Stage) -> Observed:
    """An interpreter that dies."""
    os.kill(os.getpid(), signal.SIGSEGV)
    return stage.attempt(lambda: 2)


def broken(stage: Stage) -> Observed:
    """An act that fails by itself."""
    raise RuntimeError("the act is wrong")
