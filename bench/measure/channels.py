"""`python -m pibench.measure.channels`: measures what an inner channel of each residual block costs.

The networks are the baseline with `SHARES` of the inner channels of all blocks. They run alternately, each on
its own parties, in profiled inferences. A line through the seconds of a block's three inner layers has two
parts: what the layers cost without channels (rounds, Python, the outer channels), and what the channels add.
Only the second part is saved when channels go. The command prints both in milliseconds. They are a fact
about an engine and a link; `SECONDS` in models/reductions/constrained.py holds one such measurement.
"""

from __future__ import annotations

import argparse
import statistics
import sys
from collections.abc import Mapping, Sequence

from pibench.measure.forms import command, measured
from pibench.measure.session import images
from pibench.models.reductions import cap
from pibench.models.variants import variant
from pibench.models.weights import apply
from pibench.models.zoo import layout_of

SHARES = (1.0, 0.5, 0.25, 0.125, 0.0625)


def line(seconds: Mapping[float, float]) -> tuple[float, float]:
    """Returns the seconds without channels and those that all channels add, by least squares.

    `seconds` are by the share of the channels. A measurement can put either below 0, which reads 0.
    """
    slope, rest = statistics.linear_regression(list(seconds), list(seconds.values()))
    return max(0.0, rest), max(0.0, slope)


def main(argv: Sequence[str] | None = None) -> int:
    """Runs from the command line; returns the exit status."""
    return command("pibench.measure.channels", __doc__, _print, argv)


def _print(given: argparse.Namespace) -> None:
    layout = layout_of("resnet18")
    model = variant("baseline").build(given.width, None)
    layers = [name for name, module in model.named_modules() if name and not list(module.children())]
    found = measured(
        {str(share): apply(model, cap.structure(layout, (share,))) for share in SHARES},
        dict.fromkeys(map(str, SHARES), layers),
        images()[0][:2],
        given.engine,
        given.link,
        max(1, given.rounds),
    )
    print(f"{'ms, median':12}" + "".join(f"{share:>9}" for share in SHARES) + "    fixed  channels")
    for block in layout.blocks:
        inner = (block.conv1, block.mid, block.conv2)
        seconds = {share: sum(found[str(share)][name] for name in inner) for share in SHARES}
        cells = [*seconds.values(), *line(seconds)]
        print(f"{block.name:12}" + "".join(f"{1e3 * cell:9.3f}" for cell in cells))
    print(f"{'all layers':12}" + "".join(f"{1e3 * sum(found[str(share)].values()):9.3f}" for share in SHARES))


if __name__ == "__main__":
    sys.exit(main())
