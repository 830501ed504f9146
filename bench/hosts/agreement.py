"""Facts that two hosts must have in common before they compute together."""

from __future__ import annotations

import hashlib
import platform
import sys
from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

import pibench
from pibench import models
from pibench.store import provenance
from pibench.store.results import SCHEMA


def facts() -> dict[str, str]:
    """Returns the compared facts: versions, byte order, schema of results, checksum of the sources."""
    return {
        **{name: str(version) for name, version in provenance.versions().items()},
        "python": ".".join(platform.python_version_tuple()[:2]),
        "byte order": sys.byteorder,
        "schema of results": str(SCHEMA),
        "sources of pibench": sources(),
    }


def difference(driver: Mapping[str, str], other: Mapping[str, str]) -> str | None:
    """Returns one sentence on how the hosts differ and what to do, or None if they agree."""
    names = [name for name in {**driver, **other} if driver.get(name) != other.get(name)]
    if not names:
        return None
    listed = ", ".join(
        f"{name} ({driver.get(name)} at the driver, {other.get(name)} at the other host)" for name in names
    )
    return (
        f"the two hosts differ in {listed}: check out the same commit on both and install the same versions "
        "(`make install`)"
    )


@cache
def sources() -> str:
    """Returns a checksum of the sources of pibench and pibench.models; line ends do not matter."""
    whole = hashlib.sha256()
    networks = Path(models.__file__).resolve().parent
    suite = Path(pibench.__file__).resolve().parent
    found = {
        f"pibench.models/{path.relative_to(networks).as_posix()}": path for path in networks.rglob("*.py")
    }
    found |= {  # in an installed wheel one folder lies inside the other
        f"pibench/{path.relative_to(suite).as_posix()}": path
        for path in suite.rglob("*.py")
        if networks not in path.parents
    }
    for name in sorted(found):
        text = found[name].read_bytes().replace(b"\r\n", b"\n")
        whole.update(f"{name} {len(text)}\n".encode() + text)
    return whole.hexdigest()[:16]


def checksum(program: Any) -> str:
    """Returns a checksum of the public parts of a program: its steps, shapes and positions of masks."""
    return hashlib.sha256(_text(program).encode()).hexdigest()[:16]


def _text(value: Any) -> str:
    if is_dataclass(value):
        parts = (f"{field.name}={_text(getattr(value, field.name))}" for field in fields(value))
        return f"{type(value).__name__}({', '.join(parts)})"
    if isinstance(value, list | tuple):
        return f"({', '.join(map(_text, value))})"
    if isinstance(value, np.ndarray):
        return f"{value.dtype}{value.shape}{hashlib.sha256(value.tobytes()).hexdigest()}"
    return repr(value)
