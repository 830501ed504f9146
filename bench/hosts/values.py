"""Values of messages between hosts as bytes: data alone.

msgpack carries numbers, text and bytes. Every other value is a list that begins with a word for its kind:

    ["list", ...]  ["tuple", ...]  ["dict", key, value, ...]  ["record", name, ... the fields]
    ["array", dtype, shape, bytes]  ["tensor", dtype, shape, bytes]

Decoding calls nothing but the constructors of `pibench.hosts.messages.RECORDS`, with as many values as there
are fields. It sets no attribute by name and imports nothing. `pibench.hosts.messages.demand` then looks at
the types of the fields.
"""

from __future__ import annotations

from dataclasses import fields
from math import prod
from typing import Any

import msgpack
import numpy as np
import torch

from pibench.hosts.messages import RECORDS, Altered, Unsendable

PLAIN = (type(None), bool, int, float, str, bytes)
DTYPES = ("float32", "float64", "float16", "int64", "int32", "uint8", "bool")
MOST_ITEMS = 1 << 20  # of one list


def encode(value: Any) -> bytes:
    """Encodes a value; raises Unsendable for one that no message may hold."""
    plain = _plain(value)
    try:
        return msgpack.packb(plain, strict_types=True)
    except (OverflowError, ValueError) as error:  # a huge number, half of a surrogate pair
        raise Unsendable(f"a message between hosts cannot hold a value: {error}") from None


def decode(data: bytes) -> Any:
    """Decodes a value; raises Altered for bytes that hold no value, or one that no message may hold."""
    try:
        return _made(msgpack.unpackb(data, max_array_len=MOST_ITEMS))
    except Altered:
        raise
    except Exception as error:  # whatever a stranger's bytes lead to, they are no message
        raise Altered(f"a message cannot be decoded ({type(error).__name__}: {error})") from error


def _plain(value: Any) -> Any:
    kind = type(value)
    if kind in PLAIN:
        return value
    if isinstance(value, torch.Tensor) and value.dtype != torch.bfloat16:  # which numpy does not know
        return ["tensor", *_buffer(value.detach().cpu().numpy())]
    if isinstance(value, np.ndarray):
        return ["array", *_buffer(value)]
    if isinstance(value, list | tuple):
        return ["list" if isinstance(value, list) else "tuple", *map(_plain, value)]
    if kind is dict:
        return ["dict", *(_plain(part) for pair in value.items() for part in pair)]
    if RECORDS.get(kind.__name__) is kind:
        return ["record", kind.__name__, *(_plain(getattr(value, field.name)) for field in fields(kind))]
    raise Unsendable(f"a message between hosts cannot hold a {kind.__name__}")


def _buffer(array: np.ndarray) -> tuple[str, list[int], bytes]:
    if array.dtype.name not in DTYPES or not array.dtype.isnative:
        raise Unsendable(f"a message between hosts cannot hold an array of {array.dtype}")
    return array.dtype.name, list(array.shape), array.tobytes()


def _made(plain: Any) -> Any:
    if type(plain) in PLAIN:
        return plain
    if type(plain) is not list or not plain:
        raise Altered(f"a message holds a {type(plain).__name__} of msgpack, which no message may")
    kind, *parts = plain
    if kind == "list":
        return [_made(part) for part in parts]
    if kind == "tuple":
        return tuple(_made(part) for part in parts)
    if kind == "dict":
        made = [_made(part) for part in parts]
        return dict(zip(made[::2], made[1::2], strict=True))
    if kind == "array":
        return _array(*parts)
    if kind == "tensor":
        return torch.from_numpy(_array(*parts))
    if kind == "record" and parts and isinstance(parts[0], str) and parts[0] in RECORDS:
        record, values = RECORDS[parts[0]], [_made(part) for part in parts[1:]]
        if len(values) != len(fields(record)):
            raise Altered(
                f"a message holds a {parts[0]} with {len(values)} fields instead of {len(fields(record))}"
            )
        return record(*values)
    raise Altered(f"a message holds {str(plain[:2])[:60]}, which no message may")


def _array(dtype: Any, shape: Any, data: Any) -> np.ndarray:
    """Makes an array of its own from checked parts."""
    if dtype not in DTYPES:
        raise Altered(f"a message holds an array of {str(dtype)[:40]}, which no message may")
    sizes = type(shape) is list and all(type(size) is int and size >= 0 for size in shape)
    if not sizes or type(data) is not bytes or len(data) != prod(shape) * np.dtype(dtype).itemsize:
        raise Altered(f"a message holds an array whose bytes are not those of its shape {str(shape)[:40]}")
    if dtype == "bool" and data.translate(None, b"\0\1"):
        raise Altered("a message holds a truth value that is neither true nor false")
    return np.frombuffer(bytearray(data), dtype).reshape(shape)
