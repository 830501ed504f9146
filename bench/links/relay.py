"""The user-space shaper: a process between the processes of a group that delays their bytes.

`pibench.links.shapers` has it started as `python -m pibench.links.relay`; users never start it. It needs no
privileges. The relay opens a port for each caller. A TCP connection to that port is forwarded to the port
where the other process listens. Each direction of each pair of processes is one queue (full duplex):

    departure = max(arrival at the relay, departure before) + bytes / bandwidth
    delivery  = departure + RTT / 2

A byte arrives when the kernel takes it. The kernel stamps that moment (SO_TIMESTAMPNS), so the time until
this process wakes is no part of the link. Without a stamp the clock of the read is used. A chunk is delivered
when its last byte is due. One thread serves all connections. It sleeps in select until something arrives or
is nearly due, and spins over the rest. The data that a sender may send ahead is bounded.
"""

from __future__ import annotations

import os
import select
import signal
import socket
import struct
import sys
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from time import monotonic, time
from typing import Any

from pibench.links.lifeline import end_with_parent

CHUNK_S, CHUNK = 1e-4, 1 << 16  # a chunk fills the link for this time, or has at least this size
AHEAD = 8 << 20  # bytes that a flow may hold in addition to those in flight
SPIN_S = 8e-5
LEAD_S = 2e-5  # a delivery starts this early: the time to read, send and wake the receiver
REQUEST = struct.Struct("<BBH")  # caller's rank, listener's rank, listener's port
REPLY = struct.Struct("<H")
_SO_TIMESTAMPNS = 35  # Linux, 64 bit
_STAMP = struct.Struct("@ll")
_ANCILLARY = socket.CMSG_SPACE(_STAMP.size)


class Direction:
    """The link from one process to another; it remembers when its last byte leaves."""

    def __init__(self, rtt_s: float, bandwidth_bits_s: float) -> None:
        self.delay = max(0.0, rtt_s / 2 - LEAD_S)
        self.seconds_per_byte = 8 / bandwidth_bits_s
        self.free_at = 0.0

    def due(self, arrived: float, count: int) -> float:
        """Sends `count` bytes that arrived at the link's entrance; returns when they come out."""
        self.free_at = max(arrived, self.free_at) + count * self.seconds_per_byte
        return self.free_at + self.delay

    @property
    def most_held(self) -> int:
        """The bytes that a flow may hold: two latencies' worth in flight and a sender's buffer."""
        return AHEAD + int(2 * self.delay / self.seconds_per_byte)


@dataclass(eq=False)
class Flow:
    """One direction of one connection: bytes that were read from `source` and not yet delivered to `sink`."""

    source: socket.socket
    sink: socket.socket
    direction: Direction
    queue: deque[tuple[float, memoryview, memoryview]] = field(default_factory=deque)  # due, rest, block
    held: int = 0
    ended: bool = False  # the source has sent its last byte
    closed: bool = False  # and the sink was told so
    blocked: bool = False  # the sink cannot take more at the moment


class Relay:
    """Flows, listeners, and the processes that ask for listeners; `turn` runs once for each event."""

    def __init__(self, control: socket.socket, rtt_s: float, bandwidth_bits_s: float) -> None:
        control.setblocking(False)
        self._link = (rtt_s, bandwidth_bits_s)
        self._chunk = max(CHUNK, int(CHUNK_S * bandwidth_bits_s / 8))
        self._directions: dict[tuple[int, int], Direction] = {}
        self._readers: dict[socket.socket | int, Callable[[Any], None]] = {control: self._meet}
        self._flows: list[Flow] = []
        self._spare: list[memoryview] = []

    def watch(self, descriptor: int, reader: Callable[[int], None]) -> None:
        """Calls `reader` whenever the descriptor can be read."""
        self._readers[descriptor] = reader

    def turn(self) -> None:
        """Delivers the chunks that are due, then waits for the next event and takes the new bytes."""
        due = self._deliver()
        reading = list(self._readers)
        reading += [f.source for f in self._flows if not f.ended and f.held < f.direction.most_held]
        writing = [flow.sink for flow in self._flows if flow.blocked]
        left = None if due is None else max(0.0, due - monotonic() - SPIN_S)
        readable, writable, _ = select.select(reading, writing, [], left)
        if writable:
            for flow in self._flows:
                flow.blocked = False
        for ready in readable:
            if (reader := self._readers.get(ready)) is not None:
                reader(ready)
        if readable:
            ready = set(readable)
            for flow in [flow for flow in self._flows if flow.source in ready and not flow.ended]:
                self._take(flow)

    def _deliver(self) -> float | None:
        """Sends the chunks that are due; returns the time of the next one."""
        next_due = None
        for flow in self._flows:
            if flow.blocked:
                continue
            queue = flow.queue
            while queue and queue[0][0] <= monotonic():
                due, rest, block = queue[0]
                try:
                    sent = flow.sink.send(rest)
                except BlockingIOError:
                    flow.blocked = True
                    break
                except OSError:
                    self._drop(flow)
                    return 0.0
                flow.held -= sent
                if sent == len(rest):
                    queue.popleft()
                    self._spare.append(block)
                else:
                    queue[0] = (due, rest[sent:], block)
            if queue and not flow.blocked:
                next_due = queue[0][0] if next_due is None else min(next_due, queue[0][0])
            elif flow.ended and not queue and not flow.closed:
                self._finish(flow)
                return 0.0
        return next_due

    def _take(self, flow: Flow) -> None:
        """Reads a chunk and puts it on the link."""
        block = self._spare.pop() if self._spare else memoryview(bytearray(self._chunk))
        try:
            count, ancillary, _, _ = flow.source.recvmsg_into([block], _ANCILLARY)
        except BlockingIOError:
            count = -1
        except OSError:
            count = 0
        if count > 0:
            flow.queue.append((flow.direction.due(_arrival(ancillary), count), block[:count], block))
            flow.held += count
            return
        self._spare.append(block)
        flow.ended = flow.ended or count == 0

    def _finish(self, flow: Flow) -> None:
        """Tells the sink that the source has ended; forgets the connection when both directions ended."""
        flow.closed = True
        try:
            flow.sink.shutdown(socket.SHUT_WR)
        except OSError:
            return self._drop(flow)
        if all(f.closed for f in self._flows if f.source is flow.sink):
            self._drop(flow)
        return None

    def _drop(self, flow: Flow) -> None:
        self._flows = [f for f in self._flows if f.source not in (flow.source, flow.sink)]
        flow.source.close()
        flow.sink.close()

    def _meet(self, control: socket.socket) -> None:
        """Accepts a connection of a process that will ask for listeners."""
        asking, _ = control.accept()
        self._readers[asking] = self._open

    def _open(self, asking: socket.socket) -> None:
        """Opens a listener for connections of one process to another, and tells its port."""
        try:
            request = asking.recv(REQUEST.size, socket.MSG_WAITALL)
        except OSError:
            request = b""
        if len(request) < REQUEST.size:
            del self._readers[asking]
            asking.close()
            return
        caller, listener, port = REQUEST.unpack(request)
        server = socket.create_server(("127.0.0.1", 0))
        self._readers[server] = lambda _: self._forward(server, caller, listener, port)
        asking.sendall(REPLY.pack(server.getsockname()[1]))

    def _forward(self, server: socket.socket, caller: int, listener: int, port: int) -> None:
        """Accepts a connection at a listener and opens its other half.

        The listener stays: a caller calls again when the other process does not listen yet.
        """
        near, _ = server.accept()
        try:
            far = socket.create_connection(("127.0.0.1", port), timeout=5)
        except OSError:
            near.close()
            return
        for end in (near, far):
            end.setblocking(False)
            end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            end.setsockopt(socket.SOL_SOCKET, _SO_TIMESTAMPNS, 1)
        self._flows += [
            Flow(near, far, self._direction(caller, listener)),
            Flow(far, near, self._direction(listener, caller)),
        ]

    def _direction(self, source: int, sink: int) -> Direction:
        return self._directions.setdefault((source, sink), Direction(*self._link))


def _arrival(ancillary: list[tuple[int, int, bytes]]) -> float:
    """Returns the time on the monotonic clock at which the last byte of a read reached this machine's TCP."""
    now = monotonic()
    for _, kind, data in ancillary:
        if kind == _SO_TIMESTAMPNS:
            seconds, nanoseconds = _STAMP.unpack(data)
            age = time() - seconds - 1e-9 * nanoseconds
            return now - min(max(age, 0.0), 1.0)  # bounded, in case the wall clock is set in the meantime
    return now


def main() -> None:
    """Runs until the supervisor is gone, or ends it."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    end_with_parent()
    control, lifeline = int(sys.argv[1]), int(sys.argv[2])
    with suppress(OSError):  # without the privilege it shares the processor like the parties
        os.nice(-10)
    with suppress(OSError):  # without this it wakes up to 50 us later
        Path("/proc/self/timerslack_ns").write_text("1000")
    relay = Relay(socket.socket(fileno=control), float(sys.argv[3]), float(sys.argv[4]))
    relay.watch(lifeline, lambda _: os._exit(0))
    while True:
        relay.turn()


if __name__ == "__main__":
    main()
