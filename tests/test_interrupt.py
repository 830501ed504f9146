"""Signals become exceptions; one that Python drops is raised again at the next check, or a moment later."""

import os
import signal
import subprocess
import sys
import time
import weakref

import pytest

from pibench.models import interrupt

SOON_S = 20
"""It is about a second on an idle machine; what is ended would last longer than this."""


class Thing:
    pass


@pytest.fixture(autouse=True)
def usual():
    """The signals do what they usually do, also where the tests run in the background or under nohup."""
    usual = {signal.SIGINT: signal.default_int_handler}
    own = {each: signal.signal(each, usual.get(each, signal.SIG_DFL)) for each in interrupt.ENDING}
    yield
    for each, handler in own.items():
        signal.signal(each, handler)


def sending(signum):
    """A callback in which a signal arrives; Python drops what it raises there."""
    return lambda reference: os.kill(os.getpid(), signum)


def test_an_interrupt_inside_a_callback_is_raised_at_the_next_check(monkeypatch):
    monkeypatch.setattr(interrupt, "AGAIN_S", 60)
    with interrupt.remembering():
        interrupt.demand_none()
        thing = Thing()
        kept = weakref.ref(thing, sending(signal.SIGINT))
        del thing  # Python drops what the callback raises
        assert kept() is None
        with pytest.raises(KeyboardInterrupt):
            interrupt.demand_none()
        interrupt.demand_none()
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


@pytest.mark.parametrize("signum", interrupt.ENDING)
def test_a_signal_inside_a_callback_is_sent_again(signum):
    with interrupt.remembering(*interrupt.ENDING):
        thing = Thing()
        kept = weakref.ref(thing, sending(signum))
        with pytest.raises(KeyboardInterrupt) as raised:  # noqa: PT012 (when it comes is not known)
            del thing
            time.sleep(5)
    assert kept() is None
    assert interrupt.status_of(raised.value) == 128 + signum


def test_an_interrupt_elsewhere_is_raised_at_once():
    with interrupt.remembering(), pytest.raises(KeyboardInterrupt):
        os.kill(os.getpid(), signal.SIGINT)
    interrupt.demand_none()


@pytest.mark.parametrize("signum", interrupt.ENDING)
def test_a_handler_of_the_callers_own_stays(signum):
    own = signal.signal(signum, signal.SIG_IGN)
    try:
        with interrupt.remembering(*interrupt.ENDING):
            assert signal.getsignal(signum) is signal.SIG_IGN
        assert signal.getsignal(signum) is signal.SIG_IGN
    finally:
        signal.signal(signum, own)


def ended(command, signum, **options):
    """Ends a command by a signal when it says that it is ready; returns its status and last words."""
    with subprocess.Popen(
        [sys.executable, *command],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        **options,
    ) as popen:
        for line in popen.stdout:
            if "ready" in line:
                break
        popen.send_signal(signum)
        out, said = popen.communicate(timeout=SOON_S)
    return popen.returncode, out + said


COMMAND = """
import sys, time, types
waiting = types.ModuleType("pibench.doctor")
def examine():
    print("ready", flush=True)
    time.sleep(30)
waiting.examine, waiting.show = examine, print
sys.modules["pibench.doctor"] = sys.modules["pibench.show"] = waiting
from pibench import cli
sys.argv = ["pibench", "doctor"]
cli.main()
"""


@pytest.mark.parametrize("signum", interrupt.ENDING)
def test_a_signal_ends_the_command_with_the_status_that_a_shell_expects(signum):
    status, said = ended(["-c", COMMAND], signum)
    assert (status, said) == (128 + signum, "\nstopped: the rows of finished cases are kept\n")


TRAINING = """
import sys, time
from pibench.models.commands import exit_status
def work():
    print("ready", flush=True)
    time.sleep(30)
sys.exit(exit_status(work))
"""


def test_a_signal_ends_a_training_with_that_status():
    status, said = ended(["-c", TRAINING], signal.SIGTERM)
    assert (status, said) == (143, "\nstopped: run the same command to go on\n")


BENCHMARK = """
import time

def test_it(capsys):
    with capsys.disabled():
        print("ready", flush=True)
    time.sleep(30)
"""


def test_a_signal_ends_the_benchmarks_with_that_status(tmp_path):
    (tmp_path / "test_it.py").write_text(BENCHMARK)
    options = ["-q", "-p", "pibench.conftest", "--rootdir", str(tmp_path)]
    options += ["-p", "no:cacheprovider", "-p", "no:hypothesispytest"]  # which is imported for its last word
    status, said = ended(["-m", "pytest", *options, "test_it.py"], signal.SIGHUP, cwd=tmp_path)
    assert status == 129, said
    assert "no tests ran" in said
