"""A user's own run, measured, reported and drawn in a copy of the checkout, changes no tracked file."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
CASES = "lean and not lean32 and loopback and b1 and baseline"


def git(folder, *arguments):
    command = ["git", "-c", "user.name=A", "-c", "user.email=a@example.org", *arguments]
    return subprocess.run(command, cwd=folder, check=True, capture_output=True, text=True, timeout=60).stdout


@pytest.fixture(scope="module")
def checkout(tmp_path_factory):
    """A repository that holds what this one would commit, with a clean working tree."""
    try:
        names = git(ROOT, "ls-files", "--cached", "--others", "--exclude-standard").splitlines()
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("this is no git checkout")
    folder = tmp_path_factory.mktemp("checkout")
    for name in names:
        if (ROOT / name).is_file():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(ROOT / name, folder / name)
    git(folder, "init", "--quiet")
    git(folder, "add", "--all")
    git(folder, "commit", "--quiet", "--message", "All")
    return folder


def run(folder, *arguments):
    """Runs a module in the copy; the package is this checkout's, files are the copy's."""
    command = [sys.executable, "-m", *arguments]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_a_run_its_report_and_its_figures_leave_the_checkout_clean(checkout):
    options = ["--smoke", "--results", "results", "--benchmark-disable", "-p", "no:cacheprovider"]
    said = run(checkout, "pytest", "bench/bench_latency.py", *options, "-k", CASES)
    assert "lean: width 8, batch 1, loopback, 2 parties, 1 repetition\n" in said
    assert "The reference (results/reference) has none of these cases" in said
    assert "baseline" in said
    again = run(checkout, "pytest", "bench/bench_latency.py", *options, "-k", CASES)
    assert "1 of 1 cases are up to date; --again measures them anew" in again
    assert (
        said.partition("lean: width 8")[2].splitlines()[:6]
        == again.partition("lean: width 8")[2].splitlines()[:6]
    )
    said = run(checkout, "pibench.report")
    assert "lean: width 8" in said
    assert "tables and pages of results/bench.json\n" in said
    assert "figures" in run(checkout, "pibench.figures")
    assert (checkout / "results" / "summary.csv").exists()
    assert (checkout / "plots" / "accuracy_vs_relus.svg").exists()
    assert git(checkout, "status", "--porcelain") == ""


def test_what_training_and_its_judging_write_is_ignored(checkout):
    """The commands write to these places unless an option says otherwise."""
    places = (
        "accuracy.json",
        "tries.json",
        "operators.json",
        "training/w16-s0-long/joint.jsonl",
        "weights/x",
    )
    ignored = [f"results/{place}" for place in places] + ["checkpoints/x", "plots/links.svg"]
    assert git(checkout, "check-ignore", *ignored).splitlines() == ignored
    tracked = git(checkout, "ls-files", "results", "plots").splitlines()
    assert {"/".join(Path(name).parts[:2]) for name in tracked} == {"results/reference", "plots/reference"}
