"""The lists of cases that the commands measure.

The default cases are chosen by hand, so that `make bench` takes ten minutes. A sweep takes every variant of
the catalogue.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from pibench.measure.case import Case
from pibench.models.catalogue import variant_names
from pibench.store.settings import ENGINES, LINKED, TRAINED_WIDTH

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
OTHERS = tuple(name for name in variant_names() if name not in HEADLINE)
SLOW = ("lan", "wan", "wan-slow")
COMPARED = ("baseline", "senet-0.36", "senet-0.09", "joint-0.208", "joint-0.052", "merged-exact")
"""The networks that are measured under every protocol."""
SHAPED = ("lan", "wan")
REFUSED = {("lean32", "gated")}
"""Full-width networks with random weights whose answers this engine's fixed point holds barely or not."""


STOCK = Case("baseline")
LEAN = Case("baseline", engine="lean", profiles=9, reference=STOCK)
LEAN32 = replace(LEAN, engine="lean32", reference=replace(LEAN, reference=None))
SEMI2K = Case("baseline", engine="spu-semi2k", role="protocol", rounds=6, profiles=1)
ABY3 = replace(SEMI2K, engine="spu-aby3", parties=3)
CHEETAH = replace(SEMI2K, engine="spu-cheetah", warm_up=False)


def default_cases() -> tuple[Case, ...]:
    """Returns the cases of `make bench`: the headline, links and small batches, in ten minutes."""
    reduced = [variant for variant in HEADLINE if variant != "baseline"]
    # A stock round takes two seconds, on a WAN twenty, most of it waiting.
    return (
        STOCK,
        LEAN,
        LEAN32,
        *(replace(STOCK, variant=variant, reference=STOCK, rounds=3, profiles=1) for variant in reduced),
        *(
            replace(lean, variant=variant, reference=lean, rounds=12)
            for lean in (LEAN, LEAN32)
            for variant in reduced
        ),
        *(
            replace(lean, batch=size, role="batch", rounds=3, profiles=1, reference=None)
            for lean in (LEAN, LEAN32)
            for size in (2, 4, 8)
        ),
        *(_linked(STOCK, variant, "lan", rounds=2) for variant in LINKED),
        *(_linked(lean, variant, "lan", rounds=9) for lean in (LEAN, LEAN32) for variant in LINKED),
        *(_linked(STOCK, variant, "wan", rounds=1) for variant in LINKED),
        *(_linked(lean, variant, "wan", rounds=2) for lean in (LEAN, LEAN32) for variant in LINKED),
    )


def _linked(engine: Case, variant: str, link: str, rounds: int) -> Case:
    """Returns a case over a link.

    On the LAN compute is a large part. A network of the headline is therefore measured in turn with itself on
    loopback, so that the prediction of the link model comes from the same time and state of the machine. Any
    other one is measured in turn with the baseline on the LAN, from which many differ by less than a machine
    drifts. On other links the first inference waits as long as any other, so there is no warm-up.
    """
    loopback = replace(engine, variant=variant, reference=None, profiles=0)
    near, reference = link == "lan", None
    if near:
        reference = loopback if variant in HEADLINE else _linked(engine, "baseline", link, rounds)
    return replace(loopback, link=link, role="link", rounds=rounds, warm_up=near, reference=reference)


def sweep_cases() -> tuple[Case, ...]:
    """Returns all variants on LAN and WAN, and at the width of the trained networks: `make sweep`.

    What the default cases measure on loopback is not measured again. The slow WAN has the headline alone: it
    has the WAN's rounds and bytes at another price. A network that an engine may refuse is left out.
    """
    everything = (*HEADLINE, *OTHERS)
    sweep = replace(LEAN, role="sweep", rounds=12, profiles=1)
    narrow = {
        engine: replace(sweep, engine=engine, width=TRAINED_WIDTH, rounds=rounds, profiles=0, reference=None)
        for engine, rounds in (("stock", 12), ("lean", 60))  # lean's 8 ms are 20 when parties share a core
    }
    shaped = {
        ("stock", "lan"): 3,
        **{
            (engine, link): rounds
            for engine in ("lean", "lean32")
            for link, rounds in (("lan", 9), ("wan", 2))
        },
    }
    cases = (
        *(
            replace(sweep, engine=case.engine, variant=variant, rounds=rounds, reference=case)
            for case, rounds in ((STOCK, 8), (LEAN, 12), (LEAN32, 12))
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
            for case in (LEAN, LEAN32, STOCK)
            for variant in (HEADLINE if link == "wan-slow" else everything)
        ),
    )
    return tuple(case for case in cases if (case.engine, case.variant) not in REFUSED)


def extra_cases() -> tuple[Case, ...]:
    """Returns what `make bench` has no time for: 16 images at once, CrypTen's TTP, three parties."""
    batch = replace(STOCK, batch=16, role="batch", rounds=1, warm_up=False, profiles=0)
    lean = replace(LEAN, batch=16, role="batch", rounds=2, warm_up=False, profiles=1, reference=batch)
    return (
        batch,
        lean,
        replace(lean, engine="lean32", rounds=3, reference=replace(lean, reference=None)),
        replace(STOCK, provider="TTP", role="extra", rounds=5, profiles=1),
        replace(STOCK, parties=3, role="extra", rounds=5, profiles=1),
    )


def protocol_cases() -> tuple[Case, ...]:
    """Returns the same networks under five protocols, on loopback: `make protocols`.

    Stock and lean are the default cases' own, so that all five are measured by one run. A CHEETAH round takes
    a minute and a half: its rounds are not paired, since a partner for each would double an hour, and its
    first round needs no warm-up, for SPU's parties have met and made their keys when a network is loaded.
    """
    usual = [
        case
        for case in default_cases()
        if case.role == "headline" and case.variant in COMPARED and case.engine in ENGINES
    ]
    return (
        *usual,
        *(
            replace(first, variant=variant, reference=None if variant == "baseline" or alone else first)
            for first, alone in ((SEMI2K, False), (ABY3, False), (CHEETAH, True))
            for variant in COMPARED
        ),
    )


def protocol_link_cases() -> tuple[Case, ...]:
    """Returns SPU's protocols over LAN and WAN: `make protocols LINKS=1`.

    A round of CHEETAH over the WAN takes about five minutes, most of it waiting.
    """
    return tuple(
        replace(engine, variant=variant, link=link, rounds=rounds, profiles=0, warm_up=False)
        for engine, rounds in ((SEMI2K, 3), (ABY3, 3), (CHEETAH, 1))
        for link in SHAPED
        for variant in LINKED
    )


def two_host_cases(link: str) -> tuple[Case, ...]:
    """Returns the headline with party 1 on another host, over a link with this name: `pytest --remote`."""

    def moved(case: Case | None) -> Case | None:
        return case and replace(case, link=link, role="extra", reference=moved(case.reference))

    return tuple(moved(case) for case in default_cases() if case.role == "headline")


def small(case: Case | None, width: int = 8) -> Case | None:
    """Returns a case that takes the same code path once, at a small width."""
    return case and replace(
        case,
        width=width if case.own is None else case.width,
        batch=min(case.batch, 2),
        rounds=1,
        warm_up=False,
        profiles=min(case.profiles, 1),
        reference=small(case.reference, width),
    )


def smoke_cases(width: int = 8) -> tuple[Case, ...]:
    """Returns cases that take every code path of the default and extra ones once, at a small width.

    Each of SPU's protocols is there with one network, which is skipped where SPU is not installed.
    """
    seen: dict[str, Case] = {}
    spu = [case for case in protocol_cases() if case.role == "protocol" and case.variant == "senet-0.09"]
    for case in (*default_cases(), *extra_cases(), *spu):
        if case.role == "link" and (case.variant != "baseline" or case.link != "lan"):
            continue  # the same code over a slower link
        seen.setdefault(small(case, width).id, small(case, width))
    return tuple(seen.values())


def select(cases: Iterable[Case], engine: str | None = None) -> tuple[Case, ...]:
    """Returns the cases of one engine, without references to another."""
    return tuple(
        replace(
            case, reference=case.reference if case.reference and case.reference.engine == engine else None
        )
        if engine
        else case
        for case in cases
        if engine in (None, case.engine)
    )
