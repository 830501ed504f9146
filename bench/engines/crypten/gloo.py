"""The way of gloo, which CrypTen uses, through the relay of a shaped link (`pibench.links.relay`).

Gloo finds its peers through torch.distributed's store: every process publishes the address at which it
listens, and the peer with the larger address calls the other one. `ShapedStore` wraps the real store and
rewrites the addresses of the others when they are read:

- A process of higher rank sees a lower one at the relay, on 0.0.0.0. This is smaller than any address, and
  Linux takes it for this machine. The higher rank therefore calls.
- A process of lower rank sees a higher one at 255.255.255.255. This is larger than any address. The lower
  rank therefore waits for a call.

The bytes on the wire are gloo's own, unchanged.
"""

from __future__ import annotations

import os
import socket
import struct
from collections.abc import Iterator
from datetime import timedelta
from typing import Any
from urllib.parse import parse_qs, urlparse

from torch.distributed import Store
from torch.distributed.rendezvous import register_rendezvous_handler, rendezvous

from pibench.links.route import port_through

SCHEME = "shaped"
_OWNER = b"pibench-owner:"
_LENGTH = struct.Struct("<Q")
_ADDRESS_BYTES = 136  # sockaddr_storage and a sequence number
_SMALLEST, _LARGEST = socket.inet_aton("0.0.0.0"), socket.inet_aton("255.255.255.255")


def address_at(record: bytes) -> int | None:
    """Returns the offset of the sockaddr_in in a gloo peer record, or None if `record` is not one.

    A record holds the length and text of the host name, the length (136) and bytes of the address, and 8
    bytes for each peer.
    """
    if len(record) < _LENGTH.size:
        return None
    start = 2 * _LENGTH.size + _LENGTH.unpack_from(record)[0]
    rest = len(record) - start - _ADDRESS_BYTES
    if rest < 0 or rest % 8 or _LENGTH.unpack_from(record, start - _LENGTH.size)[0] != _ADDRESS_BYTES:
        return None
    family = struct.unpack_from("=H", record, start)[0]
    return start if family == socket.AF_INET else None


class ShapedStore(Store):
    """A store in which the processes of a group find each other at the relay.

    `rewritten` counts the changed addresses; it stays 0 if gloo's records are not understood.
    """

    def __init__(self, store: Store, rank: int, relay: str) -> None:
        super().__init__()
        self._store = store
        self._rank = rank
        self._relay = relay
        self.rewritten = 0

    def set(self, key: str, value: bytes) -> None:
        """Stores `value`; the process's own address is marked with its rank in the whole group."""
        if isinstance(value, bytes) and address_at(value) is not None:
            value = _OWNER + bytes([self._rank]) + value
        self._store.set(key, value)

    def get(self, key: str) -> bytes:
        """Reads a value; the address of another process is rewritten for this process."""
        value = self._store.get(key)
        if not value.startswith(_OWNER):
            return value
        owner, record = value[len(_OWNER)], value[len(_OWNER) + 1 :]
        if owner == self._rank:
            return record
        at = address_at(record)
        (port,) = struct.unpack_from("!H", record, at + 2)
        host = _LARGEST
        if owner < self._rank:
            host, port = _SMALLEST, port_through(self._relay, self._rank, owner, port)
        self.rewritten += 1
        return record[: at + 2] + struct.pack("!H", port) + host + record[at + 8 :]

    def add(self, key: str, amount: int) -> int:
        """Adds to a counter."""
        return self._store.add(key, amount)

    def compare_set(self, key: str, expected: bytes, desired: bytes) -> bytes:
        """Replaces a value if it equals `expected`."""
        return self._store.compare_set(key, expected, desired)

    def wait(self, *arguments: Any) -> None:
        """Waits for keys."""
        self._store.wait(*arguments)

    def check(self, keys: list[str]) -> bool:
        """Returns whether the keys are there."""
        return self._store.check(keys)

    def delete_key(self, key: str) -> bool:
        """Deletes a key."""
        return self._store.delete_key(key)

    def num_keys(self) -> int:
        """Returns the number of keys."""
        return self._store.num_keys()

    def set_timeout(self, timeout: timedelta) -> None:
        """Sets the limit of every wait."""
        self._store.set_timeout(timeout)

    def clone(self) -> ShapedStore:
        """Returns the store itself: torch clones a store for threads that this project does not start."""
        return self


_stores: list[ShapedStore] = []  # torch keeps only the C++ half; without this list the methods above vanish


def shaped_rendezvous(url: str, relay: str) -> str:
    """Registers a rendezvous like that of `url`, through the relay; returns its URL."""

    def handler(shaped: str, **_: Any) -> Iterator[tuple[Store, int, int]]:
        query = parse_qs(urlparse(shaped).query)
        rank, world = int(query["rank"][0]), int(query["world_size"][0])
        store, rank, world = next(rendezvous(url, rank=rank, world_size=world))
        _stores.append(ShapedStore(store, rank, relay))
        yield _stores[-1], rank, world

    register_rendezvous_handler(SCHEME, handler)
    return f"{SCHEME}://{os.getpid()}"


def demand_relayed() -> None:
    """Raises RuntimeError unless gloo found its peers at the relay."""
    if not any(store.rewritten for store in _stores):
        raise RuntimeError(
            "gloo's peer records are not understood (another version of torch?): "
            "the link cannot be shaped in user space"
        )
