"""A connection between hosts for messages: each one is authenticated and holds only data.

After a greeting (`pibench.links.greeting`) both ends hold a session key. Every message carries an HMAC over
its direction, number and bytes. The HMAC is checked before anything is decoded. Even an authentic message can
hold only plain values, arrays, tensors and the records of `pibench.hosts.messages`, and every part must have
its type. Reading a message therefore never runs code of the sender's choice. Nothing is encrypted.
"""

from __future__ import annotations

import hashlib
import hmac
import math
import select
import socket
import struct
import threading
import time
from contextlib import suppress
from typing import Any, TypeVar

from pibench.hosts.messages import Altered, Unsendable, demand
from pibench.hosts.values import decode, encode
from pibench.links.greeting import STEP_S, Silent

MOST_BYTES = 1 << 28
_HEADER = struct.Struct("!Q")
_TAG = 32

Kind = TypeVar("Kind")


class Stream:
    """A connection for messages; several threads may send at the same time.

    `caller` is true at the end that opened the connection. An end that stops in the middle of a message for
    `pause_s` seconds counts as lost; `watch` changes that time.
    """

    def __init__(self, connection: socket.socket, session: bytes, caller: bool) -> None:
        self._connection = connection
        self._session = session
        self._names = (b"caller", b"listener") if caller else (b"listener", b"caller")
        self._numbers = [0, 0]
        self._lock = threading.Lock()
        self._broken: Silent | None = None
        self.pause_s = STEP_S

    def send(self, message: Any) -> None:
        """Sends a message; raises Unsendable like `packed`, before anything is sent.

        Raises OSError when the connection is gone or the other end takes no bytes.
        """
        self.send_bytes(packed(message))

    def send_bytes(self, body: bytes) -> None:
        """Sends an encoded message; after a failure in the middle of it the connection is closed."""
        with self._lock:
            tag = self._tag(0, body)
            try:
                self._write(_HEADER.pack(len(body)) + tag)
                self._write(body)
            except OSError:
                self.close()
                raise

    def receive(self, *kinds: type[Kind], within_s: float | None = None) -> Kind:
        """Waits for a message of one of `kinds`, at most `within_s` seconds if a limit is given.

        Raises EOFError at the end, Altered for bytes that are no such message, and Silent when the time is
        over or the other end stops in the middle of a message.
        """
        end = math.inf if within_s is None else time.monotonic() + within_s
        if not self._ready(select.POLLIN, within_s):
            raise Silent(f"it said nothing for {within_s:g} s")
        (length,) = _HEADER.unpack(self._read(_HEADER.size, end))
        if length > MOST_BYTES:
            raise Altered("the connection carries something else than messages")
        tag, body = self._read(_TAG, end), self._read(length, end)
        if not hmac.compare_digest(tag, self._tag(1, body)):
            raise Altered("a message was altered on its way")
        message = decode(body)
        if type(message) not in kinds:
            expected = " or ".join(kind.__name__ for kind in kinds)
            raise Altered(f"a message holds a {type(message).__name__} where {expected} belongs")
        demand(type(message), message)
        return message

    def derive(self, purpose: str) -> bytes:
        """Returns a secret for one purpose that only the two ends know."""
        return hmac.digest(self._session, b"derive " + purpose.encode(), hashlib.sha256)

    def watch(self, silence_s: float) -> None:
        """Closes the connection when the other end is silent for `silence_s` seconds.

        The kernel watches the other host. The other end must also go on with a message that it has begun.
        """
        self.pause_s = silence_s
        sock, whole = self._connection, max(3, int(silence_s))
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        step = max(1, whole // 4)
        values = {
            "TCP_KEEPIDLE": step,
            "TCP_KEEPALIVE": step,  # the same on macOS
            "TCP_KEEPINTVL": step,
            "TCP_KEEPCNT": 3,
            "TCP_USER_TIMEOUT": 1000 * whole,
        }
        for name, value in values.items():
            if hasattr(socket, name):
                sock.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)

    def close(self) -> None:
        """Closes the connection; a `receive` that waits in another thread ends."""
        with suppress(OSError):
            self._connection.shutdown(socket.SHUT_RDWR)
        self._connection.close()

    def _tag(self, way: int, body: bytes) -> bytes:
        made = hmac.new(self._session, self._names[way] + _HEADER.pack(self._numbers[way]), hashlib.sha256)
        made.update(body)
        self._numbers[way] += 1
        return made.digest()

    def _write(self, data: bytes) -> None:
        view = memoryview(data)
        while view:
            if not self._ready(select.POLLOUT, self.pause_s):
                self._broken = Silent(f"it took no bytes for {self.pause_s:g} s")
                raise self._broken
            with suppress(BlockingIOError):
                view = view[self._connection.send(view, socket.MSG_DONTWAIT) :]

    def _read(self, count: int, end: float) -> bytes:
        data = bytearray()
        while len(data) < count:
            pause_s = min(self.pause_s, end - time.monotonic())
            if pause_s <= 0 or not self._ready(select.POLLIN, pause_s):
                raise Silent("it stopped in the middle of a message")
            with suppress(BlockingIOError):
                more = self._connection.recv(min(count - len(data), 1 << 20), socket.MSG_DONTWAIT)
                if not more:
                    raise self._broken or EOFError("the connection was closed")
                data += more
        return bytes(data)

    def _ready(self, event: int, seconds: float | None) -> bool:
        """Waits until the socket can be read or written; returns False when `seconds` pass first."""
        poll = select.poll()
        try:
            poll.register(self._connection, event)
        except ValueError:  # it is closed on this side
            raise self._broken or ConnectionError("the connection was closed") from None
        return bool(poll.poll(None if seconds is None else 1000 * seconds))


def packed(message: Any) -> bytes:
    """Encodes a message; raises Unsendable for one that is too large or holds something else than data."""
    body = encode(message)
    if len(body) > MOST_BYTES:
        raise Unsendable(
            f"a message between hosts holds at most {MOST_BYTES / 1e6:.4g} MB, but this one has "
            f"{len(body) / 1e6:.4g} MB: use fewer images at once, or a smaller network"
        )
    return body
