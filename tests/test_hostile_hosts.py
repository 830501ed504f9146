"""A host that knows the token and then says nothing, stops half-way, or says what it may not: either side.

Every run ends soon with one sentence, although the time-outs are long. Real sockets on the loopback.
"""

from __future__ import annotations

import pickle
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from dataclasses import replace
from multiprocessing import Pipe
from pathlib import Path
from types import SimpleNamespace

import msgpack
import pytest
from two_hosts import TOKEN

from pibench import conftest
from pibench.engines.base import Setting
from pibench.hosts.join import JoinFailed, join
from pibench.hosts.messages import (
    Answered,
    Bye,
    Call,
    DriverIntroduction,
    End,
    Ended,
    Introduction,
    Open,
    Opened,
    Said,
    Say,
)
from pibench.hosts.remote import Remote, RemoteFailed, driver_address
from pibench.hosts.stream import Stream
from pibench.hosts.values import encode
from pibench.links import greeting
from pibench.links.greeting import MAGIC, answer, call, open_port

SOON_S = 4
STEP_S = 0.5
SETTING = Setting("lean", "party", 1, 2, "", "dealer", 60.0, guest=1)


@pytest.fixture(autouse=True)
def steps(monkeypatch) -> None:
    """Short steps; all other time-outs are long."""
    monkeypatch.setattr(greeting, "STEP_S", STEP_S)


class Hostile:
    """One end of a greeted connection, in the hands of somebody who knows the token."""

    def __init__(self, connection: socket.socket, session: bytes, caller: bool) -> None:
        self.connection = connection
        self.stream = Stream(connection, session, caller)

    def say(self, what: object) -> None:
        """Says an authentic message: an encoded one, or a value."""
        self.stream.send_bytes(what if isinstance(what, bytes) else encode(what))

    def say_half(self, body: bytes) -> None:
        """Says the first half of an authentic message."""
        whole = struct.pack("!Q", len(body)) + self.stream._tag(0, body) + body
        self.connection.sendall(whole[: len(whole) // 2])


def _soon(future: Future, error: type[Exception]) -> str:
    """Gives the sentence with which a run ends, and demands that it ends soon."""
    found = future.exception(SOON_S)
    assert type(found) is error, found
    assert "\n" not in str(found)
    return str(found)


# What comes instead of an introduction, and what the victim says.
GARBLED: dict[str, tuple[Callable[[Hostile], object], str]] = {
    "nothing": (lambda peer: None, f"it said nothing for {STEP_S:g} s"),
    "half": (lambda peer: peer.say_half(encode(Bye("now"))), "it stopped in the middle of a message"),
    "end": (lambda peer: peer.connection.shutdown(socket.SHUT_WR), "it was closed"),
    "garbage": (lambda peer: peer.connection.sendall(b"\xff" * 60), "something else than messages"),
    "unsigned": (lambda peer: peer.connection.sendall(bytes(7) + b"\1" + bytes(33)), "altered on its way"),
    "pickle": (lambda peer: peer.say(pickle.dumps(threading.Thread)), "a message cannot be decoded"),
    "number": (lambda peer: peer.say(5), "a message holds a int where"),
    "tuple": (lambda peer: peer.say(("facts", {})), "a message holds a tuple where"),
    "bye": (lambda peer: peer.say(Bye(None)), "a message holds a Bye where"),
    "bomb": (lambda peer: peer.say(msgpack.packb(["record", "Popen", "true"])), "which no message may"),
}


# The driver's side.


@pytest.fixture
def remote() -> Iterator[Remote]:
    """A driver that waits for the other host, with long time-outs."""
    listening = threading.Event()
    made = Remote(port=0, token=TOKEN, timeout_s=60, say=lambda line: listening.set())
    with ThreadPoolExecutor(1) as pool:
        made.opened = pool.submit(made.__enter__)
        assert listening.wait(5)
        yield made
        made.__exit__(None)


@pytest.fixture
def guest(remote) -> Iterator[Hostile]:
    """A host that has greeted the driver."""
    with socket.create_connection(("127.0.0.1", remote.port)) as connection:
        yield Hostile(connection, call(connection, TOKEN.encode(), 1, 5), caller=True)


@pytest.mark.parametrize("name", GARBLED)
def test_a_guest_that_does_not_introduce_itself(name, remote, guest):
    act, says = GARBLED[name]
    act(guest)
    said = _soon(remote.opened, RemoteFailed)
    assert said.startswith("the other host at 127.0.0.1 did not introduce itself: ")
    assert says in said


@pytest.mark.parametrize(
    ("introduction", "place"),
    [
        (msgpack.packb(["record", "Introduction", ["dict"]]), "with 1 fields instead of 2"),
        (Introduction({"torch": 5}, {}), "facts.torch"),
        (Introduction({}, {"cpu": [1]}), "machine.cpu"),
        (DriverIntroduction({}, {}, "", "", 1.0), "a DriverIntroduction where Introduction belongs"),
    ],
)
def test_a_guest_with_a_wrong_introduction(introduction, place, remote, guest):
    guest.say(introduction)
    assert place in _soon(remote.opened, RemoteFailed)


def _meet(remote: Remote, guest: Hostile) -> None:
    guest.say(Introduction(guest.stream.receive(DriverIntroduction).facts, {"cores": 2}))
    remote.opened.result(5)


WRONG = [
    (5, "holds a int where Opened or Said or Call or Ended belongs"),
    (("opened", 1, 2), "holds a tuple where"),
    (Bye(None), "holds a Bye where"),
    (Opened([1], 7), "wrong at number"),
    (Opened(1, "7"), "wrong at pid"),
    (Said(1, "done", {}), "a party said 'done' when nobody had asked it"),
    (Said(1, "ready", {"a": 1}), "a dict of a message is wrong"),
    (Ended(1, -99, ""), "wrong at code"),
    (Ended(1, 0, 5), "wrong at words"),
    (Call(1, "get", ({},)), "wrong at arguments"),
    (pickle.dumps(1), "cannot be decoded"),
]


@pytest.mark.parametrize(("message", "says"), WRONG)
def test_a_guest_that_says_what_it_may_not(message, says, remote, guest, tmp_path):
    """The reader takes the host for lost at once: nobody waits for a time-out."""
    _meet(remote, guest)
    with ThreadPoolExecutor(1) as pool:
        started = pool.submit(remote.start, 1, SETTING, tmp_path / "log")
        assert guest.stream.receive(Open).number == 1
        guest.say(message)
        said = _soon(started, RemoteFailed)
    assert said.startswith(
        "the other host could not start party 1: the connection to the other host (127.0.0.1) was lost: "
    )
    assert says in said
    with pytest.raises(RemoteFailed, match="was lost"):
        remote.new_group()


def _started(remote: Remote, guest: Hostile, folder: Path):
    """Gives the process of a guest that has started."""
    _meet(remote, guest)
    with ThreadPoolExecutor(1) as pool:
        started = pool.submit(remote.start, 1, SETTING, folder / "log")
        guest.stream.receive(Open)
        guest.say(Opened(1, 4711))
        process = started.result(5)
    assert process.pid == 4711
    return process


def test_a_guest_whose_reply_lacks_a_field(remote, guest, tmp_path):
    process = _started(remote, guest, tmp_path)
    guest.say(Said(1, "ready", None))
    assert pickle.loads(process.connection.recv_bytes()) == ("ready", None)
    process.connection.send_bytes(pickle.dumps(("idle", ())))
    assert guest.stream.receive(Say) == Say(1, "idle", (), "")
    guest.say(Said(1, "done", {"second": 1.0}))
    assert process.wait(SOON_S) is None
    assert "a dict of a message is wrong at seconds: Field required" in remote.failure
    with closing(process.connection), pytest.raises(EOFError):
        process.connection.recv_bytes()


def test_a_guest_that_floods_the_store(remote, guest, tmp_path):
    process = _started(remote, guest, tmp_path)
    process._setting = replace(SETTING, rendezvous=str(tmp_path / "store"), timeout_s=1.0)
    for name, arguments, done in (
        ("set", ("key", b"value"), True),
        ("get", ("key",), True),
        ("wait", (), False),
        ("get", (), False),
        ("__class__", (), False),
        ("set", (5, 5), False),
    ):
        guest.say(Call(1, name, arguments))
        assert guest.stream.receive(Answered).done is done, name
    for _ in range(2):
        guest.say(Call(1, "get", ("a key that nobody sets",)))
    process.wait(SOON_S)
    assert "a party called the store before its last call was answered" in remote.failure
    process.connection.close()


def test_a_guest_that_does_not_open_a_party(remote, guest, tmp_path):
    _meet(remote, guest)
    remote.silence_s = 0.4
    with ThreadPoolExecutor(1) as pool:
        started = pool.submit(remote.start, 1, SETTING, tmp_path / "log")
        assert _soon(started, RemoteFailed).endswith(
            "could not start party 1: it did not answer within 0.4 s"
        )
        assert guest.stream.receive(Open, End)
        assert guest.stream.receive(End) == End(1)


def test_a_guest_that_stops_in_the_middle_of_a_run(remote, guest, tmp_path):
    process = _started(remote, guest, tmp_path)
    remote._stream.pause_s = 0.4
    guest.say_half(encode(Said(1, "ready", None)))
    started = time.monotonic()
    process.wait(SOON_S)
    assert time.monotonic() - started < SOON_S
    assert remote.failure.endswith("was lost: it stopped in the middle of a message")
    process.connection.close()


# The other host's side.


@pytest.fixture
def joined() -> Iterator[tuple[Future, socket.socket]]:
    """A host that has called a driver, and the driver's connection."""
    with open_port("127.0.0.1") as listener, ThreadPoolExecutor(1) as pool:
        port = listener.getsockname()[1]
        future = pool.submit(join, "127.0.0.1", port, TOKEN, timeout_s=60, say=lambda line: None)
        connection, _ = listener.accept()
        with connection:
            yield future, connection


@pytest.fixture
def driver(joined) -> tuple[Future, Hostile]:
    """A host that waits for the introduction of a driver that it has greeted, and that driver."""
    future, connection = joined
    _, session = answer(connection, TOKEN.encode(), [1])
    return future, Hostile(connection, session, caller=False)


@pytest.mark.parametrize("said", [MAGIC[:4], MAGIC + bytes(32), MAGIC + bytes(50)], ids=len)
def test_a_driver_that_stops_in_the_greeting(said, joined):
    future, connection = joined
    connection.sendall(said)
    assert "is silent: it began to greet and then said nothing more" in _soon(future, JoinFailed)


def test_a_driver_that_never_speaks():
    with open_port("127.0.0.1") as listener:
        port = listener.getsockname()[1]
        with pytest.raises(JoinFailed, match=r"no driver answered at .* within 0.8 s \(timed out\)"):
            join("127.0.0.1", port, TOKEN, timeout_s=0.8)


@pytest.mark.parametrize("name", GARBLED)
def test_a_driver_that_does_not_introduce_itself(name, driver):
    (act, says), (future, peer) = GARBLED[name], driver
    act(peer)
    said = _soon(future, JoinFailed)
    assert said.startswith("the driver at 127.0.0.1:")
    assert " did not introduce itself: " in said
    assert says in said


@pytest.mark.parametrize(
    ("wrong", "place"),
    [
        ({"facts": []}, "facts"),
        ({"host": 5}, "host"),
        ({"silence_s": -1.0}, "silence_s"),
        ({"network": None}, "network"),
    ],
)
def test_a_driver_with_a_wrong_introduction(wrong, place, driver):
    future, peer = driver
    peer.say(replace(DriverIntroduction({}, {}, "127.0.0.1", "", 1.0), **wrong))
    assert f"wrong at {place}: " in _soon(future, JoinFailed)


def _introduce(peer: Hostile, monkeypatch, silence_s: float = 60.0) -> None:
    monkeypatch.setattr("pibench.hosts.join.facts", dict)
    peer.say(DriverIntroduction({}, {}, "127.0.0.1", "", silence_s))
    peer.stream.receive(Introduction)


@pytest.mark.parametrize(
    ("message", "says"),
    [
        (5, "holds a int where Open or Say or Answered or End or Bye belongs"),
        ((1, 2), "holds a tuple where"),
        (Opened(1, 7), "holds a Opened where"),
        (End([1]), "wrong at number"),
        (Open("../1", SETTING), "wrong at number"),
        (Open(1, {"engine": "lean"}), "wrong at setting"),
        (pickle.dumps(SETTING), "cannot be decoded"),
    ],
)
def test_a_driver_that_says_what_it_may_not(message, says, driver, monkeypatch):
    future, peer = driver
    _introduce(peer, monkeypatch)
    peer.say(message)
    said = _soon(future, JoinFailed)
    assert said.startswith("the connection to the driver at 127.0.0.1:")
    assert said.endswith("; everything here was ended")
    assert says in said


def test_a_driver_that_stops_in_the_middle_of_a_run(driver, monkeypatch):
    future, peer = driver
    _introduce(peer, monkeypatch, silence_s=0.4)
    peer.say_half(encode(Bye(None)))
    assert "was lost: it stopped in the middle of a message; everything" in _soon(future, JoinFailed)


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ({"engine": "spu-semi2k"}, "the engine 'spu-semi2k' does not run on two hosts"),
        ({"engine": "../lean"}, "the engine '../lean' does not run on two hosts"),
        ({"rank": 0}, "only party 1, without a relay"),
        ({"role": "dealer"}, "only party 1, without a relay"),
        ({"relay": "/run/docker.sock"}, "only party 1, without a relay"),
    ],
)
def test_a_driver_cannot_open_just_any_process(wrong, says, driver, monkeypatch):
    future, peer = driver
    _introduce(peer, monkeypatch)
    peer.say(Open(1, replace(SETTING, **wrong)))
    ended = peer.stream.receive(Ended)
    assert ended.code is None
    assert says in ended.words
    peer.say(Bye(None))
    assert future.result(SOON_S) == 1


@pytest.mark.parametrize(
    ("message", "says"),
    [
        (Say(1, "__setattr__", ("node", None), ""), "the command '__setattr__', which no party obeys"),
        (Say(1, "infer", ("images", 1), ""), "a tuple of a message is wrong at 0"),
        (Open(1, SETTING), "the driver opened group 1 twice"),
    ],
)
def test_a_driver_cannot_make_a_party_do_just_anything(message, says, driver, monkeypatch):
    """The party hears nothing of it, and the run ends."""
    ours, theirs = Pipe()
    worker = SimpleNamespace(pid=4711, kill=lambda: None, wait=lambda: -9)
    monkeypatch.setattr("pibench.hosts.join.start_worker", lambda *_, **__: (worker, ours))
    future, peer = driver
    _introduce(peer, monkeypatch)
    peer.say(Open(1, SETTING))
    assert peer.stream.receive(Opened) == Opened(1, 4711)
    peer.say(message)
    assert says in _soon(future, JoinFailed)
    with theirs:
        assert isinstance(theirs.recv(), Setting)
        assert not theirs.poll(0)


# The command line, and torchrun's store.


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (
            {"--remote": "127.0.0.1", "--remote-name": "office,home"},
            "a name without commas, not 'office,home'",
        ),
        ({"--remote": "0"}, "name the one address of this host"),
        ({"--remote": "127.0.0.1:x"}, "a port is a number from 0 to 65535, not 'x'"),
        ({"--remote": "127.0.0.1", "--remote-ports": "1-"}, "written like 29501-29516"),
        ({"--remote": "127.0.0.1", "--remote-timeout": float("inf")}, "at most a day"),
    ],
)
def test_options_of_a_run_that_cannot_be_are_refused_before_it_waits(options, says):
    usual = {"--remote-name": "two-hosts", "--remote-ports": "0", "--remote-timeout": 300.0}
    config = SimpleNamespace(
        getoption=(usual | options).get, pluginmanager=SimpleNamespace(get_plugin=lambda name: None)
    )
    with pytest.raises(pytest.exit.Exception, match=says) as left:
        conftest._remote(config)
    assert left.value.returncode == pytest.ExitCode.USAGE_ERROR
    assert str(left.value).startswith(f"--remote {options['--remote']}: ")


@pytest.mark.parametrize("stored", [b"garbage", b"host port", b"\xff"])
def test_a_store_that_names_no_driver(stored, monkeypatch):
    store = SimpleNamespace(get=lambda key: stored)
    monkeypatch.setattr("pibench.hosts.remote._agent_store", lambda timeout_s: store)
    with pytest.raises(RemoteFailed, match=r"names no driver .*: start the driver under torchrun, too"):
        driver_address(1.0)
