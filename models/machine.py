"""The name of the processor, as rows of results state it."""

import platform
from pathlib import Path


def cpu_name() -> str | None:
    """Returns the processor's model name, or its architecture; None if neither is known."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, "") or platform.processor() or platform.machine() or None
