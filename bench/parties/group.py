"""A group of processes: they start together, receive commands together and end together.

A process that fails, dies or hangs ends the whole group with PartyFailed, which names the likely first cause.
No process and no file outlives the driver: a supervisor owns them (`pibench.parties.supervisor`). This module
does not know what the processes compute (`pibench.parties.driver`).
"""

from __future__ import annotations

import signal
import subprocess
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

from pibench.engines.base import NotPrepared, Setting
from pibench.links.shapers import Place, Running, Shaper
from pibench.parties.memory import resident_memory
from pibench.parties.messages import encode, receive, send
from pibench.parties.processes import Supervisor, start_worker


class PartyFailed(RuntimeError):  # noqa: N818 (a state, named in the interface)
    """Raised when a process of the group failed, died or hung; the group is gone then."""


@dataclass
class _Process:
    """A started process and the driver's end of its connection; `here` if it is on this host."""

    title: str
    popen: Running
    connection: Connection
    log: Path
    here: bool = True


class Group:
    """The processes of one group, by rank; `shaper` produces the link between them.

    `timeout_s` limits every wait for a reply.
    """

    def __init__(self, shaper: Shaper, timeout_s: float) -> None:
        self.shaper = shaper
        self.timeout_s = timeout_s
        self._processes: list[_Process] = []
        self._supervisor: Supervisor | None = None

    @property
    def pids(self) -> tuple[int, ...]:
        """Process ids by rank; empty when the group is gone."""
        return tuple(process.popen.pid for process in self._processes)

    @property
    def folder(self) -> Path | None:
        """The folder of the group's files, which only this user can open; None when the group is gone."""
        return None if self._supervisor is None else self._supervisor.folder

    @property
    def memory_here(self) -> int:
        """The bytes of this host's memory that the processes hold now."""
        return sum(resident_memory(process.popen.pid) for process in self._processes if process.here)

    def start(self, count: int, setting: Callable[[int, str, Place], Setting]) -> None:
        """Starts `count` processes and waits until each is ready.

        `setting(rank, rendezvous, place)` returns the setting of a process. A failure ends every started
        process. Raises OSError where the system allows no process or folder.
        """
        if self._processes:
            raise RuntimeError("these parties are running already; open a new Parties")
        self._supervisor = Supervisor()
        try:
            self.shaper.start(self.folder, self._supervisor.start)
            for rank in range(count):
                told = setting(rank, str(self.folder / "rendezvous"), self.shaper.place(rank))
                self._processes.append(self._start(told))
            self._await(self._processes, range(count), "start")
        except BaseException:
            self.kill()
            raise

    def _start(self, setting: Setting) -> _Process:
        title = f"party {setting.rank}" if setting.role == "party" else setting.role
        log = self.folder / f"{setting.rank}.log"
        guest = self.shaper.elsewhere(setting, log)
        if guest is not None:
            return _Process(title, guest, guest.connection, log, here=False)
        started = start_worker(self._supervisor, log, self.shaper.interface, self.shaper.prefix)
        process = _Process(title, *started, log)
        try:
            self.shaper.attach(setting.rank, process.popen.pid)
            with suppress(OSError):  # it is gone; the wait for its reply reports that
                send(process.connection, setting)
        except BaseException:
            self._processes.append(process)  # so that `kill` ends it with the others
            raise
        return process

    def kill(self) -> None:
        """Ends every process of the group and waits until it is gone; may be called twice."""
        processes, self._processes = self._processes, []
        supervisor, self._supervisor = self._supervisor, None
        for process in processes:
            process.popen.kill()
        if supervisor is not None:
            supervisor.end()
        for process in processes:
            process.popen.wait()
            process.connection.close()
        self.shaper.stop()

    def ask(self, command: str, arguments: Mapping[int, tuple[Any, ...]]) -> list[Any]:
        """Sends commands to the processes of these ranks at once; returns their replies in the same order.

        Raises PartyFailed and ends the group when a reply does not come, also when another thread closes the
        group. Raises NotPrepared when a process refuses. Raises ValueError, and sends nothing, when a command
        cannot travel to its process.
        """
        processes = self._processes  # another thread may close the group at any moment
        if not processes:
            raise PartyFailed("the parties are not running; open a new Parties")
        for rank, told in arguments.items():
            self.shaper.demand(rank, command, told)
        threads = [
            threading.Thread(target=_send, args=(processes[rank], encode((command, told))), daemon=True)
            for rank, told in arguments.items()
        ]
        for thread in threads:
            thread.start()
        try:
            replies = self._await(processes, list(arguments), command)
        except BaseException:
            self.kill()  # a running command cannot be cancelled
            raise
        for thread in threads:
            thread.join()
        return replies

    def _await(self, processes: list[_Process], ranks: Sequence[int], command: str) -> list[Any]:
        """Waits for the replies of `ranks`; raises PartyFailed with the cause when a reply does not come."""
        deadline = time.monotonic() + self.timeout_s
        pending = {processes[rank].connection: rank for rank in ranks}
        others = {p.connection: rank for rank, p in enumerate(processes) if rank not in ranks}
        replies: dict[int, Any] = {}
        refusals: list[str] = []
        failures: list[tuple[int, str | None]] = []
        while pending:
            left = deadline - time.monotonic()
            try:
                ready = wait([*pending, *others], timeout=max(left, 0.0))
            except OSError:  # a connection is closed, on this side
                break
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
        if self._processes is not processes:
            raise PartyFailed(f"the parties were closed by another thread while {command!r} ran")
        if failures:
            raise PartyFailed(self._cause(processes, failures, command))
        if pending:
            silent = ", ".join(processes[rank].title for rank in pending.values())
            raise PartyFailed(
                f"{silent} did not answer {command!r} within {self.timeout_s:g} s; all were ended"
            )
        if refusals:
            raise NotPrepared(refusals[0])
        return [replies[rank] for rank in ranks]

    def _cause(self, processes: list[_Process], failures: list[tuple[int, str | None]], command: str) -> str:
        """Returns the likely first cause: a process that was killed, or else the first one that reported."""
        killed = [rank for rank, trace in failures if trace is None]
        rank, trace = (killed[0], None) if killed else failures[0]
        process, owner = processes[rank], self._supervisor
        if (failure := (owner and owner.failure()) or self.shaper.failure()) is not None:
            return f"{failure}; so {process.title} failed in {command!r}"
        if trace is not None:
            last = trace.rstrip().rpartition("\n")[2].strip()
            return f"{process.title} failed in {command!r}: {last}\n{trace}"
        try:
            code = process.popen.wait(timeout=1.0)
        except subprocess.TimeoutExpired:
            code = None
        how = f"with exit code {code}"
        if code is not None and code < 0:
            how = f"by signal {-code} ({signal.Signals(-code).name})"
        text = f"{process.title} died {how} in {command!r}"
        said = process.log.read_text(errors="replace")[-2000:].strip() if process.log.exists() else ""
        traces = [f"{processes[r].title} then failed:\n{t}" for r, t in failures if t is not None]
        return "\n".join([text, *([f"its last words:\n{said}"] if said else []), *traces])


def _send(process: _Process, message: bytes) -> None:
    try:
        process.connection.send_bytes(message)
    except OSError:
        return  # the process is gone; the wait for its reply reports that
