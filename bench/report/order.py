"""The order of rows and variants in reports."""

from __future__ import annotations

from typing import Any

from pibench.models import catalogue
from pibench.store.engines import engine_place
from pibench.store.schema import ROLES


def place_of(row: Any) -> tuple:
    """Returns a row's place in reports: headline first, then by engine, family and falling kept ReLUs."""
    return (
        ROLES.index(row["role"]),
        -row["width"],
        row["link"] != "loopback",
        row["link"],
        row["parties"],
        engine_place(row["engine"]),
        *variant_place(row["variant"]),
        row["batch"],
        row["case"],
    )


def variant_place(variant: str) -> tuple:
    """Returns the place of a variant: by family, then by falling kept ReLUs; unknown families come last.

    A name without a fraction keeps all ReLUs of its structure.
    """
    family = catalogue.family_name(variant)
    known = tuple(catalogue.families())
    fraction = variant[len(family) + 1 :]
    return (known.index(family) if family in known else len(known)), family, -float(fraction or 1)
