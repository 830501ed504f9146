"""Options, fixtures, the progress line and the closing table of the benchmarks."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Container, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from pibench.engines import ENGINES
from pibench.hosts.remote import Remote, RemoteFailed, parse_ports
from pibench.links.check import TWO_HOSTS
from pibench.measure.case import Case
from pibench.measure.session import Session
from pibench.measure.suites import (
    default_cases,
    extra_cases,
    protocol_cases,
    protocol_link_cases,
    select,
    small,
    smoke_cases,
    sweep_cases,
    two_host_cases,
)
from pibench.models.interrupt import ENDING, remembering, status_of
from pibench.models.manifest import WeightsError
from pibench.report.comparison import conclusion
from pibench.report.writing import REFERENCE
from pibench.store.results import ResultsError, read_rows

ROOT = Path(__file__).resolve().parent.parent
MEASURED = pytest.StashKey[tuple[Path, str, Container[str]]]()
"""The folder of this session's rows, the name of its run, and the cases that were up to date before."""
ASK_FOR_RAW = ("--benchmark-columns", "--benchmark-verbose")
CASES = {
    "--smoke": smoke_cases,
    "--sweep": sweep_cases,
    "--extra": extra_cases,
    "--protocols": protocol_cases,
    "--protocol-links": protocol_link_cases,
}  # the first one asked for


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("pibench")
    group.addoption("--smoke", action="store_true", help="every code path once, untimed, at width 8")
    group.addoption(
        "--extra", action="store_true", help="16 images, CrypTen's TTP provider and three parties instead"
    )
    group.addoption(
        "--sweep", action="store_true", help="all variants on every link, and at width 16, instead"
    )
    group.addoption("--protocols", action="store_true", help="six networks under five protocols, instead")
    group.addoption("--protocol-links", action="store_true", help="SPU's protocols over LAN and WAN, instead")
    group.addoption(
        "--engine",
        choices=[name for name, engine in ENGINES.items() if engine.offered],
        help="cases of one engine",
    )
    group.addoption("--again", action="store_true", help="measure cases that are up to date, too")
    group.addoption("--results", help="folder of bench.json (default: results; a smoke run keeps nothing)")
    group.addoption(
        "--remote",
        metavar="ADDRESS[:PORT]",
        help="party 1 runs on another host, which reaches this one at ADDRESS (docs/two_hosts.md)",
    )
    group.addoption("--remote-name", default=TWO_HOSTS, help="what rows call the link (default: %(default)s)")
    group.addoption("--remote-ports", default="0", help="where processes of this host listen: 29501-29516")
    group.addoption("--remote-timeout", type=float, default=300.0, help="seconds to wait for the other host")


def pytest_configure(config: pytest.Config) -> None:
    """Leaves out pytest-benchmark's own table, unless an option asks for it; heeds signals."""
    config.pluginmanager.register(Ending(config))
    if not any(str(each).startswith(ASK_FOR_RAW) for each in config.invocation_params.args):
        config.option.benchmark_quiet = True


class Ending:
    """Gives a run that a signal has ended the exit status that a shell expects."""

    def __init__(self, config: pytest.Config) -> None:
        self._status: int | None = None
        stack = ExitStack()
        stack.enter_context(remembering(*ENDING))
        config.add_cleanup(stack.close)

    def pytest_keyboard_interrupt(self, excinfo: pytest.ExceptionInfo[BaseException]) -> None:
        if isinstance(excinfo.value, KeyboardInterrupt):
            self._status = status_of(excinfo.value)

    def pytest_sessionfinish(self, session: pytest.Session) -> None:
        if self._status is not None:
            session.exitstatus = self._status


def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    """Prints what this session measured or kept in short, and how it compares with the reference."""
    results, run, kept = config.stash.get(MEASURED, (None, "", ()))
    if results is None:
        return
    try:
        stored = read_rows(results / "bench.json")
        rows = [row for row in stored if row["run"] == run or row["case"] in kept]
        said = conclusion(rows, ROOT / "results" / REFERENCE) if rows else "No case has been measured."
    except ResultsError as error:
        said = str(error)
    terminalreporter.section("measured")
    terminalreporter.write_line(said)


def _cases(config: pytest.Config) -> tuple[Case, ...]:
    smoke = config.getoption("--smoke")
    if config.getoption("--remote"):
        cases = two_host_cases(config.getoption("--remote-name"))
        cases = tuple(map(small, cases)) if smoke else cases
    else:
        asked = [made for option, made in CASES.items() if config.getoption(option)]
        cases = (asked[0] if asked else default_cases)()
    return select(cases, config.getoption("--engine"))


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "case" in metafunc.fixturenames:
        metafunc.parametrize("case", _cases(metafunc.config), ids=lambda case: case.id)


@pytest.fixture(scope="session")
def results(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Returns the folder of the rows."""
    chosen = request.config.getoption("--results")
    if chosen:
        return Path(chosen)
    return tmp_path_factory.mktemp("results") if request.config.getoption("--smoke") else ROOT / "results"


@pytest.fixture(scope="session")
def smoke(request: pytest.FixtureRequest) -> bool:
    """Tells whether this run only rehearses."""
    return request.config.getoption("--smoke")


@pytest.fixture(scope="session")
def session(request: pytest.FixtureRequest, results: Path, smoke: bool) -> Iterator[Session]:
    """Returns the session of measurements."""
    chosen = [item.callspec.params["case"] for item in request.session.items if _is_case(item)]
    run = uuid.uuid4().hex[:12]
    try:
        remote = _remote(request.config)
        session = Session(chosen, results, run, remote, request.config.getoption("--again"))
        request.config.stash[MEASURED] = results, run, session.kept
        session.__enter__()
    except (ResultsError, WeightsError, RemoteFailed) as error:
        pytest.exit(str(error), returncode=1)
    if said := session.said_of_kept():
        _writer(request.config)(said)
    with ExitStack() as stack:
        stack.push(session)
        yield session


def _remote(config: pytest.Config) -> Remote | None:
    """Returns the other host of the options."""
    chosen = config.getoption("--remote")
    if not chosen:
        return None
    host, _, port = chosen.partition(":")
    try:
        return Remote(
            host,
            int(port) if port.isdecimal() else port or None,
            timeout_s=config.getoption("--remote-timeout"),
            name=config.getoption("--remote-name"),
            ports=parse_ports(config.getoption("--remote-ports")),
            say=_writer(config),
        )
    except ValueError as error:
        pytest.exit(f"--remote {chosen}: {error}", returncode=pytest.ExitCode.USAGE_ERROR)


def _is_case(item: pytest.Item) -> bool:
    return "case" in getattr(getattr(item, "callspec", None), "params", {})


@pytest.fixture
def announce(request: pytest.FixtureRequest) -> Callable[[str], None]:
    """Writes a line to the terminal although output is captured."""
    return _writer(request.config)


def _writer(config: pytest.Config) -> Callable[[str], None]:
    terminal = config.pluginmanager.get_plugin("terminalreporter")
    capture = config.pluginmanager.get_plugin("capturemanager")

    def write(line: str) -> None:
        with capture.global_and_fixture_disabled():
            terminal.ensure_newline()
            terminal.write_line(line)

    return write
