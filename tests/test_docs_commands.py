"""The commands of the README and the docs: the tests run each block, line by line, in a user's folder.

A measurement takes one round here. What takes hours or another computer goes as far as it can here: make says
what it would do, pytest collects the cases, a training reads its options, a guest is not answered.
"""

from __future__ import annotations

import os
import re
import secrets
import shlex
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
from dry_run import ROOT, dry_run, without
from results_factory import make_row
from typer.testing import CliRunner
from warm_workers import forked_networks

from pibench.cli import app
from pibench.costs import predict
from pibench.hosts import join, remote
from pibench.models.catalogue import variant_names
from pibench.models.training import __main__ as training
from pibench.store.results import Store

PAGES = (ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md")))
PYTHON = re.compile(r"(\S*/)?python")
ELSEWHERE = ("git", "cd", "ssh")
"""Commands of others: bash reads them, and nothing runs."""

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::ResourceWarning")  # dask's


def blocks():
    """The blocks of commands: every block of a page that is no Python."""
    for page in PAGES:
        text = page.read_text()
        for number, (language, block) in enumerate(
            re.findall(r"^```(\w*)\n(.*?)^```", text, re.DOTALL | re.MULTILINE), 1
        ):
            if language != "python":
                assert language == "sh", f"{page.name}: a block of commands says that it is sh"
                yield pytest.param(block, id=f"{page.name}-{number}")


def commands(block):
    """The commands of a block, without comments; a line that ends in a backslash goes on."""
    for line in block.replace("\\\n", " ").splitlines():
        line = re.sub(r"(^|\s)#.*", "", line).strip()
        if line.startswith("ssh"):
            yield line
        else:
            yield from filter(None, (part.strip() for part in re.split(r";|&&", line)))


NETWORK = """
    from torch import nn

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.layers = nn.Sequential(
                nn.Conv2d(3, 4, 3, stride=4), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 8 * 8, 5)
            )

        def forward(self, x):
            return self.layers(x)
    """


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A user's folder: networks in modules with names like ours, and results of two machines."""
    for name, text in {
        "models/__init__.py": "",
        "models/net.py": NETWORK,
        "net.py": "from models.net import Net\n\ndef make():\n    return Net()\n",
    }.items():
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(textwrap.dedent(text))
    for name in ("results", "before", "after", "laptop", "server"):
        for variant in ("baseline", "senet-0.09"):
            row = make_row(variant, "lean")
            if name == "server":
                row |= {"machine": row["machine"] | {"cpu": "Xeon"}, "host": "node7"}
            Store(tmp_path / name / "bench.json").add(row)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PIBENCH_TOKEN", secrets.token_hex(remote.SHORTEST_TOKEN))
    with forked_networks():
        yield tmp_path


@pytest.mark.parametrize("block", list(blocks()))
def test_block_runs(block, folder, monkeypatch):
    found = list(commands(block))
    assert found
    for command in found:
        words = shlex.split(command)
        while re.fullmatch(r"[A-Z_]+=.*", words[0]):
            name, _, value = words.pop(0).partition("=")
            if value != "...":  # a secret, which the test has made
                monkeypatch.setenv(name, value)
        if words[0] == "torchrun":  # it passes the address on by variables
            for name in ("master-addr", "master-port"):
                monkeypatch.setenv(name.upper().replace("-", "_"), words[words.index(f"--{name}") + 1])
            words = ["python", *words[words.index("-m") :]]
        if words[0] in ELSEWHERE:
            readable(command)
        elif Path(words[0]).name == "pibench":
            pibench(*words[1:])
        elif words[0] == "make":
            make(*words[1:])
        elif PYTHON.fullmatch(words[0]) and words[1] == "-m":
            MODULES[words[2]](words[3:], monkeypatch)
        else:
            raise AssertionError(f"nothing here runs {command!r}")


def readable(command):
    subprocess.run(["bash", "-n", "-c", command.replace("<this repository>", "address")], check=True)


def pibench(*words):
    rounds = ("--rounds", "1") if words[0] == "run" else ()
    result = CliRunner().invoke(app, [*words, *rounds])
    assert result.exit_code == 0, f"{result.output} {result.exception!r}"


def make(*targets):
    """Make knows the targets, and what it would run for them is there."""
    for module in re.findall(r"-m (pibench[\w.]*)", dry_run(*targets)):
        path = module.replace("pibench.models", "models").replace("pibench", "bench").replace(".", "/")
        assert any((ROOT / f"{place}.py").exists() for place in (path, f"{path}/__main__")), module


def run_pytest(words, monkeypatch):
    """Pytest finds the tests or cases of a line."""
    plain = ["-p", "no:benchmark"] if "no:benchmark" in words else []
    left = [word for word in words if word not in ("-p", "no:benchmark")]
    run = subprocess.run(
        [sys.executable, "-m", "pytest", "--collect-only", "--quiet", *plain, *left],
        cwd=ROOT,
        capture_output=True,
        text=True,
        env=without("PYTEST_"),
    )
    assert run.returncode == 0, run.stdout + run.stderr
    assert re.search(r"\d+ tests? collected", run.stdout)


def run_training(words, monkeypatch):
    if "--list" in words:
        assert training.main(words) == 0
    rows, _ = training.options_of(words)
    assert set(rows) <= set(variant_names())
    assert rows


def run_predict(words, monkeypatch):
    predict.main(words)
    if "--literature" in words:
        assert Path(words[words.index("--literature") + 1]).stat().st_size > 1000


def run_join(words, monkeypatch):
    """The guest of a driver that has nothing to do."""
    called = []
    monkeypatch.setattr(join, "join", lambda *arguments: called.append(arguments) or 0)
    assert join.main(words) == 0
    ((host, port, token, *_),) = called
    wanted = [os.environ[name] for name in ("MASTER_ADDR", "MASTER_PORT", "PIBENCH_TOKEN")]
    assert [host, str(port), token] == wanted


MODULES = {
    "pytest": run_pytest,
    "pibench.models.training": run_training,
    "pibench.costs.predict": run_predict,
    "pibench.hosts.join": run_join,
}


def test_every_subcommand_is_shown_somewhere():
    shown = {
        shlex.split(line)[1]
        for case in blocks()
        for line in commands(case.values[0])
        if line.startswith("pibench ")
    }
    assert shown >= {"list", "cost", "run", "compare", "merge", "report", "figures", "doctor"}
