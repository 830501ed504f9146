"""Byte streams between processes: plain TCP, one exchange a round.

`Wire` is the place to insert a link: any object that moves bytes without blocking and can wait. `Channel`
adds the needs of the protocol: an exchange in which both sides send and receive at once (one trip), clear
errors, and a tap.
"""

from __future__ import annotations

import select
import socket
import time
from collections.abc import Callable
from contextlib import ExitStack
from datetime import timedelta

import numpy as np
from torch.distributed import PrefixStore, Store
from torch.distributed.rendezvous import rendezvous

from pibench.engines.base import Setting
from pibench.links.greeting import Door, Refused, call, open_port
from pibench.links.route import port_through

_SPINS = 500
"""Tries before a process sleeps, about half a millisecond. After 40 tries most waits for the other party's
kernels ended in sleep, and the system then often woke both parties on one core: 2.5 times the time."""
_SLICE = 1 << 20


class Wire:
    """A connected socket that never blocks."""

    def __init__(self, connection: socket.socket) -> None:
        connection.setblocking(False)
        if connection.family in (socket.AF_INET, socket.AF_INET6):
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._socket = connection
        self._poll = select.poll()
        self._poll.register(connection, 0)

    def send(self, view: memoryview) -> int:
        """Sends a part of `view` and returns its size; 0 if nothing can be sent now."""
        try:
            return self._socket.send(view if len(view) <= _SLICE else view[:_SLICE])
        except BlockingIOError:
            return 0

    def receive(self, view: memoryview) -> int | None:
        """Fills the front of `view`.

        Returns its size, 0 if there is nothing yet, None at the end of the stream.
        """
        try:
            return self._socket.recv_into(view if len(view) <= _SLICE else view[:_SLICE]) or None
        except BlockingIOError:
            return 0

    def wait(self, reading: bool, writing: bool, seconds: float) -> bool:
        """Waits until the socket can be read or written; returns False when `seconds` pass first."""
        self._poll.modify(
            self._socket, (select.POLLIN if reading else 0) | (select.POLLOUT if writing else 0)
        )
        return bool(self._poll.poll(1000 * seconds))

    def close(self) -> None:
        """Closes the socket."""
        self._socket.close()


class Channel:
    """A stream to the process called `peer`.

    `tap`, if set, sees every buffer that an exchange sends (for tests of what a peer can see).
    """

    def __init__(self, wire: Wire, peer: str, timeout_s: float) -> None:
        self._wire = wire
        self._peer = peer
        self._timeout_s = timeout_s
        self.tap: Callable[[memoryview], None] | None = None

    def exchange(self, out: np.ndarray | bytes, into: np.ndarray | bytearray) -> None:
        """Sends all of `out` and fills all of `into` at once; either may be empty.

        Raises ConnectionError when the peer closes the connection, TimeoutError when it is silent for too
        long.
        """
        sending, receiving = _bytes(out), _bytes(into)
        if self.tap is not None and len(sending):
            self.tap(sending)
        to_send, to_receive = len(sending), len(receiving)
        idle = 0
        while to_send or to_receive:
            moved = got = 0
            if to_send and (moved := self._send(sending)):
                to_send -= moved
                sending = sending[moved:]
            if to_receive and (got := self._receive(receiving)):
                to_receive -= got
                receiving = receiving[got:]
            idle = 0 if moved or got else idle + 1
            if idle > _SPINS:
                self._rest(bool(to_receive), bool(to_send))

    def open(self, words: np.ndarray) -> None:
        """Adds the peer's words to ours in place while both are sent: one exchange, no second array."""
        whole = _bytes(words)
        if self.tap is not None:
            self.tap(whole)
        size = words.itemsize
        scratch = np.empty(min(words.size, _SLICE // size), words.dtype)
        part = _bytes(scratch)
        sent = added = held = idle = 0  # bytes: added + held <= sent, so overwritten bytes were sent before
        while added < len(whole):
            moved = self._send(whole[sent:])
            sent += moved
            got = self._receive(part[held : min(len(part), sent - added)])
            held += got
            ready = held // size
            words[added // size : added // size + ready] += scratch[:ready]
            added += size * ready
            held -= size * ready
            part[:held] = bytes(part[size * ready : size * ready + held])
            idle = 0 if moved + got else idle + 1
            if idle > _SPINS:
                self._rest(sent > added + held, sent < len(whole))

    def _send(self, view: memoryview) -> int:
        try:
            return self._wire.send(view) if len(view) else 0
        except (BrokenPipeError, ConnectionResetError, ConnectionAbortedError) as error:
            raise self._gone() from error

    def _receive(self, view: memoryview) -> int:
        try:
            got = self._wire.receive(view) if len(view) else 0
        except (ConnectionResetError, ConnectionAbortedError) as error:
            raise self._gone() from error
        if got is None:
            raise self._gone()
        return got

    def _rest(self, reading: bool, writing: bool) -> None:
        if not self._wire.wait(reading, writing, self._timeout_s):
            raise TimeoutError(
                f"{self._peer} was silent for {self._timeout_s:g} s in the middle of an exchange"
            )

    def send(self, out: np.ndarray | bytes) -> None:
        """Sends all of `out`."""
        self.exchange(out, b"")

    def receive(self, into: np.ndarray | bytearray) -> None:
        """Fills all of `into`."""
        self.exchange(b"", into)

    def close(self) -> None:
        """Closes the stream."""
        self._wire.close()

    def _gone(self) -> ConnectionError:
        return ConnectionError(
            f"{self._peer} closed the connection in the middle of an exchange: its process has probably ended"
        )


def _bytes(data: np.ndarray | bytes | bytearray) -> memoryview:
    view = memoryview(data)
    return view if len(view) == 0 else view.cast("B")


def connect(setting: Setting, world: int) -> tuple[dict[int, Channel], Store]:
    """Connects this process with every other one of the group; returns the channels by rank, and the store.

    The caller must keep the store: rank 0 holds a tcp:// store only as long as the object lives.

    Each rank listens on its own port and tells the store. Higher ranks call lower ones, and a guest on
    another host calls all. Both ends must prove that they know the group's key. All others are refused. Where
    a relay shapes the link, the call goes through it.
    """
    limit = timedelta(seconds=setting.timeout_s)
    store, _, _ = next(rendezvous(setting.rendezvous, rank=setting.rank, world_size=world, timeout=limit))
    store = PrefixStore("lean", store)
    store.set_timeout(limit)
    deadline = time.monotonic() + setting.timeout_s
    order = sorted(range(world), key=lambda rank: (rank == setting.guest, rank))
    before = order[: order.index(setting.rank)]
    callers = set(order[len(before) + 1 :])
    channels: dict[int, Channel] = {}
    with ExitStack() as stack:
        if callers:  # a guest keeps every port closed
            listener = open_port(setting.host, setting.ports)
            door = stack.enter_context(Door(listener, setting.key, callers))
            store.set(f"address{setting.rank}", f"{setting.host} {listener.getsockname()[1]}")
        for rank in before:
            channels[rank] = _channel(setting, rank, _call(setting, store, rank, deadline))
        for _ in callers:
            try:
                rank, connection, _ = door.next(deadline)
            except TimeoutError:
                raise _late(setting) from None
            channels[rank] = _channel(setting, rank, connection)
    return channels, store


def role_of(setting: Setting, rank: int) -> str:
    """Returns the name of a rank in messages."""
    return f"party {rank}" if rank < setting.parties else "the dealer"


def _channel(setting: Setting, rank: int, connection: socket.socket) -> Channel:
    return Channel(Wire(connection), role_of(setting, rank), setting.timeout_s)


def _call(setting: Setting, store: Store, rank: int, deadline: float) -> socket.socket:
    host, port = store.get(f"address{rank}").decode().split()
    if setting.relay:
        port = port_through(setting.relay, setting.rank, rank, int(port))
    connection = socket.create_connection((host, int(port)), timeout=_left(setting, deadline))
    try:
        call(connection, setting.key, setting.rank, _left(setting, deadline))
    except Refused as error:
        connection.close()
        raise ConnectionError(f"the process at the port of {role_of(setting, rank)} is a stranger") from error
    return connection


def _left(setting: Setting, deadline: float) -> float:
    left = deadline - time.monotonic()
    if left <= 0:
        raise _late(setting)
    return left


def _late(setting: Setting) -> TimeoutError:
    return TimeoutError(f"not every process of the group connected within {setting.timeout_s:g} s")
