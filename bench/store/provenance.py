"""The place and the tools of a measurement: machine, versions, commit."""

from __future__ import annotations

import os
import platform
import subprocess
from importlib import metadata
from pathlib import Path
from typing import Any

from pibench.models.machine import cpu_name

ROOT = Path(__file__).resolve().parent.parent.parent

CONVENTIONS = {
    "relus": "scalar ReLUs evaluated under MPC per image, after merging and masks, the stem's included",
    "comparisons": "comparisons of max pooling per image, apart from relus",
    "macs": "convolutions and linear layers only, no bias, BatchNorm folded, per image",
    "parameters": "weights and biases after folding",
    "rounds": "collective calls of one online phase, with the opening of the logits",
    "bytes_sent": "payload bytes a party sends in one online phase",
    "online_s": "shared image to opened logits, by the slower party's clock",
    "offline_s": "correlated randomness of one inference, by the slower party's clock",
    "total_s": "offline_s + online_s of one round",
    "setup": "sharing the weights of a network once",
    "fixed_point": "16 fractional bits in Z_2^64",
    "answer": "largest logit error against the float64 network; tolerance 2 % of the largest difference "
    "between two images' logits",
}
"""What the words of a row mean whose engine has an offline and an online phase."""
ONE_CLOCK = {
    "rounds": "messages that a party sends in one inference, with the opening of the logits",
    "bytes_sent": "payload bytes a party sends in one inference",
    "all_phases_s": "shared image to opened logits, all that the protocol does for one inference, by the "
    "slower party's clock",
    "setup": "compiling a network, sharing its weights and what the protocol does once",
}
"""What is said otherwise in a row whose engine does everything in the inference."""


def conventions(clocks: tuple[str, ...]) -> dict[str, str]:
    """Returns what the words of a row mean whose engine has these clocks."""
    if len(clocks) > 1:
        return CONVENTIONS
    phases = ("offline_s", "online_s", "total_s")
    return {name: text for name, text in CONVENTIONS.items() if name not in phases} | ONE_CLOCK


def machine() -> dict[str, Any]:
    """Describes the machine; an unknown fact is None."""
    memory = None
    if hasattr(os, "sysconf") and "SC_PHYS_PAGES" in os.sysconf_names:
        memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return {
        "cpu": cpu_name(),
        "cores": cores,
        "memory_bytes": memory,
        "system": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
    }


def versions() -> dict[str, str | None]:
    """Returns the versions of the packages that a measurement depends on."""
    names = ("pibench", "torch", "crypten", "numba", "numpy", "cryptography", "spu")
    found = {name: _version(name) for name in names}
    return {name: version for name, version in found.items() if version or name != "spu"}


def commit() -> tuple[str | None, bool | None]:
    """Returns the checkout's commit and whether its code differs from it; (None, None) outside a checkout.

    A new file is a difference. What a run writes is ignored by git, and what `make reference` renews
    (results/, plots/, docs/results/, README.md) is no code: neither is a difference.
    """
    try:
        if Path(_git("rev-parse", "--show-toplevel").strip()).resolve() != ROOT:
            return None, None  # unpacked inside another repository
        head = _git("rev-parse", "HEAD").strip()
        written = (":!results", ":!plots", ":!docs/results", ":!README.md")
        changed = _git("status", "--porcelain", "--untracked-files=all", "--", ".", *written)
    except (OSError, subprocess.SubprocessError):
        return None, None
    return head, bool(changed.strip())


def _git(*arguments: str) -> str:
    return subprocess.run(
        ["git", *arguments], cwd=ROOT, check=True, capture_output=True, text=True, timeout=30
    ).stdout


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None
