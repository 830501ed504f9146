"""`make faults`: carries out the fault campaign, prints the failures and writes docs/results/faults.md.

make faults                                          # everything; the page is written
make faults FAULTS="--seed 7 --kinds kill"           # a part, which is only printed
make faults FAULTS="--only kill/party1-infer-2ms/lean"   # one again, with all that was seen
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from pibench.models.commands import Parser
from pibench.models.files import replace_file

PAGE = Path(__file__).resolve().parents[2] / "docs" / "results" / "faults.md"
LIMIT_S, SHORT_S = 840.0, 60.0


def arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    """Reads the command line."""
    from faults.campaign import KINDS

    parser = Parser(
        prog="python -m faults", description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--seed", type=int, default=1, help="draws what is random (default 1)")
    parser.add_argument(
        "--kinds", nargs="+", choices=KINDS, metavar="KIND", default=[], help=", ".join(KINDS)
    )
    parser.add_argument("--engines", nargs="+", choices=("stock", "lean", "none"), default=[])
    parser.add_argument(
        "--only", nargs="+", metavar="ID", default=[], help="these faults, or all below an id"
    )
    parser.add_argument("--short", action="store_true", help=f"a few of each kind, in {SHORT_S:g} s")
    parser.add_argument("--lanes", type=int, default=3, help="faults at once (default 3: most wait)")
    parser.add_argument(
        "--limit", type=float, metavar="S", help=f"begin none after S s (default {LIMIT_S:g})"
    )
    parser.add_argument(
        "--page", type=Path, help="write the page here (default: for all faults, docs/results)"
    )
    parser.add_argument("--list", action="store_true", help="only print the ids")
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> int:
    """Runs from the command line; returns 1 if a fault was not survived or, of all, not begun."""
    if sys.platform != "linux":
        print("the fault campaign needs Linux: it adopts and limits processes as only Linux can")
        return 2
    options = arguments(argv)
    from faults import table
    from faults.campaign import all_faults, chosen, shortened
    from faults.fault import Outcome
    from faults.runner import run

    whole = not (options.kinds or options.engines or options.only or options.short)
    faults = chosen(all_faults(options.seed), options.kinds, options.engines, options.only)
    if options.short:
        faults = shortened(faults, options.seed)
    if options.list or not faults:
        print("\n".join(fault.id for fault in faults) or "no fault has such an id: --list shows them")
        return 0 if faults else 2
    limit_s = options.limit or (SHORT_S if options.short else LIMIT_S)
    started, done = time.monotonic(), [0]

    def say(outcome: Outcome) -> None:
        done[0] += 1
        if options.only or not outcome.verdict.survived:
            print(
                f"[{done[0]}/{len(faults)}] {outcome.fault.id}: {outcome.verdict}", outcome.reason, flush=True
            )
        elif done[0] % 50 == 0:
            print(f"[{done[0]}/{len(faults)}] {time.monotonic() - started:.0f} s", flush=True)
        if options.only:
            print(outcome.observed.message, outcome.observed.said, sep="\n", flush=True)

    outcomes = run(faults, options.seed, max(1, options.lanes), limit_s, say)
    tried = {outcome.fault.id for outcome in outcomes}
    untried = [fault for fault in faults if fault.id not in tried]
    text = table.page(outcomes, untried, options.seed, time.monotonic() - started)
    place = options.page or (PAGE if whole else None)
    if place is None:
        print(table.by_kind(outcomes), table.by_verdict(outcomes), sep="\n\n")
    else:
        replace_file(place, text.encode())
        print(f"{place}: the page")
    survived = sum(outcome.verdict.survived for outcome in outcomes)
    print(f"{len(outcomes)} faults tried, {survived} survived, {len(untried)} not begun")
    return int(survived < len(outcomes) or (bool(untried) and not options.short))


if __name__ == "__main__":
    sys.exit(main())
