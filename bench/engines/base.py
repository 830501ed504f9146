"""What an engine's processes have in common: their setting, the meter, the walk over a program."""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pibench.links.link import LOOPBACK, Link
from pibench.program.ir import Program, Step

if TYPE_CHECKING:  # what an engine says of itself is read without torch
    import torch


class NotPrepared(RuntimeError):  # noqa: N818 (a state, named in the interface)
    """Raised by `infer` when no offline phase for this batch precedes it."""


@dataclass(frozen=True)
class EngineInfo:
    """What an engine says of itself; nothing of it is imported to read this.

    `module` is where it lives, `label` its name in figures, `trust` what must be believed, in one line;
    `parties` the numbers of parties it runs with, `provider` its usual source of correlated randomness.
    `exact_truncation` tells that no truncation is ever wrong by more than one unit in the last place.
    `line` is its line style in figures; its markers are filled if `filled`.
    Without `steady_traffic` two inferences of one network may send a little more or less.
    Its module gives `helper_roles(provider) -> tuple[str, ...]` (processes beside the parties),
    `make_node(setting) -> Node | Helper`, `value_limits(program)` (bounds of values beyond the common one)
    and `compile_all()` (what must be compiled, once, into a cache on disk).
    """

    module: str
    label: str
    trust: str
    parties: tuple[int, ...]
    provider: str
    exact_truncation: bool
    line: str
    filled: bool
    steady_traffic: bool = True


ENGINES = {
    "stock": EngineInfo(
        "pibench.engines.crypten.node",
        label="stock (CrypTen)",
        trust="semi-honest parties; party 0 deals the correlated randomness",
        parties=(2, 3),
        provider="TFP",
        exact_truncation=False,
        line="--",
        filled=False,
    ),
    "byhand": EngineInfo(
        "pibench.engines.crypten.byhand",
        label="CrypTen by hand",
        trust="as stock",
        parties=(2,),
        provider="TFP",
        exact_truncation=False,
        line=":",
        filled=False,
    ),
    "lean": EngineInfo(
        "pibench.engines.lean",
        label="lean (ours)",
        trust="two semi-honest parties; a dealer in a process of its own, idle online",
        parties=(2,),
        provider="dealer",
        exact_truncation=True,
        line="-",
        filled=True,
    ),
    "spu-semi2k": EngineInfo(
        "pibench.engines.spu",
        label="SEMI2K (SPU)",
        trust="two semi-honest parties; party 0 deals the correlated randomness",
        parties=(2,),
        provider="first party",
        exact_truncation=True,
        line="-.",
        filled=False,
    ),
    "spu-aby3": EngineInfo(
        "pibench.engines.spu",
        label="ABY3 (SPU)",
        trust="three semi-honest parties, of whom no two collude; no dealer",
        parties=(3,),
        provider="none",
        exact_truncation=True,
        line="-.",
        filled=True,
        steady_traffic=False,  # who does what is drawn anew in each truncation; the sum is the same
    ),
    "spu-cheetah": EngineInfo(
        "pibench.engines.spu",
        label="Cheetah (SPU)",
        trust="two semi-honest parties, nobody else: no dealer",
        parties=(2,),
        provider="none",
        exact_truncation=True,
        line=":",
        filled=True,
        steady_traffic=False,  # ciphertexts are compressed, oblivious transfers are made in stocks
    ),
}


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

    @abstractmethod
    def prepare(self, batch: int) -> int:
        """Makes the correlated randomness of one inference; returns its bytes held by this party."""

    @abstractmethod
    def barrier(self) -> None:
        """Returns when every party is here; counted nowhere."""

    @abstractmethod
    def small_round(self) -> None:
        """Runs one round of a few bytes, as an inference does; counted nowhere."""

    @abstractmethod
    def start(self, batch: int) -> None:
        """Takes the prepared randomness, once; raises NotPrepared if there is none for this batch."""

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
