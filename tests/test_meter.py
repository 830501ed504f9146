"""The meter's formula for each collective against what the kernel's TCP counters say that gloo sent."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = """
import sys, time
import torch, torch.distributed as dist
from types import SimpleNamespace
from pibench.engines.base import Meter
from pibench.engines.crypten.node import _attach
from tcp_counters import sent

rank, parties, rendezvous = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3]
dist.init_process_group("gloo", init_method=rendezvous, rank=rank, world_size=parties)

payload = torch.ones(300_000, dtype=torch.int64)
def scatter(parts, src):
    dist.scatter(payload, parts if rank == src else [], src)

def gather(tensor, dst):
    dist.gather(tensor, [torch.empty_like(payload) for _ in range(parties)] if rank == dst else None, dst)

unused = lambda *_: None
communicator = SimpleNamespace(
    get_rank=lambda: rank,
    all_reduce=lambda tensor: dist.all_reduce(tensor),
    gather=gather,
    all_gather=lambda tensor: dist.all_gather([torch.empty_like(tensor) for _ in range(parties)], tensor),
    scatter=scatter,
    broadcast=lambda tensor, src: dist.broadcast(tensor, src),
    reduce=unused,
    send=unused,
    isend=unused,
)
meter = Meter()
_attach(meter, communicator, parties)
calls = {
    "all_reduce": (payload.clone(),),
    "gather": (payload, 0),
    "all_gather": (payload,),
    "scatter": ([payload.clone() for _ in range(parties)], 0),
    "broadcast": (payload, 0),
}
for name, arguments in calls.items():
    dist.barrier()
    time.sleep(0.2)  # until the last segment is acknowledged
    before, meter.rounds, meter.bytes_sent = sent(), 0, 0
    getattr(communicator, name)(*arguments)
    time.sleep(0.2)
    print(name, meter.rounds, meter.bytes_sent, sent() - before)
dist.barrier()
"""


@pytest.mark.parametrize("parties", [2, 3])
def test_counted_bytes_are_those_on_the_wire(parties, tmp_path):
    rendezvous = f"file://{tmp_path}/rendezvous"
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", SCRIPT, str(rank), str(parties), rendezvous],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=os.environ | {"PYTHONPATH": str(Path(__file__).parent)},
        )
        for rank in range(parties)
    ]
    seen: dict[str, list[tuple[int, int]]] = {}
    for process in processes:
        out, err = process.communicate(timeout=60)
        assert process.returncode == 0, err
        for line in out.splitlines():
            name, rounds, counted, wire = line.split()
            assert rounds == "1"
            seen.setdefault(name, []).append((int(counted), int(wire)))
    # Gloo relays a broadcast along a tree: the total is the formula's, its source shares the work.
    counted, wire = map(sum, zip(*seen.pop("broadcast"), strict=True))
    assert wire == pytest.approx(counted, rel=0.01)
    assert set(seen) == {"all_reduce", "gather", "all_gather", "scatter"}
    for pairs in seen.values():
        for counted, wire in pairs:
            assert wire == pytest.approx(counted, rel=0.01, abs=2000)
