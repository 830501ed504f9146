"""Drivers that are ended at every moment: nothing of theirs may stay, and no row may be lost."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from results_factory import make_row

from faults.fault import Fault, Observed
from faults.forked import forked_workers
from faults.numbers import block, noise
from faults.stage import ANSWER_S, Stage, survivors
from pibench.parties.driver import Parties
from pibench.store.results import Store, read_rows

ENDINGS = {"kill": "SIGKILL", "terminate": "SIGTERM", "hangup": "SIGHUP", "interrupt": "SIGINT"}
MOMENTS = {"starting": (0.1,), "started": (0.0,), "running": (0.05,)}
"""What a driver has said when it is ended, and how many seconds later that is."""
LINKS = {"loopback": "loopback", "relay": "200Mbit/1ms"}
COMMANDS = {
    "run-lean": ("run", "resnet20:width=2", "--engine", "lean", "--rounds", "40"),
    "run-stock": ("run", "resnet20:width=2", "--engine", "stock", "--rounds", "40"),
    "report": ("report",),
    "doctor": ("doctor",),
}
TIMES = (0.02, 0.5, 3.0)
"""Seconds after which a command receives a signal."""


def faults(seed: int) -> Iterator[Fault]:
    """Yields the faults of this family."""
    for engine in ("stock", "lean"):
        for link in LINKS:
            for ending in ENDINGS:
                for moment, delays in MOMENTS.items():
                    for delay in delays:
                        if link == "relay" and (engine == "stock" or moment != "started"):
                            continue
                        name = f"driver-{moment}-{1000 * delay:g}ms-{ending}-{link}"
                        arguments = {"engine": engine, "link": link, "ending": ending}
                        arguments |= {"moment": moment, "delay": delay}
                        kind = "kill" if ending == "kill" else "interrupt"
                        yield Fault(kind, name, "drivers.ended", arguments, ("driver",), engine, 60.0)
        for extra in ("child", "stopped-relay"):
            arguments = {"engine": engine, "link": "relay", "ending": "kill", "moment": "started"}
            arguments |= {"delay": 0.0, "extra": extra}
            yield Fault("kill", f"driver-{extra}", "drivers.ended", arguments, ("driver",), engine, 60.0)
    for command in COMMANDS:
        for ending in ("terminate", "hangup", "interrupt"):
            for seconds in TIMES:
                yield Fault(
                    *("interrupt", f"{command}-{seconds:g}s-{ending}", "drivers.interrupted"),
                    {"command": command, "ending": ending, "seconds": seconds},
                    ("stopped", "interrupt", "hang", "terminat", "ended", "SIG"),
                    seconds=30.0,
                )


def _drive(engine: str, link: str, extra: str) -> None:
    """A driver as a user writes it: it says what it does, and goes on until it is ended."""
    images = noise(2, 3, 8, 8)
    print("starting", flush=True)
    with Parties(engine=engine, timeout_s=30, link=LINKS[link]) as parties:  # workers as users start them
        pids = [*parties.pids]
        if (relay := getattr(parties.group.shaper, "popen", None)) is not None:
            pids.append(relay.pid)
            if extra == "stopped-relay":
                os.kill(relay.pid, signal.SIGSTOP)
        if extra == "child" and not os.fork():
            time.sleep(3)  # a child of the driver's own, which inherits its descriptors
            os._exit(0)
        print("started", *pids, flush=True)
        if extra:
            time.sleep(60)
        parties.load(block(), images)
        print("loaded", flush=True)
        while True:
            parties.prepare(1)
            print("running", flush=True)
            parties.infer(images[:1])


def ended(
    stage: Stage, engine: str, link: str, ending: str, moment: str, delay: float, extra: str = ""
) -> Observed:
    """A driver is ended: its processes are gone soon, its folder at the next start at the latest."""
    how = getattr(signal, ENDINGS[ending])
    driver = stage.fork(lambda: _drive(engine, link, extra), "driver")
    if driver.await_line(moment, 40) is None:
        driver.end()
        return Observed(broken=f"the driver never said {moment!r}: {driver.said()[-1500:]}")
    time.sleep(delay)
    driver.send(how)
    code = driver.wait(ANSWER_S)
    if code is None:
        driver.end()
        return Observed(hung=True, said=driver.said()[-2000:])
    told = next((line for line in driver.told() if line.startswith("started")), "started")
    left = survivors([int(word) for word in told.split()[1:]], ANSWER_S if extra != "child" else 8.0)
    with forked_workers(), Parties(engine=engine, timeout_s=10):
        pass  # the next start sweeps what a dead driver left
    left += tuple(f"TMPDIR/{name}" for name in stage.temporary())
    observed = Observed(answered=True, right=True, left=left, said=driver.said()[-2000:])
    if code not in (-how, 128 + how):
        return replace(observed, answered=False, message=f"exit status {code} after {ENDINGS[ending]}")
    return observed


def interrupted(stage: Stage, command: str, ending: str, seconds: float) -> Observed:
    """A command receives a signal: it ends soon and quietly, and the rows that were there are there."""
    how = getattr(signal, ENDINGS[ending])
    results = stage.folder / "results"
    kept = [make_row(variant, "lean") for variant in ("baseline", "senet-0.09")]
    for row in kept:
        Store(results / "bench.json").add(row)
    child = stage.command(*COMMANDS[command], *_where(command, results))
    child.wait(seconds)
    child.send(how)
    code = child.wait(ANSWER_S)
    if code is None:
        child.end()
        return Observed(hung=True, said=child.said()[-2000:])
    said = child.said()
    observed = Observed(answered=True, right=True, said=said[-2000:])
    try:
        there = {row["case"] for row in read_rows(results / "bench.json")}
    except Exception as error:
        return replace(observed, lost=(f"the results file: {error}",))
    lost = tuple(row["case"] for row in kept if row["case"] not in there)
    observed = replace(observed, lost=lost, left=tuple(f"TMPDIR/{name}" for name in stage.temporary()))
    if code not in (0, -how, 128 + how) or "Traceback" in said:
        return replace(
            observed, answered=False, message=f"exit status {code} after {ENDINGS[ending]}\n{said}"
        )
    return observed


def _where(command: str, results: Path) -> tuple[str, ...]:
    return () if command == "doctor" else ("--results", str(results))
