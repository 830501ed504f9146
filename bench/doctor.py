"""The findings of `pibench doctor`: this machine, and whether each installed engine computes rightly."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from pathlib import Path

import pandas as pd
import torch
from torch import nn

from pibench.engines import ENGINES
from pibench.measure.verdict import truth_of
from pibench.parties.driver import Parties
from pibench.parties.memory import available_memory
from pibench.store.provenance import commit, machine, versions

GOVERNOR = Path("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor")
SLOW_S = 10.0
"""What a self-test takes at most on an idle machine, once the engine is compiled."""
TIMEOUT_S = 120.0
"""The first start of an engine compiles, which takes half a minute; later ones take seconds."""


def examine() -> pd.DataFrame:
    """Returns one line a finding: `what`, `state` (ok, look, missing, FAILS) and `said`."""
    lines = [*_machine(), *(_engine(name) for name, engine in ENGINES.items() if engine.offered)]
    return pd.DataFrame(lines, columns=["what", "state", "said"])


def _machine() -> Iterator[tuple[str, str, str]]:
    facts = machine()
    yield "machine", "ok", f"{facts['cpu']}, {facts['system']}, Python {facts['python']}"
    head, dirty = commit()
    yield "commit", "ok", "not in a checkout" if head is None else head[:10] + (" with changes" * bool(dirty))
    yield "versions", "ok", ", ".join(f"{name} {found or 'missing'}" for name, found in versions().items())
    cores = facts["cores"] or 1
    enough = "ok" if cores >= 2 else "look"
    yield "cores", enough, f"{cores}; two parties of one thread each need two"
    load = os.getloadavg()[0] if hasattr(os, "getloadavg") else 0.0
    idle = cores - load >= 2 or load < 0.5
    yield "load", "ok" if idle else "look", f"{load:.1f} over the last minute; measure on an idle machine"
    threads = torch.get_num_threads()
    yield "threads", "ok", f"{threads} here for plaintext checks; one in each party"
    governor = GOVERNOR.read_text().strip() if GOVERNOR.is_file() else None
    if governor is None:
        yield "governor", "ok", "not told by this system"
    else:
        fast = governor == "performance"
        advice = "" if fast else "; set it to performance before measuring"
        yield "governor", "ok" if fast else "look", f"{governor}{advice}"
    free = available_memory()
    if free is not None:
        yield "memory", "ok" if free > 4e9 else "look", f"{free / 1e9:.1f} GB free; width 64 on stock needs 4"


def _engine(name: str) -> tuple[str, str, str]:
    """Infers two images of a tiny network privately and compares the answer."""
    lacking = ENGINES[name].missing()
    if lacking is not None:
        return name, "missing", lacking
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 36, 10)).eval()
        images = torch.randn(2, 3, 8, 8)
    truth = truth_of(network, images)
    started = time.monotonic()
    try:
        with Parties(ENGINES[name].parties[0], name, timeout_s=TIMEOUT_S) as parties:
            parties.load(network, images)
            parties.prepare(len(images))
            logits = parties.infer(images)
            link = parties.check_link()
    except Exception as error:  # whatever an engine's packages raise is its finding
        return name, "FAILS", (str(error).strip().splitlines() or [type(error).__name__])[0]
    if not truth.right(logits).all():
        return name, "FAILS", f"the answer is off by {truth.errors(logits).max().item():.3g}"
    seconds = time.monotonic() - started
    return (
        name,
        "ok" if seconds <= SLOW_S else "look",
        f"right answer, {seconds:.1f} s with the start of the processes; loopback: round trip "
        f"{1e6 * link.measured_rtt_s:.0f} us, {link.measured_bandwidth_bits_s / 1e9:.1f} Gbit/s",
    )
