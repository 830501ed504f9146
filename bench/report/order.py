"""The order of rows and variants in reports."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from pibench.store.results import ROLES, family_of

FAMILIES = ("baseline", "senet", "snl", "joint", "joint3", "deepreduce", "merged-exact")
ENGINES = ("stock", "lean")


def place_of(row: Any) -> tuple:
    """The place of a row in reports: headline first, then by engine, family and falling ReLUs kept."""
    return (
        ROLES.index(row["role"]),
        -row["width"],
        row["link"] != "loopback",
        row["link"],
        row["parties"],
        rank(row["engine"], ENGINES),
        *variant_place(row["variant"]),
        row["batch"],
        row["case"],
    )


def variant_place(variant: str) -> tuple:
    """The place of a variant: by family, then by falling ReLUs kept.

    A name without a fraction keeps all ReLUs of its structure.
    """
    family = family_of(variant)
    fraction = variant[len(family) + 1 :]
    return rank(family, FAMILIES), -float(fraction or 1)


def rank(name: str, known: Sequence[str]) -> tuple[int, str]:
    """The place of a name in a list of known ones; unknown names come last, in their own order."""
    return (known.index(name) if name in known else len(known), name)
