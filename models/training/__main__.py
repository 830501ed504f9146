"""`python -m pibench.models.training`: trains every unfinished variant, from where it stopped."""

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pibench.models.commands import Parser, exit_status
from pibench.models.data import DataError
from pibench.models.rows import ResultsError
from pibench.models.training.command import Folders, Options, finished, train
from pibench.models.training.files import TrainingError
from pibench.models.training.schedules import PLANS, USUAL
from pibench.models.variants import VARIANTS
from pibench.models.weights import WeightsError
from pibench.models.zoo import ZOO


def arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    """Reads the command line."""
    usual, folders = Options(), Folders()
    rows = [variant.name for variant in VARIANTS.values() if variant.phase is not None]
    own = {name: VARIANTS[name].plan for name in rows if VARIANTS[name].plan != USUAL["plan"]}
    parser = Parser(prog="python -m pibench.models.training", description=__doc__)
    parser.add_argument(
        "--rows", nargs="+", default=rows, choices=rows, metavar="VARIANT", help=", ".join(rows)
    )
    parser.add_argument(
        "--network", choices=ZOO, default=usual.network, help=f"the architecture (default {usual.network})"
    )
    parser.add_argument(
        "--width", type=int, default=usual.width, help=f"of the first stage (default {usual.width})"
    )
    parser.add_argument("--seed", type=int, default=0, help="of weights, order and crops (default 0)")
    parser.add_argument(
        "--plan",
        choices=PLANS,
        help=f"the schedules (default: each row's own, {USUAL['plan']} but for "
        f"{', '.join(f'{row}: {plan}' for row, plan in own.items())})",
    )
    parser.add_argument(
        "--epochs-scale", type=float, default=usual.epochs_scale, help="multiplies all epochs of the plan"
    )
    parser.add_argument(
        "--set",
        nargs="+",
        type=_change,
        default=[],
        metavar="PHASE.FIELD=VALUE",
        help="changes the plan, e.g. masks.epochs=80: a try",
    )
    parser.add_argument(
        "--try",
        action="store_true",
        dest="tried",
        help="judged by held-out images alone, its rows go to tries.json; needed only without --set",
    )
    parser.add_argument(
        "--device", default=usual.device, help="auto (a CUDA device if there is one), cpu, cuda, ..."
    )
    parser.add_argument(
        "--precision",
        choices=("auto", "bfloat16", "float32"),
        default=usual.precision,
        help="of convolutions: auto is bfloat16 where the hardware multiplies it, else float32",
    )
    parser.add_argument(
        "--from-published",
        action="store_true",
        help="start from the project's own baseline and sensitivity instead of training them",
    )
    parser.add_argument(
        "--no-graphs",
        action="store_true",
        help="launch every step anew on a CUDA device, instead of replaying it from a CUDA graph",
    )
    parser.add_argument("--data", type=Path, default=folders.data, help="folder that holds cifar-100-python")
    parser.add_argument("--results", type=Path, default=folders.results)
    parser.add_argument("--checkpoints", type=Path, default=folders.checkpoints)
    parser.add_argument("--weights", type=Path, default=folders.weights)
    parser.add_argument("--list", action="store_true", help="only say which rows are finished")
    return parser.parse_args(argv)


def _change(text: str) -> tuple[str, Any]:
    key, _, value = text.partition("=")
    try:
        return key, json.loads(value)
    except ValueError:
        return key, value


def options_of(argv: Sequence[str] | None) -> tuple[list[str], Options]:
    """Returns the rows and the options that a command line asks for."""
    given = arguments(argv)
    return given.rows, _options(given)


def _options(given: argparse.Namespace) -> Options:
    return Options(
        network=given.network,
        width=given.width,
        seed=given.seed,
        plan=given.plan,
        epochs_scale=given.epochs_scale,
        precision=given.precision,
        from_published=given.from_published,
        changes=dict(given.set),
        tried=given.tried,
        device=given.device,
        recorded=not given.no_graphs,
        folders=Folders(given.data, given.results, given.checkpoints, given.weights),
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Runs from the command line; returns the exit status."""
    given = arguments(argv)
    options = _options(given)
    work = _list if given.list else train
    return exit_status(
        lambda: work(given.rows, options), TrainingError, ResultsError, DataError, WeightsError, ValueError
    )


def _list(rows: Sequence[str], options: Options) -> None:
    """Prints which rows are finished."""
    done = finished(rows, options)
    for row in rows:
        print(f"{row:16} {'finished' if row in done else 'to be trained'}")


if __name__ == "__main__":
    sys.exit(main())
