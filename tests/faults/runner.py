"""Deals faults to lanes, a few at a time, and judges what they observed."""

from __future__ import annotations

import json
import os
import queue
import random
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import asdict
from itertools import groupby
from pathlib import Path

from faults.fault import Fault, Observed, Outcome
from faults.judge import judge

TESTS = Path(__file__).resolve().parents[1]
MODULES = (
    *("torch", "pandas", "matplotlib.figure", "pibench.cli", "pibench.api", "pibench.parties.worker"),
    *("pibench.engines.crypten.node", "pibench.engines.lean.dealer", "pibench.engines.lean.node"),
    *("pibench.hosts.join", "pibench.hosts.remote", "pibench.report.command", "pibench.figures.drawing"),
    *("pibench.page.build", "pibench.models.training.command", "pibench.measure.accuracy", "torch.export"),
    *("pibench.links.relay", "faults.campaign", "faults.forked"),
)
"""What a lane imports once for all its faults."""
ONE_THREAD = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "NUMBA_NUM_THREADS": "1", "MPLBACKEND": "agg"}


class Lane:
    """A process that carries out faults (`faults.lane`)."""

    def __init__(self, folder: Path, seed: int, modules: Sequence[str]) -> None:
        folder.mkdir(parents=True)
        kept = {
            "MPLCONFIGDIR": str(folder / "matplotlib"),
            "TORCHINDUCTOR_CACHE_DIR": str(folder / "inductor"),
            "PYTHONPATH": os.pathsep.join([str(TESTS), *filter(None, [os.environ.get("PYTHONPATH")])]),
        }
        self.words = folder / "lane.log"
        with self.words.open("wb") as log:
            self.popen = subprocess.Popen(
                [sys.executable, "-m", "faults.lane", str(folder / "acts"), str(seed), *modules],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                env=os.environ | ONE_THREAD | kept,
                text=True,
                start_new_session=True,  # Ctrl-C reaches the runner alone, which then ends the lanes
            )
        if json.loads(self._line() or "null") != "ready":
            raise RuntimeError(f"a lane did not start: {self._end()}")

    def carry_out(self, faults: Sequence[Fault]) -> list[Outcome]:
        """Carries out faults that share a process; if the lane itself dies, the rest of them are broken."""
        outcomes = []
        try:
            self.popen.stdin.write(json.dumps([asdict(fault) for fault in faults]) + "\n")
            self.popen.stdin.flush()
            for fault in faults:
                values, seconds = json.loads(self._line())
                observed = Observed(**{n: tuple(v) if isinstance(v, list) else v for n, v in values.items()})
                outcomes.append(Outcome(fault, observed, judge(observed, fault.names), seconds))
        except (OSError, ValueError):
            words = f"the lane ended: {self._end()}"
            for fault in faults[len(outcomes) :]:
                observed = Observed(broken=words)
                outcomes.append(Outcome(fault, observed, judge(observed, ()), 0.0))
        return outcomes

    @property
    def running(self) -> bool:
        """True while the lane can carry out faults."""
        return self.popen.poll() is None

    def close(self) -> None:
        """Ends the lane and everything below it."""
        self.popen.terminate()
        with suppress(subprocess.TimeoutExpired):
            self.popen.wait(10)
        self.popen.kill()
        self.popen.wait()
        for stream in (self.popen.stdin, self.popen.stdout):
            with suppress(OSError):
                stream.close()

    def _line(self) -> str:
        return self.popen.stdout.readline()

    def _end(self) -> str:
        self.close()
        return (self.words.read_text(errors="replace").strip() or "no word")[-500:]


def batches(faults: Sequence[Fault]) -> list[list[Fault]]:
    """Cuts a list of faults into those that share a process."""
    marked = enumerate(faults)
    return [
        [fault for _, fault in group]
        for _, group in groupby(marked, lambda one: one[1].together or f"alone {one[0]}")
    ]


def run(
    faults: Sequence[Fault],
    seed: int,
    lanes: int = 3,
    limit_s: float = 900.0,
    say: Callable[[Outcome], object] = lambda outcome: None,
    modules: Sequence[str] = MODULES,
) -> list[Outcome]:
    """Carries out faults and returns their outcomes, in the order of `faults`.

    After `limit_s` seconds no further one is begun. Whatever happens, lanes and their folders are gone at the
    end.
    """
    deadline = time.monotonic() + limit_s
    waiting: queue.SimpleQueue[list[Fault]] = queue.SimpleQueue()
    cut = batches(faults)
    random.Random(seed).shuffle(cut)  # a run that is cut short has tried all kinds
    for batch in cut:
        waiting.put(batch)
    outcomes: dict[str, Outcome] = {}
    failures: list[BaseException] = []
    stopped = threading.Event()
    open_lanes: list[Lane] = []

    def serve(folder: Path) -> None:
        lane, turn = None, 0
        try:
            while not stopped.is_set() and time.monotonic() < deadline:
                try:
                    batch = waiting.get_nowait()
                except queue.Empty:
                    return
                if lane is None or not lane.running:
                    lane, turn = Lane(folder / f"{turn}", seed, modules), turn + 1
                    open_lanes.append(lane)
                for outcome in lane.carry_out(batch):
                    outcomes[outcome.fault.id] = outcome
                    say(outcome)
        except BaseException as error:
            failures.append(error)

    with tempfile.TemporaryDirectory(prefix="faults-", ignore_cleanup_errors=True) as folder:
        threads = [
            threading.Thread(target=serve, args=(Path(folder) / f"{number}",), daemon=True)
            for number in range(lanes)
        ]
        try:
            for thread in threads:
                thread.start()
            for thread in threads:
                while thread.is_alive():
                    thread.join(0.2)
        finally:
            stopped.set()
            for lane in open_lanes:
                lane.close()
    if failures:
        raise failures[0]
    return [outcomes[fault.id] for fault in faults if fault.id in outcomes]
