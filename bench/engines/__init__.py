"""Engines: how a program runs on shares. `stock` is CrypTen's own operators, `lean` is ours.

An engine is a module with a class for each role its processes play. The driver (`pibench.parties.driver`)
starts the processes; `pibench.parties.worker` makes the node of a role inside one and obeys the driver's
commands on it.
"""

from pibench.engines.base import ENGINES, Helper, Meter, Node, NotPrepared, Setting, StepCost

__all__ = ["ENGINES", "Helper", "Meter", "Node", "NotPrepared", "Setting", "StepCost"]
