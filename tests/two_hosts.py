"""Two hosts for the tests: network namespaces on this machine, or where they are not allowed its loopback."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Any

from pibench.links.shapers import Namespaces, _await_namespace, _inside, obstacle

ROOT = Path(__file__).parent.parent
TOKEN = "a token that only the tests know"
WAIT_S = 40.0
NO_HOSTS = (
    *("", "0", "00.0.0.0", "0x0", "0.0", "0.0.0.0", "000.000.000.000"),  # all mean every interface
    *("::", "::1", "224.0.0.1", "255.255.255.255", "10.0.0.1 ", "two words", "x" * 64, None, 5),
)
"""What stands for no single IPv4 address."""

# Runs what it is told: arguments are address, port, seconds of silence that are allowed, then engines.
# Reports one JSON object a line.
DRIVER = """
import json, sys, time, torch
from pibench.parties.driver import Parties
from pibench.hosts.remote import Remote
from networks import Block

def report(**facts):
    print(json.dumps(facts), flush=True)

host, port, silence, how, *engines = sys.argv[1:]
model = Block()
images = torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(1))
expected = model(images).detach()
remote = Remote(host, int(port), "a token that only the tests know", timeout_s=30, silence_s=float(silence))
try:
    with remote:
        report(state="joined", hosts=remote.machine is not None)
        for engine in engines:
            with Parties(engine=engine, remote=remote, timeout_s=30) as parties:
                parties.load(model, images)
                parties.prepare(2)
                if how == "once":
                    error = (parties.infer(images[:2]) - expected[:2]).abs().max().item()
                    seconds, traffic = parties.online_s, parties.traffic(images[:1])
                    profile = parties.profile(images[:1])
                    report(
                        state="done", engine=engine, error=error, seconds=seconds, rounds=traffic.rounds,
                        sent=traffic.by_party, steps=[step.kind for step in profile],
                        profiled=sum(step.bytes_sent for step in profile), offline=parties.offline.seconds,
                        check=parties.link_check.as_dict(), memory=parties.peak_memory(),
                        setup=parties.set_up.by_party, link=parties.link.name, idle=parties.idle(),
                    )
                else:
                    report(state="running", pids=parties.pids)
                    while True:
                        parties.infer(images[:2])
                        parties.prepare(2)
except BaseException as error:
    report(state="failed", kind=type(error).__name__, message=str(error), at=time.time())
"""

# Sends garbage to every port at which the network of process `pid` listens, until it is ended.
ATTACK = """
import os, socket, sys, time
pid, host = sys.argv[1:]
kept = []
while True:
    with open(f"/proc/{pid}/net/tcp") as table:
        rows = [line.split() for line in table.readlines()[1:]]
    ports = {int(row[1].split(":")[1], 16) for row in rows if row[3] == "0A"}
    for port in ports:
        for data in (os.urandom(300), b"", b"GET / HTTP/1.1" + 40 * b"\\n"):
            try:
                stranger = socket.create_connection((host, port), timeout=1)
                stranger.sendall(data)
            except OSError:
                continue
            kept = [*kept[-100:], stranger]
            print(port, flush=True)
    time.sleep(0.05)
"""


class Hosts:
    """Two hosts: `prefix` starts a process on one, `addresses` are theirs; 0 is the driver's."""

    def __init__(self, namespaces: bool) -> None:
        self.namespaces = namespaces
        self._stack = ExitStack()
        self.prefix: tuple[list[str], list[str]] = ([], [])
        self.addresses = ("127.0.0.1", "127.0.0.1")
        self.keepers: list[subprocess.Popen] = []

    def __enter__(self) -> Hosts:
        if not self.namespaces:
            return self
        with ExitStack() as stack:
            for _ in range(2):
                keeper = subprocess.Popen([*Namespaces.prefix, "sleep", "600"])
                stack.callback(end, keeper)
                _await_namespace(keeper.pid)
                self.keepers.append(keeper)
            first, second = (keeper.pid for keeper in self.keepers)
            _inside(first, f"ip link add name eth0 type veth peer name eth0 netns {second}")
            for rank, pid in enumerate((first, second)):
                address = f"ip addr add 10.78.0.{rank + 1}/24 dev eth0"
                _inside(pid, f"ip link set lo up; {address}; ip link set eth0 up")
            self.addresses = ("10.78.0.1", "10.78.0.2")
            self.prefix = tuple(["nsenter", f"--net=/proc/{pid}/ns/net", "--"] for pid in (first, second))
            self._stack = stack.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.close()

    def pull(self, up: bool = False) -> None:
        """Pulls the cable between the hosts, or puts it back."""
        _inside(self.keepers[1].pid, f"ip link set eth0 {'up' if up else 'down'}")

    def python(self, host: int, *arguments: str, **environment: str) -> Process:
        """Starts python on one of the hosts."""
        return Process([*self.prefix[host], sys.executable, *arguments], environment)

    def driver(self, port: int, how: str, *engines: str, silence_s: float = 30) -> Process:
        """Starts the driver's script on host 0."""
        arguments = [self.addresses[0], str(port), str(silence_s), how, *engines]
        return self.python(0, "-c", DRIVER, *arguments)

    def join(self, port: int, listen: bool = True, token: str = TOKEN) -> Process:
        """Starts `pibench.hosts.join` on host 1 by plain rendezvous variables."""
        where = ["--listen", self.addresses[1]] if listen else []
        variables = {"MASTER_ADDR": self.addresses[0], "MASTER_PORT": str(port), "RANK": "1"}
        return self.python(
            1,
            "-m",
            "pibench.hosts.join",
            "--timeout",
            "30",
            *where,
            WORLD_SIZE="2",
            PIBENCH_TOKEN=token,
            **variables,
        )


class Process:
    """A process whose output is read as it comes; it is ended by `with`."""

    def __init__(self, command: list[str], environment: dict[str, str]) -> None:
        self.popen = subprocess.Popen(
            command,
            cwd=ROOT,
            env=os.environ | {"PYTHONPATH": str(ROOT / "tests"), "OMP_NUM_THREADS": "1"} | environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def __enter__(self) -> Process:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        end(self.popen)

    def report(self) -> dict[str, Any]:
        """The next line of the driver's script."""
        line = self.popen.stdout.readline()
        assert line, self.popen.stderr.read()
        return json.loads(line)

    def finish(self, seconds: float = WAIT_S) -> tuple[int, str]:
        """Waits for the end; gives exit code and standard error."""
        _, said = self.popen.communicate(timeout=seconds)
        return self.popen.returncode, said


def end(popen: subprocess.Popen) -> None:
    popen.kill()
    popen.wait()
    for stream in (popen.stdout, popen.stderr):
        if stream is not None:
            stream.close()


def why_no_namespaces() -> str | None:
    """Returns why two network namespaces are not available here, or None if they are."""
    return obstacle(netem=False)


def free_port() -> int:
    """A port at which nobody listens just now."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        return server.getsockname()[1]
