"""The descriptors that every process of a group finds open, and its end with the process that started it.

`pibench.parties.supervisor` starts the processes: parties, helpers, the relay, the hub of namespaces.
"""

from __future__ import annotations

import ctypes
import signal
import sys

LIFELINE = 20
"""The reading end of a pipe that closes when the supervisor is gone."""
GIVEN = 21
"""The first descriptor of those that a process is given, such as its connection; the others follow."""
_PR_SET_PDEATHSIG = 1


def end_with_parent() -> None:
    """Has the kernel kill this process when its parent is gone, even if this one is stopped (Linux)."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
