"""Engines run a program on shares: `stock` is CrypTen, `lean` is ours, the `spu-*` are from SecretFlow SPU.

An engine's folder holds everything that belongs to it. Its `__init__` describes the engine
(`pibench.engines.base.Engine`) and imports the other modules only when they are needed. The driver
(`pibench.parties.driver`) starts the processes. `pibench.parties.worker` makes the node of a role inside a
process and obeys the driver's commands on it.
"""

from pibench.engines import crypten, lean, spu
from pibench.engines.base import Engine, Helper, Meter, Node, NotPrepared, Setting, StepCost

ENGINES: dict[str, Engine] = {
    engine.name: engine
    for engine in (
        crypten.ENGINE,
        crypten.BY_HAND,
        lean.ENGINE,
        lean.SHORT_SIGNS,
        lean.LEAN32,
        spu.SEMI2K,
        spu.ABY3,
        spu.CHEETAH,
        spu.BY_HAND,
    )
}


def engine_named(name: str) -> Engine:
    """Returns the engine of this name; raises ValueError for an unknown name."""
    if name not in tuple(ENGINES):  # a list, which has no hash, is refused likewise
        offered = ", ".join(engine.name for engine in ENGINES.values() if engine.offered)
        raise ValueError(f"unknown engine {name!r}; choose one of {offered}")
    return ENGINES[name]


__all__ = [
    "ENGINES",
    "Engine",
    "Helper",
    "Meter",
    "Node",
    "NotPrepared",
    "Setting",
    "StepCost",
    "engine_named",
]
