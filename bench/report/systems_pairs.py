"""The joint network that keeps most in the time of each SENet network, on every engine and link.

Pairs of budgets say what joint reduction loses at 1.73 times fewer ReLUs. Where a round is dear, its fewer
layers buy latency that SENet can only buy with ReLUs. Counts and latency are those of full width, accuracy
that of the trained width, as in `pibench.report.systems`.
"""

from __future__ import annotations

import pandas as pd

from pibench.models.catalogue import family_name
from pibench.models.pairs import JOINT_FAMILIES
from pibench.report.cells import format_points, format_ratio, listed, markdown_table
from pibench.report.order import variant_place
from pibench.report.systems import LINKS
from pibench.store.engines import engine_look, engine_place

SENET_FAMILIES = ("senet", "senet-merged")
COLUMNS = ("senet", "engine", "link", "joint", "seeds", "accuracy_difference", "online_ratio")


def tabulate_at_senets_latency(systems: pd.DataFrame) -> pd.DataFrame:
    """Makes one line for each trained SENet network, engine and link: the best joint network in its time.

    `systems` is the result of `tabulate_systems`. What only another machine measured takes no part. Of the
    joint networks, merged or not, whose median online seconds are at most SENet's, `joint` is the most
    accurate on the held-out images, because no choice uses the test set; it is None if there is none.
    `accuracy_difference` is joint - SENet on the test set; `seeds` is the smaller number of seeds of the two.
    `online_ratio` is SENet's median over joint's.
    """
    lines = []
    known = systems[systems["speedup_elsewhere"].isna()].dropna(subset=["accuracy"])
    for _, senet in known.iterrows():
        if family_name(senet["variant"]) not in SENET_FAMILIES:
            continue
        there = known[(known["engine"] == senet["engine"]) & (known["link"] == senet["link"])]
        no_slower = there[
            there["variant"].map(lambda name: family_name(name) in JOINT_FAMILIES)
            & (there["online_median_s"] <= senet["online_median_s"])
        ]
        line = dict.fromkeys(COLUMNS) | {name: senet[name] for name in ("engine", "link")}
        line["senet"] = senet["variant"]
        if len(no_slower):
            best = no_slower.loc[no_slower["accuracy_heldout"].idxmax()]
            line |= {
                "joint": best["variant"],
                "seeds": min(senet["seeds"], best["seeds"]),
                "accuracy_difference": best["accuracy"] - senet["accuracy"],
                "online_ratio": senet["online_median_s"] / best["online_median_s"],
            }
        lines.append(line)
    return pd.DataFrame(lines, columns=list(COLUMNS)).astype({"seeds": "Int64"})


def at_senets_latency_parts(systems: pd.DataFrame) -> list[str]:
    """Shows the best joint network in the time of each SENet network, and the mean lead on each link."""
    lines = tabulate_at_senets_latency(systems)
    found = lines.dropna(subset=["joint"])
    if found.empty:
        return []
    links = [link for link in LINKS if link in set(lines["link"])]
    shown = []
    for (senet, engine), group in sorted(
        lines.groupby(["senet", "engine"], sort=False),
        key=lambda item: (variant_place(item[0][0]), engine_place(item[0][1])),
    ):
        line = {"SENet": f"`{senet}`", "Engine": engine}
        by_link = group.set_index("link")
        for link in links:
            match = by_link.loc[link] if link in by_link.index else None
            line[f"Best joint, points, faster: {link}"] = (
                "–"
                if match is None
                else "none is no slower"
                if match["joint"] is None
                else f"`{match['joint']}`, {format_points(match['accuracy_difference'])}, "
                f"{format_ratio(match['online_ratio'])}"
            )
        shown.append(line)
    ahead = found[found["accuracy_difference"] > 0]
    return [
        f"**At SENet's latency** a joint network is more accurate in **{len(ahead)} of {len(lines)}** cases. "
        "Of the joint networks, merged or not, whose median is at most SENet's this is the most accurate on "
        f"held-out images. {_leads(lines, links)}",
        markdown_table(pd.DataFrame(shown)),
    ]


def _leads(lines: pd.DataFrame, links: list[str]) -> str:
    """Writes the mean lead on each link, over the SENet networks that have a joint one on all links."""
    parts = []
    for engine in sorted(lines["engine"].unique(), key=engine_place):
        wide = lines[lines["engine"] == engine].pivot(
            index="senet", columns="link", values="accuracy_difference"
        )
        there = [link for link in links if link in wide]
        common = wide[there].dropna()
        if len(there) > 1 and len(common):
            means = [f"{format_points(common[link].mean())} ({link})" for link in there]
            parts.append(f"{listed(means)} on {engine_look(engine).label} ({len(common)} networks)")
    return f"Its mean lead in points: {'; '.join(parts)}." if parts else ""
