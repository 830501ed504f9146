"""The process that owns the processes and the folder of a group: they end, whatever happens to the driver.

`pibench.parties.processes` starts it by the path of this file. It needs the standard library alone, and is
there in a few hundredths of a second. Users never start it.

Every process of a group is a child of this one. When the driver asks for it, closes the connection or dies,
the supervisor kills them all, and whatever they have started, and removes the folder. It watches the driver's
process, so a living child of the driver delays nothing; it kills, so a stopped process delays nothing either.
If the supervisor itself is killed, the kernel (on Linux) and a pipe (everywhere) end its children. The folder
then stays until another supervisor starts: each one holds a lock on its own folder and removes those that
nobody holds.

Messages are lines of JSON. Descriptors travel with the line that starts a process.

    driver -> supervisor    {"start": command, "environment": {..}, "log": path, "kept": 1, "first": 20}
                            {"kill": pid}    {"end": true}
    supervisor -> driver    {"folder": path}    {"pid": pid}    {"error": sentence}
                            {"ended": pid, "code": code}
"""

from __future__ import annotations

import ctypes
import fcntl
import json
import os
import select
import signal
import socket
import sys
from contextlib import ExitStack, suppress
from typing import Any

PREFIX = "pibench-group-"
_ENDING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
_USUAL = (*_ENDING, signal.SIGCHLD, signal.SIGPIPE, signal.SIGXFSZ)  # what Python and this module change
_PR_SET_CHILD_SUBREAPER = 36
_POLL_S = 1.0


class Supervisor:
    """The children of this process, and the connection `control` to the driver."""

    def __init__(self, control: socket.socket) -> None:
        self._control = control
        self._children: set[int] = set()
        self._received: list[int] = []
        self._text = b""
        self._lifeline, self._end_of_life = os.pipe()
        self._woken, wake = os.pipe()
        for end in (self._woken, wake):
            os.set_blocking(end, False)
        signal.set_wakeup_fd(wake)
        signal.signal(signal.SIGCHLD, lambda *_: None)

    def tell(self, **message: Any) -> None:
        """Sends the driver a message; one that is gone is noticed elsewhere."""
        with suppress(OSError):
            self._control.sendall(json.dumps(message).encode() + b"\n")

    def serve(self, driver: int, gone: int | None) -> None:
        """Obeys the driver until it wants the end or is dead; `gone` is a descriptor of its process."""
        watched = [self._control, self._woken, *([] if gone is None else [gone])]
        while True:
            ready, _, _ = select.select(watched, [], [], _POLL_S if gone is None else None)
            if gone in ready or os.getppid() != driver:
                return
            if self._woken in ready:
                os.read(self._woken, 4096)
            self._reap()
            if self._control in ready and not self._obey():
                return

    def _reap(self) -> None:
        """Tells the driver which processes have ended."""
        with suppress(ChildProcessError):
            while True:
                pid, status = os.waitpid(-1, os.WNOHANG)
                if not pid:
                    return
                if pid in self._children:
                    self._children.remove(pid)
                    self.tell(ended=pid, code=os.waitstatus_to_exitcode(status))

    def _obey(self) -> bool:
        """Does what the driver asks; returns False for the wish to end and for a closed connection."""
        try:
            text, descriptors, _, _ = socket.recv_fds(self._control, 1 << 16, 16)
        except OSError:
            return False
        for descriptor in descriptors:  # those of one process are not for another
            os.set_inheritable(descriptor, False)
        self._received += descriptors
        *lines, self._text = (self._text + text).split(b"\n")
        for line in lines:
            asked = json.loads(line)
            if "start" in asked:
                self._start(asked)
            elif "kill" in asked:
                if asked["kill"] in self._children:
                    os.kill(asked["kill"], signal.SIGKILL)
            else:
                return False
        return bool(text)

    def _start(self, asked: dict[str, Any]) -> None:
        """Starts a process in a session of its own; it reads nowhere and writes to its log."""
        kept, self._received = self._received[: asked["kept"]], self._received[asked["kept"] :]
        with ExitStack() as stack:
            for descriptor in kept:
                stack.callback(os.close, descriptor)
            try:
                if len(kept) < asked["kept"]:
                    raise OSError("no descriptor is left for it")
                log = os.open(asked["log"], os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
                stack.callback(os.close, log)
                given = ((1, log), (2, log), *enumerate((self._lifeline, *kept), asked["first"]))
                pid = os.posix_spawnp(
                    asked["start"][0],
                    asked["start"],
                    os.environ | asked["environment"],
                    file_actions=[
                        (os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDONLY, 0),
                        *((os.POSIX_SPAWN_DUP2, descriptor, number) for number, descriptor in given),
                    ],
                    setsid=True,  # Ctrl-C reaches only the driver, which then ends the group
                    setsigmask=(),
                    setsigdef=_USUAL,
                )
            except OSError as error:
                self.tell(error=f"a process of the parties could not be started ({error})")
                return
        self._children.add(pid)
        self.tell(pid=pid)

    def end(self) -> None:
        """Kills every child, and the ones that become its own when their parents die; waits for all."""
        with suppress(ChildProcessError):
            while True:
                for pid in self._alive():
                    with suppress(ProcessLookupError):
                        os.kill(pid, signal.SIGKILL)
                pid, _ = os.waitpid(-1, 0)
                self._children.discard(pid)

    def _alive(self) -> list[int]:
        """Returns the children of this process, those that others have started among them (Linux)."""
        try:
            with open(f"/proc/self/task/{os.getpid()}/children") as listed:
                return list(map(int, listed.read().split()))
        except OSError:
            return list(self._children)


def make_folder(temporary: str) -> str:
    """Makes a folder that only this user can open, and holds it as long as this process lives."""
    while True:
        path = os.path.join(temporary, PREFIX + os.urandom(6).hex())
        os.mkdir(path, 0o700)
        try:
            if _held(path) is not None:
                return path
        except OSError:  # a file system without locks, where nobody can sweep either
            return path


def sweep(temporary: str) -> None:
    """Removes this user's folders that no process holds: what killed supervisors have left."""
    with suppress(OSError), os.scandir(temporary) as entries:
        for entry in entries:
            if not entry.name.startswith(PREFIX):
                continue
            with suppress(OSError):
                if entry.stat(follow_symlinks=False).st_uid != os.geteuid():
                    continue
                descriptor = _held(entry.path)
                if descriptor is not None:
                    _remove(entry.path)
                    os.close(descriptor)


def _held(path: str) -> int | None:
    """Locks a folder; returns the descriptor that holds it, or None if another process does or it is gone."""
    with suppress(BlockingIOError, FileNotFoundError), ExitStack() as stack:
        descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
        stack.callback(os.close, descriptor)
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if os.stat(path).st_ino == os.fstat(descriptor).st_ino:  # nobody has removed it before it was locked
            stack.pop_all()
            return descriptor
    return None


def _remove(folder: str) -> None:
    from shutil import rmtree  # its import takes longer than that of all the rest

    rmtree(folder, ignore_errors=True)


def main() -> None:
    """Runs until the driver wants the end or is gone.

    Its arguments are the driver's process id and the place of folders.
    """
    driver, temporary = int(sys.argv[1]), sys.argv[2]
    for each in _ENDING:
        signal.signal(each, signal.SIG_IGN)  # it ends with the driver, and not before
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1)
    gone = None
    with suppress(AttributeError, OSError):  # without it the parent is looked at now and then
        gone = os.pidfd_open(driver)
    if os.getppid() != driver:
        return
    supervisor = Supervisor(socket.socket(fileno=os.dup(0)))
    try:
        folder = make_folder(temporary)
    except OSError as error:
        reason = f"no folder can be made in {temporary} ({error.strerror})"
        supervisor.tell(error=f"{reason}: set TMPDIR to a place where one can be")
        return
    try:
        supervisor.tell(folder=folder)
        sweep(temporary)
        supervisor.serve(driver, gone)
    finally:
        supervisor.end()
        _remove(folder)


if __name__ == "__main__":
    main()
