"""Two hosts and strangers: hostile bytes at every stage of the handshake, from either side."""

from __future__ import annotations

import os
import pickle
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import replace
from typing import Any

import msgpack
import numpy as np
import torch

from faults import garbles
from faults.fault import Fault, Observed
from faults.forked import forked_workers
from faults.numbers import block, is_right, noise, truth
from faults.stage import Stage
from pibench.engines.base import Setting
from pibench.hosts import agreement, messages, stream, values
from pibench.hosts.join import join
from pibench.hosts.messages import Bye, DriverIntroduction, End, Introduction, Open, Opened, Said, Say
from pibench.hosts.remote import GUEST, Remote
from pibench.hosts.stream import Stream
from pibench.links import greeting
from pibench.links.greeting import MAGIC, answer, call
from pibench.parties.driver import Parties
from pibench.program.ir import Program, Relu, Step

TOKEN = "a token that only the campaign knows"
WAIT_S = 2.0
"""Seconds that each side gives the other, for a step and for all."""
DRIVER = ("other host", "callers", "driver", "connection", "message", "token")
JOINER = ("driver", "host", "connection", "message", "token", "pibench")


def faults(seed: int) -> Iterator[Fault]:
    """Yields the faults of this family."""
    for name in STRANGERS:
        for side, names in (("driver", DRIVER), ("guest", JOINER)):
            arguments = {"stranger": name, "then": ""}
            yield Fault("hostile", f"{side}-{name}", f"handshake.{side}", arguments, names, seconds=25.0)
    for name in PEERS:
        for side, names in (("driver", DRIVER), ("guest", JOINER)):
            arguments = {"stranger": "", "then": name}
            yield Fault("hostile", f"{side}-peer-{name}", f"handshake.{side}", arguments, names, seconds=25.0)
    for name in CROWDS:
        for engine in ("stock", "lean"):
            for link in ("loopback", "200Mbit/1ms"):
                yield Fault("flood", f"ports-{name}-{'relay' if link != 'loopback' else link}",
                            "handshake.crowded", {"engine": engine, "crowd": name, "link": link},
                            ("party [01]", "dealer", "relay", "stranger", "link"), engine, 40.0)  # fmt: skip
    for count in (10, 64, 100, 300):
        yield Fault("flood", f"callers-{count}", "handshake.guest_in_a_crowd", {"count": count},
                    DRIVER, seconds=40.0)  # fmt: skip
    for name in MESSAGES:
        for garble in (*garbles.BYTES, *(f"{g}-{turn}" for g in garbles.DRAWN for turn in range(2))):
            yield Fault("garble", f"message-{name}-{garble}", "handshake.message",
                        {"name": name, "garble": garble}, ("message",))  # fmt: skip
    for name in FORGED:
        yield Fault("hostile", f"forged-{name}", "handshake.forged", {"name": name}, ("message",))


# What a stranger says who knows no token; `connection` is open.


def _silence(connection: socket.socket) -> None:
    time.sleep(WAIT_S + 20)


STRANGERS: dict[str, Callable[[socket.socket], object]] = {
    "closes": lambda c: None,
    "silent": _silence,
    "magic-then-silent": lambda c: (c.sendall(MAGIC), _silence(c)),
    "half-magic": lambda c: c.sendall(MAGIC[:7]),
    "old-version": lambda c: c.sendall(MAGIC[:-1] + b"0" + os.urandom(65)),
    "http": lambda c: c.sendall(b"HTTP/1.1 400 Bad Request\r\nConnection: close\r\n\r\n" * 9),
    "noise": lambda c: c.sendall(os.urandom(1 << 16)),
    "zeros": lambda c: c.sendall(bytes(1 << 20)),
    "guess": lambda c: c.sendall(MAGIC + b"\1" + os.urandom(64)),
    "other-rank": lambda c: c.sendall(MAGIC + b"\xff" + os.urandom(64)),
    "echo": lambda c: c.sendall(c.recv(4096)),
    "drip": lambda c: [(c.sendall(bytes([b])), time.sleep(0.5)) for b in (MAGIC + bytes(65))],
    "endless": lambda c: [c.sendall(bytes(1 << 16)) for _ in range(1 << 12)],
    "pickle": lambda c: c.sendall(pickle.dumps(threading.Event) * 99),
    "reset": lambda c: c.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0)),
}


# What somebody says who knows the token: `peer` is the stream after the greeting, `own` what honest ones say.


def _frame(peer: Stream, body: bytes, length: int | None = None) -> None:
    """Sends an authentic message with this body, whatever it is, and with this length."""
    tag = peer._tag(0, body)
    head = stream._HEADER.pack(len(body) if length is None else length)
    peer._connection.sendall(head + tag + body)


def _fields(record: Any) -> list[Any]:
    """Returns a record as plain values: its kind, its name, its fields."""
    return msgpack.unpackb(values.encode(record))


def _with(record: Any, place: int, value: Any) -> bytes:
    """Returns the body of a message in which one field of a record is another value; -1 is the last."""
    parts = _fields(record)
    parts[place if place < 0 else 2 + place] = value
    return msgpack.packb(parts)


def _greeted(peer: Stream, own: Any, *said: Any) -> None:
    """Sends an introduction and then messages or bodies."""
    for message in (own, *said):
        _frame(peer, message if isinstance(message, bytes) else values.encode(message))
    time.sleep(0.5)


def _raw(*parts: Any) -> bytes:
    return msgpack.packb(list(parts))


SETTING = Setting("lean", "party", GUEST, 2, "", "dealer", 5.0, guest=GUEST)
Word = Callable[[Stream, Any], object]
PEERS: dict[str, Word] = {
    "leaves": lambda peer, own: None,
    "silent": lambda peer, own: _silence(peer._connection),
    "half-a-message": lambda peer, own: (
        peer._connection.sendall(stream._HEADER.pack(5000) + bytes(100)),
        _silence(peer._connection),
    ),
    "drip": lambda peer, own: [(peer._connection.sendall(b"\0"), time.sleep(0.4)) for _ in range(60)],
    "endless-length": lambda peer, own: peer._connection.sendall(b"\xff" * 4096),
    "negative-length": lambda peer, own: _frame(peer, b"x" * 100, 1 << 63),
    "largest-length": lambda peer, own: _frame(peer, b"x" * 100, stream.MOST_BYTES),
    "empty-message": lambda peer, own: _frame(peer, b""),
    "no-message": lambda peer, own: _frame(peer, os.urandom(2000)),
    "pickle": lambda peer, own: _frame(peer, pickle.dumps(threading.Event)),
    "wrong-tag": lambda peer, own: peer._connection.sendall(stream._HEADER.pack(9) + bytes(41)),
    "none": lambda peer, own: _greeted(peer, msgpack.packb(None)),
    "text": lambda peer, own: _greeted(peer, msgpack.packb("hello")),
    "list": lambda peer, own: _greeted(peer, _raw("list", 1, 2, 3)),
    "map": lambda peer, own: _greeted(peer, msgpack.packb({"facts": {}})),
    "other-record": lambda peer, own: _greeted(peer, End(1)),
    "unknown-record": lambda peer, own: _greeted(peer, _raw("record", "Popen", "touch forged")),
    "no-fields": lambda peer, own: _greeted(peer, _raw(*_fields(own)[:2])),
    "one-field-less": lambda peer, own: _greeted(peer, _raw(*_fields(own)[:-1])),
    "one-field-more": lambda peer, own: _greeted(peer, _raw(*_fields(own), 1)),
    "facts-text": lambda peer, own: _greeted(peer, _with(own, 0, "torch")),
    "facts-numbers": lambda peer, own: _greeted(peer, _with(own, 0, ["dict", "torch", 2])),
    "facts-empty": lambda peer, own: _greeted(peer, _with(own, 0, ["dict"])),
    "facts-other": lambda peer, own: _greeted(peer, _with(own, 0, ["dict", "torch", "1.0"])),
    "machine-none": lambda peer, own: _greeted(peer, _with(own, 1, None)),
    "last-none": lambda peer, own: _greeted(peer, _with(own, -1, None)),
    "last-infinite": lambda peer, own: _greeted(peer, _with(own, -1, float("inf"))),
    "last-negative": lambda peer, own: _greeted(peer, _with(own, -1, -1.0)),
    "then-silent": lambda peer, own: (peer.send(own), _silence(peer._connection)),
    "then-leaves": lambda peer, own: peer.send(own),
    "then-noise": lambda peer, own: (peer.send(own), peer._connection.sendall(os.urandom(5000))),
    "then-text": lambda peer, own: _greeted(peer, own, msgpack.packb("hello")),
    "then-again": lambda peer, own: _greeted(peer, own, own),
    "then-bye": lambda peer, own: _greeted(peer, own, Bye("ValueError")),
    "then-open": lambda peer, own: _greeted(peer, own, Open(1, SETTING), Open(1, SETTING)),
    "then-open-nothing": lambda peer, own: _greeted(peer, own, _with(Open(1, SETTING), 1, None)),
    "then-say-unopened": lambda peer, own: _greeted(peer, own, Say(1, "idle", (), "")),
    "then-say-unknown": lambda peer, own: _greeted(peer, own, Say(1, "__class__", (), "")),
    "then-other-group": lambda peer, own: _greeted(peer, own, Said(77, "done", None)),
    "then-said-unasked": lambda peer, own: _greeted(peer, own, Opened(1, 5), Said(1, "done", None)),
    "then-opened-text": lambda peer, own: _greeted(peer, own, _with(Opened(1, 5), 1, "pid")),
    "then-opened-init": lambda peer, own: _greeted(peer, own, Opened(1, 1), Said(1, "ready", None)),
    "then-negative-group": lambda peer, own: _greeted(peer, own, _with(Opened(1, 5), 0, -1)),
    "then-store": lambda peer, own: _greeted(peer, own, _raw("record", "Call", 1, "__class__", ["tuple"])),
    "then-many": lambda peer, own: _greeted(peer, own, *[Said(9, "failed", "x" * 1000)] * 3000),
    "replayed": lambda peer, own: (_replayed(peer, own), time.sleep(0.5)),
}


def _replayed(peer: Stream, own: Any) -> None:
    """Sends the same authentic bytes twice."""
    body = values.encode(own)
    frame = stream._HEADER.pack(len(body)) + peer._tag(0, body) + body
    peer._connection.sendall(frame + frame)


def _introduction(of: str) -> Any:
    """Returns what an honest driver or guest says of itself."""
    facts, machine = agreement.facts(), {"cpu": "none", "cores": 1}
    if of == "guest":
        return Introduction(facts, machine)
    return DriverIntroduction(facts, machine, "127.0.0.1", "", WAIT_S)


def driver(stage: Stage, stranger: str, then: str) -> Observed:
    """A driver waits for the other host, and somebody else comes, or a guest that misbehaves."""
    remote = Remote("127.0.0.1", 0, TOKEN, timeout_s=WAIT_S, silence_s=3.0, say=lambda line: None)

    def attack() -> None:
        while not remote.port:
            time.sleep(0.005)
        while True:
            with suppress(OSError):
                connection = socket.create_connection(("127.0.0.1", remote.port), timeout=5)
                break
            time.sleep(0.005)
        with connection, suppress(OSError, EOFError):
            if stranger:
                STRANGERS[stranger](connection)
                return
            peer = Stream(connection, call(connection, TOKEN.encode(), GUEST, 5), caller=True)
            peer.receive(DriverIntroduction)
            PEERS[then](peer, _introduction("guest"))

    def work() -> None:
        with remote, forked_workers(), Parties(engine="lean", remote=remote, timeout_s=WAIT_S) as parties:
            parties.load(block(), noise(2, 3, 8, 8))

    return _beside(stage, work, attack)


def guest(stage: Stage, stranger: str, then: str) -> Observed:
    """A guest calls its driver, and somebody else listens there, or a driver that misbehaves."""
    server = socket.create_server(("127.0.0.1", 0))

    def attack() -> None:
        with server, suppress(OSError, EOFError):
            server.settimeout(WAIT_S + 5)
            connection, _ = server.accept()
            with connection:
                if stranger:
                    STRANGERS[stranger](connection)
                    return
                _, session = answer(connection, TOKEN.encode(), [GUEST])
                peer = Stream(connection, session, caller=False)
                PEERS[then](peer, _introduction("driver"))

    port = server.getsockname()[1]
    return _beside(
        stage,
        lambda: join("127.0.0.1", port, TOKEN, timeout_s=WAIT_S, say=lambda line: None),
        attack,
    )


def _beside(stage: Stage, work: Callable[[], object], attack: Callable[[], object]) -> Observed:
    """Does `work` while somebody attacks: it must not succeed, and must say why within twice its time-out."""
    greeting.STEP_S = stream.STEP_S = WAIT_S  # in this process alone
    threading.Thread(target=attack, daemon=True).start()
    started = time.monotonic()
    observed = stage.attempt(work, lambda _: False)
    if time.monotonic() - started > 2 * WAIT_S + 2:
        return replace(observed, hung=True)
    return observed


# Crowds at the ports of a group, and before a driver's door.


def _knock(address: tuple[str, int], data: bytes) -> socket.socket | None:
    with suppress(OSError):
        connection = socket.create_connection(address, timeout=1)
        with suppress(OSError):
            connection.sendall(data)
        return connection
    return None


CROWDS: dict[str, Callable[[], bytes]] = {
    "silent": lambda: b"",
    "noise": lambda: os.urandom(300),
    "greeting": lambda: MAGIC + b"\1" + os.urandom(64),
}


def _own_ports(pids: list[int]) -> set[int]:
    """Returns the ports at which these processes listen."""
    inodes = set()
    for pid in pids:
        with suppress(OSError):
            for entry in os.scandir(f"/proc/{pid}/fd"):
                with suppress(OSError):
                    target = os.readlink(entry.path)
                    if target.startswith("socket:["):
                        inodes.add(target[8:-1])
    with open("/proc/net/tcp", encoding="ascii") as table:
        rows = [line.split() for line in table.readlines()[1:]]
    return {int(row[1].split(":")[1], 16) for row in rows if row[3] == "0A" and row[9] in inodes}


def crowded(stage: Stage, engine: str, crowd: str, link: str) -> Observed:
    """Strangers call every port at which a group listens, from its start to its end."""
    parties = Parties(engine=engine, timeout_s=10, link=link)
    images = noise(2, 3, 8, 8)
    exact = truth(block(), images[:1])
    over = threading.Event()

    def attack() -> None:
        kept: list[socket.socket | None] = []
        while not over.is_set():
            pids = [*parties.pids]
            if (relay := getattr(parties.group.shaper, "popen", None)) is not None:
                pids.append(relay.pid)
            for port in _own_ports(pids):
                kept = [*kept[-200:], _knock(("127.0.0.1", port), CROWDS[crowd]())]
            time.sleep(0.001)

    attacker = threading.Thread(target=attack, daemon=True)

    def work() -> Any:
        with forked_workers(), parties:
            parties.load(block(), images)
            parties.prepare(1)
            return parties.infer(images[:1])

    attacker.start()
    try:
        return stage.attempt(work, lambda result: is_right(result, exact))
    finally:
        over.set()
        attacker.join(2)


def guest_in_a_crowd(stage: Stage, count: int) -> Observed:
    """Silent callers stand before the driver's door; the right guest gets in all the same."""
    remote = Remote("127.0.0.1", 0, TOKEN, timeout_s=25.0, silence_s=5.0, say=lambda line: None)
    crowd: list[socket.socket | None] = []
    served: list[Observed] = []

    def come() -> None:
        while not remote.port:
            time.sleep(0.005)
        time.sleep(0.05)
        crowd.extend(_knock(("127.0.0.1", remote.port), b"") for _ in range(count))
        served.append(
            stage.attempt(
                lambda: join("127.0.0.1", remote.port, TOKEN, timeout_s=25.0, say=lambda line: None),
                lambda groups: groups == 0,
            )
        )

    comer = threading.Thread(target=come, daemon=True)
    comer.start()

    def work() -> bool:
        with remote:
            return remote.machine is not None

    observed = stage.attempt(work, bool)
    comer.join(10)
    return observed if not served or served[0].answered else served[0]


# Messages that are damaged or forged, behind the check of their tag.

_PROGRAM = Program("x", (3,), (Step("r", Relu(np.array([0, 2])), ("x",), ((3,),), (3,)),), "r")
MESSAGES: dict[str, Any] = {
    "command": Say(1, "infer", (torch.arange(12.0).view(3, 4), 1), ""),
    "program": Say(1, "load", (_PROGRAM, None), "0123456789abcdef"),
    "setting": Open(1, SETTING),
    "reply": Said(1, "done", {"seconds": 0.1, "rounds": 3, "bytes_sent": 10**6}),
}


def _decoded(data: bytes) -> Any:
    """Reads a message as a stream does, behind the check of its tag."""
    found = values.decode(data)
    messages.demand(type(found), found)
    return found


def message(stage: Stage, name: str, garble: str) -> Observed:
    """A message is damaged behind its tag: it is refused, or it still holds plain values."""
    data = garbles.garble(garble, values.encode(MESSAGES[name]), stage.rng)
    return stage.attempt(lambda: _decoded(data), _is_plain)


def _is_plain(value: Any) -> bool:
    """Tells whether a decoded value holds nothing but data."""
    if isinstance(value, tuple | list | set | frozenset):
        return all(map(_is_plain, value))
    if isinstance(value, dict):
        return all(_is_plain(each) for pair in value.items() for each in pair)
    known = (str, bytes, bytearray, int, float, bool, complex, np.ndarray, torch.Tensor)
    return value is None or isinstance(value, known) or type(value).__module__.startswith("pibench.")


FORGED: dict[str, Callable[[], bytes]] = {
    "empty": lambda: b"",
    "pickle": lambda: pickle.dumps(threading.Event),
    "deep": lambda: b"\x91" * 200_000 + b"\xc0",
    "deep-lists": lambda: b"".join(b"\x92" + msgpack.packb("list") for _ in range(900)) + b"\xc0",
    "deep-tuples": lambda: b"".join(b"\x92" + msgpack.packb("tuple") for _ in range(100_000)) + b"\xc0",
    "huge-list": lambda: b"\xdd\xff\xff\xff\xff",
    "huge-map": lambda: b"\xdf\xff\xff\xff\xff",
    "huge-bytes": lambda: b"\xc6\xff\xff\xff\xff",
    "huge-text": lambda: b"\xdb\xff\xff\xff\xff",
    "extension": lambda: msgpack.packb(msgpack.ExtType(5, b"x" * 50)),
    "time": lambda: msgpack.packb(msgpack.Timestamp(1, 2)),
    "unknown-kind": lambda: _raw("code", "import os"),
    "record-of-code": lambda: _raw("record", "os.system", "touch forged"),
    "record-in-record": lambda: _raw("record", ["record"], 1),
    "setting-of-nothing": lambda: _raw("record", "Setting", *[None] * 13),
    "unhashable-key": lambda: _raw("dict", ["list"], 1),
    "odd-dict": lambda: _raw("dict", "a"),
    "array-of-objects": lambda: _raw("array", "object", [2], bytes(16)),
    "array-too-large": lambda: _raw("array", "float64", [1 << 40], b""),
    "array-negative": lambda: _raw("array", "float64", [-1, -2], bytes(16)),
    "array-overflow": lambda: _raw("array", "uint8", [1 << 32, 1 << 32], b""),
    "array-of-text": lambda: _raw("array", "float64", "2", bytes(16)),
    "array-of-truth": lambda: _raw("array", "bool", [2], b"\2\3"),
    "array-short": lambda: _raw("array", "float64"),
    "half-character": lambda: b"\xa3\xed\xa0\x80",
}


def forged(stage: Stage, name: str) -> Observed:
    """An authentic peer sends a message that holds code, or what no machine holds."""
    observed = stage.attempt(lambda: _decoded(FORGED[name]()), lambda _: False)
    if os.path.exists("forged"):
        return replace(observed, answered=True, right=False)
    return observed
