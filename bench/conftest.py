"""Options, fixtures and the progress line of the benchmarks."""

from __future__ import annotations

import statistics
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from bench.cases import Case, default_cases, select, smoke_cases
from bench.engines.base import ENGINES
from bench.laboratory import Laboratory
from bench.results import ResultsError

ROOT = Path(__file__).resolve().parent.parent


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("pibench")
    group.addoption("--smoke", action="store_true", help="every code path once, untimed, at width 8")
    group.addoption("--engine", choices=[e for e in ENGINES if e != "byhand"], help="cases of one engine")
    group.addoption("--results", help="folder of bench.json (default: results; a smoke run keeps nothing)")


def _cases(config: pytest.Config) -> tuple[Case, ...]:
    cases = smoke_cases() if config.getoption("--smoke") else default_cases()
    return select(cases, config.getoption("--engine"))


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "case" in metafunc.fixturenames:
        metafunc.parametrize("case", _cases(metafunc.config), ids=lambda case: case.id)


@pytest.fixture(scope="session")
def results(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder that rows are written to."""
    chosen = request.config.getoption("--results")
    if chosen:
        return Path(chosen)
    return tmp_path_factory.mktemp("results") if request.config.getoption("--smoke") else ROOT / "results"


@pytest.fixture(scope="session")
def smoke(request: pytest.FixtureRequest) -> bool:
    """Tells whether this run only rehearses."""
    return request.config.getoption("--smoke")


@pytest.fixture(scope="session")
def laboratory(request: pytest.FixtureRequest, results: Path, smoke: bool) -> Iterator[Laboratory]:
    """The parties of this session."""
    chosen = [item.callspec.params["case"] for item in request.session.items if _is_case(item)]
    try:
        laboratory = Laboratory(chosen, results, run=uuid.uuid4().hex[:12], rehearsal=smoke)
    except ResultsError as error:
        pytest.exit(str(error), returncode=1)
    with laboratory:
        yield laboratory


def _is_case(item: pytest.Item) -> bool:
    return "case" in getattr(getattr(item, "callspec", None), "params", {})


@pytest.fixture
def announce(request: pytest.FixtureRequest) -> Callable[[str], None]:
    """Writes a line to the terminal although output is captured."""
    terminal = request.config.pluginmanager.get_plugin("terminalreporter")
    capture = request.config.pluginmanager.get_plugin("capturemanager")

    def write(line: str) -> None:
        with capture.global_and_fixture_disabled():
            terminal.ensure_newline()
            terminal.write_line(line)

    return write


def progress(row: dict[str, Any], laboratory: Laboratory, total: int) -> str:
    """One line: the case, its medians, the cases done and the time left."""
    times = row["times"]
    medians = [
        f"{name} {statistics.median(times[f'{name}_s']):.3f} s" if times[f"{name}_s"] else f"{name} -"
        for name in ("offline", "online")
    ]
    done = total - len(laboratory.waiting)
    return (
        f"{row['case']}: {', '.join(medians)}, {row['traffic']['bytes_sent'] / 1e6:.1f} MB, "
        f"{row['traffic']['rounds']} rounds  [{done}/{total}, about {laboratory.minutes_left():.0f} min left]"
    )
