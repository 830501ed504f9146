"""The length and the rate of each phase: data, no code."""

import dataclasses
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from math import cos, inf, pi
from typing import Any


@dataclass(frozen=True)
class Schedule:
    """SGD with momentum on one cycle: the rate rises from peak / 25 to `peak`, then falls to peak / 250,000.

    Both parts follow a cosine. The rise takes the fraction `warmup` of all steps (Smith and Topin, arXiv
    1708.07120; momentum is constant here). With `standardized` a teacher's logits and the student's are
    compared by their standard scores. Raises ValueError for values out of range.
    """

    epochs: int
    peak: float
    warmup: float = 0.3
    batch: int = 256
    momentum: float = 0.9
    weight_decay: float = 5e-4
    smoothing: float = 0.1
    standardized: bool = False

    def __post_init__(self) -> None:
        if self.epochs < 1 or self.batch < 1 or self.peak <= 0 or not 0 <= self.warmup < 1:
            raise ValueError(
                f"no schedule: {self} (epochs and batch are 1 or more, peak is above 0, warmup is in [0, 1))"
            )

    def rate(self, done: float) -> float:
        """Returns the learning rate after the fraction `done` of all steps, in [0, 1]."""
        if done < self.warmup:
            start, end, part = self.peak / 25, self.peak, done / self.warmup
        else:
            start, end, part = self.peak, self.peak / 250_000, (done - self.warmup) / (1 - self.warmup)
        return end + (start - end) * (1 + cos(pi * part)) / 2

    def scaled(self, factor: float) -> "Schedule":
        """Returns the schedule with its epochs multiplied by `factor`, at least one."""
        return dataclasses.replace(self, epochs=max(1, round(self.epochs * factor)))


@dataclass(frozen=True)
class GateSchedule(Schedule):
    """The gate falls linearly from 1 to 0 in the fraction `fading` of the epochs; `images` fit the start.

    If `bounded`, the last layer of the fading branch keeps its weights, so that the branch cannot grow
    against the gate. The last layer is its last BatchNorm, or the convolution of a block that activates
    first.
    """

    fading: float = 0.5
    images: int = 2000
    bounded: bool = False


@dataclass(frozen=True)
class MaskSchedule(Schedule):
    """Masks are chosen once, scored on `images` images, and stay."""

    images: int = 5000


@dataclass(frozen=True)
class SparseSchedule(Schedule):
    """A proxy of global `density`; the smallest weights move, at first the fraction `moved` each time.

    Weights move `moves` times an epoch. The fraction falls linearly to 0 at the end (SENet, and sparse
    momentum, arXiv 1907.04840).
    """

    density: float = 0.1
    moved: float = 0.5
    moves: int = 1


@dataclass(frozen=True)
class RankSchedule(Schedule):
    """Kernels are truncated to low rank after every `every` steps, and at the end.

    Between truncations `nuclear` times the direction of growing nuclear norm is added to their gradients.
    Source: TRP (arXiv 1812.02402, 2004.14566).
    """

    every: int = 20
    nuclear: float = 3e-4


@dataclass(frozen=True)
class LassoSchedule(Schedule):
    """SNL's selection: the lasso starts at `weight` and grows by `growth` at each check that stalls.

    There are `checks` checks an epoch. `threshold` is the slope above which a ReLU counts. The slopes have
    their own Adam. Its rate lets them travel from 1 to 0 `travels` times in the phase (ours, so that any
    number of epochs works).
    """

    weight: float = 1e-5
    growth: float = 1.1
    checks: int = 20
    threshold: float = 1e-2
    travels: float = 4.0


@dataclass(frozen=True)
class HysteresisSchedule(Schedule):
    """The number of ReLUs falls by an equal factor at each check, and reaches the budget after `falling`.

    There are `checks` checks an epoch; `falling` is a fraction of the epochs. The scores have an Adam of the
    rate `pace`. Gradients of the weights are scaled down to the norm `clip`.
    """

    checks: int = 20
    falling: float = 0.75
    pace: float = 1e-3
    clip: float = 1.0


@dataclass(frozen=True)
class FoldSchedule(Schedule):
    """Layer Folding's selection: `weight` is that of the penalty (arXiv 2106.09309).

    The slopes have their own Adam, whose rate lets them travel from 0 to 1 `travels` times in the phase.
    """

    weight: float = 0.3
    travels: float = 4.0


@dataclass(frozen=True)
class ShrinkSchedule(Schedule):
    """Small weights shrink by the fraction `shrink` at each step (arXiv 2303.09650).

    After the fraction `settled` of all steps they are 0 for good.
    """

    shrink: float = 0.05
    settled: float = 0.5


@dataclass(frozen=True)
class ConstraintSchedule(Schedule):
    """Gates under a constraint: their log-odds travel `travels` times through their range in the phase.

    The multiplier of a constraint that is violated by v grows by `dual` times v in the phase (arXiv
    2208.04425).
    """

    travels: float = 4.0
    dual: float = 200.0


PLANS = {
    "quick": "a first look on two cores at width 16",
    "standard": "three hours for all rows there",
    "long": "most committed rows: a quarter of an hour for all of one width on an H200",
    "scored": "as `long`; with masks a teacher's logits count by their standard scores; joint is tuned",
    "paper": "as many epochs as the papers of SENet and SNL have, 500 to 700 a row; for a CUDA device",
}
"""Plans by name. A phase that does not name its schedule under a plan takes the one of `USUAL`'s."""

USUAL: dict[str, Any] = {"plan": "long", "epochs_scale": 1.0, "precision": "bfloat16"}
"""The usual training of committed rows; a variant may name another plan."""

Schedules = Mapping[str, Mapping[str, Schedule | None]]
"""The declaration of a reduction: kind of phase -> plan -> schedule, None to leave the phase out."""


@dataclass(frozen=True)
class Plan:
    """The schedule of each kind of phase; None leaves the phase out."""

    parts: Mapping[str, Schedule | None]

    def __getitem__(self, kind: str) -> Any:
        """Returns the schedule of a kind of phase."""
        return self.parts[kind]

    def scaled(self, factor: float) -> "Plan":
        """Returns the plan with all epochs multiplied by `factor`, at least one in every phase."""
        if not 0 < factor < inf:
            raise ValueError(f"epochs can be multiplied by a positive factor, not by {factor}")
        return Plan({kind: part and part.scaled(factor) for kind, part in self.parts.items()})

    def changed(self, changes: Mapping[str, Any]) -> "Plan":
        """Returns the plan with some values changed: {"masks.epochs": 80}, or {"sensitivity": None}.

        Raises ValueError that names a key which the plan does not have, or a value of another type.
        """
        parts = dict(self.parts)
        fields: dict[str, dict[str, Any]] = {}  # one change of a part may need another: all at once
        for key, value in changes.items():
            kind, _, field = key.partition(".")
            part = parts.get(kind)
            if kind in parts and not field and value is None:
                parts[kind] = None
                fields.pop(kind, None)
                continue
            known = {} if part is None else dataclasses.asdict(part)
            if field not in known:
                names = ", ".join(f"{kind}.{one}" for one in known) if known else ", ".join(parts)
                raise ValueError(f"the plan has no {key!r}: known are {names}")
            if not isinstance(value, type(known[field])) and not (
                isinstance(known[field], float) and type(value) is int
            ):
                raise ValueError(f"{key} is {known[field]!r} in the plan and cannot be {value!r}")
            fields.setdefault(kind, {})[field] = type(known[field])(value)
        for kind, values in fields.items():
            parts[kind] = dataclasses.replace(parts[kind], **values)
        return Plan(parts)


def assembled(declared: Iterable[Schedules], name: str) -> Plan:
    """Returns the plan of this name from the declarations of reductions.

    Raises ValueError for a name outside `PLANS`, and for a kind of phase that two reductions declare.
    """
    if name not in PLANS:
        raise ValueError(f"unknown plan {name!r}: known are {', '.join(PLANS)}")
    parts: dict[str, Schedule | None] = {}
    for schedules in declared:
        for kind, by_plan in schedules.items():
            if kind in parts:
                raise ValueError(f"two reductions declare the phase {kind!r}: give one of them another name")
            parts[kind] = by_plan.get(name, by_plan[USUAL["plan"]])
    return Plan(parts)


def unusual(facts: Mapping[str, Any], plan: str) -> dict[str, Any]:
    """Returns the entries of `facts` that differ from training by the plan `plan`.

    `facts` has the keys of `USUAL`.
    """
    return {key: facts[key] for key, value in (USUAL | {"plan": plan}).items() if facts[key] != value}
