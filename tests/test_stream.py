"""Messages between hosts: what arrives, what cannot be sent, and hostile bytes that are authentic or not."""

from __future__ import annotations

import os
import pickle
import socket
import subprocess
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import get_args

import msgpack
import numpy as np
import pytest
import torch

from pibench.engines.base import Setting, StepCost
from pibench.hosts import stream
from pibench.hosts.agreement import checksum
from pibench.hosts.messages import (
    COMMANDS,
    START,
    Altered,
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
    Unsendable,
    demand_command,
    demand_reply,
)
from pibench.hosts.stream import Stream
from pibench.hosts.values import decode, encode
from pibench.links import LINKS
from pibench.links.greeting import Silent
from pibench.parties.driver import Parties
from pibench.parties.worker import Session
from pibench.program import ir

SETTING = Setting("lean", "party", 1, 2, "", "dealer", 3.0, link=LINKS["wan"], guest=1)
FACTS = {"torch": "2.13.0", "byte order": "little"}
OPERATORS = (
    ir.Convolution("w", None, (4, 3, 1, 1)),
    ir.Linear("w", "b", (2, 3)),
    ir.Relu(),
    ir.Relu(np.array([0, 2])),
    ir.AveragePool((2, 2), (2, 2)),
    ir.MaxPool((2, 2), (2, 2)),
    ir.Add(),
    ir.Multiply(),
    ir.Square(),
    ir.Scale(2),
    ir.Concatenate(1),
    ir.Flatten(1, 3),
    ir.Mean((2, 3), False),
    ir.Affine("w", None, (3,)),
    ir.Shift("b", (3,)),
    ir.PiecewiseLinear(1, (0.0, 1.5), (1, -0.25)),
    ir.Combine((1.0, 2)),
    ir.Rearrange((3,), np.array([2, 1, -1])),
    ir.Sum((1,), True),
    ir.Weigh(np.array([[0.5], [2.0]])),
)
PROGRAM = ir.Program(
    "x",
    (3,),
    tuple(ir.Step(f"s{i}", operator, ("x",), ((3,),), (3,)) for i, operator in enumerate(OPERATORS)),
    "s0",
)


@pytest.fixture
def ends() -> Iterator[tuple[socket.socket, socket.socket, Stream, Stream]]:
    """A connection: both sockets, and the streams over them, the caller's first."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        here = socket.create_connection(server.getsockname())
        there, _ = server.accept()
    with here, there:
        yield here, there, Stream(here, b"k" * 32, caller=True), Stream(there, b"k" * 32, caller=False)


# What arrives.


@pytest.mark.parametrize(
    "message",
    [
        Introduction(FACTS, {"cpu": None, "cores": 2, "system": "Linux"}),
        DriverIntroduction(FACTS, {}, "10.0.0.1", "", 30.0),
        DriverIntroduction(FACTS, {}, "127.0.0.1", "boot net:[1]", 3),
        Open(1, SETTING),
        Say(1, "infer", (1, 2.5, "three", [4, (5,)], {"six": b"7"}), ""),
        Answered(1, True, b"address"),
        Answered(2, True, False),
        Answered(2, False, "the store is gone"),
        End(3),
        Bye(None),
        Bye("KeyboardInterrupt"),
        Opened(1, 77),
        Said(1, "done", {"shape": (1, 2), "costs": [StepCost("a", "relu", 0.1, 9, 100)]}),
        Call(1, "wait", (["a", "b"], 3.5)),
        Ended(1, -9, "last words"),
        Ended(1, None, ""),
    ],
    ids=lambda message: type(message).__name__,
)
def test_messages_arrive_as_they_were_sent(message, ends):
    _, _, one, other = ends
    for sender, receiver in ((one, other), (other, one)):
        sender.send(message)
        received = receiver.receive(type(message))
        assert received == message
        assert checksum(received) == checksum(message), "types are the same, too: 2 is not 2.0"


def test_arrays_and_tensors_arrive_as_they_were_sent(ends):
    _, _, one, other = ends
    for dtype in (torch.float32, torch.float64, torch.float16, torch.int64, torch.uint8, torch.bool):
        shapes = (torch.arange(6).view(2, 3).T, torch.empty(0, 4), torch.ones(()))
        for tensor in (made.to(dtype) for made in shapes):
            other.send(Said(1, "done", (tensor, tensor.numpy())))
            arrived, array = one.receive(Said).value
            assert arrived.dtype == tensor.dtype
            assert torch.equal(arrived, tensor)
            arrived.fill_(1)  # it can be written
            np.testing.assert_array_equal(array, tensor.numpy(), strict=True)
    one.send(Said(1, "done", torch.Size([1, 2])))
    assert other.receive(Said).value == (1, 2)


def test_a_program_of_every_operator_arrives(ends):
    _, _, one, other = ends
    assert {type(operator) for operator in OPERATORS} == set(get_args(ir.Operator))
    one.send(Say(1, "load", (PROGRAM, None), checksum(PROGRAM)))
    said = other.receive(Say)
    assert checksum(said.arguments[0]) == said.checksum
    demand_command(said)


def test_the_end_of_a_connection(ends):
    _, _, one, other = ends
    one.close()
    with pytest.raises(EOFError):
        other.receive(Bye)
    with pytest.raises(OSError, match="the connection was closed"):
        one.receive(Bye)
    with pytest.raises(OSError, match="the connection was closed"):
        one.send(Bye(None))


# What cannot be sent.


class Bomb:
    def __reduce__(self):
        return os.system, ("true",)


@pytest.mark.parametrize(
    "value",
    [
        *(Bomb(), threading.Thread, print, Parties, torch.nn.Linear(1, 1), {1, 2}, np.float64(1), 1j, 2**70),
        *("half a pair: \ud800", torch.ones(1, dtype=torch.bfloat16), torch.ones(1, dtype=torch.complex64)),
        *(np.array(["text"]), np.array([Bomb()]), np.ones(1, ">f4")),
    ],
)
def test_what_no_message_may_hold_is_not_sent(value, ends):
    _, there, one, _ = ends
    for message in (Said(1, "done", value), Said(1, "done", [{"a": (value,)}])):
        with pytest.raises(Unsendable, match="a message between hosts cannot hold a"):
            one.send(message)
    _nothing_came(there)


def _nothing_came(end: socket.socket) -> None:
    end.setblocking(False)
    with pytest.raises(BlockingIOError):
        end.recv(1)
    end.setblocking(True)


def test_a_large_message_is_refused_before_it_is_sent(ends, monkeypatch):
    _, there, one, other = ends
    images = torch.zeros(17_000, 3, 64, dtype=torch.uint8)
    monkeypatch.setattr(stream, "MOST_BYTES", images.nbytes)
    expected = "holds at most 3.264 MB, but this one has 3.264 MB: use fewer images at once, or a smaller net"
    with pytest.raises(Unsendable, match=expected):
        one.send(Say(1, "infer", (images, 17_000), ""))
    _nothing_came(there)
    with ThreadPoolExecutor(1) as pool:
        pool.submit(one.send, Say(1, "infer", (images[:16_000], 16_000), ""))
        assert torch.equal(other.receive(Say).arguments[0], images[:16_000])


# Bytes of a hostile host, which knows the token.


def _record(name: object, *values: object) -> bytes:
    return msgpack.packb(["record", name, *values])


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"garbage",
        b"\x00\x00",
        *map(pickle.dumps, (None, (1, 2), Bomb(), threading.Thread, SETTING, subprocess.Popen)),
        b"cbench.program\nPath\n.",
        msgpack.packb({"a": 1}),
        msgpack.packb(msgpack.ExtType(1, b"x")),
        msgpack.packb(msgpack.Timestamp(1, 1)),
        msgpack.packb([]),
        msgpack.packb([[], 1]),
        msgpack.packb([1, 2]),
        msgpack.packb(["set", 1]),
        msgpack.packb(["dict", 1]),
        msgpack.packb(["dict", ["list"], 1]),
        _record("Bye"),
        _record("Bye", None, None),
        _record("Popen", "true"),
        _record("__class__", None),
        _record(["list"], None),
        _record(None),
        _record("Link", "a,b", 0.0, 0.0),
        _record("Link", 5, "x", None),
        msgpack.packb(["array"]),
        msgpack.packb(["array", "object", [1], bytes(8)]),
        msgpack.packb(["array", "float32", [2], bytes(7)]),
        msgpack.packb(["array", "float32", [-1], bytes(4)]),
        msgpack.packb(["array", "float32", [1 << 40, 1 << 40], bytes(4)]),
        msgpack.packb(["array", "float32", [1] * 99, bytes(4)]),
        msgpack.packb(["array", "float32", [True], bytes(4)]),
        msgpack.packb(["array", "float32", 1, bytes(4)]),
        msgpack.packb(["array", "float32", [1], "text"]),
        msgpack.packb(["array", ["float32"], [1], bytes(4)]),
        msgpack.packb(["tensor", "bool", [1], b"\x02"]),
        b"\xdd\xff\xff\xff\xff",  # a list that says it has four thousand million entries
        b"\xc6\xff\xff\xff\xff" + bytes(9),
        b"\x91" * 100_000 + b"\xc0",
        b"\x92\xa4list" * 900 + b"\xc0",
    ],
    ids=lambda data: data[:24].hex() or "nothing",
)
def test_bytes_that_hold_no_value_are_refused(data, ends):
    _, _, one, other = ends
    with pytest.raises(Altered):
        decode(data)
    one.send_bytes(data)
    with pytest.raises(Altered):
        other.receive(Bye, within_s=5)


@pytest.mark.parametrize(
    ("message", "says"),
    [
        (5, "holds a int where Bye or Opened belongs"),
        (None, "holds a NoneType where"),
        (("bye", None), "holds a tuple where"),
        ({"facts": {}}, "holds a dict where"),
        (SETTING, "holds a Setting where"),
        (End(1), "holds a End where"),
        (Bye(5), "a Bye of a message is wrong at reason"),
        (Opened("1", 7), "a Opened of a message is wrong at number: Input should be a valid integer"),
        (Opened(True, 7), "wrong at number: Input should be a valid integer"),
        (Opened([1], 7), "wrong at number"),
        (Opened(1, 0), "wrong at pid: Input should be greater than 0"),
    ],
)
def test_a_message_of_another_type_is_refused(message, says, ends):
    _, _, one, other = ends
    one.send(message)
    with pytest.raises(Altered, match=says):
        other.receive(Bye, Opened)


@pytest.mark.parametrize(
    ("message", "place"),
    [
        (Introduction([], {}), "facts"),
        (Introduction({"torch": 5}, {}), "facts.torch"),
        (Introduction(FACTS, {"cores": torch.ones(1)}), "machine.cores"),
        (DriverIntroduction(FACTS, {}, "h", "", 0.0), "silence_s"),
        (DriverIntroduction(FACTS, {}, "h", "", 1e300), "silence_s"),
        (DriverIntroduction(FACTS, {}, "h", "", float("nan")), "silence_s"),
        (DriverIntroduction(FACTS, {}, None, "", 1.0), "host"),
        (Open(1, None), "setting"),
        (Open(1, replace(SETTING, rank="1")), "setting.rank"),
        (Open(1, replace(SETTING, link=5)), "setting.link"),
        (Open(1, replace(SETTING, key="text")), "setting.key"),
        (Open(1, replace(SETTING, ports=[0])), "setting.ports"),
        (Say(1, 5, (), ""), "command"),
        (Say(1, "infer", [1], ""), "arguments"),
        (Answered(1, 1, None), "done"),
        (Answered(1, True, [1]), "value"),
        (Said(1, "maybe", None), "kind"),
        (Call(1, "get", ({},)), "arguments"),
        (Ended(1, -99, ""), "code"),
        (Ended(1, 0, None), "words"),
    ],
)
def test_a_field_of_another_type_is_refused(message, place, ends):
    _, _, one, other = ends
    one.send(message)
    with pytest.raises(Altered, match=f"a {type(message).__name__} of a message is wrong at {place}"):
        other.receive(type(message))


def test_the_commands_are_those_that_a_party_obeys():
    assert {name for name in vars(Session) if not name.startswith("_")} == set(COMMANDS)


@pytest.mark.parametrize(
    ("command", "arguments"),
    [
        ("__setattr__", ("node", 1)),
        ("__init__", (None,)),
        ("node", ()),
        ("load", (PROGRAM, {"w": np.ones(1)})),
        ("load", ("program", None)),
        ("load", (replace(PROGRAM, steps=(replace(PROGRAM.steps[0], operator="relu"),)), None)),
        ("load", (replace(PROGRAM, steps=list(PROGRAM.steps)), None)),
        ("infer", (np.ones(1), 1)),
        ("infer", (torch.ones(1), -1)),
        ("infer", (torch.ones(1),)),
        ("prepare", (True,)),
        ("prepare", (0,)),
        ("idle", (1,)),
        ("probe_link", ("10.0.0.1", "22", None)),
    ],
)
def test_only_commands_of_a_party_with_their_arguments_are_obeyed(command, arguments):
    with pytest.raises(Altered, match=r"which no party obeys|a tuple of a message is wrong"):
        demand_command(Say(1, command, arguments, ""))


INFERRED = {"seconds": 0.1, "rounds": 1, "bytes_sent": 2, "hops": 1, "logits": None}
PROBED = {"rtt_s": 0.001, "bandwidth_bits_s": 1e9, "round_hops": 1, "round_s": 0.001}


@pytest.mark.parametrize(
    ("command", "kind", "value", "says"),
    [
        (None, "done", None, "nobody had asked"),
        (START, "done", None, "nobody had asked"),
        ("idle", "ready", None, "nobody had asked"),
        (START, "ready", 5, "wrong"),
        ("plan", "failed", None, "wrong"),
        (None, "failed", 5, "wrong"),
        ("infer", "not prepared", None, "wrong"),
        ("load", "done", None, "wrong"),
        ("load", "done", {"seconds": 0.1, "rounds": 1}, "wrong at bytes_sent: Field required"),
        ("load", "done", {"seconds": "0.1", "rounds": 1, "bytes_sent": 2}, "wrong at seconds"),
        ("load", "done", {"seconds": float("nan"), "rounds": 1, "bytes_sent": 2}, "wrong at seconds"),
        ("load", "done", {"seconds": -1.0, "rounds": 1, "bytes_sent": 2}, "wrong at seconds"),
        ("load", "done", {"seconds": 1.0, "rounds": 1, "bytes_sent": 2, "x": 3}, "wrong at x"),
        ("prepare", "done", {"seconds": 0.1, "bytes": 1.5}, "wrong at bytes"),
        ("infer", "done", INFERRED | {"logits": 5}, "wrong at logits"),
        ("profile", "done", [StepCost("a", "relu", "x", 1, 1)], "wrong at 0.seconds"),
        ("profile", "done", [("a", "relu", 0.1, 1, 1)], "wrong at 0"),
        ("listen", "done", ("10.0.0.1", 22), "wrong"),
        ("probe_link", "done", PROBED | {"bandwidth_bits_s": 0.0}, "wrong at bandwidth_bits_s"),
        ("probe_link", "done", PROBED | {"round_hops": 0}, "wrong at round_hops"),
        ("peak_memory", "done", "much", "wrong"),
    ],
)
def test_a_reply_has_the_type_of_its_command(command, kind, value, says):
    with pytest.raises(Altered, match=says):
        demand_reply(Said(1, kind, value), command)


def test_good_replies_pass():
    demand_reply(Said(1, "ready", None), START)
    demand_reply(Said(1, "failed", "a traceback"), None)
    demand_reply(Said(1, "not prepared", "call prepare first"), "infer")
    demand_reply(Said(1, "done", PROBED), "probe_link")
    demand_reply(Said(1, "done", [StepCost("a", "relu", 0.1, 1, 1)]), "profile")
    for logits in (None, torch.ones(1, 5)):
        demand_reply(Said(1, "done", INFERRED | {"logits": logits}), "infer")


# Bytes of somebody on the wire, who does not know the token.


@pytest.mark.parametrize("spoil", ["altered", "replayed", "reflected", "huge"])
def test_altered_replayed_and_reflected_messages_are_refused(spoil, ends):
    here, there, one, other = ends
    one.send(Bye("hello"))
    sent = there.recv(1000)
    if spoil == "reflected":
        there.sendall(sent)
        other = one
    elif spoil == "altered":
        here.sendall(sent[:-2] + bytes([sent[-2] ^ 1]) + sent[-1:])
    elif spoil == "huge":
        here.sendall(b"\xff" * 60)
    else:
        here.sendall(sent + sent)
        assert other.receive(Bye) == Bye("hello")
    with pytest.raises(Altered, match=r"altered on its way|something else"):
        other.receive(Bye)


# Silence.


SENT = len(encode(Bye("hello"))) + 8 + 32


@pytest.mark.parametrize("count", [1, 7, 8, 30, 40, SENT - 1])
@pytest.mark.parametrize("limit", ["within", "pause"])
def test_half_a_message_holds_nobody_for_long(count, limit, ends):
    here, there, one, other = ends
    one.send(Bye("hello"))
    sent = there.recv(1000)
    assert len(sent) == SENT
    here.sendall(sent[:count])
    other.pause_s = 0.1 if limit == "pause" else 60.0
    started = time.monotonic()
    with pytest.raises(Silent, match="it stopped in the middle of a message"):
        other.receive(Bye, within_s=0.1 if limit == "within" else None)
    assert time.monotonic() - started < 20


def test_silence_and_drops_hold_nobody_for_long(ends):
    here, _, _, other = ends
    started = time.monotonic()
    with pytest.raises(Silent, match=r"it said nothing for 0.15 s"):
        other.receive(Bye, within_s=0.15)

    def drip():
        for _ in range(40):
            here.sendall(b"\0")
            time.sleep(0.02)

    dripping = threading.Thread(target=drip)
    dripping.start()
    with pytest.raises(Silent, match="in the middle"):
        other.receive(Bye, within_s=0.3)
    assert time.monotonic() - started < 10
    dripping.join()


def test_a_host_that_takes_no_bytes_holds_nobody_for_long(ends):
    _, _, one, _ = ends
    one.pause_s = 0.3
    started = time.monotonic()
    with pytest.raises(Silent, match=r"it took no bytes for 0.3 s"):
        one.send(Said(1, "done", bytes(50_000_000)))
    assert time.monotonic() - started < 12
    with pytest.raises(Silent):
        one.receive(Bye)
    with pytest.raises(Silent):
        one.send(Bye(None))
