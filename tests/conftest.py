"""Parties shared by the tests: started once, loaded again and again."""

from __future__ import annotations

import gc
import signal
from collections.abc import Iterator

import pytest
import torch
from networks import Block
from warm_workers import forked_workers

from pibench.models.interrupt import ENDING
from pibench.parties import group
from pibench.parties.driver import Parties
from pibench.parties.processes import start_worker

torch.set_num_threads(1)  # the parties of the tests need the cores


def pytest_collection_finish() -> None:
    """Leaves modules and tests out of later garbage collections: they stay to the end."""
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session", autouse=True)
def _forked() -> Iterator[None]:
    """The workers of parties are forked, unless a test asks for `started`."""
    with forked_workers():
        yield


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> None:
    """The workers of parties are started as those of a user are."""
    monkeypatch.setattr(group, "start_worker", start_worker)


@pytest.fixture
def usual_signals() -> Iterator[None]:
    """The signals do what they usually do, also where the tests run in the background or under nohup."""
    usual = {signal.SIGINT: signal.default_int_handler}
    own = {each: signal.signal(each, usual.get(each, signal.SIG_DFL)) for each in ENDING}
    yield
    for each, handler in own.items():
        signal.signal(each, handler)


@pytest.fixture(scope="session")
def _running(_forked: None) -> Iterator[dict[str, Parties]]:
    running: dict[str, Parties] = {}
    yield running
    for parties in running.values():
        parties.__exit__(None, None, None)


def _parties(engine: str, running: dict[str, Parties]) -> Parties:
    if engine not in running or not running[engine].pids:
        running[engine] = Parties(engine=engine, timeout_s=120).__enter__()
    return running[engine]


@pytest.fixture
def stock(_running: dict[str, Parties]) -> Parties:
    """Two running parties of the stock engine (new ones if a test ended the last)."""
    return _parties("stock", _running)


@pytest.fixture
def lean(_running: dict[str, Parties]) -> Parties:
    """Two running parties of the lean engine and their dealer, likewise."""
    return _parties("lean", _running)


@pytest.fixture
def block() -> Block:
    return Block()


@pytest.fixture
def images() -> torch.Tensor:
    """Four different images [4, 3, 8, 8]."""
    return torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(1))


@pytest.fixture(scope="module")
def remembered_intervals() -> Iterator[None]:
    """The same values have the same interval: most of a summary's time goes there."""
    from report_tables import remembered_statistics  # most tests need no tables

    with remembered_statistics():
        yield
