"""The schema of bench.json's rows.

`None` stands for a measure that is missing. Names carry their units: `_s` seconds, `_bits_s` bits a second.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal, NotRequired, get_args

from pydantic import AfterValidator, TypeAdapter
from typing_extensions import TypedDict

from pibench.models.rows import Amount, Count, Positive, Size, Whole, check, checked

Role = Literal["headline", "link", "batch", "sweep", "extra", "protocol"]
"""Protocol: a row of one clock, which stands in no table of online seconds."""
Timing = Literal["measured", "emulated"]
"""Emulated: real parties, whose bytes a shaper delays."""
ROLES: tuple[str, ...] = get_args(Role)
Clock = Literal["offline_s", "online_s", "total_s", "all_phases_s"]
CLOCKS: tuple[Clock, ...] = ("offline_s", "online_s", "total_s")
"""What a row has whose engine has an offline phase."""
ONE_CLOCK: tuple[Clock, ...] = ("all_phases_s",)
"""What a row has whose engine does everything in the inference."""


@checked
class LinkCheckRow(TypedDict):
    """The result of `pibench.links.LinkCheck.as_dict()` for the measured parties."""

    shaper: str
    asked_rtt_s: Amount
    measured_rtt_s: Amount | None
    asked_bandwidth_bits_s: Positive | None
    measured_bandwidth_bits_s: Positive | None
    round_s: Amount | None
    round_hops: Count | None
    hop_overhead_s: float | None
    ok: bool
    complaint: str | None


@checked
class LinearRow(TypedDict):
    """A linear layer as the literature's cost models see it."""

    name: str
    kind: str
    inputs: Size
    outputs: Size
    kernel: list[Size]
    in_map: list[Size]
    out_map: list[Size]
    groups: Size


@checked
class NetworkRow(TypedDict):
    """The result of `pibench.costs.literature.Network.as_dict()`."""

    name: str
    relus: Count
    relu_layers: Count
    linear: list[LinearRow]


@checked
class Cost(TypedDict):
    """Counts of one image."""

    relus: Count | None
    comparisons: Count | None
    relu_layers: Count | None
    linear_layers: Count | None
    macs: Count | None
    parameters: Count | None


@checked
class Traffic(TypedDict):
    """The traffic of one online phase; `hops` are one-way trips in sequence."""

    rounds: Count | None
    hops: Count | None
    bytes_sent: Count | None
    bytes_sent_by_party: list[Count | None]
    bytes_total: Count | None


@checked
class Setup(TypedDict):
    """Sharing the weights of a network, once."""

    seconds: Amount | None
    rounds: Count | None
    bytes_sent_by_party: list[Count | None]


@checked
class Offline(TypedDict):
    """The correlated randomness of one inference."""

    correlated_bytes_by_party: list[Count | None]
    dealt_bytes: Count | None


@checked
class RoundTraffic(TypedDict):
    """The traffic of one round, where rounds differ in it."""

    rounds: Count
    bytes_sent_by_party: list[Count]


@checked
class Times(TypedDict, total=False):
    """Seconds of each round that succeeded, by the slower party's clock: `CLOCKS`, or `ONE_CLOCK` alone."""

    offline_s: list[Positive]
    online_s: list[Positive]
    total_s: list[Positive]
    all_phases_s: list[Positive]


@checked
class Truncation(TypedDict):
    """Wrong truncations: by the engine's law, of one inference and of all, and as they were seen."""

    expected_per_inference: Amount | None
    expected: Amount | None
    observed: Count | None


@checked
class Answer(TypedDict):
    """The largest error of a logit, beside what it is judged by."""

    max_error: Amount | None
    spread: Amount | None
    relative_error: Amount | None
    tolerance: Amount | None


@checked
class Rounds(TypedDict):
    """Rounds that were begun, and those that gave a time."""

    attempted: Count
    succeeded: Count


@checked
class Layer(TypedDict):
    """One step of a profiled inference."""

    name: str
    kind: str
    seconds: Amount | None
    rounds: Count | None
    bytes_sent: Count | None
    relus: Count | None
    macs: Count | None
    parameters: Count | None


@checked
class Machine(TypedDict):
    """The machine that measured."""

    cpu: str | None
    cores: Count | None
    memory_bytes: Count | None
    system: str | None
    python: str | None


@checked
class Reference(TypedDict):
    """The case measured in turn with a row's own: its rounds stand at the places of those they pair with.

    It has the row's own clocks. None stands where a partner is lost. Rows of older runs have no `link_check`
    here.
    """

    case: str
    offline_s: NotRequired[list[Positive | None]]
    online_s: NotRequired[list[Positive | None]]
    total_s: NotRequired[list[Positive | None]]
    all_phases_s: NotRequired[list[Positive | None]]
    link_check: NotRequired[LinkCheckRow | None]


@checked
class Row(TypedDict):
    """A case that was measured.

    `link_check` is None where no check was made, `network` for a network that the literature's models do not
    price, `reference` for a case that was measured alone. `trust` names whom the parties must trust.
    `options` tells how the engine computes: fraction bits, and the choices that its protocol offers.
    `traffic_of_rounds` stands beside the times of an engine whose traffic varies; `traffic` is then that of
    the repetition with the median of the bytes. `plaintext_s` are seconds of the network itself, in float32
    and on one thread, before each round. `headroom_bits` are the free bits of a ring that is calibrated.
    `digest` stands for all that determines the row
    (`pibench.measure.digest`); rows of two hosts have none. `host` names the computer. Rows of older runs
    lack these seven.
    """

    case: str
    variant: str
    width: Count
    engine: str
    provider: str | None
    batch: Size
    link: str
    timing: Timing
    link_check: LinkCheckRow | None
    parties: Size
    role: Role
    weights: str | None
    images: str | None
    cost: Cost
    traffic: Traffic
    setup: Setup
    offline: Offline
    times: Times
    peak_memory_bytes_by_party: list[Count | None]
    truncation: Truncation
    answer: Answer
    rounds: Rounds
    layers: list[Layer]
    network: NetworkRow | None
    conventions: dict[str, str]
    machine: Machine
    versions: dict[str, str | None]
    commit: str | None
    dirty: bool | None
    run: str
    started: str
    reference: Reference | None
    trust: NotRequired[str]
    options: NotRequired[dict[str, str | Whole | bool]]
    traffic_of_rounds: NotRequired[list[RoundTraffic]]
    plaintext_s: NotRequired[list[Amount]]
    headroom_bits: NotRequired[float]
    digest: NotRequired[str]
    host: NotRequired[str]


def clocks_of(row: Row) -> tuple[Clock, ...]:
    """Returns the names of a row's clocks in `times`."""
    return ONE_CLOCK if ONE_CLOCK[0] in row["times"] else CLOCKS


def whole_clock(row: Row) -> Clock:
    """Returns the clock of a whole repetition: `all_phases_s`, or `total_s` beside the phases."""
    return clocks_of(row)[-1]


def validate(row: object) -> None:
    """Raises ResultsError naming the first key of `row` that is missing, of a wrong type or contradictory."""
    check(_ROW, row)


def _agrees(row: Row) -> Row:
    """Raises ValueError unless the parts of a row agree with each other."""
    name = f"the row {row['case']!r}"
    _check_link(row, name)
    times, reference, clocks = row["times"], row["reference"], clocks_of(row)
    for part, found in (("times", times), ("reference", reference)):
        if found is not None and (
            wrong := {*clocks} ^ {clock for clock in get_args(Clock) if clock in found}
        ):
            raise ValueError(
                f"In {name} `{part}` has not the clocks of one engine ({', '.join(sorted(wrong))}): keep "
                f"{', '.join(CLOCKS)}, or {ONE_CLOCK[0]} alone."
            )
    for clock in clocks:
        if len(times[clock]) != row["rounds"]["succeeded"]:
            raise ValueError(
                f"In {name} `times.{clock}` has {len(times[clock])} rounds, "
                f"`rounds.succeeded` {row['rounds']['succeeded']}: keep one time a successful round."
            )
    if len(row.get("traffic_of_rounds", times[clocks[-1]])) != row["rounds"]["succeeded"]:
        raise ValueError(f"In {name} `traffic_of_rounds` has not one traffic a successful round.")
    for clock in clocks:
        if reference is not None and len(reference[clock]) != len(times[clock]):
            raise ValueError(
                f"In {name} `reference.{clock}` does not pair with `times.{clock}` "
                f"({len(reference[clock])} rounds, {len(times[clock])}): "
                "write null where a round lost its partner."
            )
    return row


def _check_link(row: Row, name: str) -> None:
    """Raises ValueError unless `timing`, the link and its check say the same."""
    timing, found = row["timing"], row["link_check"]
    if found is None:
        if timing == "emulated":
            raise ValueError(
                f"In {name} `link_check` is null: an emulated link is checked before it is used."
            )
        return
    shaped = found["asked_rtt_s"] > 0 or found["asked_bandwidth_bits_s"] is not None
    if shaped != (timing == "emulated"):
        what = "an RTT or a bandwidth was asked for" if shaped else "no RTT and no bandwidth was asked for"
        rule = "times over a shaped link are emulated, others measured"
        raise ValueError(f"In {name} `timing` is {timing!r} though {what}: {rule}.")
    if found["ok"] != (found["complaint"] is None):
        raise ValueError(
            f"In {name} `link_check.ok` is {found['ok']} and `link_check.complaint` {found['complaint']!r}: "
            "give a complaint exactly when the link is not what was asked for."
        )


_ROW: TypeAdapter[Any] = TypeAdapter(Annotated[Row, AfterValidator(_agrees)])
