"""Party 1 on another host: whole runs, lost connections, strangers, and hosts that do not fit together.

The hosts are network namespaces, or two process trees on the loopback where namespaces are not allowed.
"""

from __future__ import annotations

import math
import os
import pickle
import signal
import socket
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from accidents import descendants, gone
from two_hosts import ATTACK, NO_HOSTS, TOKEN, Hosts, free_port, why_no_namespaces

from pibench.engines.base import Setting
from pibench.hosts import agreement, stream
from pibench.hosts.join import JoinFailed, altered, join, unreachable
from pibench.hosts.join import main as join_main
from pibench.hosts.messages import Bye, DriverIntroduction, Introduction, Say
from pibench.hosts.remote import GUEST, Remote, RemoteFailed, parse_ports
from pibench.hosts.stream import Stream
from pibench.links.greeting import MAGIC, call, open_port
from pibench.links.local import interface_of, is_loopback, network_of
from pibench.models.interrupt import ENDING
from pibench.parties.driver import Parties, PartyFailed
from pibench.program.ir import Program, Relu, Step


@pytest.fixture(scope="module")
def hosts() -> Iterator[Hosts]:
    """Two hosts, as separate as this machine allows."""
    with Hosts(namespaces=why_no_namespaces() is None) as both:
        yield both


@pytest.fixture
def quiet() -> dict:
    """Arguments of a Remote on the loopback."""
    return {"port": 0, "token": TOKEN, "timeout_s": 10.0, "say": lambda line: None}


# Whole runs.

STOCK_SENT = 8 * (192 + 108) + 232 * 256 + 8 * (64 + 320) + 8 * 5  # conv, relu, fc, opening of the block


def test_everything_runs_on_two_hosts(hosts):
    """Both engines in turn; in namespaces strangers send garbage to every open port all the while."""
    port = free_port()
    with hosts.join(port) as joined, hosts.driver(port, "once", "lean", "stock") as driver:
        attackers = []
        if hosts.namespaces:
            for victim in (0, 1):
                pid, address = str(hosts.keepers[victim].pid), hosts.addresses[victim]
                attackers.append(hosts.python(1 - victim, "-c", ATTACK, pid, address))
        try:
            assert driver.report() == {"state": "joined", "hosts": True}
            lean, stock = driver.report(), driver.report()
            assert driver.finish()[0] == 0
            code, said = joined.finish()
        finally:
            hit = [_ended(attacker) for attacker in attackers]
    assert (lean["state"], stock["state"]) == ("done", "done"), (lean, stock)
    assert code == 0, said
    assert said.endswith("pibench: the driver is done: 2 groups of parties were served\n")
    for engine, done in (("lean", lean), ("stock", stock)):
        assert (done["engine"], done["link"]) == (engine, "two-hosts")
        assert done["error"] < 2e-3
        assert 0 < done["seconds"] < 5
        assert done["profiled"] == done["sent"][0]
        assert done["steps"] == ["convolution", "relu", "averagepool", "flatten", "linear", "open"]
        assert done["check"]["shaper"] == "two-hosts"
        assert done["check"]["ok"]
        assert 0 < done["check"]["measured_rtt_s"] < 0.1
        assert 1e6 < done["check"]["measured_bandwidth_bits_s"] < 1e12
        assert all(100e6 < size < 2e9 for size in done["memory"])
    assert stock["rounds"] == 12
    assert stock["sent"] == [STOCK_SENT, STOCK_SENT]
    if hosts.namespaces:
        assert len(hit[0]) >= 3, "strangers met the driver's port and those of both engines"
        assert hit[1], "strangers met gloo's port of the other host"


def _ended(attacker) -> set[str]:
    """Ends an attacker; gives the ports that it reached."""
    attacker.popen.kill()
    out, _ = attacker.popen.communicate()
    return set(out.split())


def test_the_parties_bring_the_other_host_and_take_it_along(quiet, block, images, monkeypatch):
    """Parties open a Remote that is not open; the guest is sent the image and never the weights.

    A message that is too large is refused before anything is sent, and the parties go on. When the guest is
    killed, the driver tells how it ended.
    """
    remote = Remote(**{**quiet, "port": free_port()})
    told = []
    original = remote.tell
    remote.tell = lambda message: (told.append(message), original(message))
    with ThreadPoolExecutor(1) as pool:
        served = pool.submit(join, "127.0.0.1", remote.port, TOKEN, timeout_s=10, say=lambda line: None)
        with Parties(engine="lean", remote=remote, timeout_s=30) as parties:
            parties.load(block, images)
            parties.prepare()
            with monkeypatch.context() as small:
                small.setattr(stream, "MOST_BYTES", 500)
                with pytest.raises(ValueError, match=r"at most 0.0005 MB, but this one has .* fewer images"):
                    parties.infer(images[:1])
                with pytest.raises(ValueError, match="or a smaller network"):
                    parties.load(block, images)
            parties.prepare()
            expected = block(images[:1]).detach()
            torch.testing.assert_close(parties.infer(images[:1]), expected, atol=2e-3, rtol=0)
            pids = parties.pids
            parties.prepare()
            os.kill(pids[1], signal.SIGKILL)
            with pytest.raises(PartyFailed, match=r"party 1 died by signal 9 \(SIGKILL\) in 'infer'"):
                parties.infer(images[:1])
        assert served.result(10) == 1
    assert gone(list(pids))
    said = {message.command: message.arguments for message in told if isinstance(message, Say)}
    assert isinstance(said["load"][0], Program)
    assert said["load"][1] is None
    assert torch.equal(said["infer"][0], images[:1])


def test_a_stranger_at_gloos_port_is_told_from_the_guest(quiet, monkeypatch):
    """Gloo checks no token, so the parties do, before they share anything."""
    monkeypatch.setattr("pibench.hosts.join.group_key", lambda stream, number: b"another key")
    remote = Remote(**{**quiet, "port": free_port()})
    with ThreadPoolExecutor(1) as pool:
        pool.submit(join, "127.0.0.1", remote.port, TOKEN, timeout_s=10, say=lambda line: None)
        with pytest.raises(PartyFailed, match=r"a stranger came to gloo's port in the place of party [01]"):
            Parties(remote=remote, timeout_s=30).__enter__()


def test_gloo_that_cannot_reach_both_hosts_is_refused():
    def problem(engine, driver, here, network=""):
        setting = Setting(engine, "party", 1, 2, "", "", 1.0)
        return unreachable(setting, driver, network, here)

    own = network_of("127.0.0.1")
    assert own
    assert problem("stock", "10.0.0.1", "10.0.0.2") is None
    assert problem("stock", "127.0.0.1", "127.0.0.1", own) is None
    for engine, refused in (("stock", True), ("lean", False)):
        assert bool(problem(engine, "10.0.0.1", "127.0.0.1")) == refused
        assert bool(problem(engine, "127.0.0.1", "10.0.0.2", own)) == refused
        assert bool(problem(engine, "127.0.0.1", "127.0.0.1", "another machine's")) == refused
    assert "driver listens at 10.0.0.1 and pibench.hosts.join at 127.0.0.1: give both" in problem(
        "stock", "10.0.0.1", "127.0.0.1"
    )


def test_torchrun_starts_both_sides(tmp_path):
    """torchrun's agents keep MASTER_PORT for themselves; the driver's address travels through their store."""
    port = str(free_port())
    script = tmp_path / "drive.py"
    script.write_text(
        "from pibench.hosts.remote import Remote\n"
        "with Remote(timeout_s=30) as remote:\n    print('the other host has', remote.machine['cores'])\n"
    )
    with Hosts(namespaces=False) as hosts:

        def torchrun(rank: int, *what: str):
            agents = ("--nnodes", "2", "--node-rank", str(rank), "--master-addr", "127.0.0.1")
            arguments = ("-m", "torch.distributed.run", *agents, "--master-port", port, *what)
            return hosts.python(rank, *arguments, PIBENCH_TOKEN=TOKEN)

        with torchrun(0, str(script)) as driver, torchrun(1, "-m", "pibench.hosts.join") as joined:
            out, said = driver.popen.communicate(timeout=40)
            code, words = joined.finish()
    assert "the other host has" in out, said
    assert code == 0, words
    assert "the driver is done" in words


# Lost connections.


def _running(driver) -> list[int]:
    assert driver.report()["state"] == "joined"
    running = driver.report()
    assert running["state"] == "running", running
    return running["pids"]


def test_a_killed_host_ends_the_driver(hosts):
    port = free_port()
    with hosts.join(port) as joined, hosts.driver(port, "on", "stock") as driver:
        pids = _running(driver)
        joined.popen.kill()
        killed = time.time()
        failed = driver.report()
        assert failed["kind"] == "PartyFailed"
        assert "the connection to the other host" in failed["message"]
        assert failed["at"] - killed < 5
        assert driver.finish()[0] == 0
        assert gone(pids)


def test_a_killed_driver_ends_the_other_host(hosts):
    port = free_port()
    with hosts.join(port) as joined, hosts.driver(port, "on", "lean") as driver:
        pids = _running(driver)
        driver.popen.kill()
        code, said = joined.finish(5)
        assert code == 1
        assert "the connection to the driver" in said
        assert said.endswith("everything here was ended\n")
        assert gone(pids)


@pytest.mark.parametrize("signum", ENDING)
def test_a_signal_ends_the_other_host_with_the_status_that_a_shell_expects(hosts, signum, usual_signals):
    port = free_port()
    with hosts.join(port) as joined, hosts.driver(port, "on", "lean") as driver:
        pids = _running(driver)
        started = descendants(joined.popen.pid)
        assert pids[GUEST] in started
        joined.popen.send_signal(signum)
        code, said = joined.finish()
        assert code == 128 + signum
        assert said.endswith("it is done\npibench: stopped: everything here was ended\n")
        assert gone(started)
        assert driver.report()["kind"] == "PartyFailed"
        assert gone(pids)


def test_an_interrupted_driver_says_so(quiet):
    remote = Remote(**{**quiet, "port": free_port()})
    with ThreadPoolExecutor(1) as pool:
        served = pool.submit(join, "127.0.0.1", remote.port, TOKEN, timeout_s=10, say=lambda line: None)
        with pytest.raises(KeyboardInterrupt), remote:
            raise KeyboardInterrupt
        with pytest.raises(JoinFailed, match=r"the driver gave up \(KeyboardInterrupt\)"):
            served.result(5)


def test_a_pulled_cable_ends_both_sides(hosts):
    if not hosts.namespaces:
        pytest.skip(f"no network namespaces here: {why_no_namespaces()}")
    port = free_port()
    try:
        with hosts.join(port) as joined, hosts.driver(port, "on", "lean", silence_s=3) as driver:
            pids = _running(driver)
            hosts.pull()
            pulled = time.time()
            failed = driver.report()
            code, said = joined.finish(15)
            assert failed["kind"] == "PartyFailed"
            assert "the connection to the other host (10.78.0.2) was lost" in failed["message"]
            assert code == 1
            assert "the connection to the driver at 10.78.0.1" in said
            assert time.time() - pulled < 12
            assert gone(pids)
    finally:
        hosts.pull(up=True)


# Hosts that do not fit, or do not come.


def _meet(remote: Remote, **changes) -> tuple[str, str]:
    """Has a host join that does not fit; gives what both sides say."""
    with ThreadPoolExecutor(1) as pool:
        served = pool.submit(
            join, "127.0.0.1", remote.port, TOKEN, timeout_s=5, say=lambda line: None, **changes
        )
        with pytest.raises(RemoteFailed) as here:
            remote.__enter__()
        with pytest.raises(JoinFailed) as there:
            served.result(10)
    return str(here.value), str(there.value)


def test_hosts_of_different_versions_part_at_once(quiet, monkeypatch):
    facts = agreement.facts()
    monkeypatch.setattr("pibench.hosts.join.facts", lambda: facts | {"torch": "2.0.1", "byte order": "big"})
    here, there = _meet(Remote(**{**quiet, "port": free_port()}))
    assert here == there
    assert f"differ in torch ({facts['torch']} at the driver, 2.0.1 at the other host), byte order" in here
    assert here.endswith("(`make install`)")


def test_agreement_covers_versions_and_sources():
    facts = agreement.facts()
    assert {"pibench", "torch", "crypten", "numba", "python", "schema of results", "byte order"} <= set(facts)
    assert agreement.difference(facts, facts) is None
    other = facts | {"sources of pibench": "0" * 16}
    assert "differ in sources of pibench (" in agreement.difference(facts, other)
    assert "numba (None at the driver" in agreement.difference({}, {"numba": "1"})


def test_a_program_has_a_checksum():
    def program(kept):
        return Program("x", (3,), (Step("r", Relu(kept), ("x",), ((3,),), (3,)),), "r")

    one = agreement.checksum(program(np.array([0, 2])))
    assert one == agreement.checksum(program(np.array([0, 2])))
    assert one != agreement.checksum(program(np.array([0, 1])))
    assert one != agreement.checksum(program(None))
    assert altered(Say(1, "load", (program(np.array([0, 2])), None), one)) is None
    assert altered(Say(1, "infer", (None, 1), "")) is None
    assert f"{one}, the driver's is 0: use" in altered(Say(1, "load", (program(np.array([0, 2])), None), "0"))


def test_a_wrong_token_is_turned_away_and_the_right_one_still_comes(quiet):
    port = free_port()
    with ThreadPoolExecutor(1) as pool:
        opened = pool.submit(Remote(**{**quiet, "port": port}).__enter__)
        with pytest.raises(JoinFailed, match="turned this host away: the token is not the one"):
            join("127.0.0.1", port, TOKEN[::-1], timeout_s=5, say=print)
        connection = socket.create_connection(("127.0.0.1", port))
        served = Stream(connection, call(connection, TOKEN.encode(), 1, 5), caller=True)
        served.send(Introduction(served.receive(DriverIntroduction).facts, {}))
        opened.result(5).__exit__(None)
        assert served.receive(Bye) == Bye(None)
        served.close()


def test_a_host_that_never_comes(quiet):
    remote = Remote(**{**quiet, "timeout_s": 0.6})
    with ThreadPoolExecutor(1) as pool:
        opened = pool.submit(remote.__enter__)
        while not remote.port:
            time.sleep(0.01)
        with pytest.raises(JoinFailed):
            join("127.0.0.1", remote.port, "another token of that length", timeout_s=0.5)
        with pytest.raises(
            RemoteFailed, match=r"did not come to 127.0.0.1:\d+ within 0.6 s \(1 callers were"
        ) as e:
            opened.result(5)
    assert "127.0.0.1 gave a wrong token" in str(e.value)
    assert "python -m pibench.hosts.join" in str(e.value)


def test_a_driver_that_never_starts():
    with pytest.raises(JoinFailed, match=r"no driver answered at 127.0.0.1:\d+ within 0.5 s .*refused"):
        join("127.0.0.1", free_port(), TOKEN, timeout_s=0.5)


def test_a_driver_that_is_no_pibench():
    with socket.create_server(("127.0.0.1", 0)) as server, ThreadPoolExecutor(1) as pool:
        joined = pool.submit(join, "127.0.0.1", server.getsockname()[1], TOKEN, timeout_s=5)
        connection, _ = server.accept()
        with connection:
            connection.sendall(b"HTTP/1.1 400 Bad Request\r\nConnection: close\r\n\r\n and so on")
            with pytest.raises(JoinFailed, match="no pibench of this version"):
                joined.result(5)


def test_a_tunnel_at_whose_end_nobody_listens():
    with socket.create_server(("127.0.0.1", 0)) as server, ThreadPoolExecutor(1) as pool:
        joined = pool.submit(join, "127.0.0.1", server.getsockname()[1], TOKEN, timeout_s=0.7)
        for _ in range(2):
            server.accept()[0].close()
        server.settimeout(2)
        with pytest.raises(JoinFailed, match=r"no driver answered .*start the driver"):
            joined.result(5)


def test_a_port_in_use(quiet):
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        with pytest.raises(RemoteFailed, match=f"127.0.0.1, port {port}: Address already in use; is another"):
            Remote(**{**quiet, "port": port}).__enter__()
        with pytest.raises(OSError, match=f"ports {port} to {port}|port {port}"):
            open_port("127.0.0.1", [port])
        with open_port("127.0.0.1", [port, free_port()]) as other:
            assert other.getsockname()[1] != port


def test_an_address_of_another_machine(quiet):
    with pytest.raises(
        RemoteFailed, match=r"cannot listen at 192.0.2.7, port \d+: .*an address of this host"
    ):
        Remote("192.0.2.7", **quiet).__enter__()
    for listen in ("192.0.2.7", *NO_HOSTS):
        with pytest.raises(JoinFailed, match="give --listen an address of this host"):
            join("127.0.0.1", 29500, TOKEN, listen=listen)


def test_a_driver_without_an_address():
    for host in NO_HOSTS:
        with pytest.raises(JoinFailed, match="MASTER_ADDR names no host: "):
            join(host, 29500, TOKEN)


# Strangers.


def _knock(port: int, data: bytes) -> socket.socket:
    stranger = socket.create_connection(("127.0.0.1", port), timeout=5)
    stranger.sendall(data)
    return stranger


def test_strangers_are_turned_away_unread(quiet, monkeypatch):
    """Garbage, a pickle, a replayed greeting and silent callers; nothing of theirs is decoded."""
    decoded = []
    original = stream.decode
    monkeypatch.setattr(stream, "decode", lambda data: (decoded.append(data), original(data))[1])
    bomb = pickle.dumps(threading.Event)
    port = free_port()
    with ThreadPoolExecutor(2) as pool:
        opened = pool.submit(Remote(**{**quiet, "port": port}).__enter__)
        while True:
            try:
                strangers = [_knock(port, data) for data in (b"", b"", os.urandom(4000), bomb * 9)]
                break
            except ConnectionRefusedError:
                time.sleep(0.01)
        strangers += [_knock(port, MAGIC + os.urandom(65)), _knock(port, b"GET / HTTP/1.0\r\n\r\n")]
        served = pool.submit(join, "127.0.0.1", port, TOKEN, timeout_s=5, say=lambda line: None)
        remote = opened.result(3)
        assert len(decoded) == 2, "the two introductions"
        remote.__exit__(None)
        assert served.result(5) == 0
        for stranger in strangers:
            stranger.close()


# Impossible settings.


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        *(({"host": host}, "name the one address") for host in NO_HOSTS),
        ({"port": 70000}, "0 to 65535, not 70000"),
        ({"port": "80"}, "0 to 65535, not '80'"),
        ({"ports": (0, -1)}, "not -1"),
        ({"timeout_s": 0}, "must be positive"),
        ({"timeout_s": math.inf}, "at most a day"),
        ({"silence_s": -1}, "must be positive"),
        ({"silence_s": math.nan}, "must be positive"),
        ({"name": "office,home"}, "a name without commas, not 'office,home'"),
        ({"name": " "}, "a name without commas"),
        ({"name": "wan"}, "'wan' names a link on one host"),
        ({"name": "200Mbit/40ms"}, "names a link on one host"),
        ({"name": 5}, "needs a name, not 5"),
        ({"token": "short"}, "at least 16 characters"),
    ],
)
def test_impossible_remotes(arguments, says):
    with pytest.raises(ValueError, match=says):
        Remote(**arguments)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ({"link": "wan"}, "leave link and shaper out"),
        ({"shaper": "user-space"}, "leave link and shaper out"),
        ({"count": 3}, "two hosts run two parties"),
        ({"provider": "TTP"}, "two hosts run two parties"),
    ],
)
def test_impossible_parties(arguments, says):
    with pytest.raises(ValueError, match=says):
        Parties(remote=Remote(), **arguments)


def test_parties_of_a_remote_that_is_lost(quiet):
    with (
        pytest.raises(RemoteFailed, match="did not come"),
        Parties(remote=Remote(**quiet | {"timeout_s": 0.1})),
    ):
        pass


@pytest.mark.parametrize(
    ("environment", "arguments", "says"),
    [
        ({"RANK": "0"}, [], "rank 1 of 2; the host of rank 0 runs the driver"),
        ({"WORLD_SIZE": "3"}, [], "rank 1 of 2"),
        ({}, [], "at least 16 characters"),
        ({"PIBENCH_TOKEN": TOKEN}, [], "MASTER_ADDR must name"),
        ({"PIBENCH_TOKEN": TOKEN, "MASTER_ADDR": "h", "MASTER_PORT": "x"}, [], "not 'x'"),
        ({}, ["--token-file", "/nowhere"], "No such file"),
        ({"PIBENCH_TOKEN": TOKEN}, ["--timeout", "-1"], "must be positive"),
        ({"PIBENCH_TOKEN": TOKEN}, ["--timeout", "inf"], "at most a day"),
    ],
)
def test_the_command_says_what_is_missing(environment, arguments, says, monkeypatch, capsys):
    for name in ("MASTER_ADDR", "MASTER_PORT", "RANK", "WORLD_SIZE", "PIBENCH_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(SystemExit) as left:
        join_main(arguments)
    assert left.value.code == 2
    assert says in capsys.readouterr().err


def test_ports_are_parsed():
    assert parse_ports("29501") == (29501,)
    assert parse_ports("29501-29503") == (29501, 29502, 29503)
    for text in ("", "x", "3-2", "70000", "1-2-3", "-5"):
        with pytest.raises(ValueError, match="written like"):
            parse_ports(text)


def test_interfaces_are_found():
    assert interface_of("127.0.0.1") == (
        "lo" if "lo" in dict(map(reversed, socket.if_nameindex())) else "lo0"
    )
    assert is_loopback("localhost")
    with pytest.raises(ValueError, match=r"no network interface \(.*\) has the address 192.0.2.7"):
        interface_of("192.0.2.7")
