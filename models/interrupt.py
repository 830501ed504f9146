"""Signals that end a command (Ctrl-C, SIGTERM, SIGHUP): they become exceptions that cannot get lost.

Python runs the handler of a signal wherever the main thread is, and the exception rises from there. Inside a
destructor or the callback of a weak reference Python prints the exception and goes on, and the libraries that
capture networks have many of these. Here a signal whose exception is dropped is sent again a moment later. It
is also remembered, and raised at the next check.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

ENDING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
"""The signals by which terminals, shells and schedulers end a command."""
AGAIN_S = 0.05

_pending: list[int] = []  # signals whose exception nobody is known to have seen


class Stopped(KeyboardInterrupt):
    """Raised in the main thread by SIGTERM or SIGHUP; `signum` is the signal."""

    def __init__(self, signum: int) -> None:
        super().__init__(signal.Signals(signum).name)
        self.signum = signum


def status_of(error: KeyboardInterrupt) -> int:
    """Returns the exit status that a shell expects of a command that a signal has ended: 130 for Ctrl-C."""
    return 128 + (error.signum if isinstance(error, Stopped) else signal.SIGINT)


@contextmanager
def remembering(*signals: int) -> Iterator[None]:
    """Turns `signals` (SIGINT alone, if none are given) into exceptions that are remembered.

    It does so in the main thread, and leaves signals alone that the caller handles or ignores.
    """
    usual = {signal.SIGINT: signal.default_int_handler}
    kept = {
        each: handler
        for each in signals or (signal.SIGINT,)
        if (handler := signal.getsignal(each)) is usual.get(each, signal.SIG_DFL)
    }
    if threading.current_thread() is not threading.main_thread() or not kept:
        yield
        return
    _pending.clear()
    told = sys.unraisablehook
    timers: list[threading.Timer] = []

    def tell(dropped: sys.UnraisableHookArgs) -> None:
        if issubclass(dropped.exc_type, KeyboardInterrupt):
            timers.append(threading.Timer(AGAIN_S, _send_again))
            timers[-1].daemon = True
            timers[-1].start()
        else:
            told(dropped)

    sys.unraisablehook = tell
    for each in kept:
        signal.signal(each, _handle)
    try:
        yield
    finally:
        for timer in timers:
            timer.cancel()
        sys.unraisablehook = told
        for each, handler in kept.items():
            signal.signal(each, handler)
        _pending.clear()  # it was raised, or it came after the last check


def demand_none() -> None:
    """Raises the exception of a signal that nobody has seen, if there was one."""
    if _pending:
        signum = _pending[-1]
        _pending.clear()
        raise _error(signum)


def _handle(signum: int, frame: FrameType | None) -> None:
    _pending.append(signum)
    raise _error(signum)


def _error(signum: int) -> KeyboardInterrupt:
    return KeyboardInterrupt() if signum == signal.SIGINT else Stopped(signum)


def _send_again() -> None:
    for signum in _pending[-1:]:
        os.kill(os.getpid(), signum)
