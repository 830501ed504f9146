"""Parties that die or hang, for the tests of the driver and of the engines."""

import os
import signal
import time
from collections.abc import Iterable
from pathlib import Path

import pytest
from torch import Tensor, nn

from pibench.parties.driver import Parties, PartyFailed

SECONDS = 5
"""The time in which a failure is reported."""


def alive(pids: Iterable[int]) -> list[int]:
    """Returns those processes that exist and are no zombies."""

    def is_alive(pid: int) -> bool:
        try:
            return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
        except (FileNotFoundError, ProcessLookupError):  # gone before the file is opened, or read
            return False

    return [pid for pid in pids if is_alive(pid)]


def gone(pids: Iterable[int], seconds: float = SECONDS) -> bool:
    """Returns whether all processes are gone, or are within `seconds`."""
    deadline = time.monotonic() + seconds
    while alive(pids):
        if time.monotonic() > deadline:
            return False
        time.sleep(0.05)
    return True


def descendants(pid: int) -> list[int]:
    """Returns the processes that `pid` has started, and those that they have (Linux)."""
    listed = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return [each for child in map(int, listed) for each in (child, *descendants(child))]


def check_killed_party_is_reported(parties: Parties, model: nn.Module, images: Tensor) -> None:
    """Kills party 1 before an inference: it is named soon, and no process of the group is left."""
    parties.load(model, images)
    parties.prepare()
    _check_failure(parties, images, 1, signal.SIGKILL, r"party 1 died by signal 9 \(SIGKILL\)")
    with pytest.raises(PartyFailed, match="not running"):
        parties.prepare()


def check_hanging_party_is_ended(parties: Parties, model: nn.Module, images: Tensor, said: str) -> None:
    """Stops party 0 before an inference: after the timeout `said` is raised, and no process is left."""
    parties.load(model, images)
    parties.prepare()
    parties.group.timeout_s = 1.5
    _check_failure(parties, images, 0, signal.SIGSTOP, rf"{said}did not answer 'infer' within 1.5 s")


def _check_failure(parties: Parties, images: Tensor, rank: int, how: signal.Signals, said: str) -> None:
    pids = parties.pids
    os.kill(pids[rank], how)
    started = time.monotonic()
    with pytest.raises(PartyFailed, match=said):
        parties.infer(images[:1])
    assert time.monotonic() - started < SECONDS
    assert not alive(pids)
