"""The supervisor: no process and no file of a group outlives the driver, whatever happens to it."""

from __future__ import annotations

import os
import resource
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import islice
from pathlib import Path

import pytest
import torch
from accidents import alive, gone

from pibench.links.lifeline import GIVEN, LIFELINE
from pibench.parties import processes
from pibench.parties.driver import Parties
from pibench.parties.processes import Supervisor
from pibench.parties.supervisor import PREFIX

# A process of a group that has started another one, and tells its id in its log.
CHILD = """
import subprocess, sys, time
from pibench.links.lifeline import end_with_parent
end_with_parent()
sleeping = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"], start_new_session=True)
print(sleeping.pid, flush=True)
time.sleep(60)
"""
# A driver; it tells the folder, its processes and its own forked child.
DRIVER = """
import os, sys, time
from pibench.parties.processes import Supervisor
supervisor = Supervisor()
log = supervisor.folder / "log"
process = supervisor.start([sys.executable, "-c", sys.argv[1]], log)
while not log.read_text().endswith("\\n"):
    time.sleep(0.01)
forked = os.fork() if "forked" in sys.argv else 0
if "forked" not in sys.argv or forked:
    print(supervisor.folder, supervisor._popen.pid, process.pid, log.read_text().strip(), forked, flush=True)
time.sleep(60)
"""


def heed_signals() -> None:
    """Undoes what a shell does to a test run in its background, or nohup, which children would inherit."""
    for each in (signal.SIGINT, signal.SIGHUP):
        signal.signal(each, signal.SIG_DFL)


def until(true, seconds: float = 5.0) -> bool:
    deadline = time.monotonic() + seconds
    while not true() and time.monotonic() < deadline:
        time.sleep(0.02)
    return true()


@pytest.fixture
def temporary(tmp_path, monkeypatch) -> Path:
    """The place of temporary folders."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    return tmp_path


@pytest.fixture
def supervisor(temporary) -> Iterator[Supervisor]:
    supervisor = Supervisor()
    yield supervisor
    supervisor.end()


@contextmanager
def driver(*arguments: str) -> Iterator[tuple[subprocess.Popen[str], Path, list[int], int]]:
    """A driver, its folder, its supervisor with all processes, and its forked child (0: none)."""
    command = [sys.executable, "-c", DRIVER, CHILD, *arguments]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, preexec_fn=heed_signals
    ) as popen:
        try:
            folder, *pids, forked = popen.stdout.readline().split()
            yield popen, Path(folder), list(map(int, pids)), int(forked)
        finally:
            popen.kill()


@pytest.mark.parametrize(
    ("how", "accident"),
    [
        (signal.SIGKILL, ""),
        (signal.SIGTERM, ""),
        (signal.SIGHUP, ""),
        (signal.SIGINT, ""),
        (signal.SIGKILL, "stopped"),
        (signal.SIGKILL, "forked"),
    ],
)
def test_nothing_outlives_the_driver(temporary, how, accident):
    with driver(accident) as (popen, folder, pids, forked):
        assert len(alive(pids)) == 3
        assert folder.parent == temporary
        try:
            if accident == "stopped":
                for pid in pids[1:]:
                    os.kill(pid, signal.SIGSTOP)
            popen.send_signal(how)
            popen.wait(timeout=5)
            assert gone(pids)
            assert not folder.exists()
        finally:
            if forked:
                assert alive([forked])
                os.kill(forked, signal.SIGKILL)


def test_a_driver_that_is_killed_while_it_starts_leaves_nothing(temporary):
    command = [sys.executable, "-c", DRIVER, CHILD]
    for delay in (0.0, 0.15, 0.2, 0.25):
        with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as popen:
            time.sleep(delay)
            popen.kill()
    assert until(lambda: not list(temporary.iterdir()))


def test_signals_for_the_supervisor_alone_change_nothing(supervisor):
    for each in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        os.kill(supervisor._popen.pid, each)
    process = supervisor.start(["true"], supervisor.folder / "log")
    assert process.wait(5) == 0


def test_a_process_is_told_apart_from_its_driver(supervisor):
    """It has its log, the lifeline, copies of descriptors and default signals, in a session of its own."""
    reading, writing = os.pipe()
    script = (
        "import os, signal, sys\n"
        f"os.write({GIVEN}, b'given'); os.fstat({LIFELINE})\n"
        "print(sys.stdin.read() == '', os.getsid(0) == os.getpid(), os.environ['OWN'])\n"
        "print(signal.getsignal(signal.SIGTERM) == signal.SIG_DFL, file=sys.stderr)\n"
        f"others = set(range(3, 64)) - {{{GIVEN}, {LIFELINE}}}\n"
        "print([each for each in others if os.path.exists(f'/proc/self/fd/{each}')])\n"
    )
    log = supervisor.folder / "log"
    process = supervisor.start([sys.executable, "-c", script], log, [writing], {"OWN": "its own"})
    os.close(writing)
    assert process.wait(5) == 0
    assert os.read(reading, 99) == b"given"
    assert os.read(reading, 99) == b""
    os.close(reading)
    assert set(log.read_text().splitlines()) == {"True True its own", "True", "[]"}
    assert log.stat().st_mode & 0o777 == 0o600
    assert supervisor.folder.stat().st_mode & 0o777 == 0o700


def test_ends_are_told(supervisor):
    log = supervisor.folder / "log"
    assert supervisor.start([sys.executable, "-c", "raise SystemExit(3)"], log).wait(5) == 3
    process = supervisor.start(["sleep", "60"], log)
    assert process.poll() is None
    with pytest.raises(subprocess.TimeoutExpired):
        process.wait(0.01)
    process.kill()
    assert process.wait(5) == process.poll() == -signal.SIGKILL
    process.kill()  # is harmless, and kills no stranger
    with pytest.raises(OSError, match=r"could not be started .*No such file or directory"):
        supervisor.start(["no-such-command"], log)
    with pytest.raises(OSError, match=r"could not be started .*'/nowhere/log'"):
        supervisor.start(["true"], Path("/nowhere/log"))
    assert supervisor.failure() is None


def test_a_process_outlives_the_thread_that_started_it(supervisor):
    """The kernel's signal at the death of a parent comes at that of the thread which started the child."""
    started = []
    log = supervisor.folder / "log"
    command = [sys.executable, "-c", CHILD]
    thread = threading.Thread(target=lambda: started.append(supervisor.start(command, log)))
    thread.start()
    thread.join()
    assert until(lambda: log.read_text().endswith("\n"))
    assert alive([started[0].pid])
    assert started[0].poll() is None


def test_a_killed_supervisor_takes_its_processes_along(supervisor):
    log = supervisor.folder / "log"
    process = supervisor.start([sys.executable, "-c", CHILD], log)
    assert until(lambda: log.read_text().endswith("\n"))
    supervisor._popen.kill()
    assert process.wait(5) == -signal.SIGKILL
    assert gone([process.pid])
    os.kill(int(log.read_text()), signal.SIGKILL)  # a grandchild, for which nobody is left
    assert supervisor.failure() == "the supervisor of the parties ended with code -9"
    for _ in range(2):
        with pytest.raises(OSError, match="the supervisor of the parties "):
            supervisor.start(["true"], log)
    supervisor.end()
    assert not supervisor.folder.exists()


def test_a_stopped_supervisor_is_killed(supervisor, monkeypatch):
    monkeypatch.setattr(processes, "END_S", 0.1)
    log = supervisor.folder / "log"
    process = supervisor.start([sys.executable, "-c", CHILD], log)
    assert until(lambda: log.read_text().endswith("\n"))
    grandchild = int(log.read_text())
    os.kill(supervisor._popen.pid, signal.SIGSTOP)
    supervisor.end()
    supervisor.end()
    assert gone([process.pid])
    assert not supervisor.folder.exists()
    os.kill(grandchild, signal.SIGKILL)


def test_a_start_sweeps_what_killed_supervisors_have_left(temporary):
    living = Supervisor()
    left = temporary / f"{PREFIX}0123"
    left.mkdir()
    (left / "0.log").write_text("words")
    other = temporary / "pibench-other"
    other.mkdir()
    (temporary / f"{PREFIX}file").write_text("no folder")
    link = temporary / f"{PREFIX}link"
    link.symlink_to(other)
    second = Supervisor()
    assert until(lambda: not left.exists())
    second.end()
    living.end()
    assert {path.name for path in temporary.iterdir()} == {link.name, f"{PREFIX}file", other.name}


def test_a_place_without_room_for_a_folder_is_one_sentence(monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", "/proc/nowhere")
    with pytest.raises(OSError, match=r"no folder can be made in /proc/nowhere .*: set TMPDIR to a place"):
        Supervisor()


def test_closed_standard_streams_stay_apart_from_connections(tmp_path):
    script = (
        "import os, sys\n"
        "from pathlib import Path\n"
        "from pibench.parties.processes import start_worker, Supervisor\n"
        "supervisor = Supervisor()\n"
        "os.write(1, b'what torch writes there'); os.write(2, b'likewise')\n"
        "reading, writing = os.pipe()\n"
        f"command = [sys.executable, '-c', 'import os; os.write({GIVEN}, b\"here\")']\n"
        "process = supervisor.start(command, supervisor.folder / 'log', [writing])\n"
        "said = os.read(reading, 9), process.wait(5), min(reading, writing) > 2\n"
        "supervisor.end()\n"
        "Path(sys.argv[1]).write_text(str(said))\n"
    )
    command = ["/bin/sh", "-c", 'exec "$@" <&- >&- 2>&-', "sh", sys.executable, "-c", script]
    subprocess.run([*command, str(tmp_path / "said")], check=True, timeout=30)
    assert (tmp_path / "said").read_text() == "(b'here', 0, True)"


# A process that may hardly open a file more.


@contextmanager
def room_for(files: int) -> Iterator[None]:
    """Lets this process open only so many files more."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    free = (number for number in range(soft) if not os.path.lexists(f"/dev/fd/{number}"))
    resource.setrlimit(resource.RLIMIT_NOFILE, (next(islice(free, files, None)), hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@pytest.mark.parametrize("files", [0, 1, 2, 5, 10, 20, 40])
def test_a_process_without_room_for_files_is_told_so_before_anything_starts(files):
    """Otherwise it says that there is no temporary directory, or that a process ended."""
    with (
        pytest.raises(OSError, match=r"of \d+ open files only .* raise the limit \(ulimit -n"),
        room_for(files),
    ):
        Supervisor()


def test_a_supervisor_starts_processes_when_there_is_just_enough_room(tmp_path):
    with room_for(processes.DESCRIPTORS), Supervisor() as owner:
        assert owner.start([sys.executable, "-c", "pass"], tmp_path / "log").wait(20) == 0


def test_a_driver_that_has_no_room_for_files_is_told_so_before_it_loads():
    parties = Parties()
    with pytest.raises(OSError, match="open files"), room_for(3):
        parties.load(torch.nn.ReLU(), torch.ones(1, 3))
