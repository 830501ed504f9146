"""Shapers: programs that put a link between the processes of a group, for `pibench.parties.driver`.

`none` puts nothing there. `user-space` starts the relay (`pibench.links.relay`); it works on every system and
for every user. `netem` gives each process its own network namespace, a veth pair to a hub that routes, and
the kernel's netem at the exit. `netem` is the reference where it is allowed.
"""

from __future__ import annotations

import secrets
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from pibench.links.lifeline import GIVEN, LIFELINE
from pibench.links.link import Link

if TYPE_CHECKING:
    from multiprocessing.connection import Connection

LOOPBACK_HOST = "127.0.0.1"


class ShaperUnavailable(RuntimeError):  # noqa: N818 (a state, named in the interface)
    """Raised when this machine or user cannot have the requested shaper."""


@dataclass(frozen=True)
class Place:
    """The place of a process in the network, as `pibench.engines.base.Setting` tells it."""

    host: str = LOOPBACK_HOST
    relay: str = ""
    ports: tuple[int, ...] = (0,)
    guest: int | None = None
    key: bytes = b""


class Running(Protocol):
    """A process of a group; it has the methods of `subprocess.Popen` that the driver needs."""

    pid: int

    def kill(self) -> None:
        """Ends the process."""

    def wait(self, timeout: float | None = None) -> int | None:
        """Waits until the process has ended; raises subprocess.TimeoutExpired after `timeout` seconds."""


Start = Callable[[Sequence[str], Path, Sequence[int]], Running]
"""Starts a command that writes to a log; gives it the lifeline and copies of descriptors (`lifeline`)."""


class Guest(Running, Protocol):
    """A process on another host."""

    connection: Connection


class Elsewhere(Protocol):
    """Another host on which a process of a group can run (`pibench.hosts.remote.Remote`)."""

    def shaper(self, engine: Any, count: int, provider: str, link: str | Link, shaper: str | None) -> Shaper:
        """Returns the shaper of a new group; raises ValueError for a link that this host pair cannot have."""


class Shaper:
    """Leaves the path as the machine provides it; the other shapers override the methods that they need.

    `asked` is true if the user asked for this link, and false if the link is the given network. `key` is the
    secret by which the processes of one host know each other.
    """

    name = "none"
    asked = True
    prefix: tuple[str, ...] = ()  # the beginning of a process's command line
    interface = "lo"

    def __init__(self, link: Link) -> None:
        self.link = link
        self.key = secrets.token_bytes(32)

    def start(self, folder: Path, start: Start) -> None:
        """Starts the shaper; the group's supervisor owns `folder` and what `start` starts."""

    def attach(self, rank: int, pid: int) -> None:
        """Connects the started but idle process `pid` as `rank`."""

    def place(self, rank: int) -> Place:
        """Returns the place of the process with this rank."""
        return Place(key=self.key)

    def demand(self, rank: int, command: str, arguments: tuple[Any, ...]) -> None:
        """Raises ValueError for a command that cannot travel to the process with this rank."""

    def elsewhere(self, setting: Any, log: Path) -> Guest | None:
        """Starts a process that runs on another host; returns None for one that belongs on this host."""
        return None

    def failure(self) -> str | None:
        """Returns how the shaper ended, if it did; the driver asks when a process of the group failed."""
        return None

    def stop(self) -> None:
        """Lets go of what the group's supervisor does not own; may be called twice."""


class _WithProcess(Shaper):
    """A shaper that has a process."""

    title: str

    def __init__(self, link: Link) -> None:
        super().__init__(link)
        self.popen: Running | None = None
        self._log: Path | None = None

    def run(self, folder: Path, start: Start, command: Sequence[str], keep: Sequence[int] = ()) -> None:
        """Starts the process with copies of the descriptors `keep`."""
        self._log = folder / "shaper.log"
        self.popen = start(command, self._log, keep)

    def failure(self) -> str | None:
        if self.popen is None:
            return None
        try:
            code = self.popen.wait(timeout=0.3)  # its peers may notice before the process is gone
        except subprocess.TimeoutExpired:
            return None
        said = self._log.read_text(errors="replace")[-1000:].strip() if self._log.exists() else ""
        return f"{self.title} ended with code {code}" + (f":\n{said}" if said else "")


class UserSpace(_WithProcess):
    """The relay process; every connection between two processes passes through it."""

    name = "user-space"
    title = "the link's relay"

    def start(self, folder: Path, start: Start) -> None:
        self._path = str(folder / "relay")
        with socket.socket(socket.AF_UNIX) as control:
            try:
                control.bind(self._path)
            except OSError as error:
                raise ShaperUnavailable(
                    f"the relay cannot listen at {self._path} ({error}); set TMPDIR to a shorter path"
                ) from error
            control.listen()
            numbers = map(str, (GIVEN, LIFELINE, self.link.rtt_s, self.link.bandwidth_bits_s))
            command = [sys.executable, "-P", "-m", "pibench.links.relay", *numbers]
            self.run(folder, start, command, [control.fileno()])

    def place(self, rank: int) -> Place:
        return Place(relay=self._path, key=self.key)


class Namespaces(_WithProcess):
    """One network namespace for each process, joined by a hub, with netem at every exit.

    This shaper needs root, ip, tc and unshare. The namespaces have no names: each belongs to the one process
    in it. When that process is gone, the kernel removes the namespace and its veth pair. The hub waits
    until the supervisor is gone.
    """

    name = "netem"
    title = "the hub of the network namespaces"
    prefix = ("unshare", "--net", "--")
    interface = "eth0"

    def start(self, folder: Path, start: Start) -> None:
        waits = f"import os; os.read({LIFELINE}, 1)"
        self.run(folder, start, [*self.prefix, sys.executable, "-ISc", waits])
        _await_namespace(self.popen.pid)
        _inside(self.popen.pid, "ip link set lo up; echo 1 > /proc/sys/net/ipv4/ip_forward")

    def attach(self, rank: int, pid: int) -> None:
        _await_namespace(pid)
        hub, network = self.popen.pid, f"10.77.{rank}"
        _inside(
            hub,
            f"ip link add name port{rank} type veth peer name {self.interface} netns {pid}; "
            f"ip addr add {network}.1/30 dev port{rank}; ip link set port{rank} up",
        )
        _inside(
            pid,
            f"ip link set lo up; ip addr add {network}.2/30 dev {self.interface}; "
            f"ip link set {self.interface} up; ip route add default via {network}.1; "
            + (f"tc {' '.join(netem_arguments(self.link, self.interface))}" if self.link.shaped else ":"),
        )

    def place(self, rank: int) -> Place:
        return Place(host=f"10.77.{rank}.2", key=self.key)


SHAPERS = {shaper.name: shaper for shaper in (Shaper, UserSpace, Namespaces)}


def make_shaper(link: Link, name: str | None = None) -> Shaper:
    """Returns the shaper of that name for a link; the default is `user-space`, and `none` on loopback.

    Raises ValueError for an unknown name or a shaper that cannot shape, ShaperUnavailable where it is not
    allowed.
    """
    if name is None:
        name = "user-space" if link.shaped else "none"
    if name not in tuple(SHAPERS):  # a list, which has no hash, is refused likewise
        raise ValueError(f"unknown shaper {name!r}; choose one of {', '.join(SHAPERS)}")
    if link.shaped and name == "none":
        raise ValueError(f"the link {link.name!r} needs a shaper: user-space or netem")
    if not link.shaped and name == "user-space":
        raise ValueError(f"the link {link.name!r} has nothing to shape; leave the shaper out")
    if name == "netem" and (reason := obstacle(link.shaped)) is not None:
        raise ShaperUnavailable(f"no network namespaces with netem here: {reason}; use shaper='user-space'")
    return SHAPERS[name](link)


def netem_arguments(link: Link, interface: str) -> list[str]:
    """Returns the arguments of tc: half the RTT and the whole bandwidth at each exit.

    The queue drops no packet.
    """
    packets = 10_000 + int(link.bandwidth_bits_s / 8 * link.rtt_s / 1000)
    return [
        "qdisc", "add", "dev", interface, "root", "netem", "limit", str(packets),
        "delay", f"{round(link.rtt_s / 2 * 1e6)}us", "rate", f"{round(link.bandwidth_bits_s)}bit",
    ]  # fmt: skip


@cache
def obstacle(netem: bool = True) -> str | None:
    """Returns the reason why namespaces (with `netem`) are not available here, or None if they are.

    The function tries them out once and remembers the answer.
    """
    if not sys.platform.startswith("linux"):
        return f"{sys.platform} has no network namespaces"
    for tool, package in (
        ("unshare", "util-linux"),
        ("nsenter", "util-linux"),
        ("ip", "iproute2"),
        ("tc", "iproute2"),
    ):
        if shutil.which(tool) is None:
            return f"the command {tool} is missing (package {package})"
    script = "ip link add name trial0 type veth peer name trial1; "
    if netem:
        script += "tc qdisc add dev trial0 root netem delay 1ms rate 1mbit"
    done = subprocess.run(
        [*Namespaces.prefix, "sh", "-ec", script], capture_output=True, text=True, timeout=10, check=False
    )
    if done.returncode == 0:
        return None
    said = (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]
    if "unshare" in said:
        return f"this user may not make network namespaces ({said})"
    if "qdisc" in said.lower():
        return f"this kernel has no netem ({said})"
    return said


def _await_namespace(pid: int, seconds: float = 5.0) -> None:
    """Waits until a process that was just started has left this one's network namespace."""
    own = Path("/proc/self/ns/net").readlink()
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        try:
            if Path(f"/proc/{pid}/ns/net").readlink() != own:
                return
        except FileNotFoundError:
            break
        time.sleep(0.002)
    raise ShaperUnavailable(f"process {pid} did not get a network namespace of its own")


def _inside(pid: int, script: str) -> None:
    """Runs a script in the network namespace of a process."""
    done = subprocess.run(
        ["nsenter", f"--net=/proc/{pid}/ns/net", "sh", "-ec", script],
        capture_output=True,
        text=True,
        timeout=10,
        check=False,
    )
    if done.returncode:
        raise ShaperUnavailable(f"`{script}` failed in a network namespace: {done.stderr.strip()}")
