"""The relay on plain sockets: latency, rate, full duplex, unchanged bytes, and its end."""

from __future__ import annotations

import os
import random
import signal
import socket
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Iterator

import pytest
from accidents import gone

from pibench.links.link import Link
from pibench.links.route import port_through
from pibench.links.shapers import UserSpace
from pibench.parties.processes import Supervisor

RTT_S, RATE = 0.05, 80e6  # 10 bytes a microsecond


class Bench:
    """A relay and connections through it."""

    def __init__(self, folder, link: Link) -> None:
        self.supervisor = Supervisor()
        self.shaper = UserSpace(link)
        self.shaper.start(folder, self.supervisor.start)
        self.sockets: list[socket.socket] = []

    def connect(self, caller: int = 1, listener: int = 0) -> tuple[socket.socket, socket.socket]:
        """The ends of a connection, the caller's first."""
        with socket.create_server(("127.0.0.1", 0)) as server:
            port = server.getsockname()[1]
            through = port_through(self.shaper.place(0).relay, caller, listener, port)
            near = socket.create_connection(("127.0.0.1", through), timeout=10)
            far, _ = server.accept()
        far.settimeout(10)
        for end in (near, far):
            end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.sockets += [near, far]
        return near, far

    def close(self) -> None:
        for end in self.sockets:
            end.close()
        self.supervisor.end()


@pytest.fixture
def bench(tmp_path) -> Iterator[Bench]:
    bench = Bench(tmp_path, Link("test", RTT_S, RATE))
    yield bench
    bench.close()


def read(end: socket.socket, count: int) -> bytes:
    data = bytearray()
    while len(data) < count and (more := end.recv(1 << 20)):
        data += more
    return bytes(data)


def transfer(*routes: tuple[socket.socket, socket.socket], count: int) -> list[float]:
    """Sends `count` bytes on every route at once; returns when each had them all."""
    times = [0.0] * len(routes)

    def receive(place: int, end: socket.socket) -> None:
        assert len(read(end, count)) == count
        times[place] = time.perf_counter() - started

    threads = [threading.Thread(target=source.sendall, args=(bytes(count),)) for source, _ in routes]
    threads += [threading.Thread(target=receive, args=(i, sink)) for i, (_, sink) in enumerate(routes)]
    started = time.perf_counter()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=20)
    return times


def test_the_round_trip_is_what_was_asked_for(bench):
    near, far = bench.connect()
    times = []
    for _ in range(9):
        started = time.perf_counter()
        near.sendall(b"ping")
        assert far.recv(4) == b"ping"
        half = time.perf_counter() - started
        far.sendall(b"pong")
        assert near.recv(4) == b"pong"
        times.append((half, time.perf_counter() - started))
    there, back = (statistics.median(column) for column in zip(*times, strict=True))
    assert RTT_S - 1e-4 < back < 1.3 * RTT_S
    assert RTT_S / 2 - 1e-4 < there < 1.3 * RTT_S / 2


def test_the_rate_is_what_was_asked_for(bench):
    near, far = bench.connect()
    (seconds,) = transfer((near, far), count=2_000_000)
    expected = 2e6 * 8 / RATE + RTT_S / 2
    assert 0.99 * expected < seconds < 1.3 * expected


def test_both_directions_have_the_whole_rate_at_once(bench):
    near, far = bench.connect()
    expected = 2e6 * 8 / RATE + RTT_S / 2
    for seconds in transfer((near, far), (far, near), count=2_000_000):
        assert 0.99 * expected < seconds < 1.3 * expected


def test_connections_of_one_pair_share_the_rate_and_other_pairs_do_not(bench):
    first, second, other = bench.connect(), bench.connect(), bench.connect(caller=2)
    times = transfer(first, second, other, count=1_000_000)
    shared, alone = 2e6 * 8 / RATE + RTT_S / 2, 1e6 * 8 / RATE + RTT_S / 2
    assert 0.99 * shared < max(times[:2]) < 1.3 * shared
    assert 0.99 * alone < times[2] < 1.3 * alone


def test_bytes_arrive_unchanged_and_in_order(tmp_path):
    bench = Bench(tmp_path, Link("fast", 0.002, 2e9))
    near, far = bench.connect()
    data = random.Random(0).randbytes(6_000_001)
    sender = threading.Thread(target=lambda: (near.sendall(data), near.shutdown(socket.SHUT_WR)))
    sender.start()
    received = read(far, len(data) + 1)  # to the end, which is passed on
    far.sendall(b"heard")
    assert received == data
    assert near.recv(5) == b"heard"
    sender.join()
    bench.close()


def test_a_sender_far_ahead_is_held_back(bench):
    near, _ = bench.connect()
    near.setblocking(False)
    sent, deadline = 0, time.monotonic() + 1
    while time.monotonic() < deadline:
        try:
            sent += near.send(bytes(1 << 20))
        except BlockingIOError:
            time.sleep(0.01)
    assert sent < 40 << 20


def test_a_closed_end_closes_the_other(bench):
    near, far = bench.connect()
    near.close()
    assert far.recv(1) == b""


def test_a_port_where_nobody_listens_closes_the_call(bench):
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    through = port_through(bench.shaper.place(0).relay, 1, 0, port)
    with socket.create_connection(("127.0.0.1", through), timeout=10) as near:
        assert near.recv(1) == b""


def test_a_broken_request_is_dropped_and_others_served(bench):
    with socket.socket(socket.AF_UNIX) as control:
        control.connect(bench.shaper.place(0).relay)
        control.sendall(b"x")
    near, far = bench.connect()
    near.sendall(b"served")
    assert far.recv(6) == b"served"


@pytest.mark.parametrize("stopped", [False, True])
def test_the_relay_ends_with_the_supervisor(tmp_path, stopped):
    bench = Bench(tmp_path, Link("test", RTT_S, RATE))
    near, _ = bench.connect()
    assert bench.shaper.failure() is None
    if stopped:
        os.kill(bench.shaper.popen.pid, signal.SIGSTOP)
    bench.supervisor._popen.kill()
    assert bench.shaper.popen.wait(timeout=5) == -signal.SIGKILL
    assert near.recv(1) == b""
    assert "the link's relay ended" in bench.shaper.failure()
    assert gone([bench.shaper.popen.pid])
    bench.close()


def test_the_relay_needs_neither_torch_nor_crypten():
    script = "import pibench.links.relay, sys; assert not {'torch', 'crypten', 'numpy'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", script], check=True, timeout=20)
