"""The processes that hold shares, behind one context manager.

    with Parties(engine="stock") as parties:
        parties.load(model, example)
        parties.prepare(batch=1)
        logits = parties.infer(images)

Each party is a process with one thread; helpers (a dealer, CrypTen's TTP) are processes too. The driver
sends the weights to party 0 and the image to party 1, and holds both only to check the answer. A process
that fails, dies or hangs ends the whole group with PartyFailed; no process outlives the driver.
"""

from __future__ import annotations

import importlib
import math
import os
import signal
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from pathlib import Path
from types import TracebackType
from typing import Any

import torch
from torch import nn

from pibench.engines.base import ENGINES, NotPrepared, Setting, StepCost
from pibench.hosts.remote import Guest, Remote, TwoHosts
from pibench.links import Link, LinkCheck, make_shaper, parse_link
from pibench.links.check import BULK_BYTES, BULK_S
from pibench.parties.processes import start_worker
from pibench.parties.worker import encode, receive, send
from pibench.program.lower import VALUE_LIMIT, Lowered, lower


class PartyFailed(RuntimeError):  # noqa: N818 (a state, named in the interface)
    """Raised when a process of the group failed, died or hung; the group is gone then."""


@dataclass(frozen=True)
class Traffic:
    """What one inference sends online.

    `rounds` are collective calls with the opening; `bytes_sent` those of the party that sends most;
    `by_party` the bytes that each party sends.
    """

    rounds: int
    bytes_sent: int
    by_party: tuple[int, ...]

    @property
    def bytes_total(self) -> int:
        """Bytes sent by all parties together."""
        return sum(self.by_party)


@dataclass(frozen=True)
class SetUp:
    """What loading a network costs: the slower party's seconds, rounds, and the bytes each party sends."""

    seconds: float
    rounds: int
    by_party: tuple[int, ...]


@dataclass(frozen=True)
class Offline:
    """What one offline phase makes: bytes of correlated randomness each party holds, bytes a dealer sends."""

    seconds: float
    correlated_bytes: tuple[int, ...]
    dealt_bytes: int | None


@dataclass
class _Process:
    """A started process and the driver's end of its connection."""

    title: str
    popen: subprocess.Popen[bytes] | Guest
    connection: Connection
    log: Path


class Parties:
    """Persistent processes that run one network privately.

    `count` parties, by default as few as the engine runs with; `engine` a key of ENGINES; `provider` the
    source of correlated randomness (stock: "TFP" or "TTP"; lean: its dealer); `timeout_s` bounds every
    command; `link` what lies between any two of the processes (a key of `pibench.links.LINKS`, "200Mbit/40ms"
    or a Link) and `shaper` how ("user-space" or "netem"). A link that is shaped is checked at the start:
    `link_check`. With `remote` party 1 runs on another host and the link is what lies between
    (docs/two_hosts.md). Not safe for use by several threads.
    """

    def __init__(
        self,
        count: int | None = None,
        engine: str = "stock",
        provider: str | None = None,
        timeout_s: float = 300.0,
        link: str | Link = "loopback",
        shaper: str | None = None,
        remote: Remote | None = None,
    ) -> None:
        if engine not in ENGINES:
            raise ValueError(f"unknown engine {engine!r}; choose one of {', '.join(ENGINES)}")
        info = ENGINES[engine]
        count = info.parties[0] if count is None else count
        if isinstance(count, bool) or not isinstance(count, int) or count not in info.parties:
            allowed = " or ".join(map(str, info.parties))
            raise ValueError(f"the {engine} engine runs with {allowed} parties, not {count}")
        if not 0 < timeout_s < math.inf:
            raise ValueError(f"timeout_s must be a positive number of seconds, not {timeout_s}")
        self.count = count
        self.engine = engine
        self.provider = provider or info.provider
        self.timeout_s = timeout_s
        self.exact_truncation = info.exact_truncation
        self.steady_traffic = info.steady_traffic
        self._module = importlib.import_module(info.module)
        self.helpers: tuple[str, ...] = self._module.helper_roles(self.provider)
        self.lowered: Lowered | None = None
        self.set_up: SetUp | None = None
        self.offline: Offline | None = None
        self.online_s: float | None = None
        self.sent: Traffic | None = None
        self.hops: int | None = None
        if remote is None:
            self.link = parse_link(link)
            self._shaper = make_shaper(self.link, shaper)
        else:
            self._shaper = TwoHosts(remote, self.engine, count, self.provider, link, shaper)
            self.link = self._shaper.link
        self.remote = remote
        self.link_check: LinkCheck | None = None
        self._prepared: int | None = None
        self._processes: list[_Process] = []
        self._lifeline: int | None = None
        self._folder: tempfile.TemporaryDirectory[str] | None = None

    # Life.

    def __enter__(self) -> Parties:
        if self._processes:
            raise RuntimeError("these parties are running already; open a new Parties")
        self.lowered = None
        self._module.compile_all()
        self._folder = tempfile.TemporaryDirectory(prefix="pibench-", ignore_cleanup_errors=True)
        lifeline, self._lifeline = os.pipe()
        try:
            rendezvous = f"file://{self._folder.name}/rendezvous"
            self._shaper.start(Path(self._folder.name), lifeline)
            for rank, role in enumerate(["party"] * self.count + list(self.helpers)):
                place = self._shaper.place(rank)
                setting = Setting(
                    self.engine,
                    role,
                    rank,
                    self.count,
                    rendezvous,
                    self.provider,
                    self.timeout_s,
                    place.host,
                    self.link,
                    place.relay,
                    place.ports,
                    place.guest,
                    place.key,
                )
                self._processes.append(self._start(setting, lifeline))
            self._await(range(len(self._processes)), "start")
            if self.link.shaped or self.remote is not None:
                self.check_link()
        except BaseException:
            self._kill()
            raise
        finally:
            os.close(lifeline)
        return self

    def _start(self, setting: Setting, lifeline: int) -> _Process:
        title = f"party {setting.rank}" if setting.role == "party" else setting.role
        log = Path(self._folder.name) / f"{setting.rank}.log"
        guest = self._shaper.elsewhere(setting, log)
        if guest is not None:
            return _Process(title, guest, guest.connection, log)
        started = start_worker(log, lifeline, self._shaper.interface, self._shaper.prefix)
        process = _Process(title, *started, log)
        try:
            self._shaper.attach(setting.rank, process.popen.pid)
            send(process.connection, setting)
        except BaseException:
            self._processes.append(process)  # so that it is ended with the others
            raise
        return process

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._kill()

    def _kill(self) -> None:
        """Ends every process of the group and waits until it is gone."""
        processes, self._processes = self._processes, []
        self._prepared = None
        for process in processes:
            process.popen.kill()
        for process in processes:
            process.popen.wait()
            process.connection.close()
        self._shaper.stop()
        if self._lifeline is not None:
            os.close(self._lifeline)
            self._lifeline = None
        if self._folder is not None:
            self._folder.cleanup()
            self._folder = None

    @property
    def setting(self) -> tuple[str, int, str, Link]:
        """What processes of this group are told: engine, number of parties, provider, link."""
        return self.engine, self.count, self.provider, self.link

    @property
    def shaper(self) -> str:
        """What shapes the link: "none", "user-space", "netem" or, unshaped, "two-hosts"."""
        return self._shaper.name

    @property
    def pids(self) -> tuple[int, ...]:
        """Process ids of the parties, then of the helpers; empty when the group is gone."""
        return tuple(process.popen.pid for process in self._processes)

    # What is run.

    def load(self, model: nn.Module, example: torch.Tensor) -> None:
        """Lowers `model` for inputs like `example` [N, ...] and shares its weights among the parties.

        Raises ExportError before any process is bothered when the model cannot be run (see
        `pibench.program.lower`). `set_up` then holds the cost, `lowered` the program and the plaintext logits
        of the example.
        """
        lowered = lower(model, example)
        lowered.demand(self._module.value_limits(lowered.program))
        self._prepared = None
        # As arrays: a pickled tensor passes through a second copy in the receiving party's memory.
        weights = {name: weight.numpy() for name, weight in lowered.weights.items()}
        replies = self._call(
            "load", lambda rank: (lowered.program, weights if rank == 0 else None), helpers=True
        )
        self.lowered = lowered
        self.set_up = SetUp(
            max(reply["seconds"] for reply in replies[: self.count]),
            max(reply["rounds"] for reply in replies[: self.count]),
            tuple(reply["bytes_sent"] for reply in replies[: self.count]),
        )

    def prepare(self, batch: int = 1) -> float:
        """Runs the offline phase of one inference of `batch` images; returns the slower party's seconds."""
        self._loaded()
        if isinstance(batch, bool) or not isinstance(batch, int) or batch < 1:
            raise ValueError(f"a batch is a whole number of at least one image, not {batch!r}")
        self._prepared = None
        self._call("plan", lambda _: (batch,), helpers=True)
        replies = self._call("prepare", lambda _: (batch,), helpers=True)
        parties, helpers = replies[: self.count], replies[self.count :]
        self.offline = Offline(
            max(reply["seconds"] for reply in parties),
            tuple(reply["bytes"] for reply in parties),
            sum(reply["bytes"] for reply in helpers) if helpers else None,
        )
        self._prepared = batch
        return self.offline.seconds

    def infer(self, images: torch.Tensor) -> torch.Tensor:
        """Runs the online phase from shared `images` [N, ...] to the opened logits [N, classes].

        `online_s` then holds the slower party's seconds, `sent` the traffic, `hops` its one-way trips in
        sequence. Raises NotPrepared without a matching `prepare`, TypeError or ValueError for images of
        another type or shape or beyond fixed point. Values inside the network were checked for the example
        of `load` alone: images far larger than it may overflow unnoticed.
        """
        replies = self._online("infer", images)
        self.online_s = max(reply["seconds"] for reply in replies)
        self.hops = max(reply["hops"] for reply in replies)
        by_party = tuple(reply["bytes_sent"] for reply in replies)
        self.sent = Traffic(max(reply["rounds"] for reply in replies), max(by_party), by_party)
        return next(reply["logits"] for reply in replies if reply["logits"] is not None)

    def traffic(self, images: torch.Tensor) -> Traffic:
        """Counts rounds and bytes of one inference of `images` (prepares it first; untimed)."""
        self._checked(images)
        self.prepare(len(images))
        self.infer(images)
        return self.sent

    def profile(self, images: torch.Tensor) -> list[StepCost]:
        """Profiles one inference of `images` (prepares it first): the cost of each step, and of the opening.

        Seconds are the slower party's, rounds and bytes those of the party that sends most.
        """
        self._checked(images)
        self.prepare(len(images))
        replies = self._online("profile", images)
        return [
            StepCost(
                costs[0].name,
                costs[0].kind,
                max(cost.seconds for cost in costs),
                max(cost.rounds for cost in costs),
                max(cost.bytes_sent for cost in costs),
            )
            for costs in zip(*replies, strict=True)
        ]

    def idle(self) -> float:
        """Runs an empty command, barrier and clock included; returns the driver's seconds (the floor)."""
        started = time.perf_counter()
        self._call("idle", lambda _: ())
        return time.perf_counter() - started

    def check_link(self) -> LinkCheck:
        """Measures the link between parties 0 and 1; `link_check` keeps the last result.

        Nothing is raised for a link that is not what was asked for: see its `ok` and `complaint`.
        """
        replies = self._probe() if self.remote is None else self._probe_unknown()
        self.link_check = LinkCheck(
            self.shaper,
            self.link.rtt_s,
            max(reply["rtt_s"] for reply in replies[:2]),
            self.link.bandwidth_bits_s,
            min(reply["bandwidth_bits_s"] for reply in replies[:2]),
            max(reply["round_s"] for reply in replies),
            replies[0]["round_hops"],
        )
        return self.link_check

    def _probe(self, bulk: int | None = None) -> list[Any]:
        host, port = self._call("listen", lambda _: ())[0]
        return self._call("probe_link", lambda _: (host, port, bulk))

    def _probe_unknown(self) -> list[Any]:
        """Probes with ever larger transfers, until one takes long against TCP's slow start."""
        bulk, most = BULK_BYTES
        while True:
            replies = self._probe(bulk)
            seconds = 8 * bulk / min(reply["bandwidth_bits_s"] for reply in replies[:2])
            if bulk >= most or seconds > max(BULK_S, 20 * replies[0]["rtt_s"]):
                return replies
            bulk = min(8 * bulk, most)

    def peak_memory(self) -> tuple[int, ...]:
        """Returns the largest resident size of each party's process so far, in bytes."""
        return tuple(self._call("peak_memory", lambda _: ()))

    def _online(self, command: str, images: torch.Tensor) -> list[Any]:
        self._checked(images)
        batch = len(images)
        if self._prepared != batch:
            raise NotPrepared(f"nothing is prepared for a batch of {batch}; call prepare({batch}) first")
        self._prepared = None
        images = images.detach().to(torch.float32)  # in half precision CrypTen's scale overflows
        return self._call(command, lambda rank: (images if rank == 1 else None, batch))

    def _loaded(self) -> Lowered:
        if self.lowered is None:
            raise RuntimeError("no network is loaded; call load(model, example) first")
        return self.lowered

    def _checked(self, images: torch.Tensor) -> None:
        shape = self._loaded().program.input_shape
        if not isinstance(images, torch.Tensor) or not images.is_floating_point():
            kind = images.dtype if isinstance(images, torch.Tensor) else type(images).__name__
            raise TypeError(f"images must be a tensor of floating-point numbers, not {kind}")
        if tuple(images.shape[1:]) != shape or len(images) < 1:
            raise ValueError(
                f"the loaded network takes images of shape [N, {', '.join(map(str, shape))}], "
                f"not {list(images.shape)}"
            )
        if not images.isfinite().all() or images.abs().max() >= VALUE_LIMIT:
            raise ValueError("the images hold NaN, infinity or values beyond 2^30; repair or normalise them")

    # Talking to the processes.

    def _call(
        self, command: str, arguments: Callable[[int], tuple[Any, ...]], helpers: bool = False
    ) -> list[Any]:
        """Gives each party (and commanded helper) a command at once; returns the replies in rank order."""
        if not self._processes:
            raise PartyFailed("the parties are not running; open a new Parties")
        ranks = list(range(self.count))
        if helpers and not self._serving():
            ranks += range(self.count, len(self._processes))
        messages = [encode((command, arguments(rank))) for rank in ranks]
        threads = [
            threading.Thread(target=self._send, args=(self._processes[rank], message), daemon=True)
            for rank, message in zip(ranks, messages, strict=True)
        ]
        for thread in threads:
            thread.start()
        try:
            replies = self._await(ranks, command)
        except BaseException:
            self._kill()  # a command under way cannot be taken back
            raise
        for thread in threads:
            thread.join()
        return replies + [{"bytes": 0}] * (helpers and self._serving()) * len(self.helpers)

    def _serving(self) -> bool:
        """Tells whether the helpers obey their own protocol instead of commands."""
        return self.provider == "TTP"

    @staticmethod
    def _send(process: _Process, message: bytes) -> None:
        try:
            process.connection.send_bytes(message)
        except OSError:
            return  # the process is gone, which the wait for its reply reports

    def _await(self, ranks: Sequence[int], command: str) -> list[Any]:
        """Waits for the replies of `ranks`; raises PartyFailed with the cause when one does not come."""
        deadline = time.monotonic() + self.timeout_s
        pending = {self._processes[rank].connection: rank for rank in ranks}
        others = {p.connection: rank for rank, p in enumerate(self._processes) if rank not in ranks}
        replies: dict[int, Any] = {}
        refusals: list[str] = []
        failures: list[tuple[int, str | None]] = []
        while pending:
            left = deadline - time.monotonic()
            ready = wait([*pending, *others], timeout=max(left, 0.0))
            if not ready:
                break
            for connection in ready:
                rank = pending.pop(connection, None)
                rank = others.pop(connection) if rank is None else rank
                try:
                    kind, value = receive(connection)
                except (EOFError, OSError):
                    kind, value = "failed", None
                if kind == "failed":
                    failures.append((rank, value))
                    # Peers fail in turn; what they say within a second helps to find the first cause.
                    deadline = min(deadline, time.monotonic() + 1.0)
                elif kind == "not prepared":
                    refusals.append(value)
                else:
                    replies[rank] = value
        if failures:
            raise PartyFailed(self._cause(failures, command))
        if pending:
            silent = ", ".join(self._processes[rank].title for rank in pending.values())
            raise PartyFailed(
                f"{silent} did not answer {command!r} within {self.timeout_s:g} s; all were ended"
            )
        if refusals:
            raise NotPrepared(refusals[0])
        return [replies[rank] for rank in ranks]

    def _cause(self, failures: list[tuple[int, str | None]], command: str) -> str:
        """Tells the likely first cause: a process that was killed, else the first that reported."""
        killed = [rank for rank, trace in failures if trace is None]
        rank, trace = (killed[0], None) if killed else failures[0]
        process = self._processes[rank]
        if (failure := self._shaper.failure()) is not None:
            return f"{failure}; so {process.title} failed in {command!r}"
        if trace is not None:
            return f"{process.title} failed in {command!r}:\n{trace}"
        try:
            code = process.popen.wait(timeout=1.0)
        except subprocess.TimeoutExpired:
            code = None
        how = f"with exit code {code}"
        if code is not None and code < 0:
            how = f"by signal {-code} ({signal.Signals(-code).name})"
        text = f"{process.title} died {how} in {command!r}"
        said = process.log.read_text(errors="replace")[-2000:].strip()
        traces = [f"{self._processes[r].title} then failed:\n{t}" for r, t in failures if t is not None]
        return "\n".join([text, *([f"its last words:\n{said}"] if said else []), *traces])
