"""AES-CTR keystreams: two processes expand the same randomness from one key."""

import hashlib
import os
from collections.abc import Iterator

import numpy as np
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes

KEY_BYTES = 16
_CHUNK = 1 << 18
_ZEROS = memoryview(bytes(_CHUNK))


def fresh_key() -> bytes:
    """Returns a key from the system's generator."""
    return os.urandom(KEY_BYTES)


class Keystream:
    """A stream of uniform words that only advances.

    `name` is a fingerprint of the key. `drawn` lists the used ranges, [start, stop) in bytes.
    """

    def __init__(self, key: bytes) -> None:
        self.name = hashlib.sha256(b"pibench keystream" + key).hexdigest()[:16]
        self.position = 0
        self._cipher = Cipher(algorithms.AES(key), modes.CTR(bytes(16))).encryptor()

    def fill(self, words: np.ndarray) -> tuple[str, int, int]:
        """Overwrites a contiguous array with the next words; returns (name, start, stop), its range."""
        view = memoryview(words.reshape(-1)).cast("B")
        for chunk in _chunks(view):
            self._cipher.update_into(_ZEROS[: len(chunk)], chunk)
        start = self.position
        self.position += len(view)
        return self.name, start, self.position

    def words(self, count: int, word: type[np.signedinteger] = np.int64) -> np.ndarray:
        """Returns the next `count` words of a signed type."""
        out = np.empty(count, word)
        self.fill(out)
        return out


def _chunks(view: memoryview) -> Iterator[memoryview]:
    for at in range(0, len(view), _CHUNK):
        yield view[at : at + _CHUNK]
