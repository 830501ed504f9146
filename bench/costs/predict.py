"""What an inference sends, known from the program alone: no process is started, no engine is imported.

`predict` gives the rounds and bytes that `Parties.traffic` and `Parties.profile` count, exactly:

    program = lower(variant("baseline").build(64), example).program
    predict(program, "stock").bytes_sent         # 224,258,336 (ResNet-18, width 64, 100 classes, 32 x 32)

`python -m pibench.costs.predict baseline senet-0.09 --engine lean` prints it for named variants; with
`--literature costs.csv` it writes what the models of `pibench.costs.literature` say of them instead.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import pandas as pd

from pibench.costs import literature
from pibench.engines.base import ENGINES
from pibench.engines.crypten.cost import Collectives, opening_collectives, step_collectives
from pibench.engines.lean import cost as lean
from pibench.engines.lean.plan import OPENING
from pibench.program.ir import Program


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


@dataclass(frozen=True)
class Prediction:
    """What one inference sends online, with the fields of `pibench.parties.driver.Traffic` and every step."""

    steps: tuple[StepTraffic, ...]

    @property
    def rounds(self) -> int:
        """Collective calls, the opening included."""
        return sum(step.rounds for step in self.steps)

    @property
    def by_party(self) -> tuple[int, ...]:
        """Bytes that each party sends."""
        return tuple(map(sum, zip(*(step.by_party for step in self.steps), strict=True)))

    @property
    def bytes_sent(self) -> int:
        """Bytes of the party that sends most."""
        return max(self.by_party)

    @property
    def bytes_total(self) -> int:
        """Bytes that all parties send together."""
        return sum(self.by_party)


def _stock(program: Program, batch: int, parties: int) -> list[StepTraffic]:
    def traffic(name: str, kind: str, made: Collectives) -> StepTraffic:
        sent = tuple(sum(each.sent(rank, parties) for each in made) for rank in range(parties))
        return StepTraffic(name, kind, len(made), sent)

    listed = [traffic(s.name, s.kind, step_collectives(s, batch, parties)) for s in program.steps]
    return [*listed, traffic("open", "open", opening_collectives(program, batch))]


def _lean(program: Program, batch: int, parties: int) -> list[StepTraffic]:
    ranks = [lean.step_traffic(program, batch, rank) for rank in range(parties)]
    kinds = {step.name: step.kind for step in program.steps}
    return [
        StepTraffic(
            "open" if name == OPENING else name,
            kinds.get(name, "open"),
            max(each[name].rounds for each in ranks),
            tuple(each[name].bytes_sent for each in ranks),
        )
        for name in [*kinds, OPENING]
    ]


_ENGINES: dict[str, Callable[[Program, int, int], list[StepTraffic]]] = {"stock": _stock, "lean": _lean}


def predict(program: Program, engine: str, batch: int = 1, parties: int = 2) -> Prediction:
    """Predicts rounds and bytes of one inference of `batch` images, step by step.

    Raises ValueError for an engine without a cost model, a number of parties it does not run with, or an
    empty batch; NotImplementedError for an operator that the engine does not have.
    """
    if engine not in _ENGINES:
        raise ValueError(f"no cost model for engine {engine!r}; choose one of {', '.join(_ENGINES)}")
    allowed = ENGINES[engine].parties
    if parties not in allowed:
        raise ValueError(
            f"the {engine} engine runs with {' or '.join(map(str, allowed))} parties, not {parties}"
        )
    if batch < 1:
        raise ValueError(f"a batch holds at least one image, not {batch}")
    return Prediction(tuple(_ENGINES[engine](program, batch, parties)))


def modelled_rows(names: Iterable[str] | None = None, width: int = 64) -> pd.DataFrame:
    """What every literature model says of named variants (all of them) on every channel, one row each."""
    return literature.modelled_rows(describe_variants(names, width))


def describe_variants(names: Iterable[str] | None = None, width: int = 64) -> list[literature.Network]:
    """Describes variants on 32 x 32 images as the literature models see them."""
    import torch

    from pibench.models.variants import VARIANTS, variant
    from pibench.program.lower import lower

    image = torch.zeros(1, 3, 32, 32)
    return [
        literature.describe(name, lower(variant(name).build(width), image).program)
        for name in (VARIANTS if names is None else names)
    ]


def main(arguments: list[str] | None = None) -> None:
    """Prints the prediction for named variants, one line each."""
    import torch

    from pibench.models.variants import VARIANTS, variant
    from pibench.program.lower import lower

    parser = argparse.ArgumentParser(
        prog="python -m pibench.costs.predict", description=__doc__.splitlines()[0]
    )
    parser.add_argument("variants", nargs="*", default=["baseline"], help=f"of {', '.join(VARIANTS)}")
    parser.add_argument("--engine", choices=sorted(_ENGINES), help="one engine; default: all")
    parser.add_argument("--width", type=int, default=64)
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--parties", type=int, default=2)
    parser.add_argument("--steps", action="store_true", help="every step that sends something")
    parser.add_argument("--literature", metavar="CSV", help="write the literature's modelled costs instead")
    options = parser.parse_args(arguments)
    if options.literature:
        modelled_rows(options.variants, options.width).to_csv(options.literature, index=False)
        return
    for name in options.variants:
        program = lower(variant(name).build(options.width), torch.zeros(1, 3, 32, 32)).program
        for engine in [options.engine] if options.engine else list(_ENGINES):
            if options.parties not in ENGINES[engine].parties and not options.engine:
                continue
            made = predict(program, engine, options.batch, options.parties)
            sent = " / ".join(f"{each:,}" for each in made.by_party)
            print(f"{name} {engine}: {made.rounds} rounds, {sent} bytes sent by party")
            for step in made.steps if options.steps else ():
                if step.rounds:
                    print(f"    {step.name} ({step.kind}): {step.rounds} rounds, {step.bytes_sent:,} bytes")


if __name__ == "__main__":
    main()
