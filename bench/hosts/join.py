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
from typing import Any, get_args

from pibench.engines import ENGINES
from pibench.engines.base import Setting
from pibench.hosts.agreement import checksum, difference, facts
from pibench.hosts.messages import (
    LONGEST_S,
    Altered,
    Answered,
    Bye,
    Call,
    DriverIntroduction,
    End,
    Ended,
    FromDriver,
    Introduction,
    Open,
    Opened,
    Said,
    Say,
    Unsendable,
    demand_command,
)
from pibench.hosts.remote import (
    GUEST,
    PORT,
    RemoteFailed,
    check_token,
    driver_address,
    group_key,
    reason,
    under_torchrun,
)
from pibench.hosts.stream import Stream
from pibench.links import greeting
from pibench.links.greeting import Refused, Silent, call, open_port
from pibench.links.lifeline import GIVEN
from pibench.links.local import INHERITED, address_of, interface_of, is_loopback, network_of
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
    except (OSError, ValueError) as error:
        raise JoinFailed(f"{error}: give --listen an address of this host") from None
    connection, session = _call(host, port, token.encode(), timeout_s)
    stream = Stream(connection, session, caller=True)
    where = f"{host}:{port}"
    try:
        theirs = stream.receive(DriverIntroduction, within_s=greeting.STEP_S)
        ours = facts()
        stream.send(Introduction(ours, provenance.machine()))
    except (OSError, EOFError) as error:
        stream.close()
        raise JoinFailed(f"the driver at {where} did not introduce itself: {reason(error)}") from None
    if (problem := difference(theirs.facts, ours)) is not None:
        stream.close()
        raise JoinFailed(problem)
    stream.watch(theirs.silence_s)
    try:
        supervisor = Supervisor()
    except OSError as error:
        stream.close()
        raise JoinFailed(str(error)) from None
    say(f"joined the driver at {where}; party {GUEST} runs here until it is done")
    house = _House(stream, theirs, listen, supervisor)
    try:
        return house.serve()
    except (OSError, EOFError) as error:
        raise JoinFailed(
            f"the connection to the driver at {where} was lost: {reason(error)}; everything here was ended"
        ) from None
    finally:
        house.close()
        stream.close()


def _call(host: str, port: int, token: bytes, timeout_s: float) -> tuple[socket.socket, bytes]:
    """Calls the driver until it listens; returns the connection and its session key."""
    deadline = time.monotonic() + timeout_s
    problem: OSError | None = None
    try:
        address = address_of(host)
    except ValueError as error:
        raise JoinFailed(f"MASTER_ADDR names no host: {error}") from None
    while (left := deadline - time.monotonic()) > 0:
        try:
            connection = socket.create_connection((address, port), timeout=min(left, greeting.STEP_S))
        except OSError as error:
            problem = error
            time.sleep(min(RETRY_S, left))
            continue
        try:
            return connection, call(connection, token, GUEST, left)
        except Refused as error:
            connection.close()
            raise JoinFailed(f"the driver at {host}:{port} turned this host away: {error}") from None
        except Silent as error:
            connection.close()
            raise JoinFailed(f"the driver at {host}:{port} is silent: {error}") from None
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
        self.tell(Opened(number, self.popen.pid))
        send(self._worker, setting)
        for forward in (self._forward, self._forward_store):
            threading.Thread(target=forward, daemon=True).start()

    def say(self, said: Say) -> None:
        """Passes on a command of the driver; refuses a program that differs from the driver's.

        Raises Altered for a command that no party on another host may get.
        """
        demand_command(said)
        if (problem := altered(said)) is not None:
            self.tell(Said(self.number, "failed", problem))
            return
        with suppress(OSError):  # the worker is gone; `_forward` reports that
            send(self._worker, (said.command, said.arguments))

    def stored(self, answer: Answered) -> None:
        """Passes on the answer of the store."""
        with suppress(OSError):
            self._store.send((answer.done, answer.value))

    def end(self) -> None:
        """Ends the worker."""
        self.popen.kill()

    def tell(self, message: Any) -> None:
        """Sends the driver a message; the main thread notices when the driver is gone."""
        with suppress(OSError):
            self._stream.send(message)

    def _forward(self) -> None:
        with suppress(EOFError, OSError):
            while True:
                kind, value = receive(self._worker)
                try:
                    self.tell(Said(self.number, kind, value))
                except Unsendable as error:
                    self.tell(Said(self.number, "failed", str(error)))
        code = self.popen.wait()
        self._worker.close()
        self._store.close()
        words = self._log.read_text(errors="replace")[-LAST_WORDS:].strip() if self._log.exists() else ""
        self.tell(Ended(self.number, code, words))

    def _forward_store(self) -> None:
        with suppress(EOFError, OSError):
            while True:
                self.tell(Call(self.number, *self._store.recv()))


def altered(said: Say) -> str | None:
    """Returns how a command's program differs from the driver's; None if it does not, or if there is none."""
    if said.command != "load" or (found := checksum(said.arguments[0])) == said.checksum:
        return None
    return (
        f"the program arrived with checksum {found}, the driver's is {said.checksum}: "
        "use the same sources on both hosts"
    )


def demand_guest(setting: Setting) -> None:
    """Raises ValueError for the setting of a process that does not belong on this host."""
    known = ENGINES.get(setting.engine)
    if known is None or not known.two_hosts:
        raise ValueError(f"the engine {setting.engine!r} does not run on two hosts")
    if (setting.role, setting.rank, setting.guest) != ("party", GUEST, GUEST) or setting.relay:
        raise ValueError(f"only party {GUEST}, without a relay, runs on the other host")


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

    def __init__(
        self, stream: Stream, driver: DriverIntroduction, listen: str, supervisor: Supervisor
    ) -> None:
        self._stream = stream
        self._driver = driver
        self._listen = listen
        self._supervisor = supervisor
        self._rooms: dict[int, _Room] = {}

    def serve(self) -> int:
        """Obeys the driver until it has finished; returns the number of groups."""
        groups = 0
        while True:
            message = self._stream.receive(*get_args(FromDriver))
            if isinstance(message, Bye):
                if message.reason is not None:
                    raise JoinFailed(f"the driver gave up ({message.reason}); everything here was ended")
                return groups
            if isinstance(message, Open):
                groups += 1
                self._open(message.number, message.setting)
            elif (room := self._rooms.get(message.number)) is not None:
                match message:
                    case Say():
                        room.say(message)
                    case Answered():
                        room.stored(message)
                    case End():
                        room.end()

    def _open(self, number: int, setting: Setting) -> None:
        if number in self._rooms:
            raise Altered(f"the driver opened group {number} twice")
        try:
            demand_guest(setting)
            if problem := unreachable(setting, self._driver.host, self._driver.network, self._listen):
                raise ValueError(problem)
            key = group_key(self._stream, number)
            told = replace(setting, host=self._listen, key=key)
            self._rooms[number] = _Room(self._stream, number, told, self._supervisor)
        except (OSError, ValueError) as error:
            self._stream.send(Ended(number, None, str(error)))

    def close(self) -> None:
        """Ends every worker and waits until it is gone."""
        for room in self._rooms.values():
            room.end()
        self._supervisor.end()


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
    if not 0 < chosen.timeout <= LONGEST_S:
        parser.error(f"--timeout must be positive and at most a day ({LONGEST_S:g} s)")
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
    except (JoinFailed, RemoteFailed) as error:
        _say(str(error))
        return 1
    except KeyboardInterrupt:
        _say("interrupted; everything here was ended")
        return 130
    _say(f"the driver is done: {groups} groups of parties were served")
    return 0


if __name__ == "__main__":
    sys.exit(main())
