"""The place where the processes of a group find each other, as a rendezvous of torch.distributed.

On the driver's host it is a file. Its path goes to torch as it is, because torch's own file:// addresses end
at a `#` or a `?`. On another host it is a connection (`pibench.parties.forwarded`).
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from multiprocessing.connection import Connection
from typing import Any
from urllib.parse import parse_qs, urlparse

from torch.distributed import FileStore, Store
from torch.distributed.rendezvous import register_rendezvous_handler

from pibench.links.local import INHERITED
from pibench.parties.forwarded import ForwardedStore

SCHEME = "group"
_stores: list[Store] = []  # torch keeps only the C++ half; without this list the methods of ours vanish


def registered(rendezvous: str) -> str:
    """Registers the rendezvous of a setting, a path or an inherited connection; returns its URL for torch."""
    if rendezvous.startswith(INHERITED):
        store = ForwardedStore(Connection(int(rendezvous.removeprefix(INHERITED))))
        return _registered(lambda world: store)
    return _registered(lambda world: FileStore(rendezvous, world))


def _registered(make: Callable[[int], Store]) -> str:
    def handler(url: str, **_: Any) -> Iterator[tuple[Store, int, int]]:
        query = parse_qs(urlparse(url).query)
        rank, world = int(query["rank"][0]), int(query["world_size"][0])
        _stores.append(make(world))
        yield _stores[-1], rank, world

    register_rendezvous_handler(SCHEME, handler)
    return f"{SCHEME}://{os.getpid()}"
