"""Made-up rows of the same networks under five protocols, for tests of report and figures."""

from __future__ import annotations

from results_factory import LINKED, PROTOCOLS, make_protocol_row, make_row

SIX = ("baseline", "senet-0.36", "senet-0.09", "joint-0.208", "joint-0.052", "merged-exact")


def make_five_protocols() -> list[dict]:
    """Six networks under five protocols, three of them over two links, and what else a run measures."""
    rows = [make_row(variant, engine, count=8) for engine in ("stock", "lean") for variant in SIX]
    rows += [make_row("senet-0.18", "lean"), make_row("baseline", "lean", 4, role="batch")]
    rows += [make_protocol_row(variant, engine) for engine in PROTOCOLS for variant in SIX]
    for link in ("lan", "wan"):
        rows += [
            make_row(variant, engine, role="link", link=link, count=2)
            for engine in ("stock", "lean")
            for variant in LINKED
        ]
        rows += [
            make_protocol_row(variant, engine, count=3, link=link)
            for engine in PROTOCOLS
            for variant in LINKED
        ]
    return rows
