"""Many cases or many trainings on a cluster: dask.distributed hands them out, this module says what runs.

A task is one case, with the rounds of its own reference, or the training of one row. Workers must declare the
resource `pibench` (`dask worker ADDRESS --resources pibench=1`), one unit for each case or training that they
may run at once. Cases of one computer also wait for each other at a lock in its temporary folder, so that two
workers there never time at once. dask sends code and data as pickles: trust a cluster as you trust yourself.
"""

from __future__ import annotations

import io
import os
import pickle
import platform
import secrets
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from pibench.api import measure_cases
from pibench.links.lifeline import end_with_parent
from pibench.measure.case import Case
from pibench.measure.digest import digest_of
from pibench.measure.row import context
from pibench.models.files import locked, replace_file
from pibench.models.training.command import Folders, Options, train
from pibench.parties.processes import Supervisor
from pibench.store.results import Row, Store

if TYPE_CHECKING:
    from distributed import Client

RESOURCE = {"pibench": 1}
LOCAL = "local"
"""The address that stands for a cluster of one worker on this computer."""
CONNECT_S = 30
Say = Callable[[str], object]


@contextmanager
def connected(address: str) -> Iterator[Client]:
    """Gives the client of a cluster whose workers take tasks of this package.

    `address` is the scheduler's, such as tcp://host:8786, or "local". Raises ImportError without dask,
    ValueError for an address where no scheduler answers or no worker declares the resource.
    """
    if find_spec("distributed") is None:
        raise ImportError(
            "--on needs dask.distributed, which is not installed: pip install 'pibench[cluster]'"
        )
    from distributed import Client, LocalCluster

    if address == LOCAL:
        with (
            LocalCluster(
                n_workers=1,
                threads_per_worker=1,
                resources=RESOURCE,
                dashboard_address="127.0.0.1:0",
                memory_limit=0,
            ) as cluster,
            Client(cluster) as client,
        ):
            yield client
        return
    try:
        client = Client(address, timeout=CONNECT_S)
    except (OSError, ValueError, TypeError) as error:
        raise ValueError(
            f"no scheduler of dask answers at {address!r} ({str(error).splitlines()[0]}): give its address, "
            f"such as tcp://host:8786, or {LOCAL!r}"
        ) from error
    with client:
        workers = client.scheduler_info(n_workers=-1)["workers"].values()
        if not any(worker.get("resources", {}).get("pibench") for worker in workers):
            raise ValueError(
                f"none of the {len(workers)} workers at {address} takes cases: start them with "
                f"dask worker {address} --resources pibench=1"
            )
        yield client


def measure_on(
    client: Client, cases: Sequence[Case], results: Path, again: bool = False, say: Say = print
) -> list[Row]:
    """Measures cases on a cluster and writes each one's row to `results`/bench.json when it comes back.

    A row that is up to date for one of the workers' machines is not measured again, unless `again`. Rows come
    back in the order of `cases`; each names its machine and host. A case that fails keeps no other from being
    measured; its error is raised at the end.
    """
    from distributed import KilledWorker, as_completed

    store = Store(results / "bench.json")
    store.demand_room()
    machines = [] if again else list({str(found): found for found in client.run(context).values()}.values())
    stored = {(row["case"], row.get("digest")): row for row in store.rows()}
    rows: dict[str, Row] = {}
    for case in cases:
        digests = [digest_of(case, machine) for machine in machines]
        kept = next((stored[case.id, each] for each in digests if (case.id, each) in stored), None)
        if kept is not None:
            rows[case.id] = kept
    if rows:
        say(f"{len(rows)} of {len(cases)} cases are up to date; --again measures them anew")
    waiting = [case for case in cases if case.id not in rows]
    tasks = {
        client.submit(
            _measure, case, key=f"{case.id}-{secrets.token_hex(4)}", resources=RESOURCE, retries=0
        ): case
        for case in waiting
    }
    failures = []
    for task in as_completed(tasks):
        case = tasks[task]
        try:
            row = task.result()
        except KilledWorker:
            failures.append(RuntimeError(f"{case.id}: its workers died, see their logs"))
            continue
        except Exception as error:  # whatever a worker raises
            failures.append(error)
            say(f"{case.id} failed: {error}")
            continue
        store.add(row)
        rows[case.id] = row
        say(f"{case.id} on {row['host']} [{len(rows)}/{len(cases)}]")
    if failures:
        raise failures[0]
    return [rows[case.id] for case in cases]


def _measure(case: Case) -> Row:
    """Measures a case on the computer that this runs on, when no other case is measured there.

    A process of its own does it: threads of a worker would draw from the generators that lowering watches.
    """
    lock = Path(tempfile.gettempdir()) / "pibench-measures.lock"
    with locked(lock), Supervisor() as owner:  # the folder goes, whatever happens to this process
        given, answer = owner.folder / "case", owner.folder / "answer"
        given.write_bytes(pickle.dumps(case))
        run = subprocess.run(
            [sys.executable, "-P", "-m", "pibench.cluster", str(owner.folder)],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
        )
        if not answer.exists():
            said = run.stderr.strip().splitlines() or [f"it ended with code {run.returncode}"]
            raise RuntimeError(f"the process that measured {case.id} gave no row: {said[-1]}")
        row, error = pickle.loads(answer.read_bytes())
        if error is not None:
            raise error
        return row


def _answer(folder: Path) -> None:
    """Measures the case in a folder; writes its row there, or what was raised."""
    row, error = None, None
    try:
        row = measure_cases([pickle.loads((folder / "case").read_bytes())], folder)[0]
    except Exception as raised:  # raised again by whoever asked
        error = raised
    replace_file(folder / "answer", pickle.dumps((row, error)))


def train_on(client: Client, rows: Sequence[str], options: Options, say: Say = print) -> list[str]:
    """Trains rows on a cluster, whose computers share this one's folders; returns the hosts.

    Rows that share a phase wait for each other at its lock, as trainings on one computer do. Raises
    ValueError for a worker that does not see the folders, and what training raises.
    """
    folders = Folders(*(path.resolve() for path in vars(options.folders).values()))
    folders.results.mkdir(parents=True, exist_ok=True)
    token = folders.results / f".shared-{secrets.token_hex(8)}"
    token.touch()
    try:
        options = replace(options, folders=folders)
        keys = [f"train-{row}-{secrets.token_hex(4)}" for row in rows]
        tasks = [
            client.submit(_train, row, options, token, key=key, resources=RESOURCE, retries=0)
            for row, key in zip(rows, keys, strict=True)
        ]
        hosts = []
        for row, task in zip(rows, tasks, strict=True):
            host, said = task.result()
            say(f"{row} on {host}:\n{said.rstrip()}")
            hosts.append(host)
        return hosts
    finally:
        token.unlink(missing_ok=True)


def _train(row: str, options: Options, token: Path) -> tuple[str, str]:
    host = platform.node()
    if not token.exists():
        raise ValueError(
            f"the worker on {host} does not see {token.parent}: trainings on a cluster need folders that "
            "all of its computers share (--results, --checkpoints, --weights, --data)"
        )
    said = io.StringIO()
    train([row], options, said)
    return host, said.getvalue()


if __name__ == "__main__":
    end_with_parent()
    _answer(Path(sys.argv[1]))
