"""SPU's own link (brpc) between the parties: every party listens, and calls every other.

A party finds a free port, tells the group's store, and waits until all parties have done so. Where a relay
shapes the link, the addresses of the others are ports of the relay. The bytes on the wire are SPU's own.
"""

from __future__ import annotations

import random
import socket
import struct
from datetime import timedelta
from itertools import chain
from typing import Any

from torch.distributed import PrefixStore, Store
from torch.distributed.rendezvous import rendezvous

from pibench.engines.base import Setting
from pibench.links.route import port_through

RETRY_MS = 100
UNCLAIMED = range(20_000, 32_768)
"""Ports below those that Linux gives to connections, and to whoever asks for any port."""
TRIES = 16


def connect(setting: Setting) -> tuple[Any, Store]:
    """Joins the link; returns SPU's context, and the store, which must live as long as the context.

    Raises ConnectionError when no listener can be opened or a party does not come within the time-out.
    """
    from spu import libspu

    limit = timedelta(seconds=setting.timeout_s)
    store, _, _ = next(
        rendezvous(setting.rendezvous, rank=setting.rank, world_size=setting.parties, timeout=limit)
    )
    store = PrefixStore("spu", store)
    store.set_timeout(limit)
    own = f"{setting.host}:{free_port(setting.host, setting.ports)}"
    store.set(f"address{setting.rank}", own)
    description = libspu.link.Desc()
    for rank in range(setting.parties):
        address = own if rank == setting.rank else _reached(setting, rank, store)
        description.add_party(f"party {rank}", address)
    milliseconds = int(1000 * setting.timeout_s)
    description.recv_timeout_ms = milliseconds
    description.http_timeout_ms = milliseconds
    description.connect_retry_interval_ms = RETRY_MS
    description.connect_retry_times = attempts(setting.timeout_s)
    try:
        return libspu.link.create_brpc(description, setting.rank), store
    except RuntimeError as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else "no reason given"
        raise ConnectionError(
            f"party {setting.rank} at {own} could not join SPU's link ({reason}); "
            "is the port in use, or did a party end?"
        ) from error


def attempts(timeout_s: float) -> int:
    """Returns the number of attempts to reach a party that fit into a time.

    SPU's last 2, 3, .. 12, 2, .. s.
    """
    count, spent = 0, 0.0
    while spent < timeout_s:
        spent += 2 + count % 11
        count += 1
    return count


def free_port(host: str, ports: tuple[int, ...]) -> int:
    """Returns the first of `ports` that is free at `host`; SPU opens it a moment later.

    0 stands for any of `UNCLAIMED`, which no connection of another process takes meanwhile.
    """
    reasons = []
    unclaimed = random.SystemRandom().sample(UNCLAIMED, TRIES)
    for port in chain.from_iterable([named] if named else unclaimed for named in ports):
        with socket.socket() as trial:
            trial.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                trial.bind((host, port))
            except OSError as error:
                reasons.append(f"{port}: {error.strerror}")
                continue
            return trial.getsockname()[1]
    raise ConnectionError(f"no port is free at {host} ({'; '.join(reasons)}); name others")


def _reached(setting: Setting, rank: int, store: Store) -> str:
    """Returns the address at which this party calls party `rank`; waits until that party has told it."""
    try:
        host, port = store.get(f"address{rank}").decode().rsplit(":", 1)
    except RuntimeError as error:
        raise ConnectionError(f"party {rank} did not come within {setting.timeout_s:g} s") from error
    if setting.relay:
        host, port = "127.0.0.1", port_through(setting.relay, setting.rank, rank, int(port))
    return f"{host}:{port}"


# Shares as bytes: the lengths of the parts, then the parts (SPU's description of the share, its chunks).


def packed(share: Any) -> bytes:
    """Writes a share as bytes."""
    parts = [share.meta, *share.share_chunks]
    head = struct.pack(f"<{1 + len(parts)}Q", len(parts), *map(len, parts))
    return b"".join([head, *parts])


def unpacked(message: bytes) -> Any:
    """Reads the output of `packed`; raises ConnectionError for other bytes."""
    from spu import libspu

    try:
        (count,) = struct.unpack_from("<Q", message)
        lengths = struct.unpack_from(f"<{count}Q", message, 8)
    except struct.error:
        lengths = ()
    at = 8 * (1 + len(lengths))
    if not lengths or at + sum(lengths) != len(message):
        raise ConnectionError("a party sent something that is no share")
    parts = []
    for length in lengths:
        parts.append(message[at : at + length])
        at += length
    share = libspu.Share()
    share.meta, share.share_chunks = parts[0], parts[1:]
    return share
