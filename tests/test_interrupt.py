"""Interrupts that Python drops are raised again at the next check."""

import os
import signal
import weakref

import pytest

from pibench.measure import interrupt


class Thing:
    pass


def interrupted(reference):
    os.kill(os.getpid(), signal.SIGINT)


def test_an_interrupt_inside_a_callback_is_raised_at_the_next_check():
    with interrupt.remembering():
        interrupt.demand_none()
        thing = Thing()
        kept = weakref.ref(thing, interrupted)
        del thing  # Python drops what the callback raises
        assert kept() is None
        with pytest.raises(KeyboardInterrupt):
            interrupt.demand_none()
        interrupt.demand_none()
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_an_interrupt_elsewhere_is_raised_at_once():
    with interrupt.remembering(), pytest.raises(KeyboardInterrupt):
        os.kill(os.getpid(), signal.SIGINT)
    interrupt.demand_none()


def test_a_handler_of_the_callers_own_stays():
    own = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with interrupt.remembering():
            assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGINT, own)
