"""The input of figures, and the selections that several of them make."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path

import numpy as np
import pandas as pd
from safetensors import SafetensorError, safe_open

from pibench.figures.style import CLASSES
from pibench.store.engines import engine_place
from pibench.store.results import ResultsError

Masks = Mapping[str, np.ndarray]


@dataclass(frozen=True)
class Tables:
    """The input of figures: the files of the same names in results/, and the masks of stored networks.

    `masks` are by variant and width, then by ReLU layer: boolean [C, H, W], True where the ReLU is kept.
    """

    summary: pd.DataFrame
    layers: pd.DataFrame
    modelled: pd.DataFrame
    break_even: pd.DataFrame
    accuracy: pd.DataFrame
    pairs: pd.DataFrame
    iso_accuracy: pd.DataFrame
    sensitivity: pd.DataFrame
    protocols: pd.DataFrame
    masks: Mapping[tuple[str, int], Masks] = field(default_factory=dict)


CSVS = tuple(each.name for each in fields(Tables) if each.name != "masks")


class Missing(Exception):  # noqa: N818 (a state of the data, not a failure)
    """Raised by a figure whose data have not been measured; the text names them."""


def read_masks(folder: Path) -> dict[tuple[str, int], Masks]:
    """Reads the masks of all networks in the manifest of a folder of weights, without torch.

    Raises ResultsError for a file that is missing or differs from the manifest.
    """
    try:
        manifest = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        raise ResultsError(f"{folder / 'manifest.json'} cannot be read ({error}).") from error
    found = {}
    for name, entry in manifest.items():
        variant, _, width = name.removesuffix(".safetensors").rpartition("-w")
        path = folder / name
        try:
            if hashlib.sha256(path.read_bytes()).hexdigest() != entry["sha256"]:
                raise ResultsError(f"{path} is damaged: its SHA-256 is not the manifest's.")
            with safe_open(path, "numpy") as file:
                found[variant, int(width)] = {
                    key.removesuffix(".mask"): file.get_tensor(key)
                    for key in file.keys()  # noqa: SIM118 (no mapping)
                    if key.endswith(".mask")
                }
        except (OSError, SafetensorError) as error:
            raise ResultsError(f"{path} cannot be read ({error}): restore it or train again.") from error
    return found


def measured_cases(summary: pd.DataFrame) -> pd.DataFrame:
    """Returns the cases whose seconds were measured, not emulated; raises Missing if there are none."""
    if summary.empty or "online_median_s" not in summary:
        raise Missing("summary.csv has no measured case")
    return summary[summary["timing"] == "measured"].dropna(subset=["online_median_s"])


def headline_cases(summary: pd.DataFrame) -> pd.DataFrame:
    """Returns the headline cases of the most frequent setting (width, batch, link, parties)."""
    cases = measured_cases(summary)
    cases = cases[cases["role"] == "headline"]
    if cases.empty:
        raise Missing("summary.csv has no measured case in the role headline")
    groups = [group for _, group in cases.groupby(["width", "batch", "link", "parties"], sort=False)]
    return max(groups, key=len)


def cases_like(cases: pd.DataFrame, headline: pd.DataFrame) -> pd.DataFrame:
    """Returns the cases of the headline's width, link and number of parties."""
    first = headline.iloc[0]
    return cases[(cases[["width", "link", "parties"]] == first[["width", "link", "parties"]]).all(axis=1)]


def engines_of(cases: pd.DataFrame) -> list[str]:
    """Returns the engines of some cases, in the order of reports."""
    return sorted(cases["engine"].unique(), key=engine_place)


def class_seconds(cases: pd.DataFrame, layers: pd.DataFrame) -> pd.DataFrame:
    """Returns the seconds of each class [case, class]; a case without a profile has no line."""
    found = layers[layers["case"].isin(cases["case"])] if not layers.empty else layers
    if found.empty or "seconds" not in found or found["seconds"].isna().all():
        raise Missing("layers.csv has no profile of these cases")
    table = found.pivot_table(index="case", columns="class", values="seconds", aggfunc="sum")
    return table.reindex(columns=list(CLASSES), fill_value=0.0).fillna(0.0)


def whole_percents(values: pd.Series) -> list[int]:
    """Returns whole percents that sum to 100; the largest remainders are rounded up."""
    exact = 100 * values / values.sum()
    whole = exact.astype(int)
    for name in (exact - whole).sort_values(ascending=False).index[: 100 - whole.sum()]:
        whole[name] += 1
    return whole.tolist()
