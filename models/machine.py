"""The name of the processor, as rows of results state it."""

import platform
from pathlib import Path


def cpu_name() -> str | None:
    """Returns the processor's model name, or its architecture; None if neither is known.

    Virtual machines may hide the model ("AMD EPYC", "Intel(R) Xeon(R) CPU @ 2.20GHz"). Its family and number
    then follow, because seconds of two generations do not compare.
    """
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    facts: dict[str, str] = {}
    for key, _, value in (line.partition(":") for line in lines):
        facts.setdefault(key.strip(), value.strip())
    name = facts.get("model name", "")
    hidden = name and not any(character.isdigit() for character in name.partition("@")[0])
    if hidden and {"cpu family", "model"} <= facts.keys():
        name += f" (family {facts['cpu family']}, model {facts['model']})"
    return name or platform.processor() or platform.machine() or None
