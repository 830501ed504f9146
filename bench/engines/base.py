"""What engines have in common: how one describes itself, its processes' setting, the meter, the walk.

Importing this module imports no torch: whoever lists engines needs none.
"""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from pibench.links.link import LOOPBACK, Link
from pibench.program.ir import Program, Step

if TYPE_CHECKING:
    import torch

Rehearsal = Callable[
    [Program, "Mapping[str, torch.Tensor]", "torch.Tensor", "Callable[[Step, torch.Tensor], None] | None"],
    "torch.Tensor",
]


class NotPrepared(RuntimeError):  # noqa: N818 (a state, named in the interface)
    """Raised by `infer` when no offline phase for this batch precedes it."""


class EngineMissing(ImportError):  # noqa: N818 (a state, named in the interface)
    """Raised when an engine is asked for whose package is not installed here."""


@dataclass(frozen=True)
class StepTraffic:
    """What one step sends: collective rounds, and bytes by party; the opening is the step `open`."""

    name: str
    kind: str
    rounds: int
    by_party: tuple[int, ...]

    @property
    def bytes_sent(self) -> int:
        """Bytes of the party that sends most in this step."""
        return max(self.by_party)


def no_limits(program: Program) -> dict[str, float]:
    """Asks for no more than what holds for every engine (`pibench.program.lower.VALUE_LIMIT`)."""
    return {}


def nothing_to_compile() -> None:
    """Has nothing to compile."""


@dataclass(frozen=True, kw_only=True)
class Engine:
    """What an engine says of itself; reading it imports neither torch nor a framework.

    What it is: `name` is its key, `label` its name in figures, `trust` what must be believed, in one line;
    `parties` the numbers of parties it runs with. `providers` maps each source of correlated randomness to
    the roles of the processes beside the parties, the usual source first. The roles in `serving` obey a
    protocol of their own, online too, instead of the driver's commands. `clocks` are the phases that are
    timed: offline and online, or `all_phases` for an engine that has no offline phase. `exact_truncation`
    tells that no truncation is ever wrong by more than one unit in the last place.

    What it does: `make_node(setting)` makes its part of a process, `value_limits(program)` gives bounds of
    values beyond the common one, `compile_all()` compiles once, into a cache on disk, what no measurement may
    pay for. `traffic(program, batch, parties)` is its traffic law: rounds and bytes of each step, and of the
    opening last. It is None for an engine without one. `rehearse(program, weights, images, after)` computes
    an answer in plaintext in the engine's fixed point; `after`, if given, sees the value of every step.
    Without it nothing is known of what fixed point loses.

    What it needs: `modules` must be importable, `install` is the command that makes them so. With
    `all_listen` every party listens and may be called by every other, as gloo's are, so each needs an address
    that the others reach. Without `steady_traffic` two inferences of one network may send a little more or
    less. `two_hosts` tells that a party may run on another host.

    What is known of it: a party holds about `bytes_per_relu` of memory for each ReLU of an inference;
    `compute` and `waiting` are its times of computing and of waiting for a link, as shares of the stock
    engine's. `line` is its line style in figures; its markers are filled if `filled`. An engine that is not
    `offered` is a yardstick of the suite, not a choice of its users.
    """

    name: str
    label: str
    trust: str
    parties: tuple[int, ...]
    providers: Mapping[str, tuple[str, ...]]
    make_node: Callable[[Setting], Node | Helper]
    exact_truncation: bool
    line: str
    filled: bool
    bytes_per_relu: float
    compute: float
    waiting: float
    serving: tuple[str, ...] = ()
    clocks: tuple[str, ...] = ("offline", "online")
    value_limits: Callable[[Program], Mapping[str, float]] = no_limits
    compile_all: Callable[[], None] = nothing_to_compile
    traffic: Callable[[Program, int, int], Sequence[StepTraffic]] | None = None
    rehearse: Rehearsal | None = None
    modules: tuple[str, ...] = ()
    install: str = ""
    steady_traffic: bool = True
    all_listen: bool = False
    two_hosts: bool = False
    offered: bool = True

    @property
    def provider(self) -> str:
        """The usual source of correlated randomness."""
        return next(iter(self.providers))

    def helpers(self, provider: str) -> tuple[str, ...]:
        """Names the processes that a provider needs beside the parties."""
        if provider not in self.providers:
            raise ValueError(
                f"the {self.name} engine has no provider {provider!r}; "
                f"choose one of {', '.join(self.providers)}"
            )
        return self.providers[provider]

    def demand_parties(self, count: int) -> None:
        """Raises ValueError for a number of parties that the engine does not run with."""
        if isinstance(count, bool) or not isinstance(count, int) or count not in self.parties:
            allowed = " or ".join(map(str, self.parties))
            raise ValueError(f"the {self.name} engine runs with {allowed} parties, not {count}")

    def missing(self) -> str | None:
        """Says which packages are not installed here and what installs them; None if the engine can run."""
        lacking = [module for module in self.modules if find_spec(module) is None]
        if not lacking:
            return None
        return (
            f"the {self.name} engine needs {', '.join(lacking)}, not installed here; install it with: "
            f"{self.install}"
        )

    def demand_installed(self) -> None:
        """Raises EngineMissing, with the command that installs it, where the engine cannot run."""
        if (reason := self.missing()) is not None:
            raise EngineMissing(reason)


@dataclass(frozen=True)
class Setting:
    """What a process is told when it starts.

    `role` is "party" or a helper's name; `rank` counts parties first, then helpers; `parties` is the number
    of parties; `rendezvous` a torch.distributed URL of the whole group (parties and helpers); `provider` the
    source of correlated randomness; `timeout_s` bounds every wait for a peer. `host` is the address at which
    it listens for peers, `link` what lies between them, `relay` the path of the process that shapes it, if
    one does (`pibench.links`), `ports` those at which it may listen (0: any). With two hosts
    (`pibench.hosts.remote`) `guest` is the rank on the other one, which calls and is not called where the
    engine has the choice, and `key` the group's secret.
    """

    engine: str
    role: str
    rank: int
    parties: int
    rendezvous: str
    provider: str
    timeout_s: float
    host: str = "127.0.0.1"
    link: Link = LOOPBACK
    relay: str = ""
    ports: tuple[int, ...] = (0,)
    guest: int | None = None
    key: bytes = b""


@dataclass
class Meter:
    """Counts what this process sends: collective rounds, payload bytes, one-way trips in sequence."""

    rounds: int = 0
    bytes_sent: int = 0
    hops: int = 0

    def count(self, bytes_sent: int, hops: int = 1) -> None:
        """Counts one round of `hops` one-way trips in which this process sends `bytes_sent` bytes."""
        self.rounds += 1
        self.bytes_sent += bytes_sent
        self.hops += hops


@dataclass(frozen=True)
class StepCost:
    """What one step took in one run of this process."""

    name: str
    kind: str
    seconds: float
    rounds: int
    bytes_sent: int


class Node(ABC):
    """A party: loads a program, prepares the randomness of one inference, runs it.

    Party 0 holds the weights, party 1 the image. All parties are driven through the same calls at the same
    time. A subclass gives the shares' arithmetic; the walk over the program is here. `round_hops` are the
    one-way trips, one after the other, of a small round.
    """

    round_hops = 1

    def __init__(self, setting: Setting) -> None:
        self.setting = setting
        self.rank = setting.rank
        self.meter = Meter()
        self.program: Program | None = None

    @abstractmethod
    def load(self, program: Program, weights: Mapping[str, torch.Tensor] | None) -> None:
        """Shares the weights. `weights` (float64) are party 0's; the others are given None."""

    @abstractmethod
    def forget(self) -> None:
        """Lets go of the network that is loaded and of all that was made for it."""

    def plan(self, batch: int) -> None:
        """Does once for a batch what the offline phase must not be charged with; by default nothing."""
        return

    def prepare(self, batch: int) -> int:
        """Makes the correlated randomness of one inference; returns its bytes held by this party.

        By default nothing: an engine with one clock has no offline phase.
        """
        return 0

    @abstractmethod
    def barrier(self) -> None:
        """Returns when every party is here; counted nowhere."""

    @abstractmethod
    def small_round(self) -> None:
        """Runs one round of a few bytes, as an inference does; counted nowhere."""

    def start(self, batch: int) -> None:
        """Takes the prepared randomness, once; raises NotPrepared if there is none for this batch."""
        return

    @abstractmethod
    def share(self, images: torch.Tensor | None, batch: int) -> Any:
        """Shares the input [batch, *input_shape] (float), which party 1 alone is given."""

    @abstractmethod
    def apply(self, step: Step, *inputs: Any) -> Any:
        """Runs one step on shares."""

    @abstractmethod
    def reveal(self, value: Any) -> torch.Tensor | None:
        """Opens the output: float logits, or None at a party that does not see them."""

    def run(self, shared: Any, after: Callable[[Step], None] | None = None) -> torch.Tensor | None:
        """Walks the program from the shared input to the opened output."""
        program = self.program
        if program is None:
            raise RuntimeError("no program is loaded: call load first")
        last = program.last_uses()
        values = {program.input: shared}
        for step in program.steps:
            values[step.name] = self.apply(step, *(values[name] for name in step.inputs))
            for name in {name for name in step.inputs if last.get(name) == step.name}:
                del values[name]
            if after is not None:
                after(step)
        return self.reveal(values[program.output])

    def profile(self, shared: Any) -> list[StepCost]:
        """Runs once and returns the cost of each step, and of the opening as the last."""
        costs: list[StepCost] = []
        mark = (time.perf_counter(), self.meter.rounds, self.meter.bytes_sent)

        def note(name: str, kind: str) -> None:
            nonlocal mark
            now = (time.perf_counter(), self.meter.rounds, self.meter.bytes_sent)
            costs.append(StepCost(name, kind, now[0] - mark[0], now[1] - mark[1], now[2] - mark[2]))
            mark = now

        self.run(shared, after=lambda step: note(step.name, step.kind))
        note("open", "open")
        return costs

    @abstractmethod
    def close(self) -> None:
        """Lets go of connections."""


class Helper(ABC):
    """A process that is no party (a dealer): it takes part in load and prepare, never online.

    `load` and `prepare` are called at the same time as the parties'. A helper with `serves` set instead
    obeys its own protocol: `serve` is called once and returns when the parties are gone.
    """

    serves = False

    def __init__(self, setting: Setting) -> None:
        self.setting = setting

    @abstractmethod
    def load(self, program: Program) -> None:
        """Learns the public program."""

    @abstractmethod
    def prepare(self, batch: int) -> int:
        """Deals the randomness of one inference; returns the bytes it sent."""

    @abstractmethod
    def close(self) -> None:
        """Lets go of connections."""
