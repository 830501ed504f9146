"""Places in which the suite is started: odd folders, closed streams, environments that others have set."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import textwrap
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from faults.fault import Fault, Observed
from faults.forked import forked_workers
from faults.numbers import block, is_right, noise, truth
from faults.stage import ROOT, Stage
from pibench.parties.driver import Parties

TEMPORARY = ("#", "?", "%41", "a b", "é", "'", "\\", "a;b", "a&b", ":", "~", "$HOME", "-x", "\n", "long")
"""Names of the folder that TMPDIR names."""
NOWHERE = ("absent", "file", "readonly")
STREAMS = {"stdin": "<&-", "stdout": ">&-", "stderr": "2>&-", "all": "<&- >&- 2>&-", "full": ">/dev/full"}
COMMANDS = {"list": ("list",), "cost": ("cost", "resnet20:width=1"), "help": ("--help",)}
VARIABLES = {
    "numba-threads": {"NUMBA_NUM_THREADS": "0"},
    "omp-threads": {"OMP_NUM_THREADS": "0"},
    "omp-words": {"OMP_NUM_THREADS": "many"},
    "no-home": {"HOME": "/nonexistent"},
    "no-path": {"PATH": ""},
    "latin": {"LC_ALL": "C", "PYTHONIOENCODING": "latin-1"},
    "ascii": {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONIOENCODING": "ascii"},
    "dumb": {"TERM": "dumb", "COLUMNS": "1"},
    "interface": {"GLOO_SOCKET_IFNAME": "nonexistent0"},
    "short-token": {"PIBENCH_TOKEN": "short"},
}
USERS = {
    "raises": "def make():\n    raise KeyError('a fault of mine')",
    "raises-in-forward": """
        import torch
        class Net(torch.nn.Module):
            def forward(self, x):
                raise KeyError("a fault of mine")
        def make():
            return Net()
        """,
    "exits": "import os\ndef make():\n    os._exit(5)",
    "dies": "import os, signal\ndef make():\n    os.kill(os.getpid(), signal.SIGSEGV)",
    "syntax": "def make(:",
    "no-module": "import a_module_that_is_not_there",
    "prints": """
        import torch
        def make():
            print("x" * 10_000_000)
            return torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(192, 5))
        """,
    "text": "def make():\n    return 'no network'",
    "recursion": "def make():\n    return make()",
    "scripted": """
        import torch
        def make():
            return torch.jit.script(torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(192, 5)))
        """,
    "half": """
        import torch
        def make():
            return torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(192, 5)).half()
        """,
    "nan": """
        import torch
        def make():
            net = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(192, 5))
            net[1].weight.data[0, 0] = float("nan")
            return net
        """,
    "random": """
        import random, torch
        class Net(torch.nn.Module):
            def forward(self, x):
                return x.flatten(1) * random.random()
        def make():
            return Net()
        """,
}
"""A user's own file, from which a network is made."""


def faults(seed: int) -> Iterator[Fault]:
    """Yields the faults of this family."""
    for engine in ("stock", "lean"):
        for place, name in enumerate((*TEMPORARY, *NOWHERE)):
            yield Fault("place", f"temporary-{place}", "places.temporary", {"engine": engine, "name": name},
                        ("TMPDIR", "temporary", "folder", "directory"), engine)  # fmt: skip
    for command in COMMANDS:
        for stream in STREAMS:
            yield Fault("place", f"{stream}-closed-{command}", "places.closed",
                        {"command": command, "stream": stream}, (".",), seconds=40.0)  # fmt: skip
    for name in VARIABLES:
        yield Fault("place", f"variable-{name}", "places.variable", {"name": name},
                    (*VARIABLES[name], "token", "interface"), seconds=60.0)  # fmt: skip
    for name in USERS:
        names = (r"net\.py", "make", "a fault of mine")
        yield Fault("place", f"network-{name}", "places.user", {"name": name}, names, seconds=60.0)


def temporary(stage: Stage, engine: str, name: str) -> Observed:
    """TMPDIR names a folder with an odd name, or none: parties run, and nothing of theirs is elsewhere."""
    folder = stage.folder / ("x" * 90 if name == "long" else name)
    if name == "file":
        folder.write_text("")
    elif name == "readonly":
        folder = Path("/proc/self")
    elif name != "absent":
        folder.mkdir()
    os.environ["TMPDIR"] = str(folder)
    tempfile.tempdir = None
    images = noise(2, 3, 8, 8)
    exact = truth(block(), images[:1])
    before = {entry.name for entry in stage.folder.iterdir()}
    stray: set[str] = set()

    def work() -> Any:
        with forked_workers(), Parties(engine=engine, timeout_s=10) as parties:
            parties.load(block(), images)
            stray.update(entry.name for entry in stage.folder.iterdir())
            parties.prepare(1)
            return parties.infer(images[:1])

    observed = stage.attempt(work, lambda answer: is_right(answer, exact))
    own = folder.parent == stage.folder and folder.is_dir()
    left = {entry.name for entry in folder.iterdir()} if own else set()
    return replace(observed, left=tuple(sorted(left | (stray - before))))


def _started(words: list[str], **variables: str) -> Observed:
    """Runs a command in a new process, as a shell does."""
    run = subprocess.run(
        words,
        capture_output=True,
        text=True,
        errors="replace",
        timeout=55,
        env=os.environ | {"PYTHONPATH": str(ROOT / "tests")} | variables,
    )
    if run.returncode < 0:
        return Observed(died=f"the command died by signal {-run.returncode}")
    if run.returncode == 0 and "Traceback" not in run.stderr:
        return Observed(answered=True, right=True)
    return Observed(message=run.stderr or run.stdout or f"exit status {run.returncode} without a word")


def closed(stage: Stage, command: str, stream: str) -> Observed:
    """A command is started with a standard stream that is closed or full."""
    words = " ".join(["exec", sys.executable, "-m", "pibench.cli", *COMMANDS[command], STREAMS[stream]])
    return _started(["sh", "-c", words])


def variable(stage: Stage, name: str) -> Observed:
    """A variable of the environment has an odd value when parties are started as a user starts them."""
    script = stage.folder / "drive.py"
    script.write_text(
        textwrap.dedent(
            """
            import torch
            from networks import Block
            from pibench.parties.driver import Parties
            model, images = Block().eval(), torch.randn(2, 3, 8, 8)
            with Parties(engine="lean", timeout_s=30) as parties:
                parties.load(model, images)
                parties.prepare(2)
                error = (parties.infer(images) - model(images)).abs().max().item()
            print("right" if error < 1e-2 else "wrong")
            """
        )
    )
    code = [sys.executable, str(script)]
    if name in ("latin", "ascii", "dumb"):
        code = [sys.executable, "-m", "pibench.cli", "list"]
    return _started(code, **VARIABLES[name])


def user(stage: Stage, name: str) -> Observed:
    """A network comes from a user's own file."""
    (stage.folder / "net.py").write_text(textwrap.dedent(USERS[name]))
    return stage.command("cost", "net.py:make", "--shape", "3,8,8").observed(50.0)
