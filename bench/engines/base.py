"""The common parts of engines: the description, the setting of a process, the meter, the program walk.

This module does not import torch, so a program that lists engines does not need torch.
"""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, MutableMapping, Sequence
from dataclasses import dataclass, field
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from pibench.links.link import LOOPBACK, Link
from pibench.program.ir import Program, Step

if TYPE_CHECKING:
    import torch

    from pibench.program.plaintext import Rehearsal


class NotPrepared(RuntimeError):  # noqa: N818 (a state, named in the interface)
    """Raised by `infer` when no offline phase for this batch precedes it."""


class EngineMissing(ImportError):  # noqa: N818 (a state, named in the interface)
    """Raised when the package of the requested engine is not installed."""


@dataclass(frozen=True)
class StepTraffic:
    """The traffic of one step: collective rounds, one-way trips in sequence (hops), and bytes by party.

    The opening is the step `open`. An engine that counts messages as rounds tells those of each party in
    `messages`; `rounds` are those of the party that sends most in this step.
    """

    name: str
    kind: str
    rounds: int
    hops: int
    by_party: tuple[int, ...]
    messages: tuple[int, ...] = ()

    @property
    def bytes_sent(self) -> int:
        """Bytes of the party that sends most in this step."""
        return max(self.by_party)


def no_limits(program: Program) -> dict[str, float]:
    """Returns no limits beyond the common one (`pibench.program.lower.VALUE_LIMIT`)."""
    return {}


def usual_options() -> dict[str, str | int | bool]:
    """Returns the arithmetic of an engine without choices."""
    return {"ring_bits": 64, "fraction_bits": 16}


def suited() -> None:
    """Finds nothing that keeps an engine from this machine."""


def nothing_to_compile() -> None:
    """Does nothing: the engine has nothing to compile."""


@dataclass(frozen=True, kw_only=True)
class Engine:
    """The description of an engine; reading it imports neither torch nor a framework.

    Identity: `name` is the key, `label` the name in figures. `trust` says in one line whom the users must
    trust. `parties` lists the possible numbers of parties. `providers` maps each source of correlated
    randomness to the roles of its helper processes; the usual source comes first. The roles in `serving` obey
    their own protocol, also online, and not the driver's commands. `clocks` are the timed phases: offline and
    online, or `all_phases` for an engine without an offline phase. `exact_truncation` is true if no
    truncation is ever wrong by more than one unit in the last place. `options` is the arithmetic as rows
    store it: the bits of the ring and of fractions, and the choices that the protocol offers.

    Functions: `make_node(setting)` makes the engine's part of a process. `value_limits(program)` returns
    bounds of values beyond the common one. `compile_all()` compiles everything once into a cache on disk, so
    that no measurement pays for it. `traffic(program, batch, parties)` is the traffic law: rounds, hops and
    bytes of each step, with the opening last. It is None for an engine without one. Where the traffic is not
    steady, the law gives a mean or one possible course.
    `rehearse(program, weights, images, after)` computes an answer in plaintext, in the engine's fixed point.
    `after`, if given, sees the value of every step. Without `rehearse` the loss of fixed point stays unknown.
    A loss above `usual_loss`, as a share of the answer's largest number, is worth a warning.

    Requirements: `modules` must be importable, and `install` is the command that installs them. `unsuited()`
    returns why no command can install them here, or None. With `all_listen` every party listens and every
    other party may call it, as with gloo. Each party then needs an address that the others reach. With
    `calibrated` the program must carry public bounds of its values, from the example that is loaded. Without
    `steady_traffic` the traffic of two inferences of one network may differ a little. `two_hosts` is true if
    a party may run on another host.

    Estimates and looks: a party holds about `bytes_per_relu` bytes of memory for each ReLU of an inference,
    and `bytes_per_parameter` for each parameter of the network. `compute` and `waiting` are the times for
    computing and for waiting on a link, relative to the stock engine. `line` is the line style in figures,
    and `filled` chooses filled markers. An engine that is not `offered` is a yardstick of the suite, not a
    choice for its users.
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
    usual_loss: float = 0.005
    bytes_per_parameter: float = 0.0
    serving: tuple[str, ...] = ()
    clocks: tuple[str, ...] = ("offline", "online")
    options: Mapping[str, str | int | bool] = field(default_factory=usual_options)
    value_limits: Callable[[Program], Mapping[str, float]] = no_limits
    compile_all: Callable[[], None] = nothing_to_compile
    traffic: Callable[[Program, int, int], Sequence[StepTraffic]] | None = None
    rehearse: Rehearsal | None = None
    modules: tuple[str, ...] = ()
    install: str = ""
    unsuited: Callable[[], str | None] = suited
    steady_traffic: bool = True
    all_listen: bool = False
    calibrated: bool = False
    two_hosts: bool = False
    offered: bool = True

    @property
    def provider(self) -> str:
        """The usual source of correlated randomness."""
        return next(iter(self.providers))

    def helpers(self, provider: str) -> tuple[str, ...]:
        """Returns the roles of the helper processes of a provider.

        Raises ValueError for an unknown provider.
        """
        if provider not in tuple(self.providers):  # a list, which has no hash, is refused likewise
            raise ValueError(
                f"the {self.name} engine has no provider {provider!r}; "
                f"choose one of {', '.join(self.providers)}"
            )
        return self.providers[provider]

    def demand_parties(self, count: int) -> None:
        """Raises ValueError for a number of parties that the engine cannot run with."""
        if isinstance(count, bool) or not isinstance(count, int) or count not in self.parties:
            allowed = " or ".join(map(str, self.parties))
            raise ValueError(f"the {self.name} engine runs with {allowed} parties, not {count}")

    def inference_bytes(self, program: Program) -> float:
        """Estimates the bytes of memory that a party needs at least for each image of an inference.

        They are those of its ReLUs and comparisons, and of the shares of the largest step.
        """
        compared = sum(step.relus + step.comparisons for step in program.steps)
        largest = max((step.input_size + step.size for step in program.steps), default=0)
        return compared * self.bytes_per_relu + 8 * largest

    @property
    def one_clock(self) -> bool:
        """True for an engine that does everything in the inference, without an offline phase."""
        return len(self.clocks) == 1

    def missing(self) -> str | None:
        """Returns which packages are not installed and how to install them, or None if the engine can run."""
        lacking = [module for module in self.modules if find_spec(module) is None]
        if not lacking:
            return None
        needed = f"the {self.name} engine needs {', '.join(lacking)}"
        if (reason := self.unsuited()) is not None:
            return f"{needed}, which {reason}"
        return f"{needed}, not installed here; install it with: {self.install}"

    def demand_installed(self) -> None:
        """Raises EngineMissing, with the command that installs the engine, where it cannot run."""
        if (reason := self.missing()) is not None:
            raise EngineMissing(reason)


@dataclass(frozen=True)
class Setting:
    """The facts that a process receives when it starts.

    `role` is "party" or a helper's name. `rank` counts parties first, then helpers. `parties` is the number
    of parties. `rendezvous` is where the whole group meets (parties and helpers). The driver names the path
    of a file, and an engine gets a torch.distributed URL (`pibench.parties.rendezvous`). `provider` is the
    source of correlated randomness. `timeout_s` limits every wait for a peer, in seconds. `host` is the
    address at which the process listens for peers. `link` is the link between the processes, and `relay` is
    the path of the process that shapes it, if there is one (`pibench.links`). `ports` are the ports at which
    the process may listen (0: any). `key` is the secret by which the processes of the group know each other.
    With two hosts (`pibench.hosts.remote`) `guest` is the rank on the other host. Where the engine has the
    choice, the guest calls and is never called.
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
    """Counts the traffic of this process: collective rounds, payload bytes, sequential one-way trips."""

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
    """The cost of one step in one run of this process."""

    name: str
    kind: str
    seconds: float
    rounds: int
    bytes_sent: int


class Node(ABC):
    """A party: it loads a program, prepares the randomness of one inference and runs the inference.

    Party 0 holds the weights, party 1 the image. All parties receive the same calls at the same time. A
    subclass provides the arithmetic on shares; this class walks over the program. `round_hops` is the number
    of sequential one-way trips of a small round.
    """

    round_hops = 1

    def __init__(self, setting: Setting) -> None:
        self.setting = setting
        self.rank = setting.rank
        self.meter = Meter()
        self.program: Program | None = None

    @abstractmethod
    def load(self, program: Program, weights: MutableMapping[str, torch.Tensor] | None) -> None:
        """Shares the weights. `weights` (float64) are given to party 0 alone; the others receive None.

        The node may take weights out of the mapping, so that their memory is free as soon as they are shared.
        """

    @abstractmethod
    def forget(self) -> None:
        """Drops the loaded network and everything that was made for it."""

    def plan(self, batch: int) -> None:
        """Does the work that a batch size needs once and that the offline phase must not pay for.

        By default nothing.
        """
        return

    def prepare(self, batch: int) -> int:
        """Makes the correlated randomness of one inference; returns its bytes held by this party.

        By default it does nothing: an engine with one clock has no offline phase.
        """
        return 0

    @abstractmethod
    def barrier(self) -> None:
        """Returns when every party has arrived; the meter does not count it."""

    @abstractmethod
    def small_round(self) -> None:
        """Runs one round of a few bytes, as an inference does; the meter does not count it."""

    def start(self, batch: int) -> None:
        """Takes the prepared randomness, once; raises NotPrepared if there is none for this batch."""
        return

    @abstractmethod
    def share(self, images: torch.Tensor | None, batch: int) -> Any:
        """Shares the input [batch, *input_shape] (float), which party 1 alone receives."""

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


class Helper(ABC):
    """A process that is no party (a dealer): it takes part in load and prepare, never online.

    `load` and `prepare` are called at the same time as those of the parties. A helper with `serves` set obeys
    its own protocol instead: `serve` is called once and returns when the parties are gone.
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
