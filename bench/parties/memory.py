"""The memory of this machine, and what processes hold of it, where the system tells (Linux)."""

from __future__ import annotations

import os
from pathlib import Path


def available_memory() -> float | None:
    """Returns the bytes of memory that new processes can use, or None if the system does not tell."""
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
    except OSError:
        return None
    return next((float(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable")), None)


def resident_memory(pid: int) -> int:
    """Returns the resident size of a process in bytes; 0 if it is gone or the system does not tell."""
    try:
        pages = Path(f"/proc/{pid}/statm").read_text().split()[1]
    except OSError:
        return 0
    return int(pages) * os.sysconf("SC_PAGE_SIZE")
