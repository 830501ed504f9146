"""Messages between a process and the worker that it started on the same host: pickled by value.

They travel over a socket pair that the worker inherits. It has no address, so nobody else can reach it, and
the worker runs the same code for the same user: reading its pickles gives away nothing that it could not do
itself. A message of another host never comes this way as its sender wrote it: `pibench.hosts.stream` decodes
data alone, checks their types, and this host pickles the checked values.
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
