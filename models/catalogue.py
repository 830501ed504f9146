"""The catalogue of reductions: every family and the names of its variants, read from `models/reductions/`.

Adding a file there adds its families everywhere: cases, report, figures, docs. Nothing here imports torch.
"""

from __future__ import annotations

import pkgutil
import re
from functools import cache
from importlib import import_module
from types import ModuleType

from pibench.models import reductions
from pibench.models.base import Family


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
def variant_names() -> tuple[str, ...]:
    """Returns the names of all variants: by family, each family's in its own order."""
    return tuple(name for module in modules() for name in module.NAMES)


def shown_variants() -> tuple[str, ...]:
    """Returns the variants that stand for their families where there is room for few, in order."""
    return tuple(family.shown for family in families().values() if family.shown)


def family_name(variant: str) -> str:
    """Returns a variant's name without the budget at its end: `senet-0.09` -> `senet`."""
    return re.sub(r"-\d+(\.\d+)?$", "", variant)
