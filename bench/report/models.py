"""The literature's cost models, applied to the measured networks."""

from __future__ import annotations

import math
from collections.abc import Iterable

import pandas as pd

from pibench.costs.literature import CHANNELS, break_even_rows, modelled_rows, network_from_dict
from pibench.models.catalogue import shown_variants
from pibench.report.cells import format_number, format_rounded, markdown_table
from pibench.report.order import variant_place
from pibench.store.results import Row

SHOWN_CHANNELS = ("lan", "wan")
PHASES = ("total_s", "online_s")


def tabulate_models(rows: Iterable[Row]) -> dict[str, pd.DataFrame]:
    """Makes the tables `modelled` and `break_even` for the networks of the headline rows.

    Networks are those of the width that most headline rows have, each from the newest row of its variant.
    """
    headline = [
        row for row in rows if row["role"] == "headline" and row["network"] and row["network"]["linear"]
    ]
    widths = [row["width"] for row in headline]
    width = max(widths, key=widths.count, default=None)
    known = sorted((row for row in headline if row["width"] == width), key=lambda row: row["started"])
    newest = {row["variant"]: row for row in known}
    networks = [
        network_from_dict(row["network"])
        for row in sorted(newest.values(), key=lambda row: variant_place(row["variant"]))
    ]
    modelled = modelled_rows(networks)
    if modelled.empty:
        columns = ["label", "model", "channel", "network", "width"]
        return {name: pd.DataFrame(columns=columns) for name in ("modelled", "break_even")}
    # A network without a spare ReLU or convolution has no price for either.
    priced = [each for each in networks if each.relus and any(math.prod(x.kernel) > 1 for x in each.linear)]
    priced = [each for each in priced if len(each.linear) > 1]
    frames = [break_even_rows(priced, phase=phase) for phase in PHASES]
    even = pd.concat([frame for frame in frames if not frame.empty] or frames)
    names = {name: f"modelled_{name}" for name in ("relu_s", "relu_layer_s", "layer_s")}
    even = even.rename(columns=names)
    if not even.empty:
        even = even.merge(
            modelled[["model", "verified"]].drop_duplicates(), on="model", validate="many_to_one"
        )
    return {"modelled": _labelled(modelled, width), "break_even": _labelled(even, width)}


def models_section(modelled: pd.DataFrame, break_even: pd.DataFrame) -> str:
    """Writes the cost of some variants by the literature's models, and the ReLUs that one layer is worth."""
    absent = "No row holds a network that the literature's models could price yet: run `make bench`."
    names = shown_variants()
    shown = modelled[modelled["network"].isin(names)] if not modelled.empty else modelled
    if shown.empty:
        return absent
    variants = [name for name in names if name in set(shown["network"])]
    worth = {}
    if not break_even.empty:
        of_baseline = break_even[break_even["network"] == "baseline"]
        worth = of_baseline.set_index(["model", "channel", "phase"])["relus_per_layer"].to_dict()
    lines = []
    for model, of_model in shown.groupby("model", sort=False):
        # A published column does not depend on the link: it is the same on all.
        linkless = of_model["modelled_rounds"].isna().all()
        for channel in SHOWN_CHANNELS[:1] if linkless else SHOWN_CHANNELS:
            group = of_model[of_model["channel"] == channel].set_index("network")
            if group.empty:
                continue
            ranks = group["modelled_total_s"].rank(method="min").astype(int)
            mark = "" if group["verified"].astype(bool).all() else " *unverified*"
            line = {"Model": f"`{model}`{mark}", "Channel": "–" if linkless else channel}
            for variant in variants:
                line[f"`{variant}`"] = "–"
                if variant in group.index:
                    case = group.loc[variant]
                    seconds = [format_number(case[f"modelled_{phase}"]) for phase in PHASES]
                    line[f"`{variant}`"] = f"{' / '.join(seconds)} (**{ranks[variant]}**)"
            found = [worth.get((model, channel, phase)) for phase in PHASES]
            line["A layer is worth, ReLUs"] = " / ".join(format_rounded(value) for value in found)
            lines.append(line)
    table = pd.DataFrame(lines)
    known = [CHANNELS[channel] for channel in SHOWN_CHANNELS if channel in set(table["Channel"])]
    channels = "".join(
        f"{each.name}: {format_number(each.up_bit_per_s, 1e6)} Mbit/s, "
        f"RTT {format_number(each.rtt_s, 1e-3)} ms. "
        for each in known
    )
    return "\n\n".join(
        [
            f"**modelled, width {shown['width'].iloc[0]}, one image**",
            markdown_table(table),
            "Nothing here is measured by us. Seconds are offline + online / online; in brackets the rank of "
            "the sum among these networks. Seconds of different models do not compare. The last column: so "
            "many ReLUs of the baseline cost as much as its median convolution beyond 1x1. A network that "
            "has fewer saves more by dropping one more layer than by dropping all its ReLUs. *unverified*: "
            f"the constants could not be read at their source. {channels}All channels and networks: "
            "`results/modelled.csv`, `results/break_even.csv`; sources and limits: "
            "[docs/literature.md](docs/literature.md).",
        ]
    )


def _labelled(frame: pd.DataFrame, width: int) -> pd.DataFrame:
    """Puts the label first, then model, channel, network and width, then the channel's values."""
    channel = {
        f"channel_{name}": [getattr(CHANNELS[each], name) for each in frame.get("channel", ())]
        for name in ("rtt_s", "up_bit_per_s", "down_bit_per_s")
    }
    first = ["label", "model", "channel", "network", "width", *channel]
    frame = frame.assign(width=width, **channel)
    return frame.reindex(columns=[*first, *(name for name in frame.columns if name not in first)])
