"""Messages between hosts: each one is authenticated and holds only plain values.

After a greeting (`pibench.links.greeting`) both ends hold a session key. Every message carries an HMAC over
its direction, number and bytes. The HMAC is checked before anything is decoded. Even an authentic message can
hold only plain values, arrays, tensors and the records of `RECORDS`. Reading a message therefore never runs
code of the sender's choice. Nothing is encrypted.
"""

from __future__ import annotations

import hashlib
import hmac
import io
import pickle
import socket
import struct
import sys
import threading
from contextlib import suppress
from dataclasses import is_dataclass
from importlib import import_module
from typing import Any

import numpy as np

RECORDS = (
    "pibench.engines.base",
    "pibench.links.link",
    "pibench.program.ir",
)  # modules, for their dataclasses
DTYPES = ("float32", "float64", "float16", "int64", "int32", "uint8", "bool")
MOST_BYTES = 1 << 28
_HEADER = struct.Struct("!Q")
_TAG = 32


class Altered(ConnectionError):  # noqa: N818 (what happened)
    """Raised for bytes that the other end did not send, or that no message may hold."""


class Stream:
    """A connection for messages; several threads may send at the same time.

    `caller` is true at the end that opened the connection.
    """

    def __init__(self, connection: socket.socket, session: bytes, caller: bool) -> None:
        self._connection = connection
        self._session = session
        self._names = (b"caller", b"listener") if caller else (b"listener", b"caller")
        self._numbers = [0, 0]
        self._lock = threading.Lock()

    def send(self, message: Any) -> None:
        """Sends a message; raises OSError when the connection is gone."""
        body = dumps(message)
        with self._lock:
            tag = self._tag(0, body)
            self._connection.sendall(_HEADER.pack(len(body)) + tag)
            self._connection.sendall(body)

    def receive(self) -> Any:
        """Waits for a message; raises EOFError at the end, Altered for bytes that are no message."""
        (length,) = _HEADER.unpack(self._read(_HEADER.size))
        if length > MOST_BYTES:
            raise Altered("the connection carries something else than messages")
        tag, body = self._read(_TAG), self._read(length)
        if not hmac.compare_digest(tag, self._tag(1, body)):
            raise Altered("a message was altered on its way")
        return loads(body)

    def derive(self, purpose: str) -> bytes:
        """Returns a secret for one purpose that only the two ends know."""
        return hmac.digest(self._session, b"derive " + purpose.encode(), hashlib.sha256)

    def watch(self, silence_s: float) -> None:
        """Makes the kernel close the connection when the other host is silent for `silence_s` seconds."""
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

    def _read(self, count: int) -> bytes:
        data = bytearray()
        while len(data) < count:
            more = self._connection.recv(min(count - len(data), 1 << 20))
            if not more:
                raise EOFError("the connection was closed")
            data += more
        return bytes(data)


def dumps(message: Any) -> bytes:
    """Encodes a message."""
    into = io.BytesIO()
    _Pickler(into, pickle.HIGHEST_PROTOCOL).dump(message)
    return into.getvalue()


def loads(data: bytes) -> Any:
    """Decodes a message; raises Altered when it holds something that no message may hold."""
    try:
        return _Unpickler(io.BytesIO(data)).load()
    except Altered:
        raise
    except Exception as error:
        raise Altered(f"a message cannot be decoded ({type(error).__name__}: {error})") from error


def array(data: bytes, dtype: str, shape: tuple[int, ...]) -> np.ndarray:
    """Makes an array from its bytes."""
    if dtype not in DTYPES:
        raise Altered(f"a message holds an array of {dtype!r}")
    return np.frombuffer(bytearray(data), dtype).reshape(shape)


def tensor(data: bytes, dtype: str, shape: tuple[int, ...]) -> Any:
    """Makes a tensor from its bytes."""
    import torch

    return torch.from_numpy(array(data, dtype, shape))


class _Pickler(pickle.Pickler):
    def reducer_override(self, value: Any) -> Any:
        torch = sys.modules.get("torch")
        made, plain = array, value
        if torch is not None and isinstance(value, torch.Tensor):
            made, plain = tensor, value.detach().numpy()
        if not isinstance(plain, np.ndarray):
            return NotImplemented
        return made, (plain.tobytes(), plain.dtype.name, plain.shape)


class _Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if module == __name__ and name in ("array", "tensor"):
            return array if name == "array" else tensor
        if (module, name) == ("torch", "Size"):
            return tuple
        if module in RECORDS and name.isidentifier():
            found = getattr(import_module(module), name, None)
            if isinstance(found, type) and is_dataclass(found) and found.__module__ == module:
                return found
        raise Altered(f"a message holds {module}.{name}, which no message may")
