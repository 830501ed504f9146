"""Calls on a torch.distributed store that travel to the driver's host.

A process on the other host sends its calls. On the driver's host `perform` carries them out on the store that
the processes of that host share. The processes of both hosts therefore find each other, and the store needs
no port. Only the two ends of this way need torch.
"""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch.distributed import Store

CALLS = ("set", "get", "add", "compare_set", "wait", "check", "delete_key", "num_keys", "set_timeout")


def perform(store: Store, name: str, arguments: tuple[Any, ...]) -> tuple[bool, Any]:
    """Carries out a forwarded call; returns whether it succeeded, and the result or the error."""
    if name not in CALLS:
        return False, f"a store has no {name!r}"
    try:
        if name in ("wait", "set_timeout") and isinstance(arguments[-1], int | float):
            arguments = (*arguments[:-1], timedelta(seconds=arguments[-1]))
        return True, getattr(store, name)(*arguments)
    except Exception as error:
        return False, f"{type(error).__name__}: {error}"
