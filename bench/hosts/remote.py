"""The driver's side of a group whose party 1 runs on another host.

    with Remote(host="10.0.0.1", port=29500) as remote:  # waits for `python -m pibench.hosts.join` there
        with Parties(engine="lean", remote=remote) as parties:
            ...

The other host opens one TCP connection to the driver. A token authenticates it, and every message is checked
(`pibench.links.greeting`, `pibench.hosts.stream`). The connection carries the commands of any number of
groups, one after the other or at the same time. It also carries the store in which the parties of both hosts
find each other. The parties' own bytes use separate connections. Party 1 receives the program and the image,
never the weights.
"""

from __future__ import annotations

import math
import os
import re
import secrets
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import replace
from datetime import timedelta
from itertools import count
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, get_args

from pibench.engines.base import Engine, Setting
from pibench.hosts.agreement import checksum, difference, facts
from pibench.hosts.messages import (
    LONGEST_S,
    START,
    Altered,
    Answered,
    Bye,
    Call,
    DriverIntroduction,
    End,
    Ended,
    FromGuest,
    Introduction,
    Open,
    Opened,
    Said,
    Say,
    Unsendable,
    demand_reply,
)
from pibench.hosts.stream import Stream, packed
from pibench.links import greeting
from pibench.links.check import TWO_HOSTS
from pibench.links.greeting import Door, open_port
from pibench.links.link import LOOPBACK, Link, parse_link
from pibench.links.local import address_of, interface_of, network_of
from pibench.links.shapers import Place, Shaper, Start
from pibench.parties.messages import receive, send
from pibench.store import provenance

GUEST = 1  # the rank that runs on the other host
PORT = 29500
SHORTEST_TOKEN = 16
GRACE_S = 10.0  # time that the other host has to end a process
ADDRESS_KEY = "pibench/driver"


class RemoteFailed(RuntimeError):  # noqa: N818 (a state, named in the interface)
    """Raised when the other host does not come, does not agree or is lost."""


class Remote:
    """The other host, as the driver sees it.

    Use it with `with`, or let the first `Parties` open it. `host` is the address of this host for the other
    one, and `port` is the port that the other one calls (0: any free one). `token` is the secret that both
    must know; the default is PIBENCH_TOKEN, or a new token that is shown. `timeout_s` is the time to wait for
    the other host. A host that is silent for `silence_s` seconds counts as lost. Rows call the link `name`, a
    name without commas that no link on one host has. `ports` are the ports at which the processes of this
    host may listen for party 1 (0: any). Messages for the user go to `say`.

    Raises ValueError for settings that no run can have. Raises RemoteFailed in `__enter__` and later;
    `failure` then holds the reason.
    """

    def __init__(
        self,
        host: str = "127.0.0.1",
        port: int | None = None,
        token: str | None = None,
        timeout_s: float = 300.0,
        name: str = TWO_HOSTS,
        ports: Sequence[int] = (0,),
        silence_s: float = 30.0,
        say: Callable[[str], None] | None = None,
    ) -> None:
        try:
            address_of(host)
        except ValueError as error:
            raise ValueError(
                f"{error}: name the one address of this host that the other host reaches"
            ) from None
        self.torchrun = under_torchrun()
        self.host = host
        self.port = (0 if self.torchrun else PORT) if port is None else port
        for number in (self.port, *ports):
            if isinstance(number, bool) or not isinstance(number, int) or not 0 <= number < 1 << 16:
                raise ValueError(f"a port is a number from 0 to 65535, not {number!r}")
        if not 0 < timeout_s <= LONGEST_S or not 0 < silence_s <= LONGEST_S:
            raise ValueError(
                f"times must be positive and at most a day ({LONGEST_S:g} s), "
                f"not timeout_s={timeout_s}, silence_s={silence_s}"
            )
        token = token or os.environ.get("PIBENCH_TOKEN")
        self.token = check_token(token or secrets.token_hex(SHORTEST_TOKEN))
        self._told = bool(token)
        self.timeout_s = timeout_s
        self.silence_s = float(min(silence_s, timeout_s))
        self.link = _link(name)
        self.ports = tuple(ports) or (0,)
        self.failure: str | None = None
        self.machine: dict[str, Any] | None = None
        self.address: str | None = None
        self._say = say or _to_stderr
        self._stream: Stream | None = None
        self._reader: threading.Thread | None = None
        self._numbers = count(1)
        self._guests: dict[int, Guest] = {}

    # Opening and closing.

    def __enter__(self) -> Remote:
        if self._stream is not None:
            raise RuntimeError("the other host is connected already")
        self.failure = None
        try:
            listener = open_port(self.host, [self.port])
        except (OSError, ValueError) as error:
            remedy = "is another benchmark running? Choose another port, or an address of this host"
            raise RemoteFailed(f"the driver {error}; {remedy}") from None
        self.port = listener.getsockname()[1]
        with Door(listener, self.token.encode(), [GUEST]) as door:
            if self.torchrun:
                try:
                    _agent_store(self.timeout_s).set(ADDRESS_KEY, f"{self.host} {self.port}")
                except RuntimeError as error:
                    raise RemoteFailed(f"torchrun's store cannot be reached: {error}") from None
            self._say(self.invitation)
            try:
                _, connection, session = door.next(time.monotonic() + self.timeout_s)
            except TimeoutError:
                turned = "; ".join(sorted(set(door.refusals))[:5])
                raise RemoteFailed(
                    f"the other host did not come to {self.host}:{self.port} within {self.timeout_s:g} s"
                    + (f" ({len(door.refusals)} callers were turned away: {turned})" if turned else "")
                    + f"; {self.invitation}"
                ) from None
        stream = Stream(connection, session, caller=False)
        stream.watch(self.silence_s)
        self.address = connection.getpeername()[0]
        try:
            self._meet(stream)
        except BaseException:
            stream.close()
            raise
        self._stream = stream
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()
        self._say(f"the other host is here, from {self.address}")
        return self

    def _meet(self, stream: Stream) -> None:
        """Exchanges the facts of both hosts and demands that they agree."""
        ours = DriverIntroduction(
            facts(), provenance.machine(), self.host, network_of(self.host), self.silence_s
        )
        try:
            stream.send(ours)
            theirs = stream.receive(Introduction, within_s=greeting.STEP_S)
        except (OSError, EOFError) as error:
            raise RemoteFailed(
                f"the other host at {self.address} did not introduce itself: {reason(error)}"
            ) from None
        if (problem := difference(ours.facts, theirs.facts)) is not None:
            raise RemoteFailed(problem)
        self.machine = theirs.machine

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        stream, self._stream = self._stream, None
        if stream is None:
            return
        try:
            stream.send(Bye(None if kind is None else kind.__name__))
            self._reader.join(2.0)  # until the other host has read the message and closed
        except OSError:
            pass
        stream.close()
        self._lose("the driver ended the run")

    @property
    def connected(self) -> bool:
        """True if the other host is connected."""
        return self._stream is not None

    @property
    def invitation(self) -> str:
        """The command that the user must run on the other host."""
        token = "PIBENCH_TOKEN=" + ("(the driver's)" if self._told else self.token)
        if self.torchrun:
            command = "torchrun --nnodes 2 --node-rank 1 ... -m pibench.hosts.join"
            return f"on the other host run, with {token}: {command}"
        return (
            f"on the other host run: MASTER_ADDR={self.host} MASTER_PORT={self.port} RANK=1 WORLD_SIZE=2 "
            f"{token} python -m pibench.hosts.join"
        )

    # Groups.

    def shaper(
        self, engine: Engine, count: int, provider: str, link: str | Link, shaper: str | None
    ) -> TwoHosts:
        """Returns the shaper of a new group; raises ValueError for a group that two hosts cannot have."""
        return TwoHosts(self, engine, count, provider, link, shaper)

    def new_group(self) -> int:
        """Opens a group of processes on both hosts; returns its number."""
        self._demand()
        return next(self._numbers)

    def key(self, number: int) -> bytes:
        """Returns the secret of a group, which both hosts derive and never send."""
        return group_key(self._demand(), number)

    def start(self, number: int, setting: Setting, log: Path) -> Guest:
        """Starts the guest of a group on the other host; `setting.rendezvous` is a file on this host.

        Raises RemoteFailed when the guest does not start.
        """
        self._demand()
        guest = Guest(self, number, setting, log)
        self._guests[number] = guest
        self.tell(Open(number, replace(setting, rendezvous="", host="", key=b"")))
        guest.opened.wait(self.silence_s)
        if guest.pid is None:
            said = guest.words or self.failure or f"it did not answer within {self.silence_s:g} s"
            self.tell(End(number))
            self.forget(number)
            guest.lose()
            guest.connection.close()
            raise RemoteFailed(f"the other host could not start party {setting.rank}: {said}")
        return guest

    def _demand(self) -> Stream:
        if self._stream is None or self.failure is not None:
            raise RemoteFailed(self.failure or "the other host is not connected; use Remote by `with`")
        return self._stream

    def tell(self, message: Any) -> None:
        """Sends the other host a message; the reader thread notices a failure.

        Raises Unsendable for a message that does not fit.
        """
        stream = self._stream
        if stream is None:
            return
        try:
            stream.send(message)
        except OSError:
            return

    def forget(self, number: int) -> None:
        """Ignores further messages about a group."""
        self._guests.pop(number, None)

    def _read(self) -> None:
        """Passes the messages of the other host on to the groups, until that host is gone."""
        stream = self._stream
        why = "its messages are no longer read"
        try:
            while True:
                message = stream.receive(*get_args(FromGuest))
                guest = self._guests.get(message.number)
                if guest is not None:
                    guest.hear(message)
        except (OSError, EOFError) as error:
            why = reason(error)
        finally:
            self._lose(f"the connection to the other host ({self.address}) was lost: {why}")

    def _lose(self, why: str) -> None:
        self.failure = self.failure or why
        for guest in list(self._guests.values()):
            guest.lose()


class Guest:
    """A process on the other host; it replaces `subprocess.Popen` and a connection on this host."""

    def __init__(self, remote: Remote, number: int, setting: Setting, log: Path) -> None:
        self.number = number
        self.pid: int | None = None
        self.returncode: int | None = None
        self.words = ""
        self.opened = threading.Event()
        self._ended = threading.Event()
        self._remote = remote
        self._setting = setting
        self._log = log
        self._asked: str | None = START
        self._store: Any = None
        self._storing = threading.Lock()
        ours, theirs = socket.socketpair()
        self.connection = Connection(ours.detach())
        self._inner = Connection(theirs.detach())
        self._lock = threading.Lock()
        threading.Thread(target=self._forward, daemon=True).start()

    def kill(self) -> None:
        """Asks the other host to end the process."""
        self._remote.tell(End(self.number))

    def wait(self, timeout: float | None = None) -> int | None:
        """Waits until the process has ended; raises subprocess.TimeoutExpired after `timeout` seconds."""
        if not self._ended.wait(GRACE_S if timeout is None else timeout):
            if timeout is not None:
                raise subprocess.TimeoutExpired("party on the other host", timeout)
            self._remote.failure = self._remote.failure or (
                f"the other host ({self._remote.address}) did not end its party within {GRACE_S:g} s"
            )
        self._remote.forget(self.number)
        return self.returncode

    def lose(self) -> None:
        """Ends every wait for the process, as if it had ended."""
        self.opened.set()
        self._ended.set()
        self._close()

    def hear(self, message: FromGuest) -> None:
        """Handles a message about the process; raises Altered for one that has no place here."""
        match message:
            case Opened():
                self.pid = message.pid
                self.opened.set()
            case Said():
                demand_reply(message, self._asked)
                self._asked = None
                self._pass((message.kind, message.value))
            case Call():
                if not self._storing.acquire(blocking=False):
                    raise Altered("a party called the store before its last call was answered")
                threading.Thread(target=self._perform, args=(message,), daemon=True).start()
            case Ended():
                self.returncode, self.words = message.code, message.words
                with suppress(OSError):  # the driver may have let go of the group
                    self._log.write_text(self.words)
                self.lose()

    def _pass(self, message: Any) -> None:
        with self._lock, suppress(OSError):  # the driver may have let go of the group
            send(self._inner, message)

    def _forward(self) -> None:
        """Sends the driver's commands on, until the driver closes the connection."""
        try:
            while True:
                command, arguments = receive(self._inner)
                self._asked = command
                told = checksum(arguments[0]) if command == "load" else ""
                try:
                    self._remote.tell(Say(self.number, command, arguments, told))
                except Unsendable as error:
                    self._pass(("failed", str(error)))
        except (EOFError, OSError):
            with self._lock:
                self._inner.close()

    def _perform(self, call: Call) -> None:
        """Carries out a call on the store of this host's processes."""
        from torch.distributed import FileStore

        from pibench.links.forward import perform

        try:
            if self._store is None:
                self._store = FileStore(self._setting.rendezvous, -1)
                self._store.set_timeout(timedelta(seconds=self._setting.timeout_s))
            done, value = perform(self._store, call.name, call.arguments)
        except RuntimeError as error:  # the group's folder is gone
            done, value = False, str(error)
        self._storing.release()
        self._remote.tell(Answered(self.number, done, value))

    def _close(self) -> None:
        """Closes both ends of the connection."""
        with suppress(OSError), socket.socket(fileno=os.dup(self._inner.fileno())) as inner:
            inner.shutdown(socket.SHUT_RDWR)


class TwoHosts(Shaper):
    """The network between the processes of one group when party 1 is a guest: a link that nobody shapes.

    It connects the other host at `start` and disconnects it at `stop`, unless it was connected before.
    """

    name = TWO_HOSTS
    asked = False

    def __init__(
        self, remote: Remote, engine: Engine, count: int, provider: str, link: str | Link, shaper: str | None
    ) -> None:
        name = remote.link.name
        if link not in (name, "loopback", LOOPBACK) or shaper is not None:
            raise ValueError(f"between two hosts lies the link {name!r}: leave link and shaper out")
        if not engine.two_hosts:
            raise ValueError(f"the {engine.name} engine does not run on two hosts; leave remote out")
        if count != 2 or set(engine.helpers(provider)) & set(engine.serving):
            raise ValueError(
                "two hosts run two parties; helpers that talk online (TTP) are not supported there"
            )
        super().__init__(remote.link)
        self.remote = remote
        self._engine = engine
        self._owned = False
        self._number = 0

    @property
    def interface(self) -> str:
        """The interface at which every party listens (gloo's), or the default if the guest only calls."""
        return interface_of(self.remote.host) if self._engine.all_listen else Shaper.interface

    def start(self, folder: Path, start: Start) -> None:
        if not self.remote.connected:
            self.remote.__enter__()
            self._owned = True
        self._number = self.remote.new_group()

    def place(self, rank: int) -> Place:
        remote = self.remote
        return Place(remote.host, ports=remote.ports, guest=GUEST, key=remote.key(self._number))

    def demand(self, rank: int, command: str, arguments: tuple[Any, ...]) -> None:
        if rank == GUEST:
            packed(Say(self._number, command, arguments, ""))

    def elsewhere(self, setting: Setting, log: Path) -> Guest | None:
        if setting.rank != GUEST:
            return None
        return self.remote.start(self._number, setting, log)

    def failure(self) -> str | None:
        return self.remote.failure

    def stop(self) -> None:
        if self._owned:
            self._owned = False
            self.remote.__exit__(None)


def group_key(stream: Stream, number: int) -> bytes:
    """Returns the secret of a group, which both hosts derive and never send."""
    return stream.derive(f"group {number}")


def check_token(token: str) -> str:
    """Returns the token without spaces around it; raises ValueError for one that is easy to guess."""
    if not isinstance(token, str) or len(token.strip()) < SHORTEST_TOKEN:
        raise ValueError(f"a token holds at least {SHORTEST_TOKEN} characters: who guesses it is let in")
    return token.strip()


def under_torchrun() -> bool:
    """Returns whether torchrun started this process; its agent then serves a store at MASTER_PORT."""
    return os.environ.get("TORCHELASTIC_USE_AGENT_STORE", "") == "True"


def _agent_store(timeout_s: float) -> Any:
    """Returns the store of torchrun's agents; it carries the driver's address and nothing secret."""
    from torch.distributed import TCPStore

    host, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    return TCPStore(host, port, is_master=False, timeout=timedelta(seconds=timeout_s))


def driver_address(timeout_s: float) -> tuple[str, int]:
    """Returns the driver's address and port from torchrun's store.

    Raises RemoteFailed when the store does not name them in time.
    """
    try:
        host, port = _agent_store(timeout_s).get(ADDRESS_KEY).decode().split()
        return host, int(port)
    except (RuntimeError, ValueError) as error:
        raise RemoteFailed(
            f"torchrun's store names no driver ({error}): start the driver under torchrun, too"
        ) from None


def parse_ports(text: str) -> tuple[int, ...]:
    """Returns the ports of "29501" or "29501-29516"; raises ValueError for other text."""
    found = re.fullmatch(r"(\d{1,5})(?:-(\d{1,5}))?", text.strip(), re.ASCII)
    first, last = (int(found[1]), int(found[2] or found[1])) if found else (1, 0)
    if text.strip() != "0" and not 0 < first <= last < 1 << 16:
        raise ValueError(f"ports are written like 29501-29516, not {text!r}")
    return tuple(range(first, last + 1))


def _link(name: str) -> Link:
    """Returns the network between two hosts as a link; raises ValueError for a name that rows cannot hold."""
    if not isinstance(name, str):
        raise ValueError(f"the link between two hosts needs a name, not {name!r}")
    try:
        parse_link(name)
    except ValueError:
        return Link(name, 0.0, math.inf)
    raise ValueError(f"{name!r} names a link on one host: give the one between two hosts a name of its own")


def reason(error: Exception) -> str:
    """Returns in a few words why a connection was lost."""
    return "it was closed" if isinstance(error, EOFError) else str(error) or type(error).__name__


def _to_stderr(line: str) -> None:
    print(f"pibench: {line}", file=sys.stderr, flush=True)
