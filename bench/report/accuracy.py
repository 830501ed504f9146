"""Accuracy of trained networks: results/accuracy.json -> accuracy.csv, pairs.csv, tries.csv, sensitivity.csv.

An accuracy is a share of CIFAR-100's test images (0 to 1). It belongs to a width: the accuracy figures are of
`pibench.measure.cases.TRAINED_WIDTH`, the latency headline of `pibench.measure.cases.WIDTH`, and no column
holds both. Seeds are compared seed by seed, since the networks of one seed and plan share their baseline.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from pibench.models.published import PUBLISHED, SENET_SENSITIVITY, PublishedAccuracy
from pibench.report.order import ENGINES, place_of
from pibench.report.statistics import quotient_of_medians
from pibench.store.results import ResultsError, Row, family_of

TRAINABLE = (
    "baseline",
    "senet-0.36",
    "senet-0.18",
    "senet-0.09",
    "senet-0.045",
    "snl-0.09",
    "joint",
    "joint-0.208",
    "joint-0.104",
    "joint-0.09",
    "joint-0.052",
    "joint-0.026",
    "joint3-0.052",
    "deepreduce",
    "merged-exact",
)
"""The variants that `pibench.models.training` has a recipe for; a test holds them against its `ROWS`."""
PAIRS = (
    ("senet-0.36", "joint-0.208"),
    ("senet-0.18", "joint-0.104"),
    ("senet-0.09", "joint-0.052"),
    ("senet-0.045", "joint-0.026"),
)
"""SENet's budgets, and joint reduction's at 1.73 times fewer ReLUs (arXiv 2304.13274)."""
EQUAL = ("senet-0.09", "joint-0.09")
"""A pair of one budget: what merging layers costs beside masks."""
UNMASKED = "joint"
"""Shallow blocks alone: what merging layers costs before any budget."""
TEST_IMAGES = 10_000
NEAR = 0.1  # relative distance in ReLUs up to which a published value stands beside ours
SETTINGS = ("plan", "epochs_scale", "precision")
SEED_AND_PLAN = ("seed", *SETTINGS)
"""What rows have in common whose networks share a baseline."""
ROW = ("variant", "width", "seed", *SETTINGS, "epochs", "relus", "macs")
JUDGED = ("accuracy_heldout", "accuracy_test", "accuracy_fixed_point")
PRIVATE = ("images", "agreement", "accuracy", "accuracy_plaintext", "max_logit_error")
PAIR = (
    "senet",
    "joint",
    "width",
    "seeds",
    "epochs_senet",
    "epochs_joint",
    "accuracy_senet",
    "accuracy_joint",
)
TRY = ("variant", "width", "seed", "changes", "beside", "epochs", "accuracy_heldout", "difference")
SENSITIVITY = ("run", "width", "seed", "position", "layer", "measured_sensitivity", "published_sensitivity")
# not scaled, not in another precision, not a try
_RUN = re.compile(r"w(?P<width>\d+)-s(?P<seed>\d+)-(?P<plan>[a-z]+)")


@dataclass(frozen=True)
class Difference:
    """Mean, lowest and highest of accuracy - other over common seeds, and their number; NaN without any."""

    mean: float
    low: float
    high: float
    seeds: int


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
    if content:
        frame["seed"] = frame["seed"].fillna(0).astype(int) if "seed" in frame else 0
        twice = frame[frame.duplicated(["variant", "width", "seed"])]
        if not twice.empty:
            raise ResultsError(f"{path} holds {twice['variant'].iloc[0]} twice: remove one of the rows.")
    return frame


def tabulate_accuracy(accuracy: pd.DataFrame | None) -> pd.DataFrame:
    """One line a variant, width and seed; of the private inferences `private_ENGINE_*`.

    `relus_by` is the phase that gave each layer its share of the ReLUs: SENet's "sensitivity", SNL's "lasso".
    """
    private = [f"private_{engine}_{name}" for engine in ENGINES for name in PRIVATE]
    columns = [
        *ROW,
        "relus_by",
        *JUDGED,
        "fixed_point_images",
        "fixed_point_agreement",
        *private,
        "wall_s",
        "machine",
    ]
    if accuracy is None or accuracy.empty:
        return pd.DataFrame(columns=columns)
    lines = []
    for _, row in accuracy.iterrows():
        fixed, engines = _part(row, "fixed_point"), _part(row, "private")
        line = {name: row.get(name, math.nan) for name in (*ROW, *JUDGED, "wall_s", "machine")}
        line["relus_by"] = _relus_by(row)
        line |= {f"fixed_point_{name}": fixed.get(name, math.nan) for name in ("images", "agreement")}
        for engine in ENGINES:
            found = engines.get(engine) or {}
            line |= {f"private_{engine}_{name}": found.get(name, math.nan) for name in PRIVATE}
        lines.append(line)
    table = pd.DataFrame(lines, columns=columns)
    whole = [name for name in columns if name in ("epochs", "relus", "macs") or name.endswith("_images")]
    table = table.astype(dict.fromkeys(whole, "Int64"))
    order = sorted(table.index, key=lambda index: _accuracy_place(table.loc[index]))
    return table.loc[order].reset_index(drop=True)


def tabulate_tries(path: Path, accuracy: pd.DataFrame) -> pd.DataFrame:
    """What each change of a plan did: one line a try of tries.json and change with which it can be compared.

    `difference` is its held-out accuracy less that of the same without `changes`: another try, or a row of
    `tabulate_accuracy`, that has everything in `beside`. A try of several changes has a line for each of them
    without which it was tried too; where there is none, all its changes of phases stand against its plan
    unchanged. Another plan, scale or precision alone stands against the row. NaN where there is nothing to
    compare with.
    """
    key, columns = ["variant", "width", "seed"], ["epochs", "accuracy_heldout"]
    try:
        content = json.loads(path.read_text(encoding="utf-8")) if path.exists() else []
        tries = [
            ({name: row[name] for name in (*key, *SETTINGS, *columns)}, dict(row["changes"]))
            for row in content
        ]
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ResultsError(
            f"{path} is no list of tries ({error!r}): move it away, and tries are made again."
        ) from error
    rows = [row for _, row in accuracy.iterrows()]
    plain = {_values(row, key): row["accuracy_heldout"] for row in rows}
    exact = [*key, *SETTINGS]
    known = {
        (_values(row, exact), _changes(_of_phases(changes))): row["accuracy_heldout"]
        for row, changes in (*tries, *((row, {}) for row in rows))
    }
    lines = []
    for row, changes in tries:
        phases, same = _of_phases(changes), _values(row, exact)
        before = {}
        for name in phases:
            left = {other: value for other, value in phases.items() if other != name}
            if (same, _changes(left)) in known:
                before[name,] = known[same, _changes(left)]
        if not phases:
            before = {tuple(changes): plain.get(_values(row, key), math.nan)}
        elif not before:
            before = {tuple(phases): known.get((same, ""), math.nan)}
        for names, accuracy_before in before.items():
            line = {name: row[name] for name in (*key, *columns)}
            line["changes"] = _changes({name: changes[name] for name in names})
            line["beside"] = _changes({name: changes[name] for name in changes if name not in names})
            lines.append(line | {"difference": row["accuracy_heldout"] - accuracy_before})
    table = pd.DataFrame(lines, columns=list(TRY))
    return table.sort_values(["width", "beside", "changes", "variant"], ignore_index=True)


def _values(row: Mapping[str, Any] | pd.Series, names: Iterable[str]) -> tuple:
    return tuple(row[name] for name in names)


def _of_phases(changes: dict[str, Any]) -> dict[str, Any]:
    """Returns the changes that are not of the plan as a whole."""
    return {name: value for name, value in changes.items() if name not in SETTINGS}


def _changes(changes: dict[str, Any]) -> str:
    """Returns changes of a plan as the command line has them, first those of the plan as a whole."""
    ranked = sorted(changes.items(), key=lambda change: (change[0] not in SETTINGS, change[0]))
    return " ".join(
        f"{key}={value if isinstance(value, str) else json.dumps(value)}" for key, value in ranked
    )


def _part(row: pd.Series, name: str) -> dict[str, Any]:
    return row[name] if isinstance(row.get(name), dict) else {}


def _relus_by(row: pd.Series) -> str:
    """Returns which phase of a row gave each layer its share of the ReLUs; "" if none did."""
    phases = _part(row, "phases")
    if f"{row['variant']}-lasso" in phases:
        return "lasso"
    return "sensitivity" if "sensitivity" in phases else ""


def _accuracy_place(line: pd.Series) -> tuple:
    known = line["variant"] in TRAINABLE
    place = TRAINABLE.index(line["variant"]) if known else len(TRAINABLE)
    return line["width"], place, line["variant"], line["seed"]


def compared_rows(
    table: pd.DataFrame, width: int, variant: str, other: str, by: Sequence[str] = ("seed",)
) -> pd.DataFrame:
    """The rows of `variant` at a width beside those of `other` (columns `*_other`) that are equal in `by`."""
    at_width = table[table["width"] == width]
    own, others = (at_width[at_width["variant"] == name] for name in (variant, other))
    return own.merge(others, on=list(by), suffixes=("", "_other"))


def difference(
    table: pd.DataFrame, width: int, variant: str, other: str, by: Sequence[str] = ("seed",)
) -> Difference:
    """How much more accurate `variant` is than `other`, over the rows at this width equal in `by`."""
    rows = compared_rows(table, width, variant, other, by)
    found = (rows["accuracy_test"] - rows["accuracy_test_other"]).dropna()
    return Difference(found.mean(), found.min(), found.max(), len(found))


def tabulate_pairs(table: pd.DataFrame, rows: Iterable[Row]) -> pd.DataFrame:
    """One line a pair of SENet and joint variants and width, all of it at that width.

    `accuracy_difference` is joint - SENet, over the seeds that both have by one plan, and `epochs_*` are of
    those; `relus_ratio`, `macs_ratio` and `ENGINE_online_ratio` are SENet / joint, so that above 1 joint has,
    or needs, less.
    """
    ratios = [f"{engine}_online_ratio{end}" for engine in ENGINES for end in ("", "_low", "_high")]
    differences = [f"accuracy_difference{end}" for end in ("", "_low", "_high")]
    rows = latency_rows(rows)
    widths = sorted({*table["width"], *(key[1] for key in rows)})
    lines = []
    for senet, joint in (*PAIRS, EQUAL):
        for width in widths:
            counts = [counts_of(name, width, table, rows) for name in (senet, joint)]
            at_width = table[table["width"] == width].groupby("variant")["accuracy_test"].mean()
            between = difference(table, width, joint, senet, SEED_AND_PLAN)
            compared = compared_rows(table, width, joint, senet, SEED_AND_PLAN)
            line = {
                "senet": senet,
                "joint": joint,
                "width": width,
                "seeds": between.seeds,
                "epochs_senet": compared["epochs_other"].max(),
                "epochs_joint": compared["epochs"].max(),
                "accuracy_senet": at_width.get(senet, math.nan),
                "accuracy_joint": at_width.get(joint, math.nan),
                **dict(zip(differences, (between.mean, between.low, between.high), strict=True)),
            }
            for name in ("relus", "macs"):
                line[f"{name}_ratio"] = counts[0][name] / counts[1][name]
            for engine in ENGINES:
                found = online_ratio(*(rows.get((name, width, engine)) for name in (senet, joint)))
                line |= dict(zip([each for each in ratios if each.startswith(engine)], found, strict=True))
            lines.append(line)
    made = pd.DataFrame(lines, columns=[*PAIR, *differences, "relus_ratio", "macs_ratio", *ratios])
    return made.astype({"epochs_senet": "Int64", "epochs_joint": "Int64"})


def latency_rows(rows: Iterable[Row]) -> dict[tuple[str, int, str], Row]:
    """The measured rows of one image between two parties on loopback, by variant, width and engine."""
    found: dict[tuple[str, int, str], Row] = {}
    for row in sorted(rows, key=place_of):
        usual = row["batch"] == 1 and row["parties"] == 2 and row["link"] == "loopback"
        if usual and row["timing"] == "measured" and row["times"]["online_s"]:
            found.setdefault((row["variant"], row["width"], row["engine"]), row)
    return found


def counts_of(
    variant: str, width: int, table: pd.DataFrame, rows: dict[tuple[str, int, str], Row]
) -> dict[str, float]:
    """ReLUs and MACs of a variant, of its training or of a measured row; NaN where neither is there.

    ReLUs are proportional to the width, so that another width's are scaled where this one's are not known,
    and without any the name's fraction of the baseline's is taken.
    """
    counts = {
        each: row["cost"] for (name, each, _), row in rows.items() if name == variant and row["cost"]["relus"]
    }
    for _, line in table[table["variant"] == variant].dropna(subset=["relus", "macs"]).iterrows():
        counts[line["width"]] = line
    if width in counts:
        return {"relus": float(counts[width]["relus"]), "macs": float(counts[width]["macs"])}
    scaled = next((round(cost["relus"] * width / each) for each, cost in counts.items()), math.nan)
    fraction = variant.removeprefix(family_of(variant)).removeprefix("-")
    if not counts and fraction:
        scaled = round(float(fraction) * counts_of("baseline", width, table, rows)["relus"], 0)
    return {"relus": float(scaled), "macs": math.nan}


def online_ratio(senet: Row | None, joint: Row | None) -> tuple[float, float, float]:
    """SENet's online seconds over joint's with their interval, each against the baseline's interleaved ones.

    Without a common baseline the quotient of the medians.
    """
    if senet is None or joint is None:
        return math.nan, math.nan, math.nan
    references = [row["reference"] for row in (senet, joint)]
    if all(references) and references[0]["case"] == references[1]["case"]:
        ratios = [
            [a / b for a, b in zip(row["reference"]["online_s"], row["times"]["online_s"], strict=True) if a]
            for row in (joint, senet)
        ]
        if all(ratios):
            return quotient_of_medians(*ratios)
    return quotient_of_medians(senet["times"]["online_s"], joint["times"]["online_s"])


def published_near(variant: str, relus: float) -> PublishedAccuracy | None:
    """What the method of a variant published at the nearest number of ReLUs, None if that is not near."""
    family = family_of(variant)
    known = [each for each in PUBLISHED if each.family == family and abs(each.relus - relus) <= NEAR * relus]
    return min(known, key=lambda each: abs(each.relus - relus), default=None)


def read_sensitivity(folder: Path, accuracy: pd.DataFrame) -> pd.DataFrame:
    """One line a run and ReLU layer of FOLDER/RUN/sensitivity.json, with what SENet's authors published.

    One run a width and seed: that of the plan by which its rows of `accuracy`, from `tabulate_accuracy`, got
    their ReLUs, the first by name where none has any.
    """
    by_sensitivity = accuracy[accuracy["relus_by"] == "sensitivity"]
    plans = {(row["width"], row["seed"]): row["plan"] for _, row in by_sensitivity.iterrows()}
    found: dict[tuple[int, int], Path] = {}
    for path in sorted(folder.glob("*/sensitivity.json")):
        name = _RUN.fullmatch(path.parent.name)
        if name is not None:
            key = int(name["width"]), int(name["seed"])
            if key not in found or plans.get(key) == name["plan"]:
                found[key] = path
    lines: list[dict[str, Any]] = []
    for (width, seed), path in sorted(found.items()):
        try:
            measured = json.loads(path.read_text(encoding="utf-8"))["sensitivity"]
            pairs = list(zip(measured.items(), SENET_SENSITIVITY, strict=True))
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise ResultsError(f"{path} cannot be read ({error}): train again or remove it.") from error
        for position, ((layer, value), published) in enumerate(pairs):
            setting = (path.parent.name, width, seed, position, layer, value, published)
            lines.append(dict(zip(SENSITIVITY, setting, strict=True)))
    return pd.DataFrame(lines, columns=list(SENSITIVITY))
