"""Two processes prove to each other that both know a token, before either one trusts the other's bytes.

The caller and the listener each send a nonce. Each proves with an HMAC over both nonces that it knows the
token. The token itself never travels. Every other caller is refused: a stranger's bytes are compared, never
interpreted. Both sides then get a session key that belongs to this call alone. Nothing is encrypted.

    listener -> caller    MAGIC nonce
    caller -> listener    MAGIC rank nonce' HMAC(token, "call" rank nonce nonce')
    listener -> caller    HMAC(token, "answer" rank nonce nonce'), or NO

Each end waits at most STEP_S for a step of the other.
"""

from __future__ import annotations

import errno
import hashlib
import hmac
import os
import queue
import socket
import threading
import time
from collections import Counter
from collections.abc import Collection, Sequence
from contextlib import suppress

from pibench.links.local import address_of

MAGIC = b"pibench greets 2"
NONCE = TAG = 32
NO = bytes(TAG)  # no HMAC: the token is wrong, or the rank is not waited for
STEP_S = 15.0  # longest wait for a step of the other end; a link's RTT is at most 10 s
CROWD = 64  # callers that are heard at the same time
MOST_REFUSALS = 100
REST_S = 0.1  # pause of a door when the machine has no descriptor or thread for a caller


class Refused(ConnectionError):  # noqa: N818 (what happened)
    """Raised when the other end does not know the token, or is not pibench."""


class Silent(ConnectionError):  # noqa: N818 (what happened)
    """Raised when the other end has begun to speak and then says nothing."""


def call(connection: socket.socket, token: bytes, rank: int, timeout_s: float) -> bytes:
    """Proves to the listener that `rank` knows the token and demands the same proof.

    Returns the session key. Raises Refused or Silent, TimeoutError when the listener never speaks, and
    ConnectionError when it closes the connection.
    """
    end = time.monotonic() + timeout_s
    own = os.urandom(NONCE)
    hello = _read(connection, 1, _step(end))
    if not hello:  # a tunnel without a listener at its end closes in the same way
        raise ConnectionError("the connection was closed without a word")
    try:
        hello += _read(connection, len(MAGIC) + NONCE - 1, _step(end))
        if hello[: len(MAGIC)] != MAGIC or len(hello) < len(MAGIC) + NONCE:
            raise Refused("what listens there is no pibench of this version")
        nonces = bytes([rank]) + hello[len(MAGIC) :] + own
        connection.sendall(MAGIC + bytes([rank]) + own + _tag(token, b"call", nonces))
        proof = _read(connection, TAG, _step(end))
    except TimeoutError:
        raise Silent("it began to greet and then said nothing more") from None
    if not proof:  # a door in a crowd closes its oldest callers
        raise ConnectionError("the connection was closed in the middle of the greeting")
    if not hmac.compare_digest(proof, _tag(token, b"answer", nonces)):
        raise Refused("the token is not the one that is expected there")
    connection.settimeout(None)
    return _tag(token, b"session", nonces)


def answer(connection: socket.socket, token: bytes, expected: Collection[int]) -> tuple[int, bytes]:
    """Hears a caller; returns its rank and the session key. Raises Refused for strangers."""
    deadline = time.monotonic() + STEP_S
    nonce = os.urandom(NONCE)
    connection.settimeout(STEP_S)
    connection.sendall(MAGIC + nonce)
    if _read(connection, len(MAGIC), deadline) != MAGIC:
        raise Refused("spoke another protocol")
    said = _read(connection, 1 + NONCE + TAG, deadline)
    nonces = said[:1] + nonce + said[1 : 1 + NONCE]
    problem = None
    if not hmac.compare_digest(said[1 + NONCE :], _tag(token, b"call", nonces)):
        problem = "gave a wrong token"
    elif said[0] not in expected:
        problem = f"came as rank {said[0]}, which is not waited for"
    if problem is not None:
        with suppress(OSError):
            connection.sendall(NO)
        raise Refused(problem)
    connection.sendall(_tag(token, b"answer", nonces))
    connection.settimeout(None)
    return said[0], _tag(token, b"session", nonces)


def open_port(host: str, ports: Sequence[int] = (0,)) -> socket.socket:
    """Listens at `host` on the first free port of `ports` (0: any port).

    Raises ValueError for a host that is no single address (`pibench.links.local.address_of`), and OSError
    that names the address when no port is free.
    """
    address = address_of(host)
    problem: OSError | None = None
    for port in ports:
        try:
            return socket.create_server((address, port), backlog=CROWD)
        except OSError as error:
            problem = error
    where = f"port {ports[0]}" if len(ports) == 1 else f"ports {ports[0]} to {ports[-1]}"
    raise OSError(problem.errno, f"cannot listen at {host}, {where}: {os.strerror(problem.errno)}")


class Door:
    """Hears callers at a listening socket, each one in a thread, so that a silent caller delays nobody.

    In a crowd the oldest caller of the host with most callers is turned away for the newest one, so that
    silent callers cannot keep out one who knows the token. A door owns its listener. Use it with `with`.
    `refusals` lists the refused callers and the reasons.
    """

    def __init__(self, listener: socket.socket, token: bytes, expected: Collection[int]) -> None:
        if not token:
            raise ValueError("a door needs a token: everybody knows the empty one")
        self._listener = listener
        self._token = token
        self._expected = set(expected)
        self._heard: queue.SimpleQueue[tuple[int, socket.socket, bytes]] = queue.SimpleQueue()
        self._callers: dict[socket.socket, str] = {}  # their hosts, in the order in which they came
        self._lock = threading.Lock()
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
        with self._lock:
            for caller in self._callers:
                _wake(caller)
        while not self._heard.empty():
            self._heard.get()[1].close()

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
            except OSError as error:
                if error.errno in (errno.EBADF, errno.EINVAL):  # the door is closed
                    return
                time.sleep(REST_S)  # no descriptor is free, or the caller has left again
                continue
            self._seat(connection, address[0])
            try:
                threading.Thread(target=self._hear, args=(connection, address[0]), daemon=True).start()
            except RuntimeError:  # no thread is free
                self._unseat(connection)
                connection.close()
                time.sleep(REST_S)

    def _seat(self, connection: socket.socket, host: str) -> None:
        """Gives a caller a place, in a full house that of another one."""
        with self._lock:
            if len(self._callers) >= CROWD:
                most = Counter(self._callers.values()).most_common(1)[0][0]
                oldest = next(caller for caller, origin in self._callers.items() if origin == most)
                del self._callers[oldest]
                _wake(oldest)
            self._callers[connection] = host

    def _unseat(self, connection: socket.socket) -> bool:
        """Frees the place of a caller; returns False for one who has lost it."""
        with self._lock:
            return self._callers.pop(connection, None) is not None

    def _hear(self, connection: socket.socket, host: str) -> None:
        try:
            rank, session = answer(connection, self._token, self._expected)
            if not self._unseat(connection):
                raise ConnectionError("a newer caller has its place")
            self._heard.put((rank, connection, session))
        except OSError as error:
            self._unseat(connection)
            connection.close()
            if len(self.refusals) < MOST_REFUSALS:
                said = str(error) if isinstance(error, Refused) else "said nothing that can be understood"
                self.refusals.append(f"{host} {said}")


def _wake(caller: socket.socket) -> None:
    """Ends the wait of a caller's thread, which then closes the connection."""
    with suppress(OSError):
        caller.shutdown(socket.SHUT_RDWR)


def _step(end: float) -> float:
    """Returns the deadline of the next step."""
    return min(end, time.monotonic() + STEP_S)


def _tag(token: bytes, what: bytes, data: bytes) -> bytes:
    return hmac.digest(token, what + b" " + data, hashlib.sha256)


def _read(connection: socket.socket, count: int, deadline: float) -> bytes:
    """Reads `count` bytes, or fewer if the other end closes; raises TimeoutError after `deadline`."""
    data = b""
    while len(data) < count:
        connection.settimeout(max(0.001, deadline - time.monotonic()))
        more = connection.recv(count - len(data))
        if not more:
            break
        data += more
    return data
