"""A party of an SPU engine alone: runs one inference, tells what it counted and what the kernel counted.

Arguments: engine, rank, rendezvous, a pickle of (program, weights, images), where the counts are written.
Standard output must be a file.
"""

import pickle
import sys
import time
from pathlib import Path

from tcp_counters import sent

from pibench.engines import ENGINES, Setting
from pibench.engines.spu.node import SpuNode

SETTLED_S = 0.5  # until the last segment is acknowledged


def main() -> None:
    engine, rank, rendezvous = sys.argv[1], int(sys.argv[2]), sys.argv[3]
    stored, counts = map(Path, sys.argv[4:])
    program, weights, images = pickle.loads(stored.read_bytes())
    parties = ENGINES[engine].parties[0]
    node = SpuNode(Setting(engine, "party", rank, parties, rendezvous, "", timeout_s=120))
    node.load(program, weights if rank == 0 else None)
    node.prepare(1)
    node.start(1)
    shared = node.share(images if rank == 1 else None, 1)
    node.barrier()
    time.sleep(SETTLED_S)
    messages, payload, wire = node.meter.rounds, node.meter.bytes_sent, sent()
    node.run(shared)
    time.sleep(SETTLED_S)
    counts.write_text(f"{node.meter.rounds - messages} {node.meter.bytes_sent - payload} {sent() - wire}")
    node.barrier()
    time.sleep(SETTLED_S)


if __name__ == "__main__":
    main()
