"""The processes that hold shares, behind one context manager.

    with Parties(engine="stock") as parties:
        parties.load(model, example)
        parties.prepare(batch=1)
        logits = parties.infer(images)

Each party is a process with one thread. Helpers (a dealer, CrypTen's TTP) are processes too. The driver sends
the weights to party 0 and the image to party 1. It keeps both only to check the answer.
`pibench.parties.group` handles the failure of a process.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import wraps
from math import log2
from numbers import Real
from types import TracebackType
from typing import Any, Concatenate, ParamSpec, TypeVar

import torch
from torch import nn

from pibench.engines import engine_named
from pibench.engines.base import NotPrepared, Setting, StepCost
from pibench.links import Link, LinkCheck, make_shaper, parse_link
from pibench.links.check import BULK_BYTES, BULK_S
from pibench.links.shapers import Elsewhere, Place
from pibench.parties.group import Group, PartyFailed
from pibench.parties.judge import judge, judge_answer
from pibench.parties.memory import available_memory
from pibench.parties.processes import DESCRIPTORS_OF_A_LOAD, demand_descriptors
from pibench.program.capture import answer_of, plain
from pibench.program.guard import demand_faithful, exact_answer, widest
from pibench.program.lower import VALUE_LIMIT, ExportError, Lowered, lower

__all__ = ["Offline", "Parties", "PartyFailed", "SetUp", "Traffic"]

LONGEST_TIMEOUT_S = 1e6
"""No wait of the system, of torch or of SPU is longer than two or three weeks."""
MOST_IMAGES = 2**31 - 1


P = ParamSpec("P")
T = TypeVar("T")


@dataclass(frozen=True)
class Traffic:
    """The online traffic of one inference.

    `rounds` counts collective calls, with the opening. `bytes_sent` are the bytes of the party that sends
    most. `by_party` are the bytes that each party sends.
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
    """The cost of loading a network: the slower party's seconds, rounds, and the bytes each party sends."""

    seconds: float
    rounds: int
    by_party: tuple[int, ...]


@dataclass(frozen=True)
class Offline:
    """The result of one offline phase.

    `correlated_bytes` is the correlated randomness that each party holds, in bytes. `dealt_bytes` are the
    bytes that a dealer sends; None without a dealer.
    """

    seconds: float
    correlated_bytes: tuple[int, ...]
    dealt_bytes: int | None


def _alone(method: Callable[Concatenate[Parties, P], T]) -> Callable[Concatenate[Parties, P], T]:
    """Has a method of `Parties` refuse while another thread is inside one of them."""

    @wraps(method)
    def guarded(parties: Parties, *arguments: P.args, **named: P.kwargs) -> T:
        if not parties._user.acquire(blocking=False):
            raise RuntimeError("another thread uses these parties just now: give each thread its own Parties")
        try:
            return method(parties, *arguments, **named)
        finally:
            parties._user.release()

    return guarded


class Parties:
    """Persistent processes that run one network privately.

    `count` is the number of parties; the default is the engine's smallest. `engine` is a key of
    `pibench.engines.ENGINES`. `provider` is one of the engine's sources of correlated randomness. `timeout_s`
    limits every command. `link` is the network between any two of the processes: a key of
    `pibench.links.LINKS`, a text like "200Mbit/40ms", or a Link. `shaper` produces that link ("user-space" or
    "netem"). A shaped link is checked at the start, and `link_check` holds the result. With `remote` party 1
    runs on another host, and the link is the network between the hosts (docs/two_hosts.md). Without `check`
    nobody compares the answers of `infer` with the network. Threads may use the object one after the other,
    and any of them may leave the `with`, which ends a running command.

    The processes and their files end with this process, however it ends.
    """

    def __init__(
        self,
        count: int | None = None,
        engine: str = "stock",
        provider: str | None = None,
        timeout_s: float = 300.0,
        link: str | Link = "loopback",
        shaper: str | None = None,
        remote: Elsewhere | None = None,
        check: bool = True,
    ) -> None:
        known = engine_named(engine)
        count = known.parties[0] if count is None else count
        known.demand_parties(count)
        if not isinstance(timeout_s, Real) or not 0 < timeout_s <= LONGEST_TIMEOUT_S:
            most = f"at most {LONGEST_TIMEOUT_S:,.0f}"
            raise ValueError(f"timeout_s must be a positive number of seconds, {most}, not {timeout_s!r}")
        if remote is not None and not callable(getattr(type(remote), "shaper", None)):
            raise TypeError(
                "remote must be a pibench.hosts.remote.Remote, the other host (docs/two_hosts.md), "
                f"not {type(remote).__name__}"
            )
        self.count = count
        self.engine = engine
        self.provider = known.provider if provider is None else provider
        self.exact_truncation = known.exact_truncation
        self.steady_traffic = known.steady_traffic
        self.helpers = known.helpers(self.provider)
        known.demand_installed()
        self._known = known
        self.lowered: Lowered | None = None
        self.set_up: SetUp | None = None
        self.offline: Offline | None = None
        self.online_s: float | None = None
        self.sent: Traffic | None = None
        self.hops: int | None = None
        if remote is None:
            self.link = parse_link(link)
            shaper_of_link = make_shaper(self.link, shaper)
        else:
            shaper_of_link = remote.shaper(known, count, self.provider, link, shaper)
            self.link = shaper_of_link.link
        self.link_check: LinkCheck | None = None
        self.group = Group(shaper_of_link, timeout_s)
        self._user = threading.RLock()
        self._prepared: int | None = None
        self._check = check
        self._reach = 0.0  # the largest number of images that was judged
        self._fits: torch.Tensor | None = None  # the last images whose values all fit a calibrated ring
        self._scale = 0.0  # the largest number of the answer to the example

    # Opening and closing.

    @_alone
    def __enter__(self) -> Parties:
        if self.pids:
            raise RuntimeError("these parties are running already; open a new Parties")
        self.lowered = None
        self._prepared = None
        self._known.compile_all()
        self.group.start(self.count + len(self.helpers), self._told)
        try:
            if self.link.shaped or not self.group.shaper.asked:
                self.check_link()
        except BaseException:
            self.group.kill()
            raise
        return self

    def _told(self, rank: int, rendezvous: str, place: Place) -> Setting:
        """Returns the setting of the process with this rank."""
        return Setting(
            self.engine,
            "party" if rank < self.count else self.helpers[rank - self.count],
            rank,
            self.count,
            rendezvous,
            self.provider,
            self.group.timeout_s,
            place.host,
            self.link,
            place.relay,
            place.ports,
            place.guest,
            place.key,
        )

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.group.kill()

    @property
    def setting(self) -> tuple[str, int, str, Link]:
        """The setting of this group's processes: engine, number of parties, provider, link."""
        return self.engine, self.count, self.provider, self.link

    @property
    def shaper(self) -> str:
        """The shaper of the link: "none", "user-space", "netem", or "two-hosts" for an unshaped link."""
        return self.group.shaper.name

    @property
    def pids(self) -> tuple[int, ...]:
        """Process ids of the parties, then of the helpers; empty when the group is gone."""
        return self.group.pids

    @property
    def headroom_bits(self) -> float | None:
        """The least number of bits between the largest value that the example takes and its limit.

        None without a loaded network, and for an engine that is not calibrated.
        """
        if self.lowered is None or not self._known.calibrated:
            return None
        limits = self._known.value_limits(self.lowered.program)
        largest = self.lowered.largest
        return min(log2(limits[name] / value) for name, value in largest.items() if value > 0)

    # Commands.

    @_alone
    def load(self, model: nn.Module, example: torch.Tensor, output: int | str | None = None) -> None:
        """Lowers `model` for inputs like `example` [N, ...] and shares its weights among the parties.

        `output` chooses one of several outputs, by its number or its name. `set_up` then holds the cost,
        and `lowered` the program. Raises ExportError when the model cannot be run (see
        `pibench.program.lower`) or when fixed point spoils its answers (see `pibench.program.guard`); the
        processes then receive nothing. A smaller loss is a PrecisionWarning. Raises OSError when this process
        may hardly open a file more: what captures a network is imported here.
        """
        demand_descriptors(DESCRIPTORS_OF_A_LOAD)
        lowered = lower(model, example, output)
        if self._known.calibrated:
            lowered = lowered.calibrated()
        wide = widest(plain(example, "the example"))
        exact = exact_answer(lowered, wide)
        demand_faithful(lowered, exact, answer_of(model, wide, output))
        self._judge(lowered, wide, exact)
        self._prepared = None
        # The weights travel as arrays: a pickled tensor needs a second copy in the receiving party's memory.
        weights = {name: weight.numpy() for name, weight in lowered.weights.items()}
        replies = self._call(
            "load", lambda rank: (lowered.program, weights if rank == 0 else None), helpers=True
        )
        self.lowered = lowered
        self._reach = lowered.largest[lowered.program.input]
        self._fits = None
        self._scale = exact.abs().max().item()
        self.set_up = SetUp(
            max(reply["seconds"] for reply in replies[: self.count]),
            max(reply["rounds"] for reply in replies[: self.count]),
            tuple(reply["bytes_sent"] for reply in replies[: self.count]),
        )

    @_alone
    def prepare(self, batch: int = 1) -> float:
        """Runs the offline phase of one inference of `batch` images; returns the slower party's seconds.

        Raises RuntimeError without a loaded network, ValueError for a batch that is no positive whole number,
        MemoryError for one that plainly exceeds this machine's memory; the processes then receive nothing.
        """
        self._demand_room(batch)
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

    @_alone
    def infer(self, images: torch.Tensor) -> torch.Tensor:
        """Runs the online phase from shared `images` [N, ...] to the opened logits [N, classes].

        `online_s` then holds the slower party's seconds, `sent` the traffic, and `hops` its sequential
        one-way trips. Raises NotPrepared without a matching `prepare`. Raises TypeError or ValueError for
        images of another type or shape, or beyond fixed point. Images with larger numbers than all before are
        judged as the example was, and refused if they do not pass. This evaluates the two widest ones three
        times in plaintext.

        The logits of every image are then compared with the network's own in float64, one more evaluation,
        unless the parties were made without `check`. Raises WrongAnswer for an error of 2 % of the largest
        number (of these answers and those to the example) or more. An answer that is right in this sense and
        off by 2 % of its own largest number is a PrecisionWarning. No clock includes the checks.
        """
        images = self._checked(images)
        logits = self._infer(images)
        if self._check:
            judge_answer(self._known, self._loaded(), images, logits, self._scale)
        return logits

    def _infer(self, images: torch.Tensor) -> torch.Tensor:
        replies = self._online("infer", images)
        self.online_s = max(reply["seconds"] for reply in replies)
        self.hops = max(reply["hops"] for reply in replies)
        by_party = tuple(reply["bytes_sent"] for reply in replies)
        self.sent = Traffic(max(reply["rounds"] for reply in replies), max(by_party), by_party)
        return next(reply["logits"] for reply in replies if reply["logits"] is not None)

    @_alone
    def traffic(self, images: torch.Tensor) -> Traffic:
        """Counts rounds and bytes of one inference of `images`.

        It prepares the inference first and is not timed.
        """
        images = self._checked(images)
        self.prepare(len(images))
        self._infer(images)
        return self.sent

    @_alone
    def profile(self, images: torch.Tensor) -> list[StepCost]:
        """Profiles one inference of `images`: the cost of each step and of the opening.

        The method prepares the inference first. Seconds are those of the slower party. Rounds and bytes are
        those of the party that sends most.
        """
        images = self._checked(images)
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

    @_alone
    def idle(self) -> float:
        """Runs an empty command with its barrier and clock.

        Returns the driver's seconds, the floor of a time.
        """
        started = time.perf_counter()
        self._call("idle", lambda _: ())
        return time.perf_counter() - started

    @_alone
    def check_link(self) -> LinkCheck:
        """Measures the link between parties 0 and 1; `link_check` keeps the last result.

        A link that differs from the one asked for raises nothing: see `ok` and `complaint` of the result.
        """
        replies = self._probe() if self.group.shaper.asked else self._probe_unknown()
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
        """Probes with larger and larger transfers, until one takes long compared with TCP's slow start."""
        bulk, most = BULK_BYTES
        while True:
            replies = self._probe(bulk)
            seconds = 8 * bulk / min(reply["bandwidth_bits_s"] for reply in replies[:2])
            if bulk >= most or seconds > max(BULK_S, 20 * replies[0]["rtt_s"]):
                return replies
            bulk = min(8 * bulk, most)

    @_alone
    def peak_memory(self) -> tuple[int, ...]:
        """Returns the largest resident size of each party's process so far, in bytes."""
        return tuple(self._call("peak_memory", lambda _: ()))

    def _online(self, command: str, images: torch.Tensor) -> list[Any]:
        batch = len(images)
        if self._prepared != batch:
            raise NotPrepared(f"nothing is prepared for a batch of {batch}; call prepare({batch}) first")
        self._prepared = None
        # CrypTen's scale overflows in half precision. This copies: a view would send all that it is from.
        images = images.to(torch.float32, copy=True, memory_format=torch.contiguous_format)
        return self._call(command, lambda rank: (images if rank == 1 else None, batch))

    def _demand_room(self, batch: int) -> None:
        """Raises ValueError for what is no batch, MemoryError for one beyond this machine's memory."""
        program = self._loaded().program
        if isinstance(batch, bool) or not isinstance(batch, int) or not 1 <= batch <= MOST_IMAGES:
            raise ValueError(
                f"a batch is a whole number of at least one image and at most {MOST_IMAGES:,}, not {batch!r}"
            )
        available = available_memory()
        if available is None:
            return
        free = available + self.group.memory_here  # what the parties hold now they can use again
        here = self.count if self.group.shaper.asked else self.count - 1  # the guest is elsewhere
        need = here * batch * self._known.inference_bytes(program)
        if need > free:
            raise MemoryError(
                f"a batch of {batch:,} needs about {need / 1e9:,.0f} GB of memory for {here} parties here, "
                f"{free / 1e9:.0f} GB are free: prepare a smaller batch"
            )

    def _loaded(self) -> Lowered:
        if self.lowered is None:
            raise RuntimeError("no network is loaded; call load(model, example) first")
        return self.lowered

    def _checked(self, images: torch.Tensor) -> torch.Tensor:
        """Returns the images as plain float64 numbers; raises an error for others than the network takes."""
        shape = self._loaded().program.input_shape
        if not isinstance(images, torch.Tensor) or not images.is_floating_point():
            kind = images.dtype if isinstance(images, torch.Tensor) else type(images).__name__
            raise TypeError(f"images must be a tensor of floating-point numbers, not {kind}")
        images = plain(images, "the tensor of images")
        if tuple(images.shape[1:]) != shape or len(images) < 1:
            raise ValueError(
                f"the loaded network takes images of shape [N, {', '.join(map(str, shape))}], "
                f"not {list(images.shape)}"
                + ("; images[None] is a batch of this one" if tuple(images.shape) == shape else "")
            )
        reach = images.abs().max().item()
        if not reach < VALUE_LIMIT:
            raise ValueError("the images hold NaN, infinity or values beyond 2^30; repair or normalise them")
        if reach > self._reach:
            try:
                wide = widest(images)
                lowered = self._loaded().on(wide)
                self._judge(lowered, wide, exact_answer(lowered, wide))
            except ExportError as error:
                raise ValueError(
                    f"the images reach {reach:.3g}, where up to {self._reach:.3g} was checked: {error}"
                ) from error
            self._reach = reach
        if self._known.calibrated and not (self._fits is not None and torch.equal(self._fits, images)):
            try:
                self._loaded().on(images).demand(self._known.value_limits(self._loaded().program))
            except ExportError as error:
                raise ValueError(f"the images leave the range of the calibration: {error}") from error
            self._fits = images.clone()
        return images

    def _judge(self, lowered: Lowered, images: torch.Tensor, exact: torch.Tensor) -> None:
        """Raises ExportError unless this engine can hold a network's values on `images` and the answer."""
        judge(self._known, lowered, images, exact)

    def _call(
        self, command: str, arguments: Callable[[int], tuple[Any, ...]], helpers: bool = False
    ) -> list[Any]:
        """Sends a command to each party, and to each helper if `helpers`; returns the replies in rank order.

        A helper with a protocol of its own receives no command; its reply says that it did nothing.
        """
        asked = [role not in self._known.serving for role in self.helpers] if helpers else []
        ranks = [*range(self.count), *(self.count + i for i, obeys in enumerate(asked) if obeys)]
        replies = iter(self.group.ask(command, {rank: arguments(rank) for rank in ranks}))
        parties = [next(replies) for _ in range(self.count)]
        return parties + [next(replies) if obeys else {"bytes": 0} for obeys in asked]
