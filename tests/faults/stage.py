"""What an act may use: a folder of its own, a seeded generator, and ways to call the suite and to see it."""

from __future__ import annotations

import atexit
import linecache
import os
import random
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

from faults.fault import Observed

ROOT = Path(__file__).resolve().parents[2]
OURS = (str(ROOT / "bench"), str(ROOT / "models"))
ANSWER_S = 5.0
"""Seconds in which processes are gone and a signal is obeyed, on a machine that is busy."""


def observed_of(error: BaseException) -> Observed:
    """Describes an exception that the suite raised."""
    frames = traceback.extract_tb(error.__traceback__)
    last = frames[-1] if frames else None
    line = linecache.getline(last.filename, last.lineno or 0).strip() if last else ""
    own = last is not None and last.filename.startswith(OURS) and line.startswith("raise")
    named = isinstance(error, OSError) and error.errno is not None
    return Observed(message=printable(str(error)), raised=type(error).__name__, deliberate=own or named)


def printable(text: str) -> str:
    """Replaces what no terminal takes, such as half a character."""
    return text.encode(errors="replace").decode()


class Stage:
    """The place where one fault is carried out.

    `folder` is an empty folder of its own, which is removed later. TMPDIR is another one, in which the suite
    may leave nothing. `rng` is seeded by the campaign's seed and the fault's id. `shared` is kept between
    faults that share a process; what is in it is closed at their end.
    """

    def __init__(self, folder: Path, seed: str, shared: dict[str, Any], report: int) -> None:
        self.folder = folder
        self.rng = random.Random(seed)
        self.seed = seed
        self.shared = shared
        self._report = report

    def attempt(self, work: Callable[[], Any], right: Callable[[Any], bool] = lambda _: True) -> Observed:
        """Calls the suite: the answer is judged by `right`, an exception is described."""
        try:
            result = work()
        except Exception as error:
            return observed_of(error)
        return Observed(answered=True, right=bool(right(result)))

    def fork(self, work: Callable[[], object], name: str = "child") -> Child:
        """Starts a process that does `work` and then ends as a Python process does."""
        out, err = self.folder / f"{name}.out", self.folder / f"{name}.err"
        pid = os.fork()
        if pid:
            return Child(pid, out, err, time.monotonic())
        code = 70
        try:
            os.close(self._report)
            os.setsid()
            signal.signal(signal.SIGINT, signal.default_int_handler)
            redirect(out, err)
            code = _ended(work)
        finally:
            _flush()
            os._exit(code)

    def command(
        self,
        *arguments: str,
        module: str = "pibench.cli",
        before: Callable[[], object] = lambda: None,
        name: str = "command",
    ) -> Child:
        """Starts a command of the suite, as `python -m module arguments` would; `before` runs first in it."""

        def work() -> object:
            from importlib import import_module

            from faults.forked import forked_workers

            found = import_module(module)
            before()
            sys.argv = [module, *arguments]
            with forked_workers():
                if module == "pibench.cli":
                    return found.main()
                return found.main(list(arguments))

        return self.fork(work, name)

    def temporary(self) -> list[str]:
        """Returns the names of what the suite has in TMPDIR now."""
        return sorted(entry.name for entry in Path(os.environ["TMPDIR"]).iterdir())


def redirect(out: Path, err: Path) -> None:
    """Sends the standard streams of this process to files."""
    for path, descriptor in ((Path(os.devnull), 0), (out, 1), (err, 2)):
        opened = os.open(path, os.O_RDWR | (os.O_CREAT | os.O_APPEND if descriptor else 0), 0o600)
        os.dup2(opened, descriptor)
        os.close(opened)
    sys.stdin = open(0, encoding="utf-8", closefd=False)  # noqa: SIM115 (they stay open)
    sys.stdout = open(1, "w", encoding="utf-8", closefd=False)  # noqa: SIM115
    sys.stderr = open(2, "w", encoding="utf-8", closefd=False)  # noqa: SIM115


def _ended(work: Callable[[], object]) -> int:
    """Does `work` and what the interpreter does at its end; returns the exit status."""
    try:
        result = work()
        code = result if isinstance(result, int) else 0
    except SystemExit as error:
        code = error.code if isinstance(error.code, int) else int(error.code is not None)
    except KeyboardInterrupt:
        traceback.print_exc()
        code = 128 + signal.SIGINT
    except BaseException:
        traceback.print_exc()
        code = 1
    with suppress(BaseException):
        threading._shutdown()
    with suppress(BaseException):
        atexit._run_exitfuncs()
    return code


def _flush() -> None:
    for stream in (sys.stdout, sys.stderr):
        with suppress(BaseException):
            stream.flush()


@dataclass
class Child:
    """A forked process."""

    pid: int
    out: Path
    err: Path
    started: float
    code: int | None = None

    def send(self, how: int) -> None:
        """Sends a signal, if the process is still there."""
        if self.code is None:
            with suppress(ProcessLookupError):
                os.kill(self.pid, how)

    def poll(self) -> int | None:
        """Returns the exit status, negative for a signal; None while the process runs."""
        if self.code is None:
            try:
                pid, status = os.waitpid(self.pid, os.WNOHANG)
            except ChildProcessError:
                self.code = 255
            else:
                self.code = os.waitstatus_to_exitcode(status) if pid else None
        return self.code

    def wait(self, seconds: float) -> int | None:
        """Waits for the end; returns None if the process still runs then."""
        deadline = time.monotonic() + seconds
        while self.poll() is None and time.monotonic() < deadline:
            time.sleep(0.005)
        return self.code

    def end(self) -> None:
        """Ends the process for good."""
        self.send(signal.SIGKILL)
        self.wait(ANSWER_S)

    def said(self) -> str:
        """What the process has written to standard error."""
        return self.err.read_text(errors="replace") if self.err.exists() else ""

    def told(self) -> list[str]:
        """The lines that the process has written to standard output."""
        return self.out.read_text(errors="replace").splitlines() if self.out.exists() else []

    def await_line(self, start: str, seconds: float) -> str | None:
        """Waits for a line of standard output with this beginning."""
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            found = [line for line in self.told() if line.startswith(start)]
            if found:
                return found[0]
            if self.poll() is not None:
                break
            time.sleep(0.005)
        return None

    def observed(self, seconds: float, right: Callable[[], bool] = lambda: True) -> Observed:
        """Waits for a command and describes how it ended."""
        code = self.wait(seconds)
        if code is None:
            self.end()
            return Observed(hung=True, said=self.said()[-2000:])
        if code < 0:
            return Observed(died=f"the command died by signal {-code}", said=self.said()[-2000:])
        said = self.said()
        if code == 0 and "Traceback (most recent call last)" not in said:
            return Observed(answered=True, right=bool(right()), said=said[-2000:])
        words = [*said.splitlines(), *(self.told() if code and not said.strip() else [])]
        return Observed(message="\n".join(words) or f"exit status {code} without a word")


class Timer(threading.Thread):
    """Does something `seconds` after the beginning of a `with` block, and is over at its end."""

    def __init__(self, seconds: float, work: Callable[[], object]) -> None:
        super().__init__(daemon=True)
        self._seconds = seconds
        self._work = work
        self.error: BaseException | None = None

    def __enter__(self) -> Timer:
        if self._seconds <= 0:
            self.run()
        else:
            self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.ident is not None:
            self.join()
        if self.error is not None:
            raise self.error

    def run(self) -> None:
        """Waits and works."""
        time.sleep(self._seconds)
        try:
            self._work()
        except BaseException as error:
            self.error = error


def alive(pids: Any) -> list[int]:
    """Returns those processes that exist and are no zombies."""
    found = []
    for pid in pids:
        with suppress(OSError):
            if Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX":
                found.append(pid)
    return found


def survivors(pids: Any, seconds: float = ANSWER_S) -> tuple[str, ...]:
    """Returns the processes that are still there after `seconds`."""
    deadline = time.monotonic() + seconds
    while (left := alive(pids)) and time.monotonic() < deadline:
        time.sleep(0.01)
    return tuple(f"process {pid} ({command_of(pid)})" for pid in left)


def command_of(pid: int) -> str:
    """Returns the command line of a process, shortened."""
    try:
        words = Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
        return words.strip()[-80:]
    except OSError:
        return "gone"


@contextmanager
def environment(**values: str | None) -> Iterator[None]:
    """Sets variables of the environment for a while; None removes one."""
    old = {name: os.environ.get(name) for name in values}

    def put(wanted: dict[str, str | None]) -> None:
        for name, value in wanted.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value

    put(values)
    try:
        yield
    finally:
        put(old)
