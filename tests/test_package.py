"""The installed package: it meets no other project's modules, and the wheel lacks nothing of the tree."""

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
FOLDERS = {"bench": "pibench", "models": "pibench/models"}  # on disk -> in the package

# Names in many research checkouts; pibench must import none of them.
STRANGERS = (
    "models/__init__.py",
    "models/resnet.py",
    "bench/__init__.py",
    "data.py",
    "graph.py",
    "report.py",
)
SCRIPT = """
import sys
from pathlib import Path
import models, data
import torch
import pibench
from pibench.models.variants import variant
from pibench.parties.driver import Parties

assert models.OWN == data.OWN == "the user's"
print(Path(pibench.__file__).parent)
network = variant("baseline").build(8, weights=None)
images = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
with Parties(engine="lean", timeout_s=120) as parties:
    parties.load(network, images)
    parties.prepare(2)
    error = (parties.infer(images) - network(images)).abs().max().item()
assert error < 1e-2, error
print(*sorted(name for name in sys.modules if name.split(".")[0] in ("models", "bench", "data", "graph")))
"""


@pytest.fixture
def checkout(tmp_path):
    """A folder with packages and modules of a user's own, and a script that runs parties from there."""
    folder = tmp_path / "checkout"
    for name in STRANGERS:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text('OWN = "the user\'s"\n')
    (folder / "script.py").write_text(SCRIPT)
    return folder


def run_from(checkout, environment=()):
    run = subprocess.run(
        [sys.executable, "script.py"],
        cwd=checkout,
        env={**os.environ, **dict(environment)},
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert run.returncode == 0, run.stderr
    where, imported = run.stdout.splitlines()
    assert imported == "data models"
    return Path(where)


def sources():
    """Returns the tree's files by their place in the package: all files that Python or the package reads."""
    return {
        f"{inside}/{path.relative_to(ROOT / folder).as_posix()}": path
        for folder, inside in FOLDERS.items()
        for path in (ROOT / folder).rglob("*")
        if path.is_file() and not {"__pycache__", "checkpoints"} & set(path.parts)
    }


def make(*command):
    run = subprocess.run([sys.executable, "-m", *command], capture_output=True, text=True, timeout=240)
    assert run.returncode == 0, run.stdout + run.stderr


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """The wheel, built from a copy of the tree: a build leaves files beside its sources."""
    copy = tmp_path_factory.mktemp("source")
    for name in FOLDERS:
        shutil.copytree(ROOT / name, copy / name, ignore=shutil.ignore_patterns("__pycache__", "checkpoints"))
    for path in ROOT.glob("*"):
        if path.suffix in (".toml", ".md") or path.name == "LICENSE":
            shutil.copy(path, copy)
    into = tmp_path_factory.mktemp("wheel")
    options = ("--no-deps", "--no-build-isolation", "--no-index", "--disable-pip-version-check")
    make("pip", "wheel", *options, "--wheel-dir", str(into), str(copy))
    (found,) = into.glob("pibench-*.whl")
    return found


def test_the_wheel_holds_the_tree(wheel):
    """A package or a kind of data that pyproject.toml forgets is missing here."""
    expected = sources()
    assert len([name for name in expected if name.endswith(".py")]) > 100
    with zipfile.ZipFile(wheel) as archive:
        held = {name for name in archive.namelist() if ".dist-info/" not in name}
        assert held == set(expected)
        for name, path in expected.items():
            assert archive.read(name) == path.read_bytes(), name


def test_an_editable_installation_works_beside_a_users_models(checkout):
    assert run_from(checkout) == ROOT / "bench"


def keep_compiled(site):
    """Takes over the kernels that the tree has compiled, half a minute's work: numba knows a source by its
    time and size."""
    for name, path in sources().items():
        shutil.copystat(path, site / name)
    for path in (ROOT / "bench" / "engines").rglob("*.nb[ic]"):
        place = site / "pibench" / path.relative_to(ROOT / "bench")
        place.parent.mkdir(exist_ok=True)
        shutil.copy2(path, place)


def test_the_wheel_works_beside_a_users_models(checkout, wheel, tmp_path):
    site = tmp_path / "site"
    make("pip", "install", "--no-deps", "--no-index", "--no-compile", "--target", str(site), str(wheel))
    keep_compiled(site)
    assert run_from(checkout, {"PYTHONPATH": str(site)}) == site / "pibench"
