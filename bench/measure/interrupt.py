"""Interrupts (Ctrl-C) that cannot get lost.

Python raises KeyboardInterrupt wherever the main thread is. Inside a destructor or the callback of a weak
reference Python prints the exception and goes on, and the libraries that capture networks have many of these.
Here an interrupt is also remembered, and raised again at the next check.
"""

from __future__ import annotations

import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

_pending = threading.Event()


def _interrupt(signum: int, frame: FrameType | None) -> None:
    _pending.set()
    raise KeyboardInterrupt


@contextmanager
def remembering() -> Iterator[None]:
    """Remembers interrupts, if the caller is the main thread and Python's own handler is in place."""
    if (
        threading.current_thread() is not threading.main_thread()
        or signal.getsignal(signal.SIGINT) is not signal.default_int_handler
    ):
        yield
        return
    _pending.clear()
    signal.signal(signal.SIGINT, _interrupt)
    told = sys.unraisablehook

    def tell(dropped: sys.UnraisableHookArgs) -> None:
        if not issubclass(dropped.exc_type, KeyboardInterrupt):  # it is remembered
            told(dropped)

    sys.unraisablehook = tell
    try:
        yield
    finally:
        sys.unraisablehook = told
        signal.signal(signal.SIGINT, signal.default_int_handler)
        _pending.clear()  # it was raised, or it came after the last check


def demand_none() -> None:
    """Raises KeyboardInterrupt if there was an interrupt that nobody has seen."""
    if _pending.is_set():
        _pending.clear()
        raise KeyboardInterrupt
