"""Reads what SPU says of a run in the process's own log: there is no call that returns it.

With `enable_pphlo_profile` SPU writes, at the end of each run, a line for each kind of operator and one for
the link: bytes and actions (messages) sent and received by this party. Only the latter is read here; the cost
of a step is that of running its code alone.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass

LINK = re.compile(
    r"Link details: total send bytes (\d+), recv bytes (\d+), send actions (\d+), recv actions (\d+)"
)


@dataclass(frozen=True)
class Sent:
    """What this party sent in one run: payload bytes, and messages."""

    bytes_sent: int
    actions: int


class Log:
    """The file that this process's standard output goes to, read from where the last look ended."""

    def __init__(self) -> None:
        self._descriptor = os.open("/proc/self/fd/1", os.O_RDONLY)
        self._at = os.fstat(self._descriptor).st_size

    def sent(self) -> Sent:
        """Returns what the run since the last call sent; raises RuntimeError unless there was one."""
        text = os.pread(self._descriptor, os.fstat(self._descriptor).st_size - self._at, self._at)
        self._at += len(text)
        found = LINK.findall(text.decode(errors="replace"))
        if len(found) != 1:
            raise RuntimeError(
                f"SPU's profile has {len(found)} lines of link details where one was expected: "
                "is it another version than 0.9.5?"
            )
        sent, _, actions, _ = map(int, found[0])
        return Sent(sent, actions)

    def close(self) -> None:
        """Closes the file."""
        os.close(self._descriptor)
