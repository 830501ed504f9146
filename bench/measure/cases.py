"""What is measured: cases are data.

A case is a variant on an engine at a width and batch. `reference` names the case whose rounds are interleaved
with its own, so that a ratio of the two is paired and outlives a drift of the machine.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace

from pibench.store.settings import LINKED, TRAINED_WIDTH, WIDTH

HEADLINE = (
    "baseline",
    "senet-0.36",
    "senet-0.18",
    "senet-0.09",
    "senet-0.045",
    "joint-0.208",
    "joint-0.104",
    "joint-0.052",
    "joint-0.026",
    "merged-exact",
)
OTHERS = ("joint", "joint-0.09", "joint3-0.052", "snl-0.09", "deepreduce")
SLOW = ("lan", "wan", "wan-slow")


@dataclass(frozen=True)
class Case:
    """One row of results/bench.json.

    `rounds` are measured ones, after one warm-up if `warm_up`; `profiles` inferences give the layers' seconds
    (their median); `reference` is the case measured in turn with this one;
    `role` groups rows in reports: "headline", "batch" (more than one image), "link" (not loopback), "sweep"
    (what `sweep_cases` adds on loopback) or "extra" (other settings). `link` is a key of
    `pibench.links.LINKS`, a link such as "200Mbit/40ms" or, between two hosts, what `pibench.hosts.remote`
    calls it.
    """

    variant: str
    engine: str = "stock"
    width: int = WIDTH
    batch: int = 1
    parties: int = 2
    provider: str | None = None
    link: str = "loopback"
    role: str = "headline"
    rounds: int = 8
    warm_up: bool = True
    profiles: int = 3
    reference: Case | None = None

    @property
    def id(self) -> str:
        """Names the case in files and reports."""
        parts = [self.engine, self.variant, f"w{self.width}", f"b{self.batch}", f"{self.parties}p", self.link]
        return "/".join(parts + ([self.provider] if self.provider else []))


STOCK = Case("baseline")
LEAN = Case("baseline", engine="lean", profiles=9, reference=STOCK)


def default_cases() -> tuple[Case, ...]:
    """The cases of `make bench`: the headline on both engines, links and small batches, in ten minutes."""
    reduced = [variant for variant in HEADLINE if variant != "baseline"]
    # A stock round takes two seconds, on a WAN twenty, most of it waiting.
    return (
        STOCK,
        LEAN,
        *(replace(STOCK, variant=variant, reference=STOCK, rounds=3, profiles=1) for variant in reduced),
        *(replace(LEAN, variant=variant, reference=LEAN, rounds=12) for variant in reduced),
        *(
            replace(LEAN, batch=size, role="batch", rounds=3, profiles=1, reference=None)
            for size in (2, 4, 8)
        ),
        *(_linked(STOCK, variant, "lan", rounds=2) for variant in LINKED),
        *(_linked(LEAN, variant, "lan", rounds=9) for variant in LINKED),
        *(_linked(STOCK, variant, "wan", rounds=1) for variant in LINKED),
        *(_linked(LEAN, variant, "wan", rounds=2) for variant in LINKED),
    )


def _linked(engine: Case, variant: str, link: str, rounds: int) -> Case:
    """A case over a link.

    On the LAN compute is a large part, so the same case on loopback is measured in turn: what the model of
    the link predicts from it is then of one time and state of the machine. Elsewhere the first inference
    waits as long as any, and there is no warm-up.
    """
    loopback = replace(engine, variant=variant, reference=None, profiles=0)
    near = link == "lan"
    return replace(
        loopback, link=link, role="link", rounds=rounds, warm_up=near, reference=loopback if near else None
    )


def sweep_cases() -> tuple[Case, ...]:
    """All variants on every link, and at the width of the trained networks: `make sweep`.

    What the default cases measure on loopback is not measured again.
    """
    everything = (*HEADLINE, *OTHERS)
    sweep = replace(LEAN, role="sweep", rounds=12, profiles=1)
    narrow = {
        engine: replace(sweep, engine=engine, width=TRAINED_WIDTH, rounds=rounds, profiles=0, reference=None)
        for engine, rounds in (("stock", 12), ("lean", 60))  # lean's 8 ms are 20 when parties share a core
    }
    shaped = {
        ("stock", "lan"): 3, ("lean", "lan"): 9, ("lean", "wan"): 2,
    }  # fmt: skip
    return (
        *(
            replace(sweep, engine=case.engine, variant=variant, rounds=rounds, reference=case)
            for case, rounds in ((STOCK, 8), (LEAN, 12))
            for variant in OTHERS
        ),
        *(
            replace(case, variant=variant, reference=None if variant == "baseline" else case)
            for case in narrow.values()
            for variant in everything
        ),
        *(
            _linked(case, variant, link, shaped.get((case.engine, link), 1))
            for link in SLOW
            for case in (LEAN, STOCK)
            for variant in everything
        ),
    )


def extra_cases() -> tuple[Case, ...]:
    """What `make bench` has no time for: 16 images at once, a third process that deals, three parties."""
    batch = replace(STOCK, batch=16, role="batch", rounds=1, warm_up=False, profiles=0)
    return (
        batch,
        replace(LEAN, batch=16, role="batch", rounds=2, warm_up=False, profiles=1, reference=batch),
        replace(STOCK, provider="TTP", role="extra", rounds=5, profiles=1),
        replace(STOCK, parties=3, role="extra", rounds=5, profiles=1),
    )


def two_host_cases(link: str) -> tuple[Case, ...]:
    """The headline with party 1 on another host, over a link that is called so: `pytest --remote`."""

    def moved(case: Case | None) -> Case | None:
        return case and replace(case, link=link, role="extra", reference=moved(case.reference))

    return tuple(moved(case) for case in default_cases() if case.role == "headline")


def small(case: Case | None, width: int = 8) -> Case | None:
    """Takes a case through its code path once."""
    return case and replace(
        case,
        width=width,
        batch=min(case.batch, 2),
        rounds=1,
        warm_up=False,
        profiles=min(case.profiles, 1),
        reference=small(case.reference, width),
    )


def smoke_cases(width: int = 8) -> tuple[Case, ...]:
    """Every code path of the default and extra cases once, at a small width."""
    seen: dict[str, Case] = {}
    for case in (*default_cases(), *extra_cases()):
        if case.role == "link" and (case.variant != "baseline" or case.link != "lan"):
            continue  # the same code over a slower link
        seen.setdefault(small(case, width).id, small(case, width))
    return tuple(seen.values())


def select(cases: Iterable[Case], engine: str | None = None) -> tuple[Case, ...]:
    """The cases of one engine, without references to another."""
    return tuple(
        replace(
            case, reference=case.reference if case.reference and case.reference.engine == engine else None
        )
        if engine
        else case
        for case in cases
        if engine in (None, case.engine)
    )
