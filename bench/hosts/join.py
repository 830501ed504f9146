"""Serves party 1 on this host for a driver on another: `python -m pibench.hosts.join`.

    MASTER_ADDR=10.0.0.1 MASTER_PORT=29500 RANK=1 WORLD_SIZE=2 PIBENCH_TOKEN=... python -m pibench.hosts.join

The variables are those of torch.distributed, so torchrun sets them as well (docs/two_hosts.md). The command
waits for the driver and starts a process for every group that the driver opens. It ends when the driver has
finished or is gone, and every process ends with it.
"""

from __future__ import annotations

import argparse
import os
import socket
import sys
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import replace
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from pibench.engines import ENGINES
from pibench.engines.base import Setting
from pibench.hosts.agreement import checksum, difference, facts
from pibench.hosts.remote import GUEST, PORT, check_token, driver_address, group_key, under_torchrun
from pibench.hosts.stream import Stream
from pibench.links.greeting import Refused, call, open_port
from pibench.links.lifeline import GIVEN
from pibench.links.local import INHERITED, interface_of, is_loopback, network_of
from pibench.links.shapers import Shaper
from pibench.parties.messages import receive, send
from pibench.parties.processes import Supervisor, start_worker
from pibench.store import provenance

RETRY_S = 0.3
LAST_WORDS = 2000


class JoinFailed(RuntimeError):  # noqa: N818 (a state, as its message says)
    """Raised when this host cannot serve, or lost the driver."""


def join(
    host: str,
    port: int,
    token: str,
    listen: str = "127.0.0.1",
    timeout_s: float = 300.0,
    say: Callable[[str], None] = print,
) -> int:
    """Serves the driver at `host`:`port` until it has finished; returns the number of served groups.

    `listen` is the address at which party 1 can be called. `timeout_s` is the time to wait for the driver, in
    seconds. Raises JoinFailed.
    """
    try:
        open_port(listen).close()
    except OSError as error:
        raise JoinFailed(f"{error}: give --listen an address of this host") from None
    connection, session = _call(host, port, token.encode(), timeout_s)
    stream = Stream(connection, session, caller=True)
    where = f"{host}:{port}"
    try:
        theirs = stream.receive()
        ours = facts()
        stream.send({"facts": ours, "machine": provenance.machine()})
    except (OSError, EOFError) as error:
        raise JoinFailed(f"the driver at {where} left at once: {error}") from None
    if (problem := difference(theirs["facts"], ours)) is not None:
        stream.close()
        raise JoinFailed(problem)
    stream.watch(theirs["silence_s"])
    try:
        supervisor = Supervisor()
    except OSError as error:
        stream.close()
        raise JoinFailed(str(error)) from None
    say(f"joined the driver at {where}; party {GUEST} runs here until it is done")
    try:
        return _House(stream, theirs, listen, supervisor).serve()
    except (OSError, EOFError) as error:
        reason = "it was closed" if isinstance(error, EOFError) else str(error)
        raise JoinFailed(
            f"the connection to the driver at {where} was lost: {reason}; everything here was ended"
        ) from None
    finally:
        supervisor.end()
        stream.close()


def _call(host: str, port: int, token: bytes, timeout_s: float) -> tuple[socket.socket, bytes]:
    """Calls the driver until it listens; returns the connection and its session key."""
    deadline = time.monotonic() + timeout_s
    problem: OSError | None = None
    while (left := deadline - time.monotonic()) > 0:
        try:
            connection = socket.create_connection((host, port), timeout=left)
        except socket.gaierror as error:
            raise JoinFailed(f"MASTER_ADDR={host} is no address: {error}") from None
        except OSError as error:
            problem = error
            time.sleep(min(RETRY_S, left))
            continue
        try:
            return connection, call(connection, token, GUEST, left)
        except Refused as error:
            connection.close()
            raise JoinFailed(f"the driver at {host}:{port} turned this host away: {error}") from None
        except OSError as error:
            connection.close()
            problem = error
            time.sleep(min(RETRY_S, left))
    raise JoinFailed(
        f"no driver answered at {host}:{port} within {timeout_s:g} s ({problem}): "
        "start the driver, and check address, port and firewall"
    )


class _Room:
    """A worker on this host and the threads that pass on its messages."""

    def __init__(self, stream: Stream, number: int, setting: Setting, supervisor: Supervisor) -> None:
        self.number = number
        self._stream = stream
        self._log = supervisor.folder / f"{number}.log"
        ours, theirs = socket.socketpair()
        self._store = Connection(ours.detach())
        interface = interface_of(setting.host) if ENGINES[setting.engine].all_listen else Shaper.interface
        with theirs:
            setting = replace(setting, rendezvous=f"{INHERITED}{GIVEN + 1}")
            self.popen, self._worker = start_worker(supervisor, self._log, interface, keep=[theirs.fileno()])
        self._tell("opened", self.popen.pid)
        send(self._worker, setting)
        for forward in (self._forward, self._forward_store):
            threading.Thread(target=forward, daemon=True).start()

    def say(self, message: Any, expected: str) -> None:
        """Passes on a command of the driver; refuses a program that differs from the driver's."""
        if (problem := altered(message, expected)) is not None:
            self._tell("said", ("failed", problem))
            return
        with suppress(OSError):  # the worker is gone; `_forward` reports that
            send(self._worker, message)

    def stored(self, done: bool, value: Any) -> None:
        """Passes on the answer of the store."""
        with suppress(OSError):
            self._store.send((done, value))

    def end(self) -> None:
        """Ends the worker."""
        self.popen.kill()

    def _tell(self, what: str, *rest: Any) -> None:
        with suppress(OSError):  # the main thread notices that the driver is gone
            self._stream.send((what, self.number, *rest))

    def _forward(self) -> None:
        with suppress(EOFError, OSError):
            while True:
                self._tell("said", receive(self._worker))
        code = self.popen.wait()
        self._worker.close()
        self._store.close()
        words = self._log.read_text(errors="replace")[-LAST_WORDS:].strip() if self._log.exists() else ""
        self._tell("ended", code, words)

    def _forward_store(self) -> None:
        with suppress(EOFError, OSError):
            while True:
                self._tell("store", *self._store.recv())


def altered(message: tuple[str, tuple[Any, ...]], expected: str) -> str | None:
    """Returns how a command's program differs from the driver's; None if it does not, or if there is none."""
    program = message[1][0] if message[0] == "load" else None
    if program is None or (found := checksum(program)) == expected:
        return None
    return (
        f"the program arrived with checksum {found}, the driver's is {expected}: "
        "use the same sources on both hosts"
    )


def unreachable(setting: Setting, driver: str, network: str, here: str) -> str | None:
    """Returns why the engine's bytes cannot travel between the driver's address and this one, or None.

    Gloo calls in either direction: each host must reach the address at which the other one listens.
    """
    if not ENGINES[setting.engine].all_listen or (
        is_loopback(driver) == is_loopback(here) and network == network_of(here)
    ):
        return None
    return (
        f"the {setting.engine} engine's gloo must reach both hosts, but the driver listens at {driver} and "
        f"pibench.hosts.join at {here}: give both (--remote, --listen) addresses that reach each other, in "
        "a tunnel if need be (docs/two_hosts.md); the lean engine needs no --listen"
    )


class _House:
    """The workers that the driver has opened on this host."""

    def __init__(self, stream: Stream, driver: dict[str, Any], listen: str, supervisor: Supervisor) -> None:
        self._stream = stream
        self._driver = driver
        self._listen = listen
        self._supervisor = supervisor
        self._rooms: dict[int, _Room] = {}

    def serve(self) -> int:
        """Obeys the driver until it has finished; returns the number of groups."""
        groups = 0
        while True:
            what, *rest = self._stream.receive()
            if what == "bye":
                if rest[0] is not None:
                    raise JoinFailed(f"the driver gave up ({rest[0]}); everything here was ended")
                return groups
            number, *rest = rest
            if what == "open":
                groups += 1
                self._open(number, *rest)
            elif (room := self._rooms.get(number)) is None:
                continue
            elif what == "say":
                room.say(*rest)
            elif what == "stored":
                room.stored(*rest)
            elif what == "end":
                room.end()

    def _open(self, number: int, setting: Setting) -> None:
        try:
            if problem := unreachable(setting, self._driver["host"], self._driver["network"], self._listen):
                raise ValueError(problem)
            key = group_key(self._stream, number)
            told = replace(setting, host=self._listen, key=key)
            self._rooms[number] = _Room(self._stream, number, told, self._supervisor)
        except (OSError, ValueError) as error:
            self._stream.send(("ended", number, None, str(error)))


def _arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m pibench.hosts.join",
        description="Serves party 1 on this host. MASTER_ADDR and MASTER_PORT name the driver's host; RANK "
        "and WORLD_SIZE must be 1 and 2 if they are set.",
    )
    parser.add_argument("--token", help="what the driver printed (better: the variable PIBENCH_TOKEN)")
    parser.add_argument("--token-file", type=Path, help="a file that holds the token")
    parser.add_argument("--listen", default="127.0.0.1", help="address at which party 1 may be called")
    parser.add_argument("--timeout", type=float, default=300.0, help="seconds to wait for the driver")
    chosen = parser.parse_args(argv)
    environment = os.environ
    if environment.get("RANK", "1") != "1" or environment.get("WORLD_SIZE", "2") != "2":
        parser.error(
            "pibench.hosts.join is rank 1 of 2; the host of rank 0 runs the driver: "
            "pytest bench/bench_latency.py --remote ADDRESS"
        )
    if not chosen.timeout > 0:
        parser.error("--timeout must be positive")
    token = chosen.token or environment.get("PIBENCH_TOKEN")
    try:
        if chosen.token_file is not None:
            token = chosen.token_file.read_text()
        chosen.token = check_token(token or "")
    except (OSError, ValueError) as error:
        parser.error(f"{error} (PIBENCH_TOKEN, --token or --token-file; the driver prints it)")
    if "MASTER_ADDR" not in environment:
        parser.error("MASTER_ADDR must name the driver's host (and MASTER_PORT its port)")
    port = environment.get("MASTER_PORT", str(PORT))
    if not port.isdecimal() or not 0 < int(port) < 1 << 16:
        parser.error(f"MASTER_PORT must be a number from 1 to 65535, not {port!r}")
    chosen.host, chosen.port = environment["MASTER_ADDR"], int(port)
    return chosen


def _say(line: str) -> None:
    print(f"pibench: {line}", file=sys.stderr, flush=True)


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command; returns its exit code."""
    chosen = _arguments(argv)
    try:
        if under_torchrun():
            chosen.host, chosen.port = driver_address(chosen.timeout)
        groups = join(chosen.host, chosen.port, chosen.token, chosen.listen, chosen.timeout, _say)
    except JoinFailed as error:
        _say(str(error))
        return 1
    except KeyboardInterrupt:
        _say("interrupted; everything here was ended")
        return 130
    _say(f"the driver is done: {groups} groups of parties were served")
    return 0


if __name__ == "__main__":
    sys.exit(main())
