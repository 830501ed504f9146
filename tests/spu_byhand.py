"""Runs the ResNet-18 that is written by hand for SPU as a plain script: no program, no engine, no processes.

Arguments: SPU's protocol, a pickle of (weights by name, images), both numpy, and a file for the logits. The
parties are threads, their link is memory; each party's profile comes on standard output.
"""

import pickle
import sys
import threading
from pathlib import Path

import numpy as np
from spu import libspu
from spu.api import Io, Runtime
from spu.utils.frontend import Kind, compile

from pibench.engines.spu.byhand import resnet18


def main() -> None:
    protocol = getattr(libspu.ProtocolKind, sys.argv[1])
    weights, images = pickle.loads(Path(sys.argv[2]).read_bytes())
    parties = 3 if sys.argv[1] == "ABY3" else 2
    config = libspu.RuntimeConfig(protocol=protocol, field=libspu.FieldType.FM64)
    config.fxp_fraction_bits = 16
    config.max_concurrency = 1
    config.enable_pphlo_profile = True
    io = Io(parties, config)
    weights = dict(sorted(weights.items()))  # as jax orders them
    names = [*weights, "image"]
    executable, _ = compile(
        Kind.JAX,
        resnet18,
        [weights, images],
        {},
        names,
        [libspu.Visibility.VIS_SECRET] * len(names),
        lambda _: ["logits"],
    )
    shares = {
        name: io.make_shares(value, libspu.Visibility.VIS_SECRET)
        for name, value in zip(names, [*weights.values(), images], strict=True)
    }
    description = libspu.link.Desc()
    for rank in range(parties):
        description.add_party(f"party {rank}", f"memory {rank}")
    logits = [None] * parties

    def party(rank):
        machine = Runtime(libspu.link.create_mem(description, rank), config)
        for name, made in shares.items():
            machine.set_var(name, made[rank])
        machine.run(executable)
        logits[rank] = machine.get_var("logits")

    threads = [threading.Thread(target=party, args=(rank,)) for rank in range(parties)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    np.save(sys.argv[3], io.reconstruct(logits))


if __name__ == "__main__":
    main()
