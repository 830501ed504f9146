"""`python -m pibench.measure.forms`: measures which form of each convolution is the quickest.

A convolution is dense or factored (`pibench.models.transforms.factorize_convs`). The networks are the
baseline and the variants of a fixed rank. They run alternately, each on its own parties, in profiled
inferences. The seconds of a convolution are those of its steps: one if it is dense, two or three if it is
factored, with the truncations between them. The command prints the medians in milliseconds. What is quickest
is a fact about an engine and a link; `QUICKEST` in models/reductions/low_rank.py holds one such measurement.
"""

from __future__ import annotations

import argparse
import re
import statistics
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack

from torch import Tensor, nn

from pibench.engines import ENGINES
from pibench.engines.base import EngineMissing, StepCost
from pibench.links import ShaperUnavailable
from pibench.measure.session import TIMEOUT_S, images
from pibench.models.commands import Parser, exit_status
from pibench.models.transforms.factorize_convs import FORMS, suitable
from pibench.models.variants import variant
from pibench.parties.driver import Parties, PartyFailed
from pibench.program.lower import ExportError

Work = Callable[[argparse.Namespace], None]
DENSE = "dense"
VARIANTS = {DENSE: "baseline", "channel": "trp-channel-4", "spatial": "trp-spatial-4", "tucker": "tucker-4"}


def seconds_of(names: Iterable[str], costs: Sequence[StepCost]) -> dict[str, float]:
    """Returns the seconds of each convolution `NAME` in a profile: of its step, or of all its factors."""
    found = {}
    for name in names:
        step = re.compile(re.sub(r"\W", "_", name) + r"(_\d)?")
        own = [cost.seconds for cost in costs if step.fullmatch(cost.name)]
        if own:
            found[name] = sum(own)
    return found


def quickest(seconds: Mapping[str, Mapping[str, float]]) -> dict[str, str]:
    """Returns the form with the fewest seconds for each convolution; `seconds` are by form, then by name.

    The first form wins a tie. A form that lacks a convolution leaves it dense, so it is no choice there.
    """
    names = dict.fromkeys(name for own in seconds.values() for name in own)
    return {
        name: min((form for form in seconds if name in seconds[form]), key=lambda form: seconds[form][name])
        for name in names
    }


def measured(
    networks: Mapping[str, nn.Module],
    names: Mapping[str, Sequence[str]],
    pictures: Tensor,
    engine: str,
    link: str,
    rounds: int,
) -> dict[str, dict[str, float]]:
    """Returns the median seconds of the convolutions `names` of each form, over alternating profiles.

    `networks` and `names` are by form. `pictures` [N, C, H, W] are the example; the first one is inferred.
    """
    found: dict[str, list[dict[str, float]]] = {form: [] for form in networks}
    with ExitStack() as opened:
        groups = {}
        for form, model in networks.items():
            groups[form] = opened.enter_context(Parties(engine=engine, link=link, timeout_s=TIMEOUT_S))
            groups[form].load(model, pictures)
        for warm in (True, *[False] * rounds):
            for form, parties in groups.items():
                costs = parties.profile(pictures[:1])
                if not warm:
                    found[form].append(seconds_of(names[form], costs))
    return {
        form: {name: statistics.median(each[name] for each in profiles) for name in profiles[0]}
        for form, profiles in found.items()
    }


def command(name: str, description: str | None, work: Work, argv: Sequence[str] | None) -> int:
    """Runs `work` with engine, link, width and rounds from the command line; returns the exit status."""
    parser = Parser(prog=f"python -m {name}", description=description)
    parser.add_argument(
        "--engine", choices=[name for name, each in ENGINES.items() if each.offered], default="lean"
    )
    parser.add_argument("--link", default="loopback", help='a name, or a text like "200Mbit/40ms"')
    parser.add_argument("--width", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=15)
    given = parser.parse_args(argv)
    return exit_status(
        lambda: work(given), EngineMissing, ShaperUnavailable, PartyFailed, ExportError, ValueError
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Runs from the command line; returns the exit status."""
    return command("pibench.measure.forms", __doc__, _print, argv)


def _print(given: argparse.Namespace) -> None:
    networks = {form: variant(name).build(given.width, None) for form, name in VARIANTS.items()}
    names = {form: suitable(networks[DENSE], form) for form in FORMS}
    names[DENSE] = list(dict.fromkeys(name for form in FORMS for name in names[form]))
    seconds = measured(networks, names, images()[0][:2], given.engine, given.link, max(1, given.rounds))
    choice = quickest(seconds)
    print(f"{'ms, median':18}" + "".join(f"{form:>10}" for form in seconds) + "  quickest")
    for name in sorted(choice):
        cells = (seconds[form].get(name) for form in seconds)
        row = "".join(f"{'–' if cell is None else f'{1e3 * cell:.3f}':>10}" for cell in cells)
        print(f"{name:18}{row}  {choice[name]}")


if __name__ == "__main__":
    sys.exit(main())
