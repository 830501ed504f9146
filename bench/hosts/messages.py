"""Messages that two hosts exchange: their fields, and the types that a receiver demands.

The driver's host opens processes on the other host and passes commands on to them. The other host passes
their replies back, and their calls on the store in which the parties find each other. `demand` checks
everything that arrives. A message with a missing field, a value of another type or an unknown command is
refused in one sentence.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from typing import Annotated, Any, Literal, get_args

import torch
from pydantic import ConfigDict, Field, NonNegativeInt, PositiveInt, TypeAdapter, ValidationError
from typing_extensions import TypedDict  # pydantic cannot use typing's own below Python 3.12

from pibench.engines.base import Setting, StepCost
from pibench.links.link import Link
from pibench.program.ir import Operator, Program, Step

LONGEST_S = 86_400.0  # of a time-out between hosts
EXACT = ConfigDict(
    strict=True, extra="forbid", arbitrary_types_allowed=True, revalidate_instances="always"
)  # fields of records are checked, too

Seconds = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Rate = Annotated[float, Field(gt=0)]
ExitCode = Annotated[int, Field(ge=-31, le=255)]  # or the negative number of a signal
Stored = bytes | str | bool | int | None


class Altered(ConnectionError):  # noqa: N818 (what happened)
    """Raised for bytes that the other end did not send, or that no message may hold."""


class Unsendable(ValueError):  # noqa: N818 (what happened)
    """Raised for a message that does not fit between two hosts; it was not sent."""


# Messages. `number` is the number of a group.


@dataclass(frozen=True)
class Introduction:
    """The first message of the other host."""

    facts: dict[str, str]
    machine: dict[str, str | int | None]


@dataclass(frozen=True)
class DriverIntroduction:
    """The first message of the driver's host.

    `host` is its address, and `network` names the network of a loopback address
    (`pibench.links.local.network_of`). A host that is silent for `silence_s` seconds counts as lost.
    """

    facts: dict[str, str]
    machine: dict[str, str | int | None]
    host: str
    network: str
    silence_s: Annotated[float, Field(gt=0, le=LONGEST_S)]


@dataclass(frozen=True)
class Open:
    """The driver asks for a process with this setting."""

    number: PositiveInt
    setting: Setting


@dataclass(frozen=True)
class Say:
    """The driver's command to a process; `checksum` is that of the program in it, or empty."""

    number: PositiveInt
    command: str
    arguments: tuple[Any, ...]
    checksum: str


@dataclass(frozen=True)
class Answered:
    """The store's answer to a call: its result, or the error if it is not `done`."""

    number: PositiveInt
    done: bool
    value: Stored


@dataclass(frozen=True)
class End:
    """The driver asks for the end of a process."""

    number: PositiveInt


@dataclass(frozen=True)
class Bye:
    """The driver has finished, or gave up for a reason."""

    reason: str | None


@dataclass(frozen=True)
class Opened:
    """The other host has started a process."""

    number: PositiveInt
    pid: PositiveInt


@dataclass(frozen=True)
class Said:
    """A process has said that it is ready, that it has done a command, or why not."""

    number: PositiveInt
    kind: Literal["ready", "done", "not prepared", "failed"]
    value: Any


@dataclass(frozen=True)
class Call:
    """A process calls the store."""

    number: PositiveInt
    name: str
    arguments: tuple[Stored | float | list[str], ...]


@dataclass(frozen=True)
class Ended:
    """A process has ended, or could not start: its exit code, if there is one, and its last words."""

    number: PositiveInt
    code: ExitCode | None
    words: str


FromDriver = Open | Say | Answered | End | Bye
FromGuest = Opened | Said | Call | Ended
RECORDS: Mapping[str, type] = {
    kind.__name__: kind
    for kind in (
        *(Introduction, DriverIntroduction, *get_args(FromDriver), *get_args(FromGuest)),
        *(Setting, Link, StepCost, Program, Step, *get_args(Operator)),
    )
}
"""The dataclasses that a message may hold, by their names."""


# Commands: `pibench.parties.worker.Session` obeys them.


class Loaded(TypedDict):
    """The reply to `load`."""

    seconds: Seconds
    rounds: NonNegativeInt
    bytes_sent: NonNegativeInt


class Prepared(TypedDict):
    """The reply to `prepare`."""

    seconds: Seconds
    bytes: NonNegativeInt


class Inferred(TypedDict):
    """The reply to `infer`."""

    seconds: Seconds
    rounds: NonNegativeInt
    bytes_sent: NonNegativeInt
    hops: NonNegativeInt
    logits: torch.Tensor | None


class Idle(TypedDict):
    """The reply to `idle`."""

    seconds: Seconds


class Probed(TypedDict):
    """The reply to `probe_link`."""

    rtt_s: Seconds
    bandwidth_bits_s: Rate
    round_hops: PositiveInt
    round_s: Seconds


@dataclass(frozen=True)
class Command:
    """The types of a command's arguments and of its reply, at a party on another host."""

    arguments: Any
    reply: Any


COMMANDS: Mapping[str, Command] = {
    "load": Command(tuple[Program, None], Loaded),  # the weights stay with party 0
    "plan": Command(tuple[PositiveInt], None),
    "prepare": Command(tuple[PositiveInt], Prepared),
    "infer": Command(tuple[torch.Tensor, PositiveInt], Inferred),
    "profile": Command(tuple[torch.Tensor, PositiveInt], list[StepCost]),
    "idle": Command(tuple[()], Idle),
    "listen": Command(tuple[()], None),
    "probe_link": Command(tuple[str, PositiveInt, PositiveInt | None], Probed),
    "peak_memory": Command(tuple[()], NonNegativeInt),
}
START = "start"  # what a process does before its first command


def demand(kind: Any, value: Any) -> None:
    """Raises Altered, naming the first wrong part, unless `value` is of the type `kind` in all its parts."""
    try:
        _schema(kind).validate_python((value,))
    except ValidationError as error:
        found = error.errors(include_url=False, include_input=False)[0]
        place = ".".join(str(step) for step in found["loc"][1:])
        where = f" at {place}" if place else ""
        raise Altered(f"a {type(value).__name__} of a message is wrong{where}: {found['msg']}") from None


def demand_command(said: Say) -> None:
    """Raises Altered unless `said` is a command with arguments that a party on another host may get."""
    if said.command not in COMMANDS:
        raise Altered(f"a message holds the command {said.command[:40]!r}, which no party obeys")
    demand(COMMANDS[said.command].arguments, said.arguments)


def demand_reply(said: Said, command: str | None) -> None:
    """Raises Altered unless `said` is what a process may say after `command` (None: it was told nothing)."""
    if said.kind == "failed":
        demand(str, said.value)
    elif command is None or (said.kind == "ready") != (command == START):
        raise Altered(f"a party said {said.kind!r} when nobody had asked it")
    elif said.kind == "not prepared":
        demand(str, said.value)
    else:
        demand(None if command == START else COMMANDS[command].reply, said.value)


@cache
def _schema(kind: Any) -> TypeAdapter[Any]:
    return TypeAdapter(tuple[kind], config=EXACT)  # a tuple, because pydantic takes no config for a dataclass
