"""Processes of a group that are killed, stopped or starved at every moment of their life."""

from __future__ import annotations

import os
import resource
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import Tensor

from faults.fault import Fault, Observed
from faults.forked import forked_workers
from faults.numbers import block, is_right, noise, truth
from faults.stage import Stage, Timer, survivors
from pibench.parties.driver import Parties

TIMEOUT_S = 4.0
Around = Callable[[str], AbstractContextManager[object]]
"""What surrounds a command of a group, by its name."""
VICTIMS = {"stock": ("party0", "party1"), "lean": ("party0", "party1", "dealer")}
RELAYED = {"stock": ("relay",), "lean": ("relay",)}
NAMES = ("party [012]", "dealer", "relay", "supervisor", "TTP", "parties are not running")
MOMENTS = {
    "start": (0.0, 0.1),
    "load": (0.0, 0.02),
    "prepare": (0.003,),
    "infer": (0.0, 0.002, 0.01),
}
"""Seconds after the beginning of a command at which a process is struck: 0 is before the command."""
BLOWS = {"kill": signal.SIGKILL, "stop": signal.SIGSTOP}
SOFTER = {"terminate": signal.SIGTERM, "abort": signal.SIGABRT, "segfault": signal.SIGSEGV}
MEMORY = {"none": 0, "16m": 1 << 24}
"""What a party may still take of memory."""
THREADS = ("thread", "parties", "prepared")
DESCRIPTORS = (0, 1, 2, 4, 8, 16)
"""Files that the driver may still open."""


def faults(seed: int) -> Iterator[Fault]:
    """Yields the faults of this family."""
    for engine, victims in VICTIMS.items():
        for victim in victims:
            for moment, delays in MOMENTS.items():
                for delay in delays:
                    for kind in BLOWS:
                        yield _struck(kind, engine, victim, moment, delay, kind)
            for how in SOFTER:
                yield _struck("kill", engine, victim, "infer", 0.002, how)
        for victim in RELAYED[engine]:
            for moment in MOMENTS:
                for kind in BLOWS:
                    yield _struck(kind, engine, victim, moment, 0.01, kind)
        for moment in ("load", "infer"):
            for kind in BLOWS:
                yield _struck(kind, engine, "supervisor", moment, 0.01, kind, started=True)
        for victim in VICTIMS[engine]:
            for moment in ("load", "prepare", "infer"):
                for much, room in MEMORY.items():
                    yield Fault(
                        *("memory", f"{victim}-{moment}-{much}", "processes.starved"),
                        {"engine": engine, "victim": victim, "moment": moment, "memory": room},
                        (*NAMES, "memory"),
                        engine,
                    )
        for room in DESCRIPTORS:
            yield Fault(
                *("descriptors", f"start-{room}", "processes.crowded", {"engine": engine, "room": room}),
                ("open files", "descriptor", *NAMES),
                engine,
            )
        for victim in VICTIMS[engine]:
            for moment in ("load", "prepare", "infer"):
                yield Fault(
                    *("descriptors", f"{victim}-{moment}", "processes.starved"),
                    {"engine": engine, "victim": victim, "moment": moment, "memory": None},
                    NAMES,
                    engine,
                )
        for count in (3, 12):
            arguments = {"engine": engine, "count": count}
            yield Fault("race", f"threads-{count}", "processes.two_threads", arguments, THREADS, engine)
        for delay in (0.0, 0.2):
            yield Fault("race", f"thread-ends-{delay}", "processes.thread_ends",
                        {"engine": engine, "delay": delay}, (*NAMES, "thread"), engine)  # fmt: skip
    for count, name in ((3, "three"), (2, "ttp")):
        for moment in ("load", "infer"):
            for kind in BLOWS:
                yield _struck(kind, "stock", "last", moment, 0.002, f"{kind}-{name}", count=count,
                              provider="TTP" if name == "ttp" else None)  # fmt: skip


def _struck(kind: str, engine: str, victim: str, moment: str, delay: float, how: str, **more) -> Fault:
    arguments = {"engine": engine, "victim": victim, "moment": moment, "delay": delay, "how": how, **more}
    name = f"{victim}-{moment}-{1000 * delay:g}ms" + ("" if how == kind else f"-{how}")
    seconds = 60.0 if more.get("started") else 25.0
    return Fault(kind, name, "processes.struck", arguments, NAMES, engine, seconds)


def _rank(parties: Parties, victim: str) -> int:
    """Returns the rank of a victim."""
    if victim.startswith("party"):
        return int(victim.removeprefix("party"))
    return parties.count + len(parties.helpers) - 1


def _pid(parties: Parties, victim: str, seconds: float = 5.0) -> int | None:
    """Returns the process id of a victim, once it is there."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if victim in ("relay", "supervisor"):
            owner = parties.group._supervisor if victim == "supervisor" else parties.group.shaper
            popen = getattr(owner, "_popen" if victim == "supervisor" else "popen", None)
            if popen is not None:
                return popen.pid
        elif len(parties.pids) > (rank := _rank(parties, victim)):
            return parties.pids[rank]
        time.sleep(0.001)
    return None


def lived(
    parties: Parties, around: Around, images: Tensor, workers: Callable[[], Any] = forked_workers
) -> Callable[[], Tensor]:
    """Returns the whole life of a group as a call; `around(moment)` surrounds each of its commands."""

    def work() -> Tensor:
        with workers(), around("start"):
            parties.__enter__()
        try:
            with around("load"):
                parties.load(block(), images)
            with around("prepare"):
                parties.prepare(1)
            with around("infer"):
                return parties.infer(images[:1])
        finally:
            parties.__exit__(None, None, None)

    return work


def watched(
    stage: Stage, parties: Parties, around: Around, workers: Callable[[], Any] = forked_workers
) -> Observed:
    """Lives through a group's life and sees that its processes are gone."""
    images, pids = noise(2, 3, 8, 8), set()

    def seen(moment: str) -> AbstractContextManager[object]:
        pids.update(parties.pids)
        return around(moment)

    exact = truth(block(), images[:1])
    life = lived(parties, seen, images, workers)
    observed = stage.attempt(life, lambda answer: is_right(answer, exact))
    return replace(observed, left=survivors(pids))


def struck(
    stage: Stage,
    engine: str,
    victim: str,
    moment: str,
    delay: float,
    how: str,
    count: int | None = None,
    provider: str | None = None,
    started: bool = False,
) -> Observed:
    """A process of the group receives a signal `delay` seconds after the beginning of a command.

    With `started` the workers are started as users start them, and not forked.
    """
    link = "200Mbit/1ms" if victim == "relay" else "loopback"
    parties = Parties(count, engine, provider, timeout_s=30.0 if started else TIMEOUT_S, link=link)
    signals = {**BLOWS, **SOFTER}
    blow = signals[next(name for name in signals if how.startswith(name))]

    def hit() -> None:
        pid = _pid(parties, victim)
        if pid is not None:
            with suppress(ProcessLookupError):
                os.kill(pid, blow)

    def around(now: str) -> AbstractContextManager[object]:
        if now != moment:
            return nullcontext()
        return Timer(max(delay, 0.001) if now == "start" else delay, hit)

    return watched(stage, parties, around, nullcontext if started else forked_workers)


def starved(stage: Stage, engine: str, victim: str, moment: str, memory: int | None) -> Observed:
    """A process may take no further memory than this; or with None it may open no further file."""
    parties = Parties(engine=engine, timeout_s=TIMEOUT_S)

    def take() -> None:
        pid = _pid(parties, victim)
        if memory is None:
            used = len(os.listdir(f"/proc/{pid}/fd"))
            resource.prlimit(pid, resource.RLIMIT_NOFILE, (used, used))
        else:
            most = _virtual(pid) + memory
            resource.prlimit(pid, resource.RLIMIT_AS, (most, most))

    return watched(stage, parties, lambda now: Timer(0.0, take) if now == moment else nullcontext())


def _virtual(pid: int) -> int:
    """Returns the size of a process's address space in bytes."""
    return int(Path(f"/proc/{pid}/statm").read_text().split()[0]) * os.sysconf("SC_PAGE_SIZE")


def crowded(stage: Stage, engine: str, room: int) -> Observed:
    """The driver, and what it starts, may open only so many further files."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    parties = Parties(engine=engine, timeout_s=TIMEOUT_S)
    images = noise(2, 3, 8, 8)
    exact = truth(block(), images[:1])
    life = lived(parties, lambda _: nullcontext(), images)

    def work() -> Tensor:
        used = max(map(int, os.listdir("/proc/self/fd"))) + 1
        resource.setrlimit(resource.RLIMIT_NOFILE, (used + room, hard))
        try:
            return life()
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))

    return stage.attempt(work, lambda answer: is_right(answer, exact))


def two_threads(stage: Stage, engine: str, count: int) -> Observed:
    """Several threads use one object at once: each gets a right answer, or a sentence on the threads."""
    images = noise(2, 3, 8, 8)
    exact = truth(block(), images[:1])
    seen: list[Observed] = []
    with forked_workers(), Parties(engine=engine, timeout_s=TIMEOUT_S) as parties:
        parties.load(block(), images)

        def use() -> Tensor:
            parties.prepare(1)
            return parties.infer(images[:1])

        threads = [
            threading.Thread(
                target=lambda: seen.append(stage.attempt(use, lambda answer: is_right(answer, exact)))
            )
            for _ in range(count)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    return worst(seen, THREADS)


def worst(seen: list[Observed], names: tuple[str, ...]) -> Observed:
    """Returns the observation whose verdict is worst."""
    from faults.fault import Verdict
    from faults.judge import judge

    order = list(Verdict)
    return max(seen, key=lambda one: order.index(judge(one, names)))


def thread_ends(stage: Stage, engine: str, delay: float) -> Observed:
    """Parties are opened in a thread that ends; another one uses them."""
    images = noise(2, 3, 8, 8)
    exact = truth(block(), images[:1])
    parties = Parties(engine=engine, timeout_s=TIMEOUT_S)

    def work() -> Tensor:
        with forked_workers():
            opener = threading.Thread(target=parties.__enter__)
            opener.start()
            opener.join()
        time.sleep(delay)
        try:
            parties.load(block(), images)
            parties.prepare(1)
            return parties.infer(images[:1])
        finally:
            parties.__exit__(None, None, None)

    return stage.attempt(work, lambda answer: is_right(answer, exact))
