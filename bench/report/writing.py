"""Writes the files of a report that are not already as they should be."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from pibench.models.files import read_file, replace_file, writing
from pibench.store.results import ResultsError

REFERENCE = "reference"
"""The folder within results/ and plots/ that is committed; what lies beside it is a run of one's own."""
REMEDY = "make room or allow writing there"


def find_stale(made: Mapping[Path, str]) -> list[Path]:
    """Returns the paths whose files are missing or do not hold the new text.

    Raises ResultsError where something else than a file is in the place of one.
    """
    stale = []
    for path, text in made.items():
        with writing(path, ResultsError, REMEDY):
            if not path.exists() or read_file(path) != text.encode():
                stale.append(path)
    return stale


def write_stale(made: Mapping[Path, str]) -> list[Path]:
    """Writes the stale files and returns their paths; raises ResultsError when it cannot."""
    stale = find_stale(made)
    for path in stale:
        write_report(path, made[path])
    return stale


def write_report(path: Path, text: str) -> None:
    """Replaces a file of a report; raises ResultsError when it cannot."""
    with writing(path, ResultsError, REMEDY):
        replace_file(path, text.encode())
