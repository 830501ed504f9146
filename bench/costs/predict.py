"""Predicts the traffic of an inference from the program alone, without a process or an engine's framework.

`predict` gives the rounds and bytes that `Parties.traffic` and `Parties.profile` count. They are exact where
the traffic of an engine is steady (`Engine.steady_traffic`), else near (docs/engines.md):

    program = lower(variant("baseline").build(64), example).program
    predict(program, "stock").bytes_sent         # 224,258,336 (ResNet-18, width 64, 100 classes, 32 x 32)

`python -m pibench.costs.predict baseline senet-0.09 --engine lean` prints the prediction for named variants.
With `--literature costs.csv` it writes the costs by the models of `pibench.costs.literature` instead.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from pibench.costs import literature
from pibench.engines import ENGINES
from pibench.engines.base import StepTraffic
from pibench.links.link import Link
from pibench.links.model import predict_online
from pibench.models.commands import Parser, exit_status
from pibench.models.files import replace_file, writing
from pibench.models.rows import ResultsError
from pibench.program.ir import Program


@dataclass(frozen=True)
class Prediction:
    """The online traffic of one inference, in total (as `pibench.parties.driver.Traffic`) and by step."""

    steps: tuple[StepTraffic, ...]

    @property
    def rounds(self) -> int:
        """Collective calls, the opening included; or the messages of the party that sends most of them."""
        if all(step.messages for step in self.steps):
            return max(map(sum, zip(*(step.messages for step in self.steps), strict=True)))
        return sum(step.rounds for step in self.steps)

    @property
    def hops(self) -> int:
        """One-way trips in sequence: a round of the stock engine is several."""
        return sum(step.hops for step in self.steps)

    def least_s(self, link: Link) -> float:
        """Returns the seconds of `link` alone, without computing: half a round trip a hop, and the bytes."""
        return predict_online(0.0, self.hops, self.bytes_sent, link, 0.0).online_s

    @property
    def by_party(self) -> tuple[int, ...]:
        """The bytes that each party sends."""
        return tuple(map(sum, zip(*(step.by_party for step in self.steps), strict=True)))

    @property
    def bytes_sent(self) -> int:
        """The bytes of the party that sends most."""
        return max(self.by_party)

    @property
    def bytes_total(self) -> int:
        """The bytes that all parties send together."""
        return sum(self.by_party)


def engines_with_a_law() -> list[str]:
    """Returns the names of the engines whose traffic is known without a run."""
    return [name for name, engine in ENGINES.items() if engine.traffic is not None]


def predict(program: Program, engine: str, batch: int = 1, parties: int = 2) -> Prediction:
    """Predicts rounds, hops and bytes of one inference of `batch` images, step by step.

    The traffic of an engine that is calibrated depends on the program's bounds
    (`pibench.program.lower.Lowered.calibrated`). Raises ValueError for an engine without a cost model, a
    number of parties that it cannot run with, or an empty batch. Raises NotImplementedError for an operator
    that the engine does not have.
    """
    known = ENGINES.get(engine)
    if known is None or known.traffic is None:
        choice = ", ".join(engines_with_a_law())
        raise ValueError(f"no cost model for engine {engine!r}; choose one of {choice}")
    known.demand_parties(parties)
    if batch < 1:
        raise ValueError(f"a batch holds at least one image, not {batch}")
    return Prediction(tuple(known.traffic(program, batch, parties)))


def modelled_rows(names: Iterable[str] | None = None, width: int = 64) -> pd.DataFrame:
    """Returns the costs of variants under every literature model and channel, one row each.

    `names` None stands for all variants.
    """
    return literature.modelled_rows(describe_variants(names, width))


def describe_variants(names: Iterable[str] | None = None, width: int = 64) -> list[literature.Network]:
    """Describes variants on 32 x 32 images for the literature models."""
    import torch

    from pibench.models.variants import VARIANTS, variant
    from pibench.program.lower import lower

    image = torch.zeros(1, 3, 32, 32)
    return [
        literature.describe(name, lower(variant(name).build(width), image).program)
        for name in (VARIANTS if names is None else names)
    ]


def main(arguments: Sequence[str] | None = None) -> int:
    """Prints the prediction for named variants, one line each; returns the exit status."""
    from pibench.models.variants import VARIANTS

    parser = Parser(prog="python -m pibench.costs.predict", description=__doc__.splitlines()[0])
    parser.add_argument("variants", nargs="*", default=["baseline"], help=f"of {', '.join(VARIANTS)}")
    parser.add_argument("--engine", choices=engines_with_a_law(), help="one engine; default: all")
    parser.add_argument("--width", type=int, default=64)
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--parties", type=int, default=2)
    parser.add_argument("--steps", action="store_true", help="every step that sends something")
    parser.add_argument(
        "--literature", type=Path, metavar="CSV", help="write the literature's modelled costs instead"
    )
    options = parser.parse_args(arguments)
    return exit_status(lambda: _show(options), ValueError, NotImplementedError, ResultsError)


def _show(options: argparse.Namespace) -> None:
    """Prints what the command line asks for, or writes it."""
    from pibench.models.data import default_images
    from pibench.models.variants import variant
    from pibench.program.lower import lower

    if options.literature:
        text = modelled_rows(options.variants, options.width).to_csv(index=False)
        with writing(options.literature, ResultsError, "make room or allow writing there"):
            replace_file(options.literature, text.encode())
        return
    for name in options.variants:
        program = lower(variant(name).build(options.width), default_images(4)[0]).calibrated().program
        for engine in [options.engine] if options.engine else engines_with_a_law():
            if options.parties not in ENGINES[engine].parties and not options.engine:
                continue
            made = predict(program, engine, options.batch, options.parties)
            sent = " / ".join(f"{each:,}" for each in made.by_party)
            print(f"{name} {engine}: {made.rounds} rounds, {sent} bytes sent by party")
            for step in made.steps if options.steps else ():
                if step.rounds:
                    print(f"    {step.name} ({step.kind}): {step.rounds} rounds, {step.bytes_sent:,} bytes")


if __name__ == "__main__":
    sys.exit(main())
