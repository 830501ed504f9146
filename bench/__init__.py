"""pibench: the latency of private inference, measured.

    import pibench
    frame = pibench.measure(model, images, engine="lean", link="wan")  # needs the measured parties
    frame = pibench.cost(model, images)                                # needs no process
    frame = pibench.compare("before/bench.json", "after/bench.json")
    frame = pibench.merge(["laptop", "server"], into="both")

Importing the package imports nothing else: `pibench.api` is read when one of these is called.
"""

from importlib import import_module
from types import ModuleType
from typing import Any

from pibench import measure

__all__ = ["compare", "cost", "measure", "merge"]


class _Room(ModuleType):
    """The package `pibench.measure`, which can be called: the name is the function's and the folder's."""

    def __call__(self, *arguments: Any, **settings: Any) -> Any:
        """Measures networks (`pibench.api.measure`)."""
        return import_module("pibench.api").measure(*arguments, **settings)


measure.__class__ = _Room


def __getattr__(name: str) -> Any:
    if name not in ("compare", "cost", "merge"):
        raise AttributeError(f"module 'pibench' has no attribute {name!r}")
    return getattr(import_module("pibench.api"), name)
