"""Writes the files of a report that are not already as they should be."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from pibench.models.files import replace_file

REFERENCE = "reference"
"""The folder within results/ and plots/ that is committed; what lies beside it is a run of one's own."""


def find_stale(made: Mapping[Path, str]) -> list[Path]:
    """Returns the paths whose files are missing or do not hold the new text."""
    return [path for path, text in made.items() if not path.exists() or path.read_bytes() != text.encode()]


def write_stale(made: Mapping[Path, str]) -> list[Path]:
    """Writes the stale files and returns their paths."""
    stale = find_stale(made)
    for path in stale:
        replace_file(path, made[path].encode())
    return stale
