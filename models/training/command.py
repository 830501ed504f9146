"""Training rows: trains every requested variant that is not finished, from where it stopped."""

import hashlib
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import Any, TextIO

import torch
from torch import Tensor, nn

from pibench.models import catalogue, manifest
from pibench.models import weights as checkpoint
from pibench.models.data import load_cifar100
from pibench.models.files import demand_room, parse_json
from pibench.models.manifest import MANIFEST, read_manifest
from pibench.models.rows import read_rows
from pibench.models.training.files import TrainingError, writing
from pibench.models.training.images import Images
from pibench.models.training.loop import Outcome, Setting
from pibench.models.training.phases import last_phase, phases, plan_named, planned, schedules_of
from pibench.models.training.rows import (
    Row,
    find_row,
    finish_row,
    is_published,
    put_row,
    stored_row,
    weights_path,
)
from pibench.models.training.run import Run, Trained
from pibench.models.training.schedules import USUAL, Plan, unusual
from pibench.models.training.unfold import unfolded
from pibench.models.variants import variant

BASELINE, PUBLISHED = "baseline", "published"
STATISTICS = 5000
"""So many images give BatchNorm's statistics to a published network."""


@dataclass(frozen=True)
class Folders:
    """The folders of the images, rows, checkpoints and weights, and of the project's own rows."""

    data: Path = Path("data")
    results: Path = Path("results")
    checkpoints: Path = Path("checkpoints")
    weights: Path = Path("results/weights")
    reference: Path = Path("results/reference")


@dataclass(frozen=True)
class Options:
    """The options for training rows.

    `plan` None means each row's own plan, or the plan of `USUAL` for a try. `changes` of the plan (see
    `Plan.changed`) make a try. A try is judged only by held-out images and goes to tries.json; `tried` makes
    one without changes. `device` is "auto" (a CUDA device if there is one) or a device name of torch.
    `precision` is that of convolutions; "auto" is the faster one of the device, and finished rows may have
    either. `recorded` chooses whether a CUDA device replays recorded steps. If `from_published`, the
    project's own baseline and measured sensitivity take the place of their training.
    """

    network: str = "resnet18"
    width: int = 16
    seed: int = 0
    plan: str | None = None
    epochs_scale: float = USUAL["epochs_scale"]
    precision: str = "auto"
    from_published: bool = False
    changes: Mapping[str, Any] = field(default_factory=dict)
    tried: bool = False
    device: str = "auto"
    recorded: bool = True
    folders: Folders = Folders()

    @property
    def is_try(self) -> bool:
        """True if the training is a try."""
        return self.tried or bool(self.changes)

    def plan_of(self, row: str) -> str:
        """Returns the name of the plan for a row."""
        return self.plan or (USUAL["plan"] if self.is_try else variant(row).plan)

    def schedules(self, plan: str) -> Plan:
        """Returns the plan of this name, scaled and changed."""
        return plan_named(plan).scaled(self.epochs_scale).changed(self.changes)

    @property
    def convolutions(self) -> str:
        """The precision of convolutions on the device."""
        return fast_precision(self.device) if self.precision == "auto" else self.precision

    def facts(self, plan: str) -> dict[str, Any]:
        """Returns the facts that a row states about its training."""
        facts = {"plan": plan, "epochs_scale": self.epochs_scale, "precision": self.convolutions}
        return facts | ({"start": PUBLISHED} if self.from_published else {})

    def changes_of(self, row: str, plan: str) -> dict[str, Any]:
        """Returns how a try differs from a row's usual training; empty if it is not a try."""
        if not self.is_try:
            return {}
        start = {"start": PUBLISHED} if self.from_published else {}
        return unusual(self.facts(plan), variant(row).plan) | start | dict(self.changes)

    @property
    def accuracy(self) -> Path:
        """The file of the rows; each network other than ResNet-18 has its own file."""
        name = "tries" if self.is_try else "accuracy"
        return self.folders.results / f"{name}{'' if self.network == 'resnet18' else f'-{self.network}'}.json"

    def run_name(self, plan: str) -> str:
        """Returns the folder name for a run of an unchanged plan."""
        name = "" if self.network == "resnet18" else f"{self.network}-"
        name += f"w{self.width}-s{self.seed}-{plan}"
        name += "" if self.epochs_scale == 1 else f"-x{self.epochs_scale:g}"
        name += "" if self.convolutions == USUAL["precision"] else f"-{self.convolutions}"
        return name + (f"-{PUBLISHED}" if self.from_published else "")


def usable_device(name: str) -> torch.device:
    """Returns a device of torch; raises TrainingError for one that cannot be used."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
        torch.zeros(1, device=device)
        if device.type == "cuda" and device.index is not None:
            torch.cuda.set_device(device)  # steps are recorded on this device
    except (RuntimeError, AssertionError) as error:
        raise TrainingError(f"the device {name!r} cannot be used: {str(error).splitlines()[0]}") from error
    return device


def fast_precision(device: str) -> str:
    """Returns the faster precision of convolutions on a device: bfloat16 where its hardware multiplies that.

    A processor without AVX512-BF16 or AMX emulates it: a step of ResNet-18 then takes seven times as long as
    in float32.
    """
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    able = torch.cpu.get_capabilities()
    slow = device == "cpu" and not (able.get("avx512_bf16") or able.get("amx_bf16"))
    return "float32" if slow else "bfloat16"


def remaining(run: Run, rows: Iterable[str]) -> str:
    """Returns a text: how many epochs the rows still need, and the time at the mean pace so far."""
    waiting = {phase.name: phase for row in rows for phase in phases(run.phase(row), run.stored)}
    waiting = {name: phase for name, phase in waiting.items() if name not in run.published}
    done = [epoch["wall_s"] for phase in waiting.values() for epoch in run.history(phase)]
    epochs = sum(phase.schedule.epochs for phase in waiting.values()) - len(done)
    if not done:
        return f"{epochs} epochs to go"
    minutes = epochs * sum(done) / len(done) / 60
    return f"{epochs} epochs to go, about {int(minutes // 60)}:{int(minutes % 60):02} h"


def _same_training(name: str, row: Row, plan: Plan, options: Options) -> bool:
    """Returns whether a row went through the phases that `plan` has for it.

    The plan's name does not matter.
    """
    try:
        of_row = plan_named(row["plan"]).scaled(row["epochs_scale"]).changed(options.changes)
        trained, precision = row["phases"], row["precision"]
    except (KeyError, ValueError):
        return False
    known = variant(name)
    pairs = (schedules_of(known, of_row), schedules_of(known, plan)), (trained, planned(known, plan))
    differing = {key for left, right in pairs for key, _ in left.items() ^ right.items()}
    # What was published is the same under every plan.
    given = {BASELINE, "sensitivity"} if row.get("start") == PUBLISHED else set()
    return differing <= given and options.precision in ("auto", precision)


def finished(rows: Iterable[str], options: Options) -> list[str]:
    """Returns the rows that are trained, judged by the phases and the precision of `options`."""
    found, result = read_rows(options.accuracy), []
    manifest = read_manifest(options.folders.weights)
    published = is_published(options.width, options.seed, options.is_try)
    for row in rows:
        plan = options.plan_of(row)
        line = find_row(found, row, options.width, options.seed, options.changes_of(row, plan))
        name = checkpoint.file_name(row, options.width, options.network)
        stored = not published or name in manifest
        if line and stored and _same_training(row, line, options.schedules(plan), options):
            result.append(row)
    return result


def stored_rows(rows: Iterable[str], plan: str, options: Options) -> dict[str, Trained]:
    """Returns the networks of finished rows that the training of `rows` may start from, by variant.

    Own rows come before the project's. A row counts if its phases are those of the plan.
    """
    parts = options.schedules(plan)
    wanted = {phase.row for row in rows for phase in phases(last_phase(variant(row), parts)) if phase.row}
    result: dict[str, Trained] = {}
    for accuracy, weights in (
        (options.accuracy, options.folders.weights),
        (options.folders.reference / options.accuracy.name, manifest.FOLDER),
    ):
        found, listed = read_rows(accuracy), read_manifest(weights)
        for name in sorted(wanted - result.keys()):
            row = find_row(found, name, options.width, options.seed)
            file = checkpoint.file_name(name, options.width, options.network)
            if row and file in listed and _same_training(name, row, parts, options):
                result[name] = stored_row(row, weights / file)
    return result


def published(run: Run, options: Options) -> dict[str, Trained]:
    """Returns what the project has published of the phases that others start from, in training form.

    These are the baseline, and the sensitivity if it was measured. Raises TrainingError if the project has no
    baseline of the run's network, width and seed.
    """
    usual = Options(options.network, options.width, options.seed, precision=USUAL["precision"])
    row = find_row(
        read_rows(options.folders.reference / usual.accuracy.name), BASELINE, run.width, run.setting.seed
    )
    file = checkpoint.file_name(BASELINE, run.width, run.network)
    if row is None or file not in read_manifest(manifest.FOLDER):
        raise TrainingError(
            f"no baseline of {run.network} of width {run.width} and seed {run.setting.seed} is published: "
            "leave --from-published out"
        )
    stored = stored_row(row, manifest.FOLDER / file)
    images = run.setting.images.sample(STATISTICS)
    model = run.placed(unfolded(run.original(), stored.model, (x.cpu() for x in images)))
    found = {BASELINE: replace(stored, model=model, decisions=None)}
    logs = options.folders.reference / "training" / usual.run_name(USUAL["plan"])
    if (logs / "sensitivity.json").is_file():
        found["sensitivity"] = stored_sensitivity(run, logs)
    return found


def stored_sensitivity(run: Run, logs: Path) -> Trained:
    """Returns a published measurement of sensitivity as the phase that made it: densities, without a network.

    Raises TrainingError if the files in `logs` are damaged.
    """
    try:
        content = (logs / "sensitivity.json").read_bytes()
        measured = parse_json(content.decode())["sensitivity"]
        kept = {conv: torch.tensor([1 - measured[relu]]) for relu, conv in run.layout.convolutions.items()}
        lines = (logs / "sensitivity.jsonl").read_text().splitlines()
        history = tuple(parse_json(line) for line in lines)
    except (OSError, UnicodeDecodeError, ValueError, TypeError, KeyError) as error:
        raise TrainingError(f"{logs} holds no measured sensitivity ({error}): restore it from git") from error
    outcome = Outcome("sensitivity", hashlib.sha256(content).hexdigest(), history, kept)
    return Trained(nn.Identity(), (outcome,))


Data = tuple[Images, tuple[Tensor, Tensor] | None]
"""Training and held-out images, and the test set, which a try does not get."""


def train(rows: Iterable[str], options: Options, stream: TextIO | None = None) -> list[Row]:
    """Trains the rows that are not finished, writes each one at its end, and returns the trained ones.

    Progress goes to `stream`, by default stderr. The rows of the usual plan come first, because others use
    their phases. Raises TrainingError, ResultsError, DataError, WeightsError or ValueError, each with one
    sentence.
    """
    rows, output = [row for row in catalogue.variant_names() if row in set(rows)], stream or sys.stderr
    torch.backends.cudnn.deterministic = True  # resumed and uninterrupted runs must agree
    torch.backends.cudnn.allow_tf32 = False  # results called float32 must be float32
    device = usable_device(options.device)
    by_plan: dict[str, list[str]] = {}
    for row in rows:
        plan = options.plan_of(row)
        if options.is_try and not options.changes_of(row, plan):
            raise TrainingError(f"no try: nothing differs from what {row} is trained with (--set, --plan)")
        known = replace(variant(row), network=options.network)
        last_phase(known, options.schedules(plan))
        _ = known.steps  # refuses an unsuitable network before anything is trained
        by_plan.setdefault(plan, []).append(row)
    done = finished(rows, options)
    for row in done:
        print(f"{row}: finished before, see {options.accuracy}", file=output)
    if options.from_published and BASELINE in rows:
        print(f"{BASELINE}: the published one is the start of the others", file=output)
        done.append(BASELINE)

    @cache
    def data() -> Data:
        images = Images.cifar100(options.folders.data, device)
        return images, None if options.is_try else load_cifar100(options.folders.data, "test")

    if any(row not in done for row in rows):
        _demand_room(options)
    result = []
    for plan in sorted(by_plan, key=lambda plan: (plan != USUAL["plan"], plan)):
        waiting = [row for row in by_plan[plan] if row not in done]
        if waiting:
            result += _train_plan(waiting, plan, options, data, device, output)
    return result


def _demand_room(options: Options) -> None:
    """Raises TrainingError unless rows, checkpoints and weights can be written now."""
    folders = options.folders
    places = [options.accuracy, folders.checkpoints / "any"]
    if is_published(options.width, options.seed, options.is_try):
        places.append(folders.weights / MANIFEST)
    for place in places:
        with writing(place):
            demand_room(place)


def _train_plan(
    rows: Sequence[str],
    plan: str,
    options: Options,
    data: Callable[[], Data],
    device: torch.device,
    output: TextIO,
) -> list[Row]:
    """Trains rows of one plan."""
    images, test = data()
    folders, own = options.folders, options.run_name(plan)
    name = own + "".join(f"-{key}={value}" for key, value in sorted(options.changes.items()))
    others = dict.fromkeys((own, options.run_name(USUAL["plan"])))
    apart = options.is_try and not options.changes
    run = Run(
        Setting(images, device, options.convolutions, options.seed, options.recorded),
        options.schedules(plan),
        options.width,
        folders.checkpoints / name,
        folders.results / "training" / (f"{name}-try" if apart else name),
        output,
        shared=[folders.checkpoints / other for other in others if other != name],
        stored={} if options.is_try else stored_rows(rows, plan, options),
        tried=options.is_try,
        network=options.network,
    )
    if options.from_published:
        run.published |= published(run, options)
    result = []
    for index, row in enumerate(rows, start=1):
        left = remaining(run, rows)
        print(f"[{index}/{len(rows)}] {row} at width {options.width}; in all {left}", file=output)
        trained = run.trained(row)
        said = options.facts(plan)
        if not any(phase.name in run.published for phase in trained.phases):
            said.pop("start", None)  # it started from random weights
        said |= {"changes": options.changes_of(row, plan)} if options.is_try else {}
        line = finish_row(run, row, trained, test, said, folders.weights)
        put_row(options.accuracy, line)
        result.append(line)
        right = f"{100 * line['accuracy_heldout']:.2f} % held out"
        right += f", {100 * line['accuracy_test']:.2f} % test" if test else ""
        place = weights_path(folders.weights, run, row)
        print(f"{row}: {right}, {line['relus']:,} ReLUs -> {place}", file=output)
    return result
