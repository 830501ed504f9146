"""Processes that are forked from one, which has imported what they need.

An import of torch, CrypTen and numba takes a worker most of the seconds that a small test takes. The fork
server of the standard library pays for it once for each process of the tests.
"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from multiprocessing import get_context
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from multiprocessing.reduction import DupFd
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

from pibench.measure import network
from pibench.parties import group
from pibench.parties.processes import ENVIRONMENT, Supervisor, start_worker

_FORKS = get_context("forkserver")
_FORKS.set_forkserver_preload(
    [
        "pibench.parties.worker",
        "pibench.engines.crypten.node",
        "pibench.engines.lean.dealer",
        "pibench.engines.lean.node",
        "pibench.measure.foreign",
    ]
)


class Forked:
    """A forked process, as a group sees it: what it uses of `subprocess.Popen`.

    It ends when the pipe closes whose writing end is `lifeline`.
    """

    def __init__(self, process: BaseProcess, lifeline: int | None = None) -> None:
        self.process = process
        self.pid = process.pid
        self._lifeline = lifeline

    def kill(self) -> None:
        self.process.kill()

    def wait(self, timeout: float | None = None) -> int:
        self.process.join(timeout)
        if self.process.exitcode is None:
            raise subprocess.TimeoutExpired("worker", timeout)
        if self._lifeline is not None:
            os.close(self._lifeline)
            self._lifeline = None
        return self.process.exitcode


def fork_worker(
    owner: Supervisor, log: Path, interface: str, prefix: tuple[str, ...] = ()
) -> tuple[Any, Connection]:
    """Starts a worker like `pibench.parties.processes.start_worker`; one behind a prefix is not forked.

    It is no child of the supervisor.
    """
    if prefix:
        return start_worker(owner, log, interface, prefix)
    ours, theirs = socket.socketpair()
    lifeline, end = os.pipe()
    environment = os.environ | ENVIRONMENT | {"GLOO_SOCKET_IFNAME": interface}
    with theirs, patch.dict(os.environ, environment):  # glibc reads its own when the server starts
        process = _FORKS.Process(target=_work, args=(theirs, _Descriptor(lifeline), log, environment))
        process.start()
    os.close(lifeline)
    return Forked(process, end), Connection(ours.detach())


class _Descriptor:
    """A descriptor that travels to the forked process."""

    def __init__(self, number: int) -> None:
        self.number = number

    def __reduce__(self) -> tuple[Any, ...]:
        return _received, (DupFd(self.number),)


def _received(passed: Any) -> int:
    return passed.detach()


def _work(connection: socket.socket, lifeline: int, log: Path, environment: dict[str, str]) -> None:
    """Makes the forked process what a started one is, and works."""
    from pibench.parties import worker

    os.setsid()
    with log.open("wb") as output:
        os.dup2(output.fileno(), 1)
        os.dup2(output.fileno(), 2)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    os.environ.clear()
    os.environ.update(environment)
    sys.argv = ["worker", str(connection.detach()), str(lifeline)]
    worker.main()


@contextmanager
def forked_workers() -> Iterator[None]:
    """Has the parties that are started here forked."""
    with patch.object(group, "start_worker", fork_worker):
        yield


def fork_foreign(
    command: Sequence[str], *, cwd: Path, capture_output: bool, text: bool, timeout: float
) -> subprocess.CompletedProcess[str]:
    """Runs `python -P -m pibench.measure.foreign ...` as `subprocess.run` does."""
    assert command[1:4] == ["-P", "-m", "pibench.measure.foreign"]
    assert capture_output
    assert text
    with tempfile.NamedTemporaryFile() as said:
        process = _FORKS.Process(target=_make_network, args=(command[4:], cwd, Path(said.name)))
        process.start()
        code = Forked(process).wait(timeout)
        return subprocess.CompletedProcess(command, code, "", Path(said.name).read_text())


def _make_network(arguments: Sequence[str], folder: Path, said: Path) -> None:
    from pibench.measure import foreign

    os.chdir(folder)
    with said.open("wb") as output:
        os.dup2(output.fileno(), 2)
    sys.exit(foreign.main(*arguments))


@contextmanager
def forked_networks() -> Iterator[None]:
    """Has a user's networks made in forked processes."""
    forked = SimpleNamespace(run=fork_foreign, TimeoutExpired=subprocess.TimeoutExpired)
    with patch.object(network, "subprocess", forked):
        yield
