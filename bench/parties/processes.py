"""The processes of a group, as the driver sees them, and `pibench.hosts.join` that serves a guest.

A supervisor (`pibench.parties.supervisor`) owns them and their folder. This module holds its other end.
"""

from __future__ import annotations

import errno
import json
import os
import queue
import resource
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Mapping, Sequence
from contextlib import ExitStack, suppress
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from pibench.links.lifeline import GIVEN, LIFELINE
from pibench.parties import supervisor

# One thread a party. glibc keeps large blocks instead of returning them to the system at every step
# (saves about 20 % of the time at batch 1).
ENVIRONMENT = {
    "OMP_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "1",
    "NUMBA_NUM_THREADS": "1",
    "MALLOC_MMAP_THRESHOLD_": str(1 << 30),
    "MALLOC_TRIM_THRESHOLD_": str(1 << 30),
    "MALLOC_TOP_PAD_": str(1 << 26),
}
DESCRIPTORS = 64
"""Files that a group may need to open: a driver's connections, and what torch and gloo open in a party."""
DESCRIPTORS_OF_A_LOAD = 16
"""Files that the driver may need to open at once to import what captures a network."""
ANSWER_S = 30.0  # for a supervisor on a busy machine to start and to answer
END_S = 10.0  # for it to end processes that hold gigabytes; it is killed then


def demand_descriptors(needed: int = DESCRIPTORS) -> None:
    """Raises OSError unless this process may open `needed` files more.

    Without it a shared library, a source that is imported or a child meets the limit, and each says so in its
    own way or not at all.
    """
    most, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    try:
        others = [number for number in map(int, os.listdir("/dev/fd")) if number < most]
        left = most - len(others) + 1  # one was the folder's own
    except OSError as error:
        if error.errno != errno.EMFILE:  # nobody can tell here
            return
        left = 0
    if most != resource.RLIM_INFINITY and left < needed:
        raise OSError(
            f"of {most} open files only {left} are left to this process, and parties need up to "
            f"{needed}: close some, or raise the limit (ulimit -n 1024)"
        )


class Process:
    """A process of a group; it has what the group needs of `subprocess.Popen`."""

    def __init__(self, owner: Supervisor, pid: int) -> None:
        self.pid = pid
        self.returncode: int | None = None
        self._owner = owner
        self._ended = threading.Event()

    def kill(self) -> None:
        """Ends the process."""
        self._owner.tell(kill=self.pid)

    def poll(self) -> int | None:
        """Returns the exit code, negative for a signal, or None while the process lives."""
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        """Waits until the process has ended; raises subprocess.TimeoutExpired after `timeout` seconds."""
        if not self._ended.wait(timeout):
            raise subprocess.TimeoutExpired(f"process {self.pid}", timeout)
        return self.returncode

    def note(self, code: int) -> None:
        """Learns that the process has ended, and how."""
        self.returncode = code
        self._ended.set()


class Supervisor:
    """The process that owns the processes and the folder of a group, until `end` or the end of `with`.

    `folder` is open to this user alone. Any thread may use the object, and it may end before the others.
    Raises OSError where no process or folder can be made.
    """

    def __init__(self) -> None:
        demand_descriptors()
        # A socket must not take the place of a standard stream that is closed: torch writes there.
        while (descriptor := os.open(os.devnull, os.O_RDWR)) <= 2:
            pass
        os.close(descriptor)
        self._processes: dict[int, Process] = {}
        self._replies: queue.SimpleQueue[dict[str, Any]] = queue.SimpleQueue()
        self._lock = threading.RLock()
        self._control, theirs = socket.socketpair()
        self._control.settimeout(None)  # whatever the user has set for sockets
        self._reader = threading.Thread(target=self._read, daemon=True)
        self.folder: Path | None = None
        with theirs, ExitStack() as stack:
            stack.callback(self._control.close)
            self._popen = subprocess.Popen(
                [sys.executable, "-I", "-S", supervisor.__file__, str(os.getpid()), tempfile.gettempdir()],
                stdin=theirs,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                start_new_session=True,
            )
            self._reader.start()
            stack.pop_all()
        try:
            self.folder = Path(self._reply()["folder"])
        except BaseException:
            self.end()
            raise

    def __enter__(self) -> Supervisor:
        return self

    def __exit__(self, *_: object) -> None:
        self.end()

    def start(
        self,
        command: Sequence[str],
        log: Path,
        keep: Sequence[int] = (),
        environment: Mapping[str, str] | None = None,
    ) -> Process:
        """Starts a process that ends with the supervisor at the latest, and writes to `log`.

        It finds the lifeline open as the descriptor LIFELINE, and copies of `keep` from GIVEN on.
        """
        asked = {
            "start": list(command),
            "environment": dict(environment or {}),
            "log": str(log),
            "kept": len(keep),
            "first": LIFELINE,
        }
        with self._lock:
            with suppress(OSError):  # it is gone, as the reply says
                socket.send_fds(self._control, [json.dumps(asked).encode() + b"\n"], keep)
            return self._processes[self._reply()["pid"]]

    def _reply(self) -> dict[str, Any]:
        try:
            reply = self._replies.get(timeout=ANSWER_S if self._reader.is_alive() else 0.0)
        except queue.Empty:
            how = f"did not answer within {ANSWER_S:g} s" if self._reader.is_alive() else "ended"
            reply = {"error": f"the supervisor of the parties {how}"}
        if "error" in reply:
            raise OSError(reply["error"])
        return reply

    def tell(self, **message: Any) -> None:
        """Sends the supervisor a message to which no reply comes."""
        with self._lock, suppress(OSError):  # it is gone, and everything with it
            self._control.sendall(json.dumps(message).encode() + b"\n")

    def failure(self) -> str | None:
        """Returns how the supervisor ended, if it did; its children end a moment later."""
        self._reader.join(0.3)
        if self._reader.is_alive():
            return None
        with suppress(subprocess.TimeoutExpired):
            self._popen.wait(1.0)
        return f"the supervisor of the parties ended with code {self._popen.returncode}"

    def end(self) -> None:
        """Ends every process, removes the folder and waits until both are gone; may be called twice."""
        self.tell(end=True)
        self._reader.join(END_S)
        if self._reader.is_alive():  # it is stopped; its death is that of its children
            self._popen.kill()
        self._popen.wait()
        with suppress(OSError):
            self._control.shutdown(socket.SHUT_RDWR)  # a child of this process may have the other end, too
        self._reader.join()
        self._control.close()
        if self.folder is not None:
            shutil.rmtree(self.folder, ignore_errors=True)  # if the supervisor could not

    def _read(self) -> None:
        """Hears the supervisor until it is gone."""
        with suppress(OSError, ValueError), self._control.makefile("rb") as lines:
            for line in lines:
                said = json.loads(line)
                if "ended" in said:
                    self._processes[said["ended"]].note(said["code"])
                    continue
                if "pid" in said:
                    self._processes[said["pid"]] = Process(self, said["pid"])
                self._replies.put(said)
        for process in self._processes.values():
            if process.poll() is None:
                process.note(-signal.SIGKILL)
        self._replies.put({"error": "the supervisor of the parties ended"})


def start_worker(
    owner: Supervisor, log: Path, interface: str, prefix: Sequence[str] = (), keep: Sequence[int] = ()
) -> tuple[Process, Connection]:
    """Starts `pibench.parties.worker`; returns the process and this end of its connection.

    It writes to `log`, lets gloo listen at `interface`, and finds copies of the descriptors `keep` from
    GIVEN + 1 on.
    """
    ours, theirs = socket.socketpair()
    command = [
        *prefix, sys.executable, "-P", "-m", "pibench.parties.worker", str(GIVEN), str(LIFELINE)
    ]  # fmt: skip
    with theirs:
        try:
            process = owner.start(
                command, log, (theirs.fileno(), *keep), ENVIRONMENT | {"GLOO_SOCKET_IFNAME": interface}
            )
        except BaseException:
            ours.close()
            raise
    return process, Connection(ours.detach())
