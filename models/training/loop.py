"""One phase of training: epochs of SGD on a task, resumable after a kill at any point.

A checkpoint is written at the end of every epoch. All random choices of an epoch come from a generator seeded
by the run's seed and the epoch's number. A killed epoch is simply repeated, and the result is the same bit
for bit (on one kind of machine, with the same number of threads).
"""

import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, field
from math import isfinite
from pathlib import Path
from typing import Any, Protocol, TextIO

import torch
from torch import Tensor, nn

from pibench.models.training.files import (
    Checkpoints,
    TrainingError,
    architecture,
    digest,
    locked,
    write_lines,
)
from pibench.models.training.gradients import Differentiable, Gradients, RecordedGradients
from pibench.models.training.images import Images, accuracy
from pibench.models.training.memory import memory_format
from pibench.models.training.schedules import Schedule


@dataclass(frozen=True)
class Setting:
    """The images and the device of a training.

    `recorded` chooses whether a CUDA device replays recorded steps.
    """

    images: Images
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    precision: str = "bfloat16"
    seed: int = 0
    recorded: bool = True

    @contextmanager
    def autocast(self) -> Iterator[None]:
        """Runs convolutions in bfloat16 unless the precision is float32."""
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.precision == "bfloat16"):
            yield

    def gradients(self, task: "Task", optimizers: list[torch.optim.Optimizer]) -> Gradients:
        """Returns the object that computes a task's gradients on the device."""
        kind = RecordedGradients if self.recorded and self.device.type == "cuda" else Gradients
        return kind(task, optimizers, self.autocast)


class Task(Differentiable, Protocol):
    """A network in training, its loss, and its actions between the steps.

    All state outside the model is in `extra`, tensors by name, which is saved with it.
    """

    model: nn.Module
    extra: dict[str, Tensor]

    def start(self, setting: Setting) -> None:
        """Prepares a new phase; not called when the phase continues from a checkpoint."""

    def optimizers(self, schedule: Schedule, steps: int) -> list[torch.optim.Optimizer]:
        """Returns the optimizers; the rate of the first follows the schedule."""

    def before_step(self, done: float) -> None:
        """Sets the values that depend on `done`, the finished fraction of all steps; keeps no state.

        It is called with 1 after the last step, also for a finished phase that is loaded, which has no
        `optimizers`.
        """

    def after_step(self, done: float) -> None:
        """Changes the weights after a step."""

    def after_epoch(self, setting: Setting, epoch: int) -> dict[str, Any]:
        """Acts between two epochs, before the evaluation; returns entries for the log."""


@dataclass(frozen=True)
class Outcome:
    """The result of a finished phase besides the model: the digest of its state, its epochs and seconds."""

    name: str
    digest: str
    history: tuple[dict[str, Any], ...]
    extra: dict[str, Tensor]

    @property
    def seconds(self) -> float:
        """The seconds of all epochs, including evaluation."""
        return sum(row["wall_s"] for row in self.history)


class Progress:
    """Prints one line with the state of a phase and the time left; in a file, one line for each epoch."""

    def __init__(self, name: str, epochs: int, steps: int, stream: TextIO | None = None) -> None:
        self.name, self.epochs, self.steps = name, epochs, steps
        self.stream = sys.stderr if stream is None else stream
        self.live = self.stream.isatty()
        self.began: float | None = None
        self.first = 0
        self.shown = 0.0

    def step(self, epoch: int, step: int, loss: Callable[[], float]) -> None:
        """Notes that `step` steps of epoch `epoch` are done; calls `loss` only when it prints the line."""
        now, done = time.monotonic(), epoch * self.steps + step
        if self.began is None:
            self.began, self.first = now, done
            return
        if not self.live or now - self.shown < 0.5:
            return
        self.shown = now
        text = f"{self.name}  epoch {epoch + 1}/{self.epochs}  step {step}/{self.steps}  loss {loss():.3f}"
        self.stream.write(f"\r\x1b[K{text}  {self._left(done)}")
        self.stream.flush()

    def epoch(self, row: dict[str, Any]) -> None:
        """Prints the result of an epoch."""
        done = row["epoch"] * self.steps
        text = (
            f"{self.name}  epoch {row['epoch']}/{self.epochs}  loss {row['loss']:.3f}  "
            f"held-out {100 * row['accuracy_heldout']:.2f} %  {row['wall_s']:.1f} s  {self._left(done)}"
        )
        self.stream.write(("\r\x1b[K" if self.live else "") + text + "\n")
        self.stream.flush()

    def _left(self, done: int) -> str:
        if self.began is None or done <= self.first:
            return "time left unknown"
        seconds = (time.monotonic() - self.began) / (done - self.first) * (self.epochs * self.steps - done)
        return f"{int(seconds // 3600)}:{int(seconds // 60 % 60):02}:{int(seconds % 60):02} left"


def phase_identity(name: str, schedule: Schedule, setting: Setting) -> dict[str, Any]:
    """Returns the part of a checkpoint's identity that is known before the earlier phase exists."""
    return {
        "phase": name,
        "schedule": asdict(schedule),
        "seed": setting.seed,
        "precision": setting.precision,
        "images": len(setting.images.labels),
    }


def train(
    task: Task,
    schedule: Schedule,
    setting: Setting,
    name: str,
    folder: Path,
    log: Path,
    after: str = "",
    stream: TextIO | None = None,
    shared: Sequence[Path] = (),
) -> Outcome:
    """Trains a task to its last epoch, from its checkpoint in `folder` if there is one; returns its outcome.

    Every epoch is a line of `log` (JSON lines). `after` is the digest of the state from which the phase
    starts. A process that finds another one training the same phase waits for its end and takes the result.
    If the same phase is finished in one of the folders `shared`, it is taken from there. Raises TrainingError
    when the loss is not a number, a file cannot be written, or the checkpoint belongs to another
    architecture, schedule, seed, precision or start.
    """
    model = task.model.to(setting.device, memory_format=memory_format(task.model))
    task.extra = {key: value.to(setting.device) for key, value in task.extra.items()}
    identity = phase_identity(name, schedule, setting) | {
        "task": type(task).__name__,
        "architecture": architecture(model.state_dict()),
        "after": after,
    }
    checkpoints = Checkpoints(folder / f"{name}.pt", identity)
    state = checkpoints.load(setting.device)
    for other in shared:
        if state is None:
            state = _finished(Checkpoints(other / f"{name}.pt", identity).same(setting.device), schedule)
    with ExitStack() as stack:
        if _finished(state, schedule) is None:
            output = sys.stderr if stream is None else stream
            stack.enter_context(
                locked(
                    folder / f"{name}.lock",
                    lambda: print(f"{name}: another training is at it: waiting for its end", file=output),
                )
            )
            state = checkpoints.load(setting.device)  # the result of the other process
        return _train(task, schedule, setting, checkpoints, log, state, stream)


def _finished(state: dict[str, Any] | None, schedule: Schedule) -> dict[str, Any] | None:
    """Returns the state of a finished phase, or None for any other state."""
    return state if state is not None and len(state["history"]) == schedule.epochs else None


def _train(
    task: Task,
    schedule: Schedule,
    setting: Setting,
    checkpoints: Checkpoints,
    log: Path,
    state: dict[str, Any] | None,
    stream: TextIO | None,
) -> Outcome:
    """Trains a phase from `state`, or from its start if there is none."""
    name, model = checkpoints.path.stem, task.model
    steps = setting.images.steps(schedule.batch)
    history: list[dict[str, Any]] = []
    if state is None:
        task.start(setting)
    else:
        model.load_state_dict(state["model"])
        task.extra = state["extra"]
        history = [dict(row) for row in state["history"]]
        write_lines(log, history)
    if len(history) < schedule.epochs:
        optimizers = task.optimizers(schedule, schedule.epochs * steps)
        for optimizer, saved in zip(optimizers, state["optimizers"] if state else (), strict=False):
            optimizer.load_state_dict(saved)
        gradients = setting.gradients(task, optimizers)
        progress = Progress(name, schedule.epochs, steps, stream)
        while len(history) < schedule.epochs:
            row = _epoch(task, schedule, setting, gradients, len(history), progress)
            history.append(row)
            last = len(history) == schedule.epochs
            checkpoints.save(
                {
                    "model": model.state_dict(),
                    "extra": task.extra,
                    "optimizers": [] if last else [optimizer.state_dict() for optimizer in optimizers],
                    "history": history,
                }
            )
            write_lines(log, history)
            progress.epoch(row)
    task.before_step(1.0)
    model.eval()
    return Outcome(name, digest(model.state_dict()), tuple(history), task.extra)


def _kept(epoch: int) -> str:
    return f"the checkpoint of epoch {epoch} is kept" if epoch else "no epoch was finished before"


class Losses:
    """The losses of an epoch's steps, kept on the device: a GPU would wait for every number that is read.

    `read` looks for a loss that is not a number: on a CPU at every step, elsewhere at every 50th.
    """

    def __init__(self, steps: int, device: torch.device) -> None:
        self.values = torch.zeros(steps, dtype=torch.float64, device=device)
        self.every = 1 if device.type == "cpu" else 50
        self.steps = self.seen = 0

    def add(self, loss: Tensor) -> None:
        """Stores the loss of the next step."""
        self.values[self.steps] = loss
        self.steps += 1

    def read(self) -> tuple[int, float] | None:
        """Returns the first step (from 1) whose loss is not a number, and that loss.

        None if all are numbers.
        """
        if self.steps % self.every and self.steps < len(self.values):
            return None
        for step, value in enumerate(self.values[self.seen : self.steps].tolist(), start=self.seen + 1):
            if not isfinite(value):
                return step, value
        self.seen = self.steps
        return None

    def last(self) -> float:
        """Returns the loss of the last step."""
        return float(self.values[self.steps - 1])

    def mean(self) -> float:
        """Returns the mean loss of the epoch."""
        return float(self.values.mean())


def _epoch(
    task: Task,
    schedule: Schedule,
    setting: Setting,
    gradients: Gradients,
    epoch: int,
    progress: Progress,
) -> dict[str, Any]:
    """Trains one epoch; returns its line of the log."""
    began = time.monotonic()
    model, images = task.model, setting.images
    steps, order = images.steps(schedule.batch), memory_format(model)
    losses, rate = Losses(steps, setting.device), 0.0

    def behind(step: int) -> float:
        return (epoch * steps + step) / (schedule.epochs * steps)

    def place(step: int) -> str:
        rate = schedule.rate(behind(step - 1))
        return f"{progress.name}: at step {step} of epoch {epoch + 1} (rate {rate:.2g})"

    model.train()
    for step, (x, labels) in enumerate(images.epoch(schedule.batch, setting.seed, epoch)):
        done = behind(step)
        rate = schedule.rate(done)
        for group in gradients.optimizers[0].param_groups:
            group["lr"] = rate
        task.before_step(done)
        losses.add(gradients(x.contiguous(memory_format=order), labels))
        wrong = losses.read()
        if wrong:
            at, value = wrong
            raise TrainingError(f"{place(at)} the loss is {value}: {_kept(epoch)}")
        for optimizer in gradients.optimizers:
            optimizer.step()
        task.after_step(behind(step + 1))
        progress.step(epoch, step + 1, losses.last)
    if not all(parameter.isfinite().all() for parameter in model.parameters()):
        raise TrainingError(f"{place(steps)} the weights are no numbers any more: {_kept(epoch)}")
    task.before_step((epoch + 1) / schedule.epochs)
    noted = task.after_epoch(setting, epoch)
    with setting.autocast():
        right = accuracy(model, images.heldout, images.heldout_labels)
    return {
        "phase": progress.name,
        "epoch": epoch + 1,
        "loss": losses.mean(),
        "rate": rate,
        "accuracy_heldout": right,
        "wall_s": round(time.monotonic() - began, 2),
        **noted,
    }
