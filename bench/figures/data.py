"""The input of figures, and the selections that several of them make."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from io import StringIO
from pathlib import Path

import numpy as np
import pandas as pd
from safetensors import SafetensorError, safe_open

from pibench.figures.style import CLASSES
from pibench.models.files import read_file
from pibench.models.manifest import WeightsError, read_listed, read_manifest
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
    systems: pd.DataFrame
    masks: Mapping[tuple[str, int], Masks] = field(default_factory=dict)


CSVS = tuple(each.name for each in fields(Tables) if each.name != "masks")


WORDS = {
    "summary": ("case", "variant", "engine", "link", "role", "timing"),
    "layers": ("case", "layer", "class"),
    "modelled": ("model", "channel", "network"),
    "break_even": ("model", "channel", "network", "phase"),
    "accuracy": ("variant",),
    "pairs": ("senet", "joint"),
    "sensitivity": ("layer",),
    "protocols": ("case", "variant", "engine", "timing"),
    "systems": ("variant", "engine", "link"),
}
"""The columns of each table that hold a word in every line."""
NUMBERS = {
    "summary": ("width", "batch", "parties", "relus", "macs", "rounds", "hops", "bytes_sent", "cores"),
    "layers": ("bytes_sent",),
    "modelled": ("width", "channel_rtt_s", "channel_up_bit_per_s", "modelled_rounds", "modelled_total_s"),
    "break_even": ("relus_per_layer", "relus_left"),
    "accuracy": ("width", "seed", "relus", "macs", "accuracy_test"),
    "pairs": ("width", "accuracy_difference", "macs_ratio"),
    "sensitivity": ("width", "seed", "position", "measured_sensitivity", "published_sensitivity"),
    "protocols": ("bytes_all", "whole_speedup"),
    "systems": ("accuracy", "relus", "macs", "speedup_elsewhere"),
}
"""The columns that hold numbers, beside those whose names tell it."""


class Missing(Exception):  # noqa: N818 (a state of the data, not a failure)
    """Raised by a figure whose data have not been measured; the text names them."""


def read_masks(folder: Path) -> dict[tuple[str, int], Masks]:
    """Reads the masks of all networks in the manifest of a folder of weights, without torch.

    A file whose name does not tell variant and width, and a mask that is not of a map, are left out. Raises
    ResultsError for a file that is missing or differs from the manifest.
    """
    found = {}
    try:
        for name in read_manifest(folder):
            if (parts := re.fullmatch(r"(.+)-w([0-9]+)\.safetensors", name)) is None:
                continue
            path = folder / name
            read_listed(path)
            with safe_open(path, "numpy") as file:
                names = [key for key in file.keys() if key.endswith(".mask")]  # noqa: SIM118 (no mapping)
                masks = {key.removesuffix(".mask"): file.get_tensor(key) for key in names}
            found[parts[1], int(parts[2])] = {
                layer: mask for layer, mask in masks.items() if mask.ndim == 3 and mask.dtype == bool
            }
    except (WeightsError, OSError, SafetensorError) as error:
        raise ResultsError(f"The masks in {folder} cannot be read: {error}.") from error
    return found


def read_table(path: Path) -> pd.DataFrame:
    """Reads a table of the report, and checks the columns that figures need.

    Raises ResultsError for a file that is missing, damaged or changed by hand.
    """
    remedy = "run `make report`, which writes it anew"
    try:
        text = read_file(path).decode()
        frame = pd.read_csv(StringIO(text)).copy()  # in one piece: wide tables come in many
    except (OSError, ValueError) as error:
        raise ResultsError(f"{path} cannot be read ({' '.join(str(error).split())}): {remedy}.") from error
    words, numbers = WORDS.get(path.stem, ()), NUMBERS.get(path.stem, ())
    if frame.empty and path.stem != "summary":  # as of a run without a network that the literature prices
        return frame.reindex(columns=list(dict.fromkeys([*frame.columns, *words, *numbers])))
    if missing := [name for name in (*words, *numbers) if name not in frame]:
        raise ResultsError(f"{path} lacks the column {missing[0]!r}: {remedy}.")
    for name in frame.columns:
        number = name in numbers or name.endswith(("_s", "_ratio", "_low", "_high", "_speedup"))
        if number and not pd.api.types.is_numeric_dtype(frame[name]):
            raise ResultsError(f"{path} holds something else than numbers in the column {name!r}: {remedy}.")
        if name in words and not frame[name].map(lambda cell: isinstance(cell, str)).all():
            raise ResultsError(f"{path} lacks words in the column {name!r}: {remedy}.")
    return frame


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


def plaintext_seconds(cases: pd.DataFrame) -> pd.Series:
    """Returns the seconds of torch's float32 network on one thread, by variant and batch.

    They are the median over the cases that have them, whatever the engine. The result may be empty.
    """
    if "plaintext_median_s" not in cases:
        return pd.Series(dtype=float)
    return cases.groupby(["variant", "batch"], sort=False)["plaintext_median_s"].median().dropna()


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
