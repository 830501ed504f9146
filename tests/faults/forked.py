"""Workers of parties that are forked from a process which has imported everything: a start takes 50 ms.

They are no children of the group's supervisor. Where that matters, an act starts workers as users do.
"""

from __future__ import annotations

import fcntl
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any
from unittest.mock import patch

from pibench.links.lifeline import GIVEN, LIFELINE
from pibench.parties import group
from pibench.parties.processes import start_worker

ASIDE = 100
"""Descriptors from here on are out of the way of those that a worker finds."""


class Forked:
    """A forked process, as a group sees it: what it uses of `subprocess.Popen`.

    It ends when the pipe closes whose writing end is `lifeline`.
    """

    def __init__(self, pid: int, lifeline: int) -> None:
        self.pid = pid
        self.returncode: int | None = None
        self._lifeline: int | None = lifeline

    def poll(self) -> int | None:
        if self.returncode is None:
            try:
                pid, status = os.waitpid(self.pid, os.WNOHANG)
            except ChildProcessError:
                self.returncode = 0
            else:
                self.returncode = os.waitstatus_to_exitcode(status) if pid else None
        return self.returncode

    def send_signal(self, how: int) -> None:
        if self.poll() is None:
            with suppress(ProcessLookupError):
                os.kill(self.pid, how)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)

    def terminate(self) -> None:
        self.send_signal(signal.SIGTERM)

    def wait(self, timeout: float | None = None) -> int:
        deadline = None if timeout is None else time.monotonic() + timeout
        while self.poll() is None:
            if deadline is not None and time.monotonic() > deadline:
                raise subprocess.TimeoutExpired("worker", timeout or 0.0)
            time.sleep(0.002)
        if self._lifeline is not None:
            os.close(self._lifeline)
            self._lifeline = None
        return self.returncode or 0


def fork_worker(
    owner: Any, log: Path, interface: str, prefix: Sequence[str] = (), keep: Sequence[int] = ()
) -> tuple[Any, Connection]:
    """Starts a worker like `pibench.parties.processes.start_worker`; one behind a prefix is not forked."""
    if prefix:
        return start_worker(owner, log, interface, prefix, keep)
    ours, theirs = socket.socketpair()
    lifeline, end = os.pipe()
    with theirs, log.open("wb") as output:
        sys.stdout.flush()
        sys.stderr.flush()
        pid = os.fork()
        if not pid:
            _work([lifeline, theirs.fileno(), *keep], output.fileno(), interface)
    os.close(lifeline)
    return Forked(pid, end), Connection(ours.detach())


def _work(given: Sequence[int], output: int, interface: str) -> None:
    """Makes the forked process what a started one is, works, and never returns."""
    from pibench.parties import worker

    try:
        os.setsid()
        for how in (signal.SIGTERM, signal.SIGHUP, signal.SIGINT, signal.SIGUSR1):
            signal.signal(how, signal.SIG_DFL)
        nothing = os.open(os.devnull, os.O_RDONLY)
        for source, target in ((nothing, 0), (output, 1), (output, 2)):
            os.dup2(source, target)
        aside = [fcntl.fcntl(descriptor, fcntl.F_DUPFD, ASIDE) for descriptor in given]
        for number, descriptor in enumerate(aside, LIFELINE):
            os.dup2(descriptor, number)
        os.closerange(3, LIFELINE)
        os.closerange(LIFELINE + len(given), os.sysconf("SC_OPEN_MAX"))
        sys.stdin = open(0, encoding="utf-8", closefd=False)  # noqa: SIM115 (they stay open)
        sys.stdout = open(1, "w", encoding="utf-8", closefd=False)  # noqa: SIM115
        sys.stderr = open(2, "w", encoding="utf-8", closefd=False)  # noqa: SIM115
        os.environ["GLOO_SOCKET_IFNAME"] = interface
        sys.argv = ["worker", str(GIVEN), str(LIFELINE)]
        worker.main()
    finally:
        os._exit(70)


@contextmanager
def forked_workers() -> Iterator[None]:
    """Has the parties that are started here forked."""
    with patch.object(group, "start_worker", fork_worker):
        yield
