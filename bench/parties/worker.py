"""The process of one party or helper: makes its node and obeys the driver.

`pibench.parties.driver` starts it as `python -m pibench.parties.worker`; users never do. The process first
receives its setting and then answers each command with a reply. Parties talk to each other only through their
engine.
"""

from __future__ import annotations

import ctypes
import gc
import os
import signal
import socket
import sys
import threading
import time
import traceback
from contextlib import suppress
from dataclasses import replace
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch

from pibench.engines import ENGINES
from pibench.engines.base import Helper, Node, NotPrepared, Setting
from pibench.links.check import median_round, probe
from pibench.links.greeting import Door, call, open_port
from pibench.links.lifeline import end_with_parent
from pibench.links.route import port_through
from pibench.parties.messages import receive, send
from pibench.parties.rendezvous import registered


class Session:
    """The commands that a driver may send; each one returns the reply for the driver."""

    def __init__(self, node: Node | Helper) -> None:
        self.node = node
        self.door: Door | None = None

    def load(self, program: Any, weights: Any) -> dict[str, Any]:
        """Shares the weights (arrays); returns the set-up's seconds, rounds and bytes.

        The memory of an earlier network is freed first. Peak memory counts from this point.
        """
        if isinstance(self.node, Helper):
            self.node.load(program)
            return {}
        self.node.forget()
        reset_peak_memory()
        for name, weight in (weights or {}).items():
            weights[name] = torch.from_numpy(weight)
        meter = self.node.meter
        rounds, sent = meter.rounds, meter.bytes_sent
        started = time.perf_counter()
        self.node.load(program, weights)
        seconds = time.perf_counter() - started
        return {"seconds": seconds, "rounds": meter.rounds - rounds, "bytes_sent": meter.bytes_sent - sent}

    def plan(self, batch: int) -> None:
        """Does the work that a batch size needs once."""
        if isinstance(self.node, Node):
            self.node.plan(batch)

    def prepare(self, batch: int) -> dict[str, Any]:
        """Runs the offline phase of one inference; returns its seconds and bytes."""
        if isinstance(self.node, Node):
            self.node.barrier()
        started = time.perf_counter()
        held = self.node.prepare(batch)
        return {"seconds": time.perf_counter() - started, "bytes": held}

    def infer(self, images: torch.Tensor | None, batch: int) -> dict[str, Any]:
        """Runs the online phase.

        Returns its seconds, rounds, bytes, hops, and the logits that this party sees.
        """
        node = self.node
        node.start(batch)
        shared = node.share(images, batch)
        rounds, sent, hops = node.meter.rounds, node.meter.bytes_sent, node.meter.hops
        node.barrier()
        started = time.perf_counter()
        logits = node.run(shared)
        seconds = time.perf_counter() - started
        return {
            "seconds": seconds,
            "rounds": node.meter.rounds - rounds,
            "bytes_sent": node.meter.bytes_sent - sent,
            "hops": node.meter.hops - hops,
            "logits": logits,
        }

    def profile(self, images: torch.Tensor | None, batch: int) -> list[Any]:
        """Runs the online phase with a clock at each step; returns the cost of each step."""
        self.node.start(batch)
        shared = self.node.share(images, batch)
        self.node.barrier()
        return self.node.profile(shared)

    def idle(self) -> dict[str, Any]:
        """Does nothing and measures it like an inference."""
        self.node.barrier()
        started = time.perf_counter()
        return {"seconds": time.perf_counter() - started}

    def listen(self) -> tuple[str, int] | None:
        """Opens a port for `probe_link` at party 0; returns its address, or None at the other parties.

        Only party 1 is let in there: both prove that they know the group's key.
        """
        if self.node.rank:
            return None
        setting = self.node.setting
        listener = open_port(setting.host, setting.ports)
        self.door = Door(listener, setting.key, [1])
        return setting.host, listener.getsockname()[1]

    def probe_link(self, host: str, port: int, bulk: int | None = None) -> dict[str, float]:
        """Measures the path between party 0, which listens, and party 1.

        Returns RTT (s), bandwidth (bit/s), and the seconds and hops of a small round. The other parties take
        part only in the rounds.
        """
        node, setting = self.node, self.node.setting
        measured: dict[str, float] = {}
        if node.rank == 0:
            with self.door as door:
                _, connection, _ = door.next(time.monotonic() + setting.timeout_s)
        elif node.rank == 1:
            if setting.relay:
                port = port_through(setting.relay, 1, 0, port)
            connection = socket.create_connection((host, port), timeout=setting.timeout_s)
            call(connection, setting.key, 1, setting.timeout_s)
        if node.rank < 2:
            with connection:
                measured["rtt_s"], measured["bandwidth_bits_s"] = probe(
                    connection, node.rank == 0, setting.link, setting.timeout_s, bulk
                )
        node.barrier()
        measured["round_hops"] = node.round_hops
        measured["round_s"] = median_round(node.small_round, setting.link)
        return measured

    def peak_memory(self) -> int:
        """Returns the largest resident size since the network was loaded, in bytes."""
        status = Path("/proc/self/status").read_text()
        (kilobytes,) = (line.split()[1] for line in status.splitlines() if line.startswith("VmHWM"))
        return int(kilobytes) * 1024


def reset_peak_memory() -> None:
    """Returns freed memory to the system and restarts the peak, where Linux and glibc allow it."""
    gc.collect()
    with suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def obey(connection: Connection, setting: Setting) -> None:
    """Answers commands until the driver closes the connection."""
    setting = replace(setting, rendezvous=registered(setting.rendezvous))
    node = ENGINES[setting.engine].make_node(setting)
    gc.freeze()  # what is imported stays: no collection has to look through it again
    send(connection, ("ready", None))
    if isinstance(node, Helper) and node.serves:
        node.serve()
        return
    session = Session(node)
    while True:
        try:
            command, arguments = receive(connection)
        except EOFError:
            return
        try:
            reply = ("done", getattr(session, command)(*arguments))
        except NotPrepared as error:
            reply = ("not prepared", str(error))
        send(connection, reply)


def end_with_supervisor(lifeline: int) -> None:
    """Ends this process when the other end of a pipe closes, even in the middle of its work."""
    end_with_parent()

    def wait() -> None:
        os.read(lifeline, 1)
        os._exit(1)

    threading.Thread(target=wait, daemon=True).start()


def main() -> None:
    """Runs the process."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the driver decides when to stop
    descriptor, lifeline = map(int, sys.argv[1:])
    end_with_supervisor(lifeline)
    with Connection(descriptor) as connection:
        try:
            obey(connection, receive(connection))
        except Exception:
            send(connection, ("failed", traceback.format_exc()))
        sys.stdout.flush()
        os._exit(0)  # destructors of a broken process group may wait forever


if __name__ == "__main__":
    main()
