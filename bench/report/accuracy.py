"""Accuracy of trained networks: results/accuracy.json."""

from __future__ import annotations

import json
from pathlib import Path

import pandas as pd

from bench.results import ResultsError


def read_accuracy(path: Path) -> pd.DataFrame | None:
    """Reads accuracy.json, a list of {variant, width, seed, accuracy_test (0 to 1), ...}; None without it."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise ResultsError(f"{path} cannot be read ({error}): train again or remove it.") from error
    needed = ["variant", "width", "accuracy_test"]
    frame = pd.DataFrame(content) if isinstance(content, list) else pd.DataFrame()
    if content and not set(needed) <= set(frame.columns):
        raise ResultsError(
            f"{path} is no list of objects with {', '.join(needed)}: train again or remove it."
        )
    if content and not frame["accuracy_test"].dropna().between(0, 1).all():
        raise ResultsError(f"{path} has an `accuracy_test` outside 0 to 1: write fractions, not percent.")
    return frame
