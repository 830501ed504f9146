"""Cases and trainings on a cluster of dask, here on a local one."""

from __future__ import annotations

import pickle
import platform
import subprocess
import tempfile
import threading
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from results_factory import make_row
from torch import nn

distributed = pytest.importorskip("distributed", reason="dask.distributed is not installed")

# Imported after the skip: without dask there is nothing to import them for.
from pibench import cluster  # noqa: E402
from pibench.measure.case import Case  # noqa: E402
from pibench.measure.digest import digest_of  # noqa: E402
from pibench.measure.row import context  # noqa: E402
from pibench.models.files import locked  # noqa: E402
from pibench.models.training.command import Folders, Options  # noqa: E402
from pibench.store.results import Store  # noqa: E402

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::ResourceWarning")


@pytest.fixture(scope="module")
def inside():
    """A cluster in this process, whose worker takes cases and trainings."""
    options = {"processes": False, "dashboard_address": "127.0.0.1:0", "resources": cluster.RESOURCE}
    with distributed.LocalCluster(n_workers=1, **options) as found, distributed.Client(found) as client:
        yield client


def cases():
    """Two networks of torch's own modules, the second one with rounds of the first in turn."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        images = torch.randn(2, 1, 6, 6)
        one, two = (
            nn.Sequential(nn.Conv2d(1, c, 3), nn.ReLU(), nn.Flatten(), nn.Linear(16 * c, 3)).eval()
            for c in (1, 2)
        )
    settings = {"engine": "lean", "rounds": 1, "profiles": 0, "warm_up": False}
    first = Case.of("one", one, images, **settings)
    return first, Case.of("two", two, images, **settings, reference=first)


def test_a_case_is_measured_by_a_process_of_a_worker_and_says_where(tmp_path):
    said = []
    case = cases()[0]
    with cluster.connected("local") as client:
        assert client.scheduler.address.startswith("tcp://127.0.0.1:")
        (row,) = cluster.measure_on(client, [case], tmp_path, say=said.append)
    assert Store(tmp_path / "bench.json").rows() == [row]
    assert (row["case"], row["host"], row["rounds"]["succeeded"]) == (case.id, platform.node(), 1)
    assert said == [f"{case.id} on {platform.node()} [1/1]"]


def stub(case):
    """Stands for the measurement of a case."""
    if case.provider == "nobody":
        raise ValueError("no provider 'nobody'")
    where = context()
    return make_row() | {"case": case.id, "digest": digest_of(case, where), "host": "node7"} | where


def test_rows_come_back_in_order_and_are_kept(inside, tmp_path, monkeypatch):
    monkeypatch.setattr(cluster, "_measure", stub)
    said = []
    first, second = cases()
    rows = cluster.measure_on(inside, (second, first), tmp_path, say=said.append)
    assert [row["case"] for row in rows] == [second.id, first.id]
    assert len(Store(tmp_path / "bench.json").rows()) == len(said) == 2
    said.clear()
    bad = replace(first, variant="bad", provider="nobody")
    with pytest.raises(ValueError, match="no provider 'nobody'"):
        cluster.measure_on(
            inside, (bad, *cases(), replace(first, variant="three")), tmp_path, say=said.append
        )
    assert said[0] == "2 of 4 cases are up to date; --again measures them anew"
    assert f"{bad.id} failed: no provider 'nobody'" in said
    assert len(said) == 3
    said.clear()
    assert len(cluster.measure_on(inside, cases(), tmp_path, again=True, say=said.append)) == 2
    assert not any("up to date" in line for line in said)


def test_two_cases_never_run_at_once_on_one_computer(monkeypatch, tmp_path):
    case, rows = cases()[0], []
    started = threading.Event()

    def run(command, **_):
        started.set()
        cluster.replace_file(Path(command[-1]) / "answer", pickle.dumps(({"case": case.id}, None)))
        return subprocess.CompletedProcess(command, 0, "", "")

    monkeypatch.setattr(subprocess, "run", run)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    with locked(tmp_path / "pibench-measures.lock"):
        waiting = threading.Thread(target=lambda: rows.append(cluster._measure(case)))
        waiting.start()
        assert not started.wait(0.5)
    waiting.join(60)
    assert rows == [{"case": case.id}]
    assert [path.name for path in tmp_path.iterdir()] == ["pibench-measures.lock"]


def test_what_a_process_raises_is_raised_and_its_end_is_said(monkeypatch, tmp_path):
    case = cases()[0]
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    ended = subprocess.CompletedProcess([], -9, "", "first\nKilled\n")
    monkeypatch.setattr(subprocess, "run", lambda command, **_: ended)
    with pytest.raises(RuntimeError, match=r"one/w1.* gave no row: Killed"):
        cluster._measure(case)

    def raising(*_):
        raise MemoryError("needs 9 GB")

    def run(command, **_):
        cluster._answer(Path(command[-1]))
        return subprocess.CompletedProcess(command, 0, "", "")

    monkeypatch.setattr(cluster, "measure_cases", raising)
    monkeypatch.setattr(subprocess, "run", run)
    with pytest.raises(MemoryError, match="needs 9 GB"):
        cluster._measure(case)


def test_an_address_without_workers_for_it_is_one_sentence(monkeypatch):
    monkeypatch.setattr(cluster, "CONNECT_S", 1)
    for address in ("tcp://127.0.0.1:1", "nonsense://"):
        with pytest.raises(ValueError, match="no scheduler of dask answers at"), cluster.connected(address):
            pass
    options = {"processes": False, "dashboard_address": "127.0.0.1:0"}
    with (
        distributed.LocalCluster(n_workers=1, **options) as plain,
        pytest.raises(ValueError, match=r"none of the 1 workers at .* --resources pibench=1"),
        cluster.connected(plain.scheduler_address),
    ):
        pass


def test_without_dask_it_is_said_what_installs_it(monkeypatch):
    monkeypatch.setattr(cluster, "find_spec", lambda name: None)
    with pytest.raises(ImportError, match=r"pip install 'pibench\[cluster\]'"), cluster.connected("local"):
        pass


def test_trainings_go_to_workers_that_see_the_folders(inside, tmp_path, monkeypatch):
    trained, said = [], []

    def train(rows, options, stream):
        trained.append((rows, options.folders.results))
        print(f"{rows[0]}: trained", file=stream)

    monkeypatch.setattr(cluster, "train", train)
    monkeypatch.chdir(tmp_path)
    hosts = cluster.train_on(inside, ["baseline", "snl-0.09"], Options(folders=Folders()), said.append)
    assert hosts == [platform.node()] * 2
    assert sorted(trained) == [([name], tmp_path / "results") for name in ("baseline", "snl-0.09")]
    assert said[0] == f"baseline on {platform.node()}:\nbaseline: trained"
    assert list((tmp_path / "results").iterdir()) == []
    with pytest.raises(ValueError, match=r"does not see .*folders that all"):
        cluster._train("baseline", Options(), tmp_path / "results" / "absent")
