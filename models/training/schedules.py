"""How long and how fast each phase is trained: data, no code."""

import dataclasses
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from math import cos, inf, pi
from typing import Any


@dataclass(frozen=True)
class Schedule:
    """SGD with momentum on one cycle: the rate rises from peak / 25 to `peak`, then falls to peak / 250,000.

    Both along a cosine, the rise over the fraction `warmup` of all steps (Smith and Topin, arXiv 1708.07120;
    momentum is constant here).
    """

    epochs: int
    peak: float
    warmup: float = 0.3
    batch: int = 256
    momentum: float = 0.9
    weight_decay: float = 5e-4
    smoothing: float = 0.1

    def __post_init__(self) -> None:
        if self.epochs < 1 or self.batch < 1 or self.peak <= 0 or not 0 <= self.warmup < 1:
            raise ValueError(
                f"no schedule: {self} (epochs and batch are 1 or more, peak is above 0, warmup is in [0, 1))"
            )

    def rate(self, done: float) -> float:
        """Returns the learning rate when the fraction `done` of all steps is behind, in [0, 1]."""
        if done < self.warmup:
            start, end, part = self.peak / 25, self.peak, done / self.warmup
        else:
            start, end, part = self.peak, self.peak / 250_000, (done - self.warmup) / (1 - self.warmup)
        return end + (start - end) * (1 + cos(pi * part)) / 2

    def scaled(self, factor: float) -> "Schedule":
        """Returns the schedule with its epochs multiplied, one at least."""
        return dataclasses.replace(self, epochs=max(1, round(self.epochs * factor)))


@dataclass(frozen=True)
class GateSchedule(Schedule):
    """The gate falls linearly from 1 to 0 in the fraction `fading` of the epochs; `images` fit the start.

    If `bounded`, the layer that ends the fading branch (its last BatchNorm, or the convolution of a block
    that activates first) keeps its weights: the branch cannot grow against the gate.
    """

    fading: float = 0.5
    images: int = 2000
    bounded: bool = False


@dataclass(frozen=True)
class MaskSchedule(Schedule):
    """Masks are chosen once, scored on `images` images, and stay.

    With `descending` a variant starts from the trained one of its family with about twice its ReLUs, if there
    is one, and keeps some of those: every budget goes through the larger ones, at no cost where these are
    rows too. Ours.
    """

    images: int = 5000
    descending: bool = False


@dataclass(frozen=True)
class SparseSchedule(Schedule):
    """A proxy of global `density` whose smallest weights, the fraction `moved` at first, move each time.

    Weights move `moves` times an epoch; the fraction falls linearly to 0 at the end (SENet, and sparse
    momentum, arXiv 1907.04840).
    """

    density: float = 0.1
    moved: float = 0.5
    moves: int = 1


@dataclass(frozen=True)
class LassoSchedule(Schedule):
    """SNL's selection: lasso from `weight`, times `growth` at each of `checks` an epoch that stalls.

    `threshold` is the slope above which a ReLU counts. The slopes have an Adam of their own, whose rate lets
    them travel from 1 to 0 `travels` times in the phase (ours, so that any number of epochs will do).
    """

    weight: float = 1e-5
    growth: float = 1.1
    checks: int = 20
    threshold: float = 1e-2
    travels: float = 4.0


PLANS = {
    "quick": "a first look on two cores at width 16",
    "standard": "three hours for all rows there",
    "long": "the committed rows: a quarter of an hour for all of one width on an H200",
    "extended": "a gate that cannot grow, learnt longer; budgets that descend",
}
"""Plans by name. A phase that does not name its schedule under a plan takes the one of `USUAL`'s."""

USUAL: dict[str, Any] = {"plan": "long", "epochs_scale": 1.0, "precision": "bfloat16"}
"""What committed rows are trained with, but for variants that name another plan."""

Schedules = Mapping[str, Mapping[str, Schedule | None]]
"""What a reduction declares: kind of phase -> plan -> schedule, None where the phase is left out."""


@dataclass(frozen=True)
class Plan:
    """The schedule of each kind of phase, None for one that is left out."""

    parts: Mapping[str, Schedule | None]

    def __getitem__(self, kind: str) -> Any:
        """Returns the schedule of a kind of phase."""
        return self.parts[kind]

    def scaled(self, factor: float) -> "Plan":
        """Returns the plan with all epochs multiplied, one at least in every phase."""
        if not 0 < factor < inf:
            raise ValueError(f"epochs can be multiplied by a positive factor, not by {factor}")
        return Plan({kind: part and part.scaled(factor) for kind, part in self.parts.items()})

    def changed(self, changes: Mapping[str, Any]) -> "Plan":
        """Returns the plan with some values changed: {"masks.epochs": 80}, or {"sensitivity": None}.

        ValueError names what the plan does not have, and a value of another type.
        """
        parts = dict(self.parts)
        fields: dict[str, dict[str, Any]] = {}  # all of a part at once: one may need the other
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
    """Returns the plan of this name from what reductions declare.

    ValueError for a name that is none of `PLANS`, and for a kind of phase that two of them declare.
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
    """Returns what of `facts`, which has the keys of `USUAL`, differs from training by the plan `plan`."""
    return {key: facts[key] for key, value in (USUAL | {"plan": plan}).items() if facts[key] != value}
