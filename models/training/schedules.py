"""How long and how fast each phase is trained: data, no code."""

import dataclasses
from collections.abc import Mapping, Sequence
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


def check_known(what: str, value: str, known: Sequence[str]) -> None:
    """Raises ValueError, naming the known ones, unless `value` is one of them."""
    if value not in known:
        raise ValueError(f"unknown {what} {value!r}: known are {', '.join(known)}")


STARTS = ("least-squares", "random")
"""Of a shallow kernel: fitted to the branch that it replaces, or drawn as for a network of its own."""


@dataclass(frozen=True)
class GateSchedule(Schedule):
    """The gate falls linearly from 1 to 0 in the fraction `fading` of the epochs; `images` fit the start.

    Unless `deep_learns`, the branch that fades keeps its weights. If `bounded` it learns, but the scale and
    shift of its last BatchNorm stay: it cannot grow against the gate. `start` is one of `STARTS`. `blocks`
    says which become shallow: "sensitivity" (the variant's own, by published sensitivity), "cheapest" (least
    accuracy lost for the operations saved, measured on the baseline), or names with commas between them.
    """

    fading: float = 0.5
    images: int = 2000
    deep_learns: bool = True
    bounded: bool = False
    start: str = STARTS[0]
    blocks: str = "sensitivity"

    def __post_init__(self) -> None:
        super().__post_init__()
        check_known("start of the shallow kernels", self.start, STARTS)


ERRORS = ("own", "reference", "published")
"""That making a position linear brings to its layer: see `tasks.linearisation_error`."""

SCORES = (*ERRORS, "taylor")
"""By which positions get their ReLU: those errors, or the one of the loss (`tasks.taylor_error`)."""

ALLOCATIONS = ("sensitivity", "network", "lasso")
"""Of a budget: by SENet's rule layer by layer, to the best scores of the network, or by SNL's lasso."""


@dataclass(frozen=True)
class MaskSchedule(Schedule):
    """In the first `search` of the epochs the masks are chosen anew after every epoch.

    They are scored on `images` images. The search ends early when under `epsilon` of a network's kept
    positions change. `score` is one of `SCORES`, `allocation` one of `ALLOCATIONS`.

    In the first `shrinking` of the epochs the budget falls from all ReLUs of the start to the variant's, by
    the same factor after every epoch, the masks being chosen anew: gradual pruning (arXiv 1710.01878) of
    ReLUs, ours.

    With `descending` a variant starts from the trained one of its family with about twice its ReLUs, if there
    is one, and keeps some of those: every budget goes through the larger ones, at no cost where these are
    rows too. Ours. With `shrinking` beside it ReLUs may also come back while the budget falls.

    With `rewind` a lasso leaves its choice alone: the weights go back to those that it started from.
    """

    search: float = 0.0
    images: int = 5000
    epsilon: float = 0.01
    score: str = SCORES[0]
    allocation: str = ALLOCATIONS[0]
    shrinking: float = 0.0
    rewind: bool = False
    descending: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        check_known("score", self.score, SCORES)
        check_known("allocation", self.allocation, ALLOCATIONS)
        if not (0 <= self.search <= 1 and 0 <= self.shrinking <= 1):
            raise ValueError(f"search and shrinking are fractions of the epochs: {self}")
        later = self.search or self.shrinking
        if self.allocation == "lasso" and (later or self.score != "own"):
            raise ValueError("masks that a lasso has chosen are neither scored nor searched nor shrunk")
        if self.descending and (self.search or self.allocation == "lasso"):
            raise ValueError("descending masks are neither chosen by a lasso nor searched")
        if self.rewind and self.allocation != "lasso":
            raise ValueError("rewind is for masks that a lasso chooses")
        if self.score in ("reference", "published") and not later:
            raise ValueError(f"the score {self.score!r} is for masks that are searched or shrink")

    def budgets(self, total: int, budget: int) -> list[int]:
        """Returns the ReLUs of each epoch in which the budget still falls, from `total` to `budget`."""
        falling = round(self.shrinking * self.epochs)
        return [round(total * (budget / total) ** ((epoch + 1) / (falling + 1))) for epoch in range(falling)]


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
    them travel from 1 to 0 `travels` times in the phase (ours, so that any number of epochs will do). What
    is learnt beside the lasso are the labels, as in SNL, or if `distilled` what fine-tuning learns.
    """

    weight: float = 1e-5
    growth: float = 1.1
    checks: int = 20
    threshold: float = 1e-2
    travels: float = 4.0
    distilled: bool = False


@dataclass(frozen=True)
class Plan:
    """The schedules of all recipes. `sensitivity` None takes SENet's published values, measuring nothing."""

    baseline: Schedule
    sensitivity: SparseSchedule | None
    gated: GateSchedule
    masks: MaskSchedule
    lasso: LassoSchedule
    tune: Schedule

    def scaled(self, factor: float) -> "Plan":
        """Returns the plan with all epochs multiplied, one at least in every phase."""
        if not 0 < factor < inf:
            raise ValueError(f"epochs can be multiplied by a positive factor, not by {factor}")
        return Plan(**{name: part and part.scaled(factor) for name, part in self._parts().items()})

    def _parts(self) -> dict[str, Schedule | None]:
        return {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}

    def changed(self, changes: Mapping[str, Any]) -> "Plan":
        """Returns the plan with some values changed: {"masks.search": 0}, or {"sensitivity": None}.

        ValueError names what the plan does not have, and a value of another type.
        """
        parts = self._parts()
        fields: dict[str, dict[str, Any]] = {}  # all of a part at once: one may need the other
        for key, value in changes.items():
            name, _, field = key.partition(".")
            part = parts.get(name)
            if name == "sensitivity" and not field and value is None:
                parts[name] = None
                fields.pop(name, None)
                continue
            known = {} if part is None else dataclasses.asdict(part)
            if field not in known:
                names = ", ".join(f"{name}.{one}" for one in known) if known else ", ".join(parts)
                raise ValueError(f"the plan has no {key!r}: known are {names}")
            if not isinstance(value, type(known[field])) and not (
                isinstance(known[field], float) and type(value) is int
            ):
                raise ValueError(f"{key} is {known[field]!r} in the plan and cannot be {value!r}")
            fields.setdefault(name, {})[field] = type(known[field])(value)
        for name, values in fields.items():
            parts[name] = dataclasses.replace(parts[name], **values)
        return Plan(**parts)


PLANS = {
    "quick": Plan(
        baseline=Schedule(14, 0.4),
        sensitivity=None,
        gated=GateSchedule(8, 0.1),
        masks=MaskSchedule(6, 0.05),
        lasso=LassoSchedule(3, 0.02),
        tune=Schedule(3, 0.05),
    ),
    "standard": Plan(
        baseline=Schedule(24, 0.4),
        sensitivity=SparseSchedule(6, 0.4),
        gated=GateSchedule(14, 0.1),
        masks=MaskSchedule(14, 0.05),
        lasso=LassoSchedule(6, 0.02),
        tune=Schedule(10, 0.05),
    ),
    "long": Plan(
        baseline=Schedule(40, 0.4),
        sensitivity=SparseSchedule(10, 0.4),
        gated=GateSchedule(24, 0.1),
        masks=MaskSchedule(40, 0.05),
        lasso=LassoSchedule(8, 0.02),
        tune=Schedule(24, 0.05),
    ),
}
PLANS["extended"] = PLANS["long"].changed(
    {"gated.bounded": True, "gated.epochs": 40, "masks.descending": True, "masks.epochs": 32}
)
"""quick: a first look on two cores at width 16; standard: three hours there; long: the committed rows, a
quarter of an hour for all of one width on an H200; extended: a gate that cannot grow and has 40 epochs,
budgets that descend in 32 epochs each, otherwise long."""

USUAL: dict[str, Any] = {"plan": "long", "epochs_scale": 1.0, "precision": "bfloat16"}
"""What the committed rows are trained with, but for `ROW_PLANS`."""

ROW_PLANS = {"joint": "extended"}
"""The plans of committed rows that are not trained with the usual one."""


def plan_of(row: str) -> str:
    """Returns the plan that a committed row is trained with."""
    return ROW_PLANS.get(row, USUAL["plan"])


def unusual(facts: Mapping[str, Any], row: str) -> dict[str, Any]:
    """Returns what of `facts`, which has the keys of `USUAL`, differs from what a row is trained with."""
    usual = USUAL | {"plan": plan_of(row)}
    return {key: facts[key] for key, value in usual.items() if facts[key] != value}
