"""A group of processes: they start together, receive commands together and end together.

A process that fails, dies or hangs ends the whole group with PartyFailed, which names the likely first cause.
No process outlives the driver. This module does not know what the processes compute
(`pibench.parties.driver`).
"""

from __future__ import annotations

import os
import signal
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

from pibench.engines.base import NotPrepared, Setting
from pibench.links.shapers import Guest, Place, Shaper
from pibench.parties.messages import encode, receive, send
from pibench.parties.processes import start_worker


class PartyFailed(RuntimeError):  # noqa: N818 (a state, named in the interface)
    """Raised when a process of the group failed, died or hung; the group is gone then."""


@dataclass
class _Process:
    """A started process and the driver's end of its connection."""

    title: str
    popen: subprocess.Popen[bytes] | Guest
    connection: Connection
    log: Path


class Group:
    """The processes of one group, by rank; `shaper` produces the link between them.

    `timeout_s` limits every wait for a reply.
    """

    def __init__(self, shaper: Shaper, timeout_s: float) -> None:
        self.shaper = shaper
        self.timeout_s = timeout_s
        self._processes: list[_Process] = []
        self._lifeline: int | None = None
        self._folder: tempfile.TemporaryDirectory[str] | None = None

    @property
    def pids(self) -> tuple[int, ...]:
        """Process ids by rank; empty when the group is gone."""
        return tuple(process.popen.pid for process in self._processes)

    def start(self, count: int, setting: Callable[[int, str, Place], Setting]) -> None:
        """Starts `count` processes and waits until each is ready.

        `setting(rank, rendezvous, place)` returns the setting of a process. A failure ends every started
        process.
        """
        if self._processes:
            raise RuntimeError("these parties are running already; open a new Parties")
        self._folder = tempfile.TemporaryDirectory(prefix="pibench-", ignore_cleanup_errors=True)
        lifeline, self._lifeline = os.pipe()
        try:
            rendezvous = f"file://{self._folder.name}/rendezvous"
            self.shaper.start(Path(self._folder.name), lifeline)
            for rank in range(count):
                told = setting(rank, rendezvous, self.shaper.place(rank))
                self._processes.append(self._start(told, lifeline))
            self._await(range(count), "start")
        except BaseException:
            self.kill()
            raise
        finally:
            os.close(lifeline)

    def _start(self, setting: Setting, lifeline: int) -> _Process:
        title = f"party {setting.rank}" if setting.role == "party" else setting.role
        log = Path(self._folder.name) / f"{setting.rank}.log"
        guest = self.shaper.elsewhere(setting, log)
        if guest is not None:
            return _Process(title, guest, guest.connection, log)
        started = start_worker(log, lifeline, self.shaper.interface, self.shaper.prefix)
        process = _Process(title, *started, log)
        try:
            self.shaper.attach(setting.rank, process.popen.pid)
            send(process.connection, setting)
        except BaseException:
            self._processes.append(process)  # so that `kill` ends it with the others
            raise
        return process

    def kill(self) -> None:
        """Ends every process of the group and waits until it is gone; may be called twice."""
        processes, self._processes = self._processes, []
        for process in processes:
            process.popen.kill()
        for process in processes:
            process.popen.wait()
            process.connection.close()
        self.shaper.stop()
        if self._lifeline is not None:
            os.close(self._lifeline)
            self._lifeline = None
        if self._folder is not None:
            self._folder.cleanup()
            self._folder = None

    def ask(self, command: str, arguments: Mapping[int, tuple[Any, ...]]) -> list[Any]:
        """Sends commands to the processes of these ranks at once; returns their replies in the same order.

        Raises PartyFailed and ends the group when a reply does not come. Raises NotPrepared when a process
        refuses. Raises ValueError, and sends nothing, when a command cannot travel to its process.
        """
        if not self._processes:
            raise PartyFailed("the parties are not running; open a new Parties")
        for rank, told in arguments.items():
            self.shaper.demand(rank, command, told)
        threads = [
            threading.Thread(target=_send, args=(self._processes[rank], encode((command, told))), daemon=True)
            for rank, told in arguments.items()
        ]
        for thread in threads:
            thread.start()
        try:
            replies = self._await(list(arguments), command)
        except BaseException:
            self.kill()  # a running command cannot be cancelled
            raise
        for thread in threads:
            thread.join()
        return replies

    def _await(self, ranks: Sequence[int], command: str) -> list[Any]:
        """Waits for the replies of `ranks`; raises PartyFailed with the cause when a reply does not come."""
        deadline = time.monotonic() + self.timeout_s
        pending = {self._processes[rank].connection: rank for rank in ranks}
        others = {p.connection: rank for rank, p in enumerate(self._processes) if rank not in ranks}
        replies: dict[int, Any] = {}
        refusals: list[str] = []
        failures: list[tuple[int, str | None]] = []
        while pending:
            left = deadline - time.monotonic()
            ready = wait([*pending, *others], timeout=max(left, 0.0))
            if not ready:
                break
            for connection in ready:
                rank = pending.pop(connection, None)
                rank = others.pop(connection) if rank is None else rank
                try:
                    kind, value = receive(connection)
                except (EOFError, OSError):
                    kind, value = "failed", None
                if kind == "failed":
                    failures.append((rank, value))
                    # Peers fail one after the other; reports within a second help to find the first cause.
                    deadline = min(deadline, time.monotonic() + 1.0)
                elif kind == "not prepared":
                    refusals.append(value)
                else:
                    replies[rank] = value
        if failures:
            raise PartyFailed(self._cause(failures, command))
        if pending:
            silent = ", ".join(self._processes[rank].title for rank in pending.values())
            raise PartyFailed(
                f"{silent} did not answer {command!r} within {self.timeout_s:g} s; all were ended"
            )
        if refusals:
            raise NotPrepared(refusals[0])
        return [replies[rank] for rank in ranks]

    def _cause(self, failures: list[tuple[int, str | None]], command: str) -> str:
        """Returns the likely first cause: a process that was killed, or else the first one that reported."""
        killed = [rank for rank, trace in failures if trace is None]
        rank, trace = (killed[0], None) if killed else failures[0]
        process = self._processes[rank]
        if (failure := self.shaper.failure()) is not None:
            return f"{failure}; so {process.title} failed in {command!r}"
        if trace is not None:
            return f"{process.title} failed in {command!r}:\n{trace}"
        try:
            code = process.popen.wait(timeout=1.0)
        except subprocess.TimeoutExpired:
            code = None
        how = f"with exit code {code}"
        if code is not None and code < 0:
            how = f"by signal {-code} ({signal.Signals(-code).name})"
        text = f"{process.title} died {how} in {command!r}"
        said = process.log.read_text(errors="replace")[-2000:].strip()
        traces = [f"{self._processes[r].title} then failed:\n{t}" for r, t in failures if t is not None]
        return "\n".join([text, *([f"its last words:\n{said}"] if said else []), *traces])


def _send(process: _Process, message: bytes) -> None:
    try:
        process.connection.send_bytes(message)
    except OSError:
        return  # the process is gone; the wait for its reply reports that
