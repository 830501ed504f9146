"""Two processes prove to each other that both know a token, before either one trusts the other's bytes.

The caller and the listener each send a nonce. Each proves with an HMAC over both nonces that it knows the
token. The token itself never travels. Every other caller is refused: a stranger's bytes are compared, never
interpreted. Both sides then get a session key that belongs to this call alone. Nothing is encrypted.

    listener -> caller    MAGIC nonce
    caller -> listener    MAGIC rank nonce' HMAC(token, "call" rank nonce nonce')
    listener -> caller    HMAC(token, "answer" rank nonce nonce')
"""

from __future__ import annotations

import hashlib
import hmac
import os
import queue
import socket
import threading
import time
from collections.abc import Collection, Sequence
from contextlib import suppress

MAGIC = b"pibench greets 1"
NONCE = TAG = 32
ANSWER_S = 5.0  # time that a caller has to prove itself
CROWD = 64  # callers that are heard at the same time; more are refused
MOST_REFUSALS = 100


class Refused(ConnectionError):  # noqa: N818 (what happened)
    """Raised when the other end does not know the token, or is not pibench."""


def call(connection: socket.socket, token: bytes, rank: int, timeout_s: float) -> bytes:
    """Proves to the listener that `rank` knows the token and demands the same proof.

    Returns the session key.
    """
    deadline = time.monotonic() + timeout_s
    hello = _read(connection, len(MAGIC) + NONCE, deadline)
    if not hello:  # a tunnel without a listener at its end closes in the same way
        raise ConnectionError("the connection was closed without a word")
    if hello[: len(MAGIC)] != MAGIC or len(hello) < len(MAGIC) + NONCE:
        raise Refused("what listens there is no pibench of this version")
    own = os.urandom(NONCE)
    nonces = bytes([rank]) + hello[len(MAGIC) :] + own
    connection.sendall(MAGIC + bytes([rank]) + own + _tag(token, b"call", nonces))
    if not hmac.compare_digest(_read(connection, TAG, deadline), _tag(token, b"answer", nonces)):
        raise Refused("the token is not the one that is expected there")
    connection.settimeout(None)
    return _tag(token, b"session", nonces)


def answer(connection: socket.socket, token: bytes, expected: Collection[int]) -> tuple[int, bytes]:
    """Hears a caller; returns its rank and the session key. Raises Refused for strangers."""
    deadline = time.monotonic() + ANSWER_S
    nonce = os.urandom(NONCE)
    connection.settimeout(ANSWER_S)
    connection.sendall(MAGIC + nonce)
    if _read(connection, len(MAGIC), deadline) != MAGIC:
        raise Refused("spoke another protocol")
    said = _read(connection, 1 + NONCE + TAG, deadline)
    nonces = said[:1] + nonce + said[1 : 1 + NONCE]
    if not hmac.compare_digest(said[1 + NONCE :], _tag(token, b"call", nonces)):
        raise Refused("gave a wrong token")
    if said[0] not in expected:
        raise Refused(f"came as rank {said[0]}, which is not waited for")
    connection.sendall(_tag(token, b"answer", nonces))
    connection.settimeout(None)
    return said[0], _tag(token, b"session", nonces)


def open_port(host: str, ports: Sequence[int] = (0,)) -> socket.socket:
    """Listens at `host` on the first free port of `ports` (0: any port).

    Raises OSError that names the address when no port is free.
    """
    problem: OSError | None = None
    for port in ports:
        try:
            return socket.create_server((host, port), backlog=CROWD)
        except OSError as error:
            problem = error
    where = f"port {ports[0]}" if len(ports) == 1 else f"ports {ports[0]} to {ports[-1]}"
    raise OSError(problem.errno, f"cannot listen at {host}, {where}: {os.strerror(problem.errno)}")


class Door:
    """Hears callers at a listening socket, each one in a thread, so that a silent caller delays nobody.

    A door owns its listener. Use it with `with`. `refusals` lists the refused callers and the reasons.
    """

    def __init__(self, listener: socket.socket, token: bytes, expected: Collection[int]) -> None:
        self._listener = listener
        self._token = token
        self._expected = set(expected)
        self._heard: queue.SimpleQueue[tuple[int, socket.socket, bytes]] = queue.SimpleQueue()
        self._room = threading.Semaphore(CROWD)
        self._closed = False
        self.refusals: list[str] = []
        listener.settimeout(0.2)
        self._thread = threading.Thread(target=self._accept, daemon=True)
        self._thread.start()

    def __enter__(self) -> Door:
        return self

    def __exit__(self, *_: object) -> None:
        self._closed = True
        with suppress(OSError):  # wakes the accepting thread on Linux, which would keep the port busy
            self._listener.shutdown(socket.SHUT_RDWR)
        self._thread.join()
        self._listener.close()

    def next(self, deadline: float) -> tuple[int, socket.socket, bytes]:
        """Returns rank, connection and session key of the next proven caller; each rank comes once.

        Raises TimeoutError when no caller comes before `deadline` (time.monotonic).
        """
        while True:
            try:
                rank, connection, session = self._heard.get(timeout=max(0.0, deadline - time.monotonic()))
            except queue.Empty:
                raise TimeoutError("nobody called") from None
            if rank in self._expected:
                self._expected.remove(rank)
                return rank, connection, session
            connection.close()

    def _accept(self) -> None:
        while not self._closed:
            try:
                connection, address = self._listener.accept()
            except TimeoutError:
                continue
            except OSError:
                return
            if self._room.acquire(blocking=False):
                threading.Thread(target=self._hear, args=(connection, address[0]), daemon=True).start()
            else:
                connection.close()

    def _hear(self, connection: socket.socket, host: str) -> None:
        try:
            rank, session = answer(connection, self._token, self._expected)
            self._heard.put((rank, connection, session))
        except OSError as error:
            connection.close()
            if len(self.refusals) < MOST_REFUSALS:
                said = str(error) if isinstance(error, Refused) else "said nothing that can be understood"
                self.refusals.append(f"{host} {said}")
        finally:
            self._room.release()


def _tag(token: bytes, what: bytes, data: bytes) -> bytes:
    return hmac.digest(token, what + b" " + data, hashlib.sha256)


def _read(connection: socket.socket, count: int, deadline: float) -> bytes:
    """Reads `count` bytes, or fewer if the other end closes."""
    data = b""
    while len(data) < count:
        connection.settimeout(max(0.001, deadline - time.monotonic()))
        more = connection.recv(count - len(data))
        if not more:
            break
        data += more
    return data
