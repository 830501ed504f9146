"""Starts the process of a party or helper, for the driver or on another host for `pibench.hosts.join`."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Sequence
from multiprocessing.connection import Connection
from pathlib import Path

# One thread a party. glibc keeps large blocks instead of returning them to the system at every step
# (saves about 20 % of the time at batch 1).
ENVIRONMENT = {
    "OMP_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "1",
    "NUMBA_NUM_THREADS": "1",
    "MALLOC_MMAP_THRESHOLD_": str(1 << 30),
    "MALLOC_TRIM_THRESHOLD_": str(1 << 30),
    "MALLOC_TOP_PAD_": str(1 << 26),
}


def start_worker(
    log: Path, lifeline: int, interface: str, prefix: Sequence[str] = (), keep: Sequence[int] = ()
) -> tuple[subprocess.Popen[bytes], Connection]:
    """Starts `pibench.parties.worker`; returns the process and this end of its connection.

    The process ends when the other end of the pipe `lifeline` closes. It writes to `log`, lets gloo listen at
    `interface` and inherits the descriptors `keep`. The calling thread must stay alive: the kernel ends the
    process with the thread that started it.
    """
    ours, theirs = socket.socketpair()
    with theirs, log.open("wb") as output:
        popen = subprocess.Popen(
            [
                *prefix,
                sys.executable,
                "-P",
                "-m",
                "pibench.parties.worker",
                str(theirs.fileno()),
                str(lifeline),
            ],
            pass_fds=(theirs.fileno(), lifeline, *keep),
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            env=os.environ | ENVIRONMENT | {"GLOO_SOCKET_IFNAME": interface},
            start_new_session=True,  # Ctrl-C reaches only the driver, which then ends the group
        )
    return popen, Connection(ours.detach())
