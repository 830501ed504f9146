"""Damaged JSON: another value at a random place of a file, and texts that are none."""

import copy

from hypothesis import strategies as st

VALUES = st.one_of(
    st.none(),
    st.booleans(),
    st.sampled_from(
        [0, -1, 2**63, -(2**64), 10**400, 0.5, -0.5, 1e308, "", "x", "a\nb", [], {}, [None], {"x": 1}]
    ),
)
BROKEN = (
    b"",
    b"{",
    b"[]",
    b"{}",
    b"null",
    b"3",
    b'"text"',
    b"[" * 100_000,
    b'{"a":' * 100_000,
    b"[NaN]",
    b"[1e999]",
    b'["\\ud800"]',
    b"\xff\xfe",
    b"[" + b"9" * 5000 + b"]",
    b"\x00" * 512,
)


def places(value, path=()):
    """Yields the path to every value within a value of JSON, itself included."""
    yield path
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from places(inner, (*path, key))
    elif isinstance(value, list):
        for index, inner in enumerate(value):
            yield from places(inner, (*path, index))


@st.composite
def damaged(draw, whole):
    """Draws a copy of a value of JSON with one value in it replaced or removed."""
    made = copy.deepcopy(whole)
    path = draw(st.sampled_from(list(places(whole))))
    if not path:
        return draw(VALUES)
    *before, last = path
    parent = made
    for step in before:
        parent = parent[step]
    if draw(st.booleans()) and isinstance(parent, dict):
        del parent[last]
    else:
        parent[last] = draw(VALUES)
    return made
