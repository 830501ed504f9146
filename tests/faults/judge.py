"""The judge: from what was observed to a verdict, without a look at anything else."""

from __future__ import annotations

import re
from collections.abc import Sequence

from faults.fault import Observed, Verdict

INSIDE = {
    *("KeyError", "IndexError", "AttributeError", "NameError", "UnboundLocalError", "RecursionError"),
    *("AssertionError", "ZeroDivisionError", "OverflowError", "SystemError", "EOFError", "BufferError"),
    *("UnpicklingError", "UnicodeDecodeError", "UnicodeEncodeError", "JSONDecodeError", "error"),
    *("ValidationError", "SafetensorError", "BrokenProcessPool", "StopIteration", "Exception"),
}
"""Exceptions that tell of a place in the code and not of what is wrong."""
TRACEBACK = "Traceback (most recent call last)"
LONGEST = 2500
"""Characters of a first line: a row's value may be quoted, a whole file may not."""


def judge(observed: Observed, names: Sequence[str]) -> Verdict:
    """Returns the verdict; the worst that was seen counts.

    `names` are the expressions one of which a clear error matches.
    """
    if observed.broken:
        return Verdict.BROKEN
    if observed.hung:
        return Verdict.HANG
    if observed.died:
        return Verdict.OBSCURE
    if observed.lost:
        return Verdict.LOST
    if observed.answered and not observed.right:
        return Verdict.WRONG
    if observed.left:
        return Verdict.LEFT
    if observed.answered:
        return Verdict.RIGHT
    return Verdict.CLEAR if is_clear(observed, names) else Verdict.OBSCURE


def is_clear(observed: Observed, names: Sequence[str]) -> bool:
    """Returns whether an error is one that a user can act upon.

    An exception is raised on purpose, and its first line names the thing. A traceback of a party may follow
    as evidence, but not as the reason, as after "party 0 failed:". A command prints no traceback at all, and
    one of its lines names the thing.
    """
    lines = observed.message.strip().splitlines()
    if not lines:
        return False
    if observed.raised:
        if observed.raised in INSIDE or not observed.deliberate:
            return False
        if TRACEBACK in observed.message and lines[0].endswith(":"):
            return False
        lines = lines[:1]
    elif TRACEBACK in observed.message:
        return False
    return any(
        len(line) <= LONGEST and any(re.search(name, line, re.IGNORECASE) for name in names) for line in lines
    )
