"""Trainings that are killed, or of which several run at once: the same network comes out, to the last bit."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from training_setup import tiny_run

from faults.fault import Fault, Observed
from faults.stage import ANSWER_S, Stage
from pibench.models.training.files import digest

NAMES = ("checkpoint", r"\.pt\b", "train")
DELAYS = (0.1, 0.5, 1.2)
VARIANTS = ("baseline", "senet-0.09")


def faults(seed: int) -> Iterator[Fault]:
    """Yields the faults of this family."""
    for name in VARIANTS:
        for delay in DELAYS:
            for ending in ("SIGKILL", "SIGINT"):
                kind = "kill" if ending == "SIGKILL" else "interrupt"
                known = {"name": name, "delay": delay, "ending": ending}
                yield Fault(kind, f"training-{name}-{1000 * delay:g}ms", "trainings.resumed", known, NAMES,
                            seconds=60.0)  # fmt: skip
    for count in (2, 3):
        yield Fault("race", f"trainings-{count}", "trainings.together", {"count": count}, NAMES, seconds=90.0)


def _trained(folder: Path, name: str) -> str:
    """Trains a tiny network from where it stopped; returns the digest of its state."""
    return digest(tiny_run(folder).trained(name).model.state_dict())


def _writes(folder: Path, name: str) -> Callable[[], None]:
    return lambda: print(_trained(folder, name), flush=True)


def _undisturbed(stage: Stage, name: str) -> str:
    """Returns the digest of a training that nobody disturbs, made in a process of its own like the others."""
    child = stage.fork(_writes(stage.folder / "whole", name), "whole")
    if child.wait(60.0) != 0:
        raise RuntimeError(child.said())
    return child.told()[-1]


def resumed(stage: Stage, name: str, delay: float, ending: str) -> Observed:
    """A training is ended, and the same command goes on."""
    expected = _undisturbed(stage, name)
    folder = stage.folder / "parts"
    for _ in range(2):
        child = stage.fork(_writes(folder, name))
        time.sleep(delay)
        child.send(getattr(signal, ending))
        if child.wait(ANSWER_S) is None:
            child.end()
            return Observed(hung=True, said=child.said()[-2000:])
    return stage.attempt(lambda: _trained(folder, name), lambda found: found == expected)


def together(stage: Stage, count: int) -> Observed:
    """Several processes train one network in one folder."""
    expected = _undisturbed(stage, "baseline")
    folder = stage.folder / "shared"
    os.mkdir(folder)
    children = [stage.fork(_writes(folder, "baseline"), f"trainer{n}") for n in range(count)]
    seen = [child.observed(60.0, lambda child=child: child.told()[-1:] == [expected]) for child in children]
    return next((one for one in seen if not (one.answered and one.right)), seen[0])
