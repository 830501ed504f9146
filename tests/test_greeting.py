"""Greetings on real sockets: who is let in, who is turned away, how long a silent peer holds the other."""

from __future__ import annotations

import errno
import os
import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from types import SimpleNamespace

import pytest
from two_hosts import NO_HOSTS, free_port

from pibench.engines.base import Setting
from pibench.links import greeting
from pibench.links.greeting import CROWD, MAGIC, NO, NONCE, Door, Refused, Silent, answer, call, open_port
from pibench.links.local import address_of, is_loopback
from pibench.parties.driver import Parties
from pibench.parties.worker import Session

KEY = b"a key that only the tests know"
HELLO = MAGIC + bytes(NONCE)


def _greet(key: bytes, rank: int = 1) -> tuple[object, object]:
    """Gives what the caller and the listener make of a greeting."""
    here, there = socket.socketpair()
    with here, there, ThreadPoolExecutor(1) as pool:
        heard = pool.submit(answer, here, KEY, [1])
        try:
            session = call(there, key, rank, 2)
        except Refused as error:
            return str(error), str(heard.exception(2))
        return session, heard.result(2)


def test_a_greeting_is_bound_to_token_rank_and_nonces():
    session, heard = _greet(KEY)
    assert heard == (1, session)
    assert _greet(KEY)[0] != session
    assert _greet(KEY[::-1]) == ("the token is not the one that is expected there", "gave a wrong token")
    assert _greet(KEY, 2)[1] == "came as rank 2, which is not waited for"


# The caller's side.


@pytest.mark.parametrize(
    ("said", "then", "expected", "words"),
    [
        (b"", "close", ConnectionError, "without a word"),
        (b"", "silence", TimeoutError, "timed out"),
        (HELLO[:5], "silence", Silent, "began to greet and then said nothing more"),
        (HELLO[:5], "close", Refused, "no pibench of this version"),
        (b"\xa5" * len(HELLO), "silence", Refused, "no pibench of this version"),
        (b"HTTP/1.1 400 Bad Request\r\n\r\n" + bytes(30), "close", Refused, "no pibench of this version"),
        (HELLO, "silence", Silent, "began to greet and then said nothing more"),
        (HELLO, "close", ConnectionError, "closed in the middle of the greeting"),
        (HELLO + bytes(10), "silence", Silent, "began to greet and then said nothing more"),
        (HELLO + bytes(10), "close", Refused, "the token is not the one"),
        (HELLO + NO, "silence", Refused, "the token is not the one"),
        (HELLO + b"\xa5" * 32, "silence", Refused, "the token is not the one"),
    ],
)
def test_a_caller_is_held_for_one_step_at_most(said, then, expected, words, monkeypatch):
    monkeypatch.setattr(greeting, "STEP_S", 0.2)
    with (
        open_port("127.0.0.1") as listener,
        socket.create_connection(listener.getsockname()) as caller,
        listener.accept()[0] as hostile,
    ):
        hostile.sendall(said)
        if then == "close":
            hostile.shutdown(socket.SHUT_WR)
        started = time.monotonic()
        with pytest.raises(expected, match=words) as raised:
            call(caller, KEY, 1, 60)
        assert raised.type is expected
        assert time.monotonic() - started < 20


# The listener's side.


def _callers(door: Door, count: int, stack: ExitStack) -> list[socket.socket]:
    where = door._listener.getsockname()
    return [stack.enter_context(socket.create_connection(where, timeout=5)) for _ in range(count)]


def _next(door: Door, stack: ExitStack) -> tuple[int, bytes]:
    """Gives the rank and the session key of the next caller who is let in."""
    rank, connection, session = door.next(time.monotonic() + 5)
    stack.enter_context(connection)
    return rank, session


def test_a_door_turns_every_stranger_away_within_a_step(monkeypatch):
    monkeypatch.setattr(greeting, "STEP_S", 0.6)
    with Door(open_port("127.0.0.1"), KEY, [1, 2]) as door, ExitStack() as stack:
        true, replayed, *strangers = _callers(door, 8, stack)
        nonces = b"\1" + true.recv(len(HELLO), socket.MSG_WAITALL)[len(MAGIC) :] + bytes(NONCE)
        proof = MAGIC + b"\1" + bytes(NONCE) + greeting._tag(KEY, b"call", nonces)
        replayed.sendall(proof)
        true.sendall(proof)
        assert _next(door, stack)[0] == 1
        bytes_of_theirs = (b"", MAGIC[:3], MAGIC, proof[:-1], os.urandom(4000), b"GET / HTTP/1.0\r\n\r\n" * 9)
        for stranger, data in zip(strangers, bytes_of_theirs, strict=True):
            stranger.sendall(data)
        deadline = time.monotonic() + 3
        while len(door.refusals) < 1 + len(strangers) and time.monotonic() < deadline:
            time.sleep(0.01)
        said = sorted(refusal.removeprefix("127.0.0.1 ") for refusal in door.refusals)
        silent = "said nothing that can be understood"
        assert said == [
            "gave a wrong token",
            *4 * [silent],
            "spoke another protocol",
            "spoke another protocol",
        ]
        (guest,) = _callers(door, 1, stack)
        call(guest, KEY, 2, 5)
        assert _next(door, stack)[0] == 2


@pytest.mark.parametrize(("key", "rank", "says"), [(KEY[::-1], 1, "wrong token"), (KEY, 2, "came as rank 2")])
def test_a_wrong_greeting_is_refused(key, rank, says):
    with Door(open_port("127.0.0.1"), KEY, [1]) as door, ExitStack() as stack:
        (caller,) = _callers(door, 1, stack)
        with pytest.raises(Refused):
            call(caller, key, rank, 2)
        with pytest.raises(TimeoutError):
            door.next(time.monotonic() + 0.2)
        assert says in door.refusals[0]


def test_silent_callers_cannot_keep_the_right_one_out():
    with Door(open_port("127.0.0.1"), KEY, [1]) as door, ExitStack() as stack:
        _callers(door, 2 * CROWD + 10, stack)
        started = time.monotonic()
        (guest,) = _callers(door, 1, stack)
        session = call(guest, KEY, 1, 5)
        assert _next(door, stack) == (1, session)
        assert time.monotonic() - started < 12
        assert len(door._callers) <= CROWD


def test_a_crowd_from_one_host_does_not_push_out_a_caller_from_another():
    with Door(open_port("127.0.0.1"), KEY, [1]) as door, ExitStack() as stack:
        ends = [tuple(map(stack.enter_context, socket.socketpair())) for _ in range(CROWD + 2)]
        for place, (near, _) in enumerate(ends):
            door._seat(near, "10.0.0.3" if place else "10.0.0.2")
        assert [door._callers.get(near) for near, _ in ends[:4]] == ["10.0.0.2", None, None, "10.0.0.3"]
        assert ends[1][1].recv(1) == b"", "it was closed"


def test_a_door_lives_through_a_lack_of_descriptors_and_threads(monkeypatch):
    class Scarce(socket.socket):
        failures = 2

        def accept(self):
            if self.failures:
                self.failures -= 1
                raise OSError(errno.EMFILE, "Too many open files")
            return super().accept()

    start, lacking = threading.Thread.start, [True]

    def start_later(thread):
        if "_hear" in thread.name and lacking:
            lacking.pop()
            raise RuntimeError("can't start new thread")
        start(thread)

    monkeypatch.setattr(threading.Thread, "start", start_later)
    listener = Scarce(fileno=open_port("127.0.0.1").detach())
    with Door(listener, KEY, [1]) as door, ExitStack() as stack:
        unlucky, guest = _callers(door, 2, stack)
        assert unlucky.recv(1) == b""
        call(guest, KEY, 1, 5)
        assert _next(door, stack)[0] == 1


def test_a_closed_door_frees_its_port_and_its_threads_at_once():
    port = free_port()
    for _ in range(5):
        with Door(open_port("127.0.0.1", [port]), KEY, [1]) as door, ExitStack() as stack:
            caller, silent = _callers(door, 2, stack)
            call(caller, KEY, 1, 2)
            _, connection, _ = door.next(time.monotonic() + 2)
            silent.recv(len(HELLO), socket.MSG_WAITALL)
        connection.close()
    deadline = time.monotonic() + 2
    while any("_hear" in thread.name for thread in threading.enumerate()):
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_a_door_needs_a_token():
    with open_port("127.0.0.1") as listener, pytest.raises(ValueError, match="everybody knows the empty one"):
        Door(listener, b"", [1])


# Addresses.


@pytest.mark.parametrize("host", NO_HOSTS)
def test_a_listener_has_the_address_of_one_host(host):
    """The check looks at the address that is resolved and not at the text."""
    with pytest.raises(ValueError, match=r"neither a name nor|stands for"):
        open_port(host)


def test_addresses_are_resolved():
    for host in ("127.0.0.1", "localhost", "0x7f.1", "127.1"):
        assert address_of(host) == "127.0.0.1"
        assert is_loopback(host)
        with open_port(host) as listener:
            assert listener.getsockname()[0] == "127.0.0.1"
    assert not is_loopback("192.0.2.7")


# The link check.


def test_the_link_check_takes_nobody_else_for_party_one():
    """A silent and a loud stranger come first, and yet the parties measure their link at once."""
    zero, one = (
        Session(
            SimpleNamespace(
                rank=rank,
                setting=Setting("lean", "party", rank, 2, "", "dealer", 60.0, key=KEY),
                barrier=lambda: None,
                small_round=lambda: None,
                round_hops=1,
            )
        )
        for rank in (0, 1)
    )
    host, port = zero.listen()
    assert one.listen() is None
    started = time.monotonic()
    with ThreadPoolExecutor(1) as pool, ExitStack() as stack:
        _, loud = _callers(zero.door, 2, stack)
        loud.sendall(b"GET / HTTP/1.0\r\n\r\n")
        waiting = pool.submit(zero.probe_link, host, port, 1 << 18)
        found = (one.probe_link(host, port, 1 << 18), waiting.result(10))
    assert time.monotonic() - started < 30
    for measured in found:
        assert 0 < measured["rtt_s"] < 0.1
        assert measured["bandwidth_bits_s"] > 1e6


def test_the_processes_of_a_group_share_a_key_of_their_own():
    def keys(**settings):
        parties = Parties(**settings)
        return {parties._told(rank, "", parties.group.shaper.place(rank)).key for rank in range(2)}

    (one,), (other,) = keys(engine="lean"), keys(engine="stock")
    assert len(one) == len(other) == 32
    assert one != other
