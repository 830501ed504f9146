"""Damage to files and messages, as data: bytes that are cut, flipped or replaced, and JSON of wrong shape."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from random import Random
from typing import Any

CUTS = (0.0, 0.001, 0.1, 0.5, 0.9, 0.999)
DEEP = 100_000


def cut(data: bytes, rng: Random, share: float) -> bytes:
    """Keeps the first share of the bytes."""
    return data[: int(share * len(data))]


def flip(data: bytes, rng: Random) -> bytes:
    """Flips one bit."""
    place, bit = rng.randrange(len(data)), 1 << rng.randrange(8)
    return data[:place] + bytes([data[place] ^ bit]) + data[place + 1 :]


def blank(data: bytes, rng: Random) -> bytes:
    """Puts zeros over a tenth of the bytes, as a disk does after a crash."""
    size = max(1, len(data) // 10)
    place = rng.randrange(len(data) - size + 1)
    return data[:place] + bytes(size) + data[place + size :]


def scatter(data: bytes, rng: Random) -> bytes:
    """Replaces thirty bytes in random places by random ones."""
    found = bytearray(data)
    for _ in range(30):
        found[rng.randrange(len(found))] = rng.randrange(256)
    return bytes(found)


def insert(data: bytes, rng: Random) -> bytes:
    """Puts seven random bytes somewhere."""
    place = rng.randrange(len(data))
    return data[:place] + rng.randbytes(7) + data[place:]


BYTES: dict[str, Callable[[bytes, Random], bytes]] = {
    **{f"cut-{share:g}": lambda data, rng, share=share: cut(data, rng, share) for share in CUTS},
    "cut-one": lambda data, rng: data[:-1],
    "twice": lambda data, rng: data + data,
    "zeros": lambda data, rng: bytes(len(data)),
    "noise": lambda data, rng: rng.randbytes(len(data)),
    "ones": lambda data, rng: b"\xff" * 64,
    "page": lambda data, rng: b"<!doctype html><title>404 Not Found</title>" * 20,
    "tail": lambda data, rng: data + b"\0",
    "mark": lambda data, rng: b"\xef\xbb\xbf" + data,
}
"""Damage that is the same for every seed, but for noise."""
DRAWN: dict[str, Callable[[bytes, Random], bytes]] = {
    "flip": flip,
    "blank": blank,
    "scatter": scatter,
    "insert": insert,
}
"""Damage in places that are drawn."""

WRONG: tuple[Any, ...] = (
    *(None, [], {}, "", "text", True, -1, 0, 10**400, 1.5, 1e308, [None], {"a": 1}, "\ud800", [[[]]]),
)
"""Values that stand in the place of others."""


def places(value: Any, way: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Returns the ways to all values within a JSON value."""
    found = [way] if way else []
    if isinstance(value, dict):
        for key, inner in value.items():
            found += places(inner, (*way, key))
    elif isinstance(value, list):
        for index, inner in enumerate(value[:3]):
            found += places(inner, (*way, index))
    return found


def _at(value: Any, way: tuple[Any, ...]) -> Any:
    for step in way:
        value = value[step]
    return value


def replaced(content: Any, rng: Random) -> Any:
    """Puts a wrong value in a random place."""
    way = rng.choice(places(content))
    _at(content, way[:-1])[way[-1]] = copy.deepcopy(rng.choice(WRONG))
    return content


def removed(content: Any, rng: Random) -> Any:
    """Removes a random value."""
    way = rng.choice(places(content))
    del _at(content, way[:-1])[way[-1]]
    return content


def renamed(content: Any, rng: Random) -> Any:
    """Renames a random key."""
    way = rng.choice([way for way in places(content) if isinstance(way[-1], str)])
    inside = _at(content, way[:-1])
    inside[f"{way[-1]}_"] = inside.pop(way[-1])
    return content


def enlarged(content: Any, rng: Random) -> Any:
    """Replaces a random number by one that is negative or beyond 64 bits."""
    numbers = [
        way
        for way in places(content)
        if isinstance(_at(content, way), int | float) and not isinstance(_at(content, way), bool)
    ]
    way = rng.choice(numbers or places(content))
    _at(content, way[:-1])[way[-1]] = rng.choice((-1, 0, -(2**70), 2**63, 2**64, 1e300, -1e-300))
    return content


SHAPES: dict[str, Callable[[Any, Random], Any]] = {
    "replaced": replaced,
    "removed": removed,
    "renamed": renamed,
    "enlarged": enlarged,
}
"""Changes of JSON in places that are drawn."""


def shaped(change: Callable[[Any, Random], Any]) -> Callable[[bytes, Random], bytes]:
    """Makes of a change of JSON one of bytes."""
    return lambda data, rng: json.dumps(change(json.loads(data), rng)).encode("utf-8", "surrogatepass")


TEXTS: dict[str, Callable[[bytes, Random], bytes]] = {
    "deep-list": lambda data, rng: b"[" * DEEP,
    "deep-object": lambda data, rng: b'{"a":' * DEEP,
    "null": lambda data, rng: b"null",
    "list": lambda data, rng: b"[]",
    "object": lambda data, rng: b"{}",
    "number": lambda data, rng: b"1e999",
    "long-number": lambda data, rng: b"9" * 10_000,
    "list-of-null": lambda data, rng: b"[null]",
    "nan": lambda data, rng: b'{"schema": 1, "rows": [NaN]}',
    "older": lambda data, rng: data.replace(b'"schema": 1', b'"schema": 0'),
    "newer": lambda data, rng: data.replace(b'"schema": 1', b'"schema": 99'),
    "odd-schema": lambda data, rng: data.replace(b'"schema": 1', b'"schema": [1]'),
    "rows-object": lambda data, rng: b'{"schema": 1, "rows": {}}',
    "latin": lambda data, rng: data.replace(b"e", b"\xe9"),
    "utf16": lambda data, rng: data.decode().encode("utf-16"),
    "lines": lambda data, rng: data.replace(b"\n", b"\r\n"),
}
"""Whole texts that are wrong."""


def garble(name: str, data: bytes, rng: Random) -> bytes:
    """Returns damaged bytes; `name` may end in a number, which only tells two draws apart."""
    plain = name.rpartition("-")[0] if name.rpartition("-")[2].isdigit() else name
    if plain in SHAPES:
        return shaped(SHAPES[plain])(data, rng)
    known = {**BYTES, **TEXTS, **DRAWN}
    return known[name if name in known else plain](data, rng)
