"""A torch.distributed store for a process on the other host: every call travels to the driver's host.

There `pibench.links.forward.perform` carries it out.
"""

from __future__ import annotations

import threading
from datetime import timedelta
from multiprocessing.connection import Connection
from typing import Any

from torch.distributed import Store


class ForwardedStore(Store):
    """A store whose calls are carried out at the other end of `connection`."""

    def __init__(self, connection: Connection) -> None:
        super().__init__()
        self._connection = connection
        self._lock = threading.Lock()

    def _call(self, name: str, *arguments: Any) -> Any:
        with self._lock:
            self._connection.send((name, arguments))
            try:
                done, value = self._connection.recv()
            except EOFError:
                raise ConnectionError("the connection to the driver was lost") from None
        if not done:
            raise RuntimeError(value)
        return value

    def set(self, key: str, value: bytes) -> None:
        """Stores `value`."""
        self._call("set", key, value)

    def get(self, key: str) -> bytes:
        """Waits for a value."""
        return self._call("get", key)

    def add(self, key: str, amount: int) -> int:
        """Adds to a counter."""
        return self._call("add", key, amount)

    def compare_set(self, key: str, expected: bytes, desired: bytes) -> bytes:
        """Replaces a value if it equals `expected`."""
        return self._call("compare_set", key, expected, desired)

    def wait(self, keys: list[str], timeout: timedelta | None = None) -> None:
        """Waits for keys."""
        self._call("wait", list(keys), *([] if timeout is None else [timeout.total_seconds()]))

    def check(self, keys: list[str]) -> bool:
        """Returns whether the keys are there."""
        return self._call("check", list(keys))

    def delete_key(self, key: str) -> bool:
        """Deletes a key."""
        return self._call("delete_key", key)

    def num_keys(self) -> int:
        """Returns the number of keys."""
        return self._call("num_keys")

    def set_timeout(self, timeout: timedelta) -> None:
        """Sets the limit of every wait."""
        self._call("set_timeout", timeout.total_seconds())

    def clone(self) -> ForwardedStore:
        """Returns the store itself: torch clones a store for threads that this project does not start."""
        return self
