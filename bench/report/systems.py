"""Every reduction side by side: what it costs, what it keeps, and whether another gives more for less.

Accuracy is that of networks trained at width 16, latency that of networks of the same structure at width 64
(seeded weights). A reduction is worth its accuracy under an engine and a link if no other network that is no
slower is more accurate by over half a point, and no faster one that is itself worth its accuracy is level.

A network that only another machine measured is placed by its speed-up over the baseline there. It is judged
too, but no verdict on a network that was measured here rests on it.
"""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd

from pibench.report.cells import (
    UNTRAINED,
    format_accuracy,
    format_count,
    format_number,
    format_ratio,
    format_seconds,
    join_cells,
    listed,
    markdown_table,
)
from pibench.report.machines import OFFLINE
from pibench.report.order import variant_place
from pibench.report.tables import in_one_place
from pibench.store.cases import single_images
from pibench.store.engines import engine_look, engine_place
from pibench.store.settings import TRAINED_WIDTH
from pibench.store.settings import WIDTH as FULL_WIDTH

NO_SLOWER = 1.05
"""Two medians are level up to this factor."""
LEVEL = 0.005
"""Two accuracies are level up to this difference: about the standard error of one, on 10,000 images."""
DIGITS = 9
"""Differences of accuracies are rounded to so many digits, as half a point is no exact binary fraction."""
LINKS = {"loopback": "loopback", "lan": "emulated LAN", "wan": "emulated WAN"}
WITH_OFFLINE = "loopback"
"""The link whose offline seconds are shown; on the others the dealer waits as well."""
PLACED = (
    "≈: placed by its speed-up over the baseline on another machine, and compared with all networks; one "
    "that was measured on this machine is compared with its like. Over a link a machine that computes more "
    "slowly gives rounds less weight."
)
CLOCKS = ("offline_median_s", "online_median_s", "online_low_s", "online_high_s", "online_noisy")
SPEEDUPS = ("speedup", OFFLINE)
NUMBERS = ("behind", *(f"{name}_elsewhere" for name in SPEEDUPS))
SYSTEMS = (
    "variant",
    "engine",
    "link",
    "accuracy",
    "accuracy_heldout",
    "seeds",
    "epochs",
    "relus",
    "macs",
    "parameters",
    "rounds",
    "bytes_sent",
    *CLOCKS,
    *(f"{name}_elsewhere" for name in SPEEDUPS),
    "behind",
    "behind_of",
    "worth",
    "commit",
)


def tabulate_systems(summary: pd.DataFrame, accuracy: pd.DataFrame, machines: pd.DataFrame) -> pd.DataFrame:
    """Makes one line for each variant, engine and link that were measured at full width.

    `summary` is the result of `summarize`, `accuracy` that of `tabulate_accuracy`, `machines` that of
    `tabulate_machines`. `accuracy` of a line is the mean over seeds of the variant's test accuracy at width
    16, NaN if it is not trained; `accuracy_heldout` is that on held-out images, by which choices are made.
    `seeds` of them were trained, for `epochs` each (the most, from random weights on).

    `speedup_elsewhere` is that over the baseline on another machine, where this one has not measured the
    case, but the baseline under this engine and link; its online seconds are then the baseline's divided by
    it. `offline_speedup_elsewhere` is the same of the offline phase.

    `behind` is how much less accurate the variant is than `behind_of`, the most accurate network that is no
    slower under this engine and link. `worth` tells that it is level with that one (`LEVEL`), and more than
    level above each faster network that is worth its accuracy. Both are missing without an accuracy. A
    network that was measured here is compared with its like, any other one with all.
    """
    if summary.empty:
        return pd.DataFrame(columns=list(SYSTEMS))
    cases = single_images(in_one_place(summary), FULL_WIDTH)
    cases = cases[
        cases["link"].isin(LINKS) & cases["online_median_s"].notna() & (cases["role"] != "extra")
    ].drop_duplicates(["variant", "engine", "link"])
    lines = (
        pd.concat([cases, *_placed(cases, machines)], ignore_index=True)
        .join(_trained(accuracy), on="variant")
        .reindex(columns=list(SYSTEMS))
        .assign(behind_of=None, worth=None)
        .astype({name: float for name in NUMBERS} | {"behind_of": object, "worth": object})
    )
    for _, group in lines.groupby(["engine", "link"]):
        known = group.dropna(subset=["accuracy"])
        measured = known[known["speedup_elsewhere"].isna()]
        worth: set[int] = set()
        for index, line in known.sort_values("online_median_s", kind="stable").iterrows():
            others = measured if pd.isna(line["speedup_elsewhere"]) else known
            rivals = others[others["online_median_s"] <= NO_SLOWER * line["online_median_s"]]
            best = rivals.loc[rivals["accuracy"].idxmax()]
            behind = round(best["accuracy"] - line["accuracy"], DIGITS)
            faster = others[others.index.isin(worth)]
            faster = faster[NO_SLOWER * faster["online_median_s"] < line["online_median_s"]]
            ahead = (line["accuracy"] - faster["accuracy"]).round(DIGITS)
            if behind <= LEVEL and (ahead > LEVEL).all():
                worth.add(index)
            lines.loc[index, "behind"] = behind
            lines.loc[index, "behind_of"] = best["variant"] if behind else None
            lines.loc[index, "worth"] = index in worth
    order = sorted(
        lines.index,
        key=lambda at: (
            variant_place(lines.loc[at, "variant"]),
            engine_place(lines.loc[at, "engine"]),
            list(LINKS).index(lines.loc[at, "link"]),
        ),
    )
    return lines.loc[order].reset_index(drop=True)


def _placed(cases: pd.DataFrame, machines: pd.DataFrame) -> list[pd.DataFrame]:
    """Returns the cases that only another machine measured, at the seconds that follow from its speed-up.

    The list has one table, or none: an empty one would change the types of the others' columns.
    """
    found = single_images(machines[machines["stands_in"].astype(bool)], FULL_WIDTH)
    here = cases[cases["variant"] == "baseline"].set_index(["engine", "link"])["online_median_s"]
    found = found.join(here, on=["engine", "link"], how="inner")
    found["online_median_s"] /= found["speedup"]
    return [found.rename(columns={name: f"{name}_elsewhere" for name in SPEEDUPS})] if len(found) else []


def _trained(accuracy: pd.DataFrame) -> pd.DataFrame:
    """Returns accuracies at the width of the trained networks, seeds and epochs, by variant."""
    narrow = accuracy[accuracy["width"] == TRAINED_WIDTH].groupby("variant")
    return pd.DataFrame(
        {
            "accuracy": narrow["accuracy_test"].mean().astype(float),
            "accuracy_heldout": narrow["accuracy_heldout"].mean().astype(float),
            "seeds": narrow["accuracy_test"].count(),
            "epochs": narrow["epochs"].max().astype("Int64"),
        }
    )


def systems_section(systems: pd.DataFrame, accuracy: pd.DataFrame) -> str:
    """Writes the table of all reductions, and which of them are worth their accuracy where.

    A network that `accuracy` has and `systems` has not stands there without latency. What another machine
    measured stands in brackets: the speed-up over the baseline there.
    """
    if systems.empty:
        return ""
    engines = sorted(systems["engine"].unique(), key=engine_place)
    return "\n\n".join(
        [
            systems_verdict(systems),
            "![Accuracy against online latency of every reduction](plots/systems.svg)",
            markdown_table(systems_table(systems, engines, accuracy)),
            f"Latency, counts and traffic at width {FULL_WIDTH}, batch 1, two parties; {' / '.join(engines)} "
            f"beside each other, medians. Accuracy of the same reduction trained at width {TRAINED_WIDTH} on "
            "CIFAR-100, test images, mean over seeds; epochs are counted from random weights on. *noisy*: "
            "the interquartile range exceeds 10 % of the median. A dash: not measured, or without the "
            "baseline here, or refused by the engine ([reductions](docs/reductions.md)). In brackets: not "
            "measured on this machine, but so many times faster than the baseline on another one "
            "([machines](docs/results/machines.md)). "
            f"Rows are of {systems['commit'].nunique()} commits, which `systems.csv` names.",
        ]
    )


def systems_table(systems: pd.DataFrame, engines: Sequence[str], accuracy: pd.DataFrame) -> pd.DataFrame:
    """Makes one line for each variant: counts, traffic, offline and online seconds, accuracy.

    Counts do not depend on the machine; a speed-up on another one stands in brackets.
    """
    links = [link for link in LINKS if link in set(systems["link"])]
    lines = []
    trained = _trained(accuracy).reset_index()
    untimed = trained[~trained["variant"].isin(systems["variant"])].reindex(columns=list(SYSTEMS))
    systems = pd.concat([systems, untimed]) if len(untimed) else systems
    for variant in sorted(systems["variant"].unique(), key=variant_place):
        found = systems[systems["variant"] == variant]
        case = {(each["engine"], each["link"]): each for _, each in found.iterrows()}
        near = [case.get((engine, WITH_OFFLINE)) for engine in engines]
        first = found.iloc[0]
        any_link = [
            next((case[engine, link] for link in links if (engine, link) in case), None) for engine in engines
        ]
        line = {
            "Variant": f"`{variant}`",
            "Accuracy, %": UNTRAINED if pd.isna(first["accuracy"]) else format_accuracy(first["accuracy"]),
            "Seeds × epochs": "–"
            if pd.isna(first["epochs"])
            else f"{first['seeds']:.0f} × {first['epochs']}",
            "ReLUs, K": format_number(first["relus"], 1e3, 4),
            "MACs, M": format_number(first["macs"], 1e6, 4),
            "Parameters, M": format_number(first["parameters"], 1e6),
            "Rounds": join_cells(any_link, lambda each: format_count(each["rounds"])),
            "MB sent": join_cells(any_link, lambda each: format_number(each["bytes_sent"], 1e6)),
            "Offline, s": join_cells(near, _offline),
        }
        for link in links:
            cases = [case.get((engine, link)) for engine in engines]
            line[f"Online, s, {link}"] = join_cells(cases, _online)
        lines.append(line)
    return pd.DataFrame(lines)


def _offline(case: pd.Series) -> str:
    return _elsewhere(case["offline_speedup_elsewhere"]) or format_number(case["offline_median_s"])


def _online(case: pd.Series) -> str:
    return _elsewhere(case["speedup_elsewhere"]) or format_seconds(case, "online")


def _elsewhere(speedup: float) -> str | None:
    return None if pd.isna(speedup) else f"({format_ratio(speedup)})"


def _about(case: pd.Series) -> str:
    return "" if pd.isna(case["speedup_elsewhere"]) else "≈"


def systems_verdict(systems: pd.DataFrame) -> str:
    """Writes which trained reductions are worth their accuracy under each engine and link, and which not."""
    known = systems.dropna(subset=["worth"])
    if known["variant"].nunique() < 2:
        return ""
    items, judged = [], []
    for (engine, link), group in known.groupby(["engine", "link"], sort=False):
        if len(group) < 2:
            continue
        judged.append(group)
        worth = group[group["worth"].astype(bool)].sort_values("online_median_s")
        rest = group[group["behind"] > LEVEL].sort_values("behind", ascending=False)
        shown = [
            f"`{each['variant']}` ({format_accuracy(each['accuracy'])} %, "
            f"{_about(each)}{format_number(each['online_median_s'])} s)"
            for _, each in worth.iterrows()
        ]
        text = f"- **{engine_look(engine).label}, {LINKS[link]}** ({len(group)} networks): {listed(shown)}."
        if len(rest):
            far = [
                f"`{each['variant']}` ({_about(each)}{100 * each['behind']:.1f} points to "
                f"`{each['behind_of']}`)"
                for _, each in rest.head(3).iterrows()
            ]
            text += f" Furthest behind: {listed(far)}."
        items.append(text)
    if not judged:
        return ""
    everywhere = {variant for group in judged for variant in group["variant"]}
    nowhere = set(everywhere)
    for group in judged:
        yes = group["worth"].astype(bool)
        everywhere -= set(group.loc[~yes, "variant"])
        nowhere -= set(group.loc[yes, "variant"])
    names = [
        f"{text}: {listed(f'`{name}`' for name in sorted(found, key=variant_place))}."
        for text, found in (("Wherever they were judged", everywhere), ("Nowhere", nowhere))
        if found
    ]
    return "\n\n".join(
        [
            "**Which reductions are worth their accuracy?** Those that no other network beats: none that is "
            f"no slower (up to {100 * (NO_SLOWER - 1):.0f} %) is more accurate by over {100 * LEVEL:.1f} "
            "points, and each faster one that is worth its accuracy is less accurate by more than that. "
            f"{' '.join(names)}",
            "\n".join(items),
            *([PLACED] if any("≈" in item for item in items) else []),
        ]
    )
