"""The catalogue of reductions: every family and its variants, read from `models/reductions/`.

A new file there adds its families everywhere: cases, training, report, figures, docs. This module does not
import torch.
"""

from __future__ import annotations

import pkgutil
from functools import cache
from importlib import import_module
from types import ModuleType

from pibench.models import reductions
from pibench.models.base import Family, Variant, family_name

__all__ = ["families", "family_name", "modules", "shown_variants", "variant_names", "variants"]


@cache
def modules() -> tuple[ModuleType, ...]:
    """Returns the modules of all reductions, by the place of their first family, then by name."""
    names = [info.name for info in pkgutil.iter_modules(reductions.__path__)]
    found = [import_module(f"{reductions.__name__}.{name}") for name in names]
    return tuple(sorted(found, key=lambda module: (module.FAMILIES[0].place, module.__name__)))


@cache
def families() -> dict[str, Family]:
    """Returns all families by name, in the order of reports."""
    found = [family for module in modules() for family in module.FAMILIES]
    return {family.name: family for family in sorted(found, key=lambda family: (family.place, family.name))}


@cache
def variants() -> dict[str, Variant]:
    """Returns all variants by name: by family, each family's in its own order."""
    return {variant.name: variant for module in modules() for variant in module.VARIANTS}


@cache
def variant_names() -> tuple[str, ...]:
    """Returns the names of all variants, in the order of `variants`."""
    return tuple(variants())


def shown_variants() -> tuple[str, ...]:
    """Returns the variants that represent their families where there is room for few, in order."""
    return tuple(family.shown for family in families().values() if family.shown)


def clear() -> None:
    """Forgets the found reductions, for one that is added while the program runs."""
    for found in (modules, families, variants, variant_names):
        found.cache_clear()
