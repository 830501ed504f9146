"""The digest of everything that determines a row; it recognises a case that was measured before.

It covers the case and its reference with their settings. It covers the network: for a variant its name, the
code that makes it and its weights file; for a user's own network the program, the weights that parties run,
and its images. It covers the source that measures, including the engine's folder, because git knows only
committed code. It covers the machine and the versions of packages. Threads and memory settings of parties are
part of the source.

A row holds the rounds of its own reference, which ran alternately with it. A row is therefore complete by
itself. The decision to measure a case again does not depend on other cases.
"""

from __future__ import annotations

import hashlib
import inspect
import json
from collections.abc import Iterator, Mapping
from dataclasses import fields, is_dataclass
from functools import cache, lru_cache
from pathlib import Path
from typing import Any

import numpy as np

import pibench.models
from pibench.engines import ENGINES
from pibench.measure.case import Case, OwnNetwork
from pibench.models.manifest import read_manifest
from pibench.models.weights import file_name
from pibench.program.lower import lower

BENCH = Path(__file__).parent.parent
MODELS = Path(pibench.models.__file__).parent
MEASURING = (
    *("parties", "program", "links", "engines/base.py", "engines/__init__.py"),
    *(f"measure/{name}.py" for name in ("digest", "rounds", "row", "session", "subject", "verdict")),
)
"""Folders and files of `bench/` whose change makes a row old, beside the engine's own folder."""
NOT_BUILDING = ("training",)
"""Folders of `models/` that make no network that is measured."""


def digest_of(case: Case, context: Mapping[str, Any]) -> str:
    """Returns the SHA-256 of everything that determines the row of `case` in a session with this context.

    Raises the errors of lowering for a user's network that parties cannot run.
    """
    settings = {
        each.name: getattr(case, each.name) for each in fields(Case) if each.name not in ("own", "reference")
    }
    whole = hashlib.sha256()
    _feed(whole, settings)
    _feed(whole, {name: context[name] for name in ("machine", "versions")})
    _feed(whole, [_source_of(case.engine), _network(case)])
    if case.reference is not None:
        _feed(whole, digest_of(case.reference, context))
    return whole.hexdigest()


def _network(case: Case) -> str:
    if case.own is not None:
        return _own(case.own)
    weights = read_manifest().get(file_name(case.variant, case.width))
    return json.dumps([_source_of_models(), weights], sort_keys=True)


@lru_cache(maxsize=32)
def _own(own: OwnNetwork) -> str:
    lowered, found = lower(own.model, own.images[:1]), hashlib.sha256()
    _feed(found, [lowered.program, {name: each.numpy() for name, each in lowered.weights.items()}])
    _feed(found, own.images.detach().cpu().numpy())
    return found.hexdigest()


@cache
def _source_of(engine: str) -> str:
    """Digests the source that measures on an engine."""
    folder = Path(inspect.getfile(ENGINES[engine].make_node)).parent
    return _digest_files([*(BENCH / place for place in MEASURING), folder])


@cache
def _source_of_models() -> str:
    """Digests the source and the picture that variants and their images are made of."""
    places = [place for place in MODELS.iterdir() if place.is_dir() or place.suffix in (".py", ".png")]
    return _digest_files([place for place in places if place.name not in (*NOT_BUILDING, "trained")])


def _digest_files(places: list[Path]) -> str:
    found = hashlib.sha256()
    for path in sorted({path for place in places for path in _sources(place)}):
        _feed(found, [path.name, path.read_bytes()])
    return found.hexdigest()


def _sources(place: Path) -> Iterator[Path]:
    return place.rglob("*.py") if place.is_dir() else iter((place,))


def _feed(digest: Any, value: Any) -> None:
    """Adds data to a digest, with types and lengths, so that different values give different bytes."""
    if isinstance(value, np.ndarray):
        digest.update(f"{value.dtype}{value.shape}".encode())
        digest.update(np.ascontiguousarray(value).tobytes())
    elif isinstance(value, bytes):
        digest.update(f"bytes{len(value)}:".encode() + value)
    elif is_dataclass(value):
        digest.update(type(value).__name__.encode())
        _feed(digest, {each.name: getattr(value, each.name) for each in fields(value)})
    elif isinstance(value, Mapping):
        digest.update(f"map{len(value)}:".encode())
        for key in sorted(value):
            _feed(digest, key)
            _feed(digest, value[key])
    elif isinstance(value, list | tuple):
        digest.update(f"list{len(value)}:".encode())
        for item in value:
            _feed(digest, item)
    else:
        text = repr(value)
        digest.update(f"{type(value).__name__}{len(text)}:{text}".encode())
