"""Messages between the driver and a process that it started: pickled by value.

A message never comes from another host. Messages of other hosts travel by `pibench.hosts.stream`, which
decodes only plain values.
"""

from __future__ import annotations

import pickle
from multiprocessing.connection import Connection
from typing import Any


def encode(message: Any) -> bytes:
    """Pickles by value, so that no tensor lives in memory shared with another process."""
    return pickle.dumps(message, protocol=pickle.HIGHEST_PROTOCOL)


def send(connection: Connection, message: Any) -> None:
    """Sends a message by value."""
    connection.send_bytes(encode(message))


def receive(connection: Connection) -> Any:
    """Receives what `send` sent; raises EOFError when the other side is gone."""
    return pickle.loads(connection.recv_bytes())
