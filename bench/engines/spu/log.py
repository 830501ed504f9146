"""Reads SPU's report of a run in the process's own log: no call returns it.

With `enable_pphlo_profile` SPU writes lines at the end of each run. There is one line for each kind of
operator and one for the link: bytes and actions (messages) that this party sent and received. Only the link's
line is read here. The cost of a step comes from running its code alone.
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
    """The traffic that this party sent in one run: payload bytes, and messages."""

    bytes_sent: int
    actions: int


class Log:
    """The file of this process's standard output, read from the end of the last look."""

    def __init__(self) -> None:
        self._descriptor = os.open("/proc/self/fd/1", os.O_RDONLY)
        self._at = os.fstat(self._descriptor).st_size

    def sent(self) -> Sent:
        """Returns the traffic of the run since the last call.

        Raises RuntimeError unless there was one run.
        """
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
