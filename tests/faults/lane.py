"""A lane carries out one fault after the other, each in a process of its own with a deadline.

    python -m faults.lane FOLDER SEED [MODULE ...]

It imports the modules once and forks. A line of standard input is a JSON list of faults that share a process;
it is answered by one JSON line a fault. The lane adopts the processes that a fault leaves behind: it sees
them, ends them, and names them. When standard input closes, it ends everything and itself.
"""

from __future__ import annotations

import ctypes
import faulthandler
import json
import os
import resource
import select
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import asdict, replace
from importlib import import_module
from pathlib import Path
from typing import Any

from faults.fault import Fault, Observed
from faults.stage import Stage, command_of, redirect

PR_SET_PDEATHSIG, PR_SET_CHILD_SUBREAPER = 1, 36
GRACE_S = 5.0
"""Seconds in which the processes of a fault must be gone after it."""
CACHES = ("torchinductor_", "matplotlib-", "pibench-kernels-")
"""Folders in TMPDIR that are made once for a user and kept."""
SPARE_BYTES = 5 << 30
"""Bytes of address space that a process of a fault may take in addition to what its lane has."""
CLOSE_S = 10.0
"""Seconds in which a process ends that has carried out its faults."""
RUNNING = "running"


def adopt() -> None:
    """Makes this process the parent of what its children leave behind, and ends it with its own parent."""
    libc = ctypes.CDLL(None)
    libc.prctl(PR_SET_CHILD_SUBREAPER, 1)
    libc.prctl(PR_SET_PDEATHSIG, signal.SIGTERM)


def spare_the_machine() -> None:
    """Keeps this process and all below it from taking much more memory than it has now."""
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    most = pages * os.sysconf("SC_PAGE_SIZE") + SPARE_BYTES
    resource.setrlimit(resource.RLIMIT_AS, (most, most))


def children(parent: int) -> list[int]:
    """Returns the process ids of the children of a process, zombies left out."""
    found = []
    for entry in os.listdir("/proc"):
        if entry.isdigit():
            with suppress(OSError):
                state, ppid = Path(f"/proc/{entry}/stat").read_text().rpartition(")")[2].split()[:2]
                if int(ppid) == parent and state not in "ZX":
                    found.append(int(entry))
    return found


def reap() -> None:
    """Forgets the children that have ended."""
    with suppress(ChildProcessError):
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass


def end_children() -> None:
    """Ends everything below this process: what a child leaves behind comes here and is ended, too."""
    while found := children(os.getpid()):
        for pid in found:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        time.sleep(0.005)
        reap()
    reap()


def left_behind(temporary: Path, seconds: float = GRACE_S) -> tuple[str, ...]:
    """Names processes and files that are still there after `seconds`, and ends the processes."""
    deadline = time.monotonic() + seconds
    while True:
        reap()
        found = children(os.getpid())
        if not found or time.monotonic() > deadline:
            break
        time.sleep(0.01)
    left = [f"process {pid} ({command_of(pid)})" for pid in found]
    end_children()
    left += [
        f"TMPDIR/{entry.name}" for entry in sorted(temporary.iterdir()) if not entry.name.startswith(CACHES)
    ]
    return tuple(left)


def act(fault: Fault, stage: Stage) -> Observed:
    """Carries out one fault in this process."""
    module, _, name = fault.act.partition(".")
    try:
        observed: Observed = getattr(import_module(f"faults.{module}"), name)(stage, **fault.arguments)
    except BaseException:
        return Observed(broken=traceback.format_exc())
    return observed


def _actor(faults: Sequence[Fault], seed: int, folder: Path, report: int) -> None:
    """The process that carries out faults and reports what it saw; it never returns."""
    shared: dict[str, Any] = {}
    try:
        os.setsid()
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
        for how in (signal.SIGTERM, signal.SIGHUP):
            signal.signal(how, signal.SIG_DFL)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        redirect(folder / "out", folder / "err")
        faulthandler.register(signal.SIGUSR1, file=sys.stderr, all_threads=True)
        os.environ["TMPDIR"] = str(folder / "tmp")
        tempfile.tempdir = None
        for place, fault in enumerate(faults):
            own = folder / f"{place}"
            own.mkdir()
            os.chdir(own)
            stage = Stage(own, f"{seed} {fault.id}", shared, report)
            seen = json.dumps(asdict(act(fault, stage))) + "\n"
            for start in range(0, len(seen), 1 << 16):
                os.write(report, seen[start : start + (1 << 16)].encode())
        for closed in shared.values():
            closed.__exit__(None, None, None)
    finally:
        os._exit(0)


def carry_out(faults: Sequence[Fault], seed: int, folder: Path) -> Iterator[tuple[Observed, float]]:
    """Carries out faults that share a process; a new one goes on after a fault that hangs or ends it."""
    waiting, turn = list(faults), 0
    while waiting:
        done = _in_one_process(waiting, seed, folder / f"{turn}")
        yield from done
        waiting, turn = waiting[len(done) :], turn + 1


def _in_one_process(faults: Sequence[Fault], seed: int, folder: Path) -> list[tuple[Observed, float]]:
    """Runs faults in one process up to the first that hangs or ends it; returns what was observed."""
    temporary = folder / "tmp"
    temporary.mkdir(parents=True)
    ours, theirs = os.pipe()
    pid = os.fork()
    if not pid:
        os.close(ours)
        _actor(faults, seed, folder, theirs)
    os.close(theirs)
    done: list[tuple[Observed, float]] = []
    text = b""
    for fault in faults:
        started = time.monotonic()
        observed = None
        while observed is None:
            if b"\n" in text:
                line, text = text.split(b"\n", 1)
                observed = _observed(json.loads(line))
                break
            left = started + fault.seconds - time.monotonic()
            if left <= 0:
                observed = Observed(hung=True)
            elif select.select([ours], [], [], min(left, 0.5))[0]:
                text += (more := os.read(ours, 1 << 20))
                if not more:
                    observed = Observed(died=_end_of(pid))
        seconds = time.monotonic() - started
        if observed.hung:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGUSR1)  # it writes where it is
            time.sleep(0.1)
        done.append((replace(observed, said=observed.said or _words(folder)), seconds))
        if observed.hung or observed.died:
            break
    os.close(ours)
    if not done[-1][0].hung and not done[-1][0].died and _end_of(pid, CLOSE_S) != "exit status 0":
        observed = replace(done[-1][0], hung=True)
        done[-1] = observed, done[-1][1]
    if done[-1][0].hung or done[-1][0].died == RUNNING:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)  # the processes below it are judged like those of a killed driver
    left = left_behind(temporary)
    observed, seconds = done[-1]
    if left and not observed.hung:
        done[-1] = replace(observed, left=(*observed.left, *left)), seconds
    shutil.rmtree(folder, ignore_errors=True)
    return done


def _observed(values: dict[str, Any]) -> Observed:
    return Observed(**{name: tuple(v) if isinstance(v, list) else v for name, v in values.items()})


def _end_of(pid: int, seconds: float = 2.0) -> str:
    """Returns how a child ended, or RUNNING if it does not end in time."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        try:
            found, status = os.waitpid(pid, os.WNOHANG)
        except ChildProcessError:
            return "an end that nobody saw"
        if found:
            code = os.waitstatus_to_exitcode(status)
            return f"signal {-code} ({signal.Signals(-code).name})" if code < 0 else f"exit status {code}"
        time.sleep(0.005)
    return RUNNING


def _words(folder: Path) -> str:
    path = folder / "err"
    return path.read_text(errors="replace")[-4000:] if path.exists() else ""


def main(arguments: Sequence[str]) -> None:
    """Serves the runner until it closes standard input."""
    adopt()
    folder, seed, modules = Path(arguments[0]), int(arguments[1]), arguments[2:]

    def leave(*_: object) -> None:
        end_children()
        os._exit(1)

    signal.signal(signal.SIGTERM, leave)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    for name in modules:
        import_module(name)
    spare_the_machine()
    told = os.fdopen(os.dup(1), "w", encoding="utf-8")
    print(json.dumps("ready"), file=told, flush=True)
    for turn, line in enumerate(sys.stdin):
        faults = [Fault(**{**one, "names": tuple(one["names"])}) for one in json.loads(line)]
        for observed, seconds in carry_out(faults, seed, folder / f"{turn}"):
            print(json.dumps([asdict(observed), seconds]), file=told, flush=True)
    end_children()


if __name__ == "__main__":
    main(sys.argv[1:])
