"""Made-up rows of engines with one clock, beside those of stock and lean, for tests of report and figures."""

from __future__ import annotations

from results_factory import LINKED, make_row

from pibench.engines import ENGINES

SIX = ("baseline", "senet-0.36", "senet-0.09", "joint-0.208", "joint-0.052", "merged-exact")
SLOWER = {"spu-semi2k": 60.0, "spu-aby3": 66.0, "spu-cheetah": 600.0}
"""Seconds of all phases, in units of lean's online ones."""


def make_protocol_row(
    variant: str = "baseline",
    engine: str = "spu-semi2k",
    link: str = "loopback",
    count: int = 8,
    **changes,
) -> dict:
    """A whole row of an engine with one clock; over a shaped link it is measured alone."""
    known = ENGINES[engine]
    row = make_row(variant, engine, role="protocol", link=link, count=count)
    parties = known.parties[0]
    sent = row["traffic"]["bytes_sent"]

    def named(case: str) -> str:
        return case.replace("/2p/", f"/{parties}p/")

    def all_phases(times: dict) -> dict:
        return {"all_phases_s": [SLOWER[engine] * seconds for seconds in times["online_s"]]}

    row |= {
        "case": named(row["case"]),
        "provider": known.provider,
        "parties": parties,
        "times": all_phases(row["times"]),
        "trust": known.trust,
        "options": dict(known.options),
        "offline": {"correlated_bytes_by_party": [0] * parties, "dealt_bytes": None},
        "peak_memory_bytes_by_party": [900_000_000] * parties,
    }
    row["traffic"] |= {"bytes_sent_by_party": [sent] * parties, "bytes_total": parties * sent}
    reference = row["reference"]
    if link != "loopback":
        row |= {"reference": None, "layers": []}
    elif reference is not None:
        row["reference"] = {"case": named(reference["case"])} | all_phases(reference)
    if not known.steady_traffic:
        one = {"rounds": row["traffic"]["rounds"], "bytes_sent_by_party": [sent] * parties}
        row["traffic_of_rounds"] = [one] * row["rounds"]["succeeded"]
    return row | changes


def make_protocol_rows() -> list[dict]:
    """Six networks under five protocols, three of them over two links, and what else a run measures."""
    engines = tuple(SLOWER)
    rows = [make_row(variant, engine, count=8) for engine in ("stock", "lean") for variant in SIX]
    rows += [make_row("senet-0.18", "lean"), make_row("baseline", "lean", 4, role="batch")]
    rows += [make_protocol_row(variant, engine) for engine in engines for variant in SIX]
    for link in ("lan", "wan"):
        rows += [
            make_row(variant, engine, role="link", link=link, count=2)
            for engine in ("stock", "lean")
            for variant in LINKED
        ]
        rows += [make_protocol_row(variant, engine, link) for engine in engines for variant in LINKED]
    return rows
