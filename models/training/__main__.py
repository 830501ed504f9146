"""`python -m pibench.models.training`: trains every variant that is not finished, from where it stopped."""

import argparse
import json
import sys
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pibench.models import weights as checkpoint
from pibench.models.data import DataError, load_cifar100
from pibench.models.rows import ResultsError, read_rows
from pibench.models.training.files import TrainingError
from pibench.models.training.images import Images
from pibench.models.training.loop import Setting
from pibench.models.training.recipes import ROWS, Run, planned, recipe_of, schedules_of
from pibench.models.training.rows import (
    Row,
    find_row,
    finish_row,
    is_published,
    put_row,
    weights_path,
)
from pibench.models.training.schedules import PLANS, ROW_PLANS, USUAL, Plan, Schedule, plan_of, unusual
from pibench.models.weights import WeightsError, read_manifest


def arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    """Reads the command line."""
    parser = argparse.ArgumentParser(prog="python -m pibench.models.training", description=__doc__)
    parser.add_argument(
        "--rows", nargs="+", default=ROWS, choices=ROWS, metavar="VARIANT", help=", ".join(ROWS)
    )
    parser.add_argument("--width", type=int, default=16, help="channels of the first stage (default 16)")
    parser.add_argument("--seed", type=int, default=0, help="of weights, order and crops (default 0)")
    parser.add_argument(
        "--plan",
        choices=PLANS,
        help=f"the schedules (default: each row's own, {USUAL['plan']} but for "
        f"{', '.join(f'{row}: {plan}' for row, plan in ROW_PLANS.items())})",
    )
    parser.add_argument(
        "--epochs-scale", type=float, default=USUAL["epochs_scale"], help="multiplies all epochs of the plan"
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
        "--device", default="auto", help="auto (a CUDA device if there is one), cpu, cuda, ..."
    )
    parser.add_argument("--precision", choices=("bfloat16", "float32"), default=USUAL["precision"])
    parser.add_argument(
        "--no-graphs",
        action="store_true",
        help="launch every step anew on a CUDA device, instead of replaying it from a CUDA graph",
    )
    parser.add_argument("--data", type=Path, default=Path("data"), help="folder that holds cifar-100-python")
    parser.add_argument("--results", type=Path, default=Path("results"))
    parser.add_argument("--checkpoints", type=Path, default=Path("checkpoints"))
    parser.add_argument("--weights", type=Path, default=Path("results/weights"))
    parser.add_argument("--list", action="store_true", help="only say which rows are finished")
    return parser.parse_args(argv)


def _change(text: str) -> tuple[str, Any]:
    key, _, value = text.partition("=")
    try:
        return key, json.loads(value)
    except ValueError:
        return key, value


def _device(name: str) -> torch.device:
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
        torch.zeros(1, device=device)
        if device.type == "cuda" and device.index is not None:
            torch.cuda.set_device(device)  # where steps are recorded
    except (RuntimeError, AssertionError) as error:
        raise TrainingError(f"the device {name!r} cannot be used: {str(error).splitlines()[0]}") from error
    return device


def remaining(run: Run, rows: Sequence[str]) -> str:
    """Says how many epochs the rows still need, and for how long at the mean pace so far."""
    phases: dict[str, Schedule] = {}
    for row in rows:
        phases |= schedules_of(row, run.plan)
    histories = [run.history(phase, schedule) for phase, schedule in phases.items()]
    done = [epoch["wall_s"] for history in histories for epoch in history]
    epochs = sum(schedule.epochs for schedule in phases.values()) - len(done)
    if not done:
        return f"{epochs} epochs to go"
    minutes = epochs * sum(done) / len(done) / 60
    return f"{epochs} epochs to go, about {int(minutes // 60)}:{int(minutes % 60):02} h"


def _run_name(options: argparse.Namespace, plan: str) -> str:
    """Names the folders of a run of a plan that is not changed."""
    name = f"w{options.width}-s{options.seed}-{plan}"
    name += "" if options.epochs_scale == 1 else f"-x{options.epochs_scale:g}"
    return name + ("" if options.precision == USUAL["precision"] else f"-{options.precision}")


def _same_training(name: str, row: Row, plan: Plan, precision: str, settings: Mapping[str, Any]) -> bool:
    """Returns whether a row went through the phases that `plan` has for it, under whatever plan's name."""
    try:
        of_row = PLANS[row["plan"]].scaled(row["epochs_scale"]).changed(settings)
        phases, precision_of_row = row["phases"], row["precision"]
    except (KeyError, ValueError):
        return False
    same = schedules_of(name, of_row) == schedules_of(name, plan) and precision_of_row == precision
    return same and phases == planned(name, plan)


Data = tuple[Images, tuple[Tensor, Tensor] | None]
"""Training and held-out images, and the test set, which a try does not get."""


def run_rows(options: argparse.Namespace, data: Callable[[torch.device], Data]) -> None:
    """Trains the rows that are not finished, all by one plan, and writes each when it is."""
    device = _device(options.device)
    torch.backends.cudnn.deterministic = True  # a resumed run must end like an uninterrupted one
    torch.backends.cudnn.allow_tf32 = False  # what is reported as float32 is float32
    settings, tried = dict(options.set), options.tried
    accuracy = options.results / ("tries.json" if tried else "accuracy.json")
    plan = PLANS[options.plan].scaled(options.epochs_scale).changed(settings)
    facts = {"plan": options.plan, "epochs_scale": options.epochs_scale, "precision": options.precision}
    changes = {row: (unusual(facts, row) | settings) if tried else {} for row in ROWS}
    same = [row for row in options.rows if tried and not changes[row]]
    if same:
        raise TrainingError(
            f"no try: nothing differs from what {', '.join(same)} is trained with (--set, --plan)"
        )
    name, usual = _run_name(options, options.plan), _run_name(options, USUAL["plan"])
    others = dict.fromkeys((name, usual))
    name += "".join(f"-{key}={value}" for key, value in sorted(settings.items()))
    shared = [options.checkpoints / other for other in others if other != name]
    rows, manifest, finished = read_rows(accuracy), read_manifest(options.weights), []
    published = is_published(options.width, options.seed, tried)
    for row in ROWS:
        found = find_row(rows, row, options.width, options.seed, changes[row])
        stored = not published or checkpoint.file_name(row, options.width) in manifest
        if found and stored and _same_training(row, found, plan, options.precision, settings):
            finished.append(row)
    waiting = [row for row in ROWS if row in options.rows and row not in finished]
    for row in options.rows if options.list else ():
        print(f"{row:16} {'finished' if row in finished else 'to be trained'}")
    if options.list:
        return
    for row in options.rows:
        if row in finished:
            print(f"{row}: finished before, see {accuracy}", file=sys.stderr)
    if not waiting:
        return
    images, test = data(device)
    setting = Setting(images, device, options.precision, options.seed, not options.no_graphs)
    folder = options.checkpoints / name
    logs = options.results / "training" / (f"{name}-try" if tried and not settings else name)
    run = Run(setting, plan, options.width, folder, logs, shared=shared, tried=tried)
    run.check(waiting)
    for index, row in enumerate(waiting, start=1):
        left = remaining(run, waiting)
        print(f"[{index}/{len(waiting)}] {row} at width {options.width}; in all {left}", file=sys.stderr)
        trained = recipe_of(row)(run, row)
        said = facts | ({"changes": changes[row]} if tried else {})
        line = finish_row(run, row, trained, test, said, options.weights)
        put_row(accuracy, line)
        right = f"{100 * line['accuracy_heldout']:.2f} % held out"
        right += f", {100 * line['accuracy_test']:.2f} % test" if test else ""
        place = weights_path(options.weights, run, row)
        print(f"{row}: {right}, {line['relus']:,} ReLUs -> {place}", file=sys.stderr)


def main(argv: Sequence[str] | None = None) -> int:
    """Runs from the command line; returns the exit status."""
    options = arguments(argv)
    options.tried = options.tried or bool(options.set)
    given = options.plan or (USUAL["plan"] if options.tried else None)

    @cache
    def data(device: torch.device) -> Data:
        images = Images.cifar100(options.data, device)
        return images, None if options.tried else load_cifar100(options.data, "test")

    plans = {given or plan_of(row) for row in options.rows}
    try:
        for plan in sorted(plans, key=lambda plan: (plan != USUAL["plan"], plan)):  # others take from it
            rows = [row for row in options.rows if plan in (given, plan_of(row))]
            run_rows(argparse.Namespace(**vars(options) | {"plan": plan, "rows": rows}), data)
    except (TrainingError, ResultsError, DataError, WeightsError, ValueError) as error:
        print(error, file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("\nstopped: run the same command to go on", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
