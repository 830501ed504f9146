"""Memory that a process keeps, so that warm runs touch no fresh pages."""

import contextlib
import ctypes

import numpy as np

_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_THRESHOLD = -1, -2, -3
_PAGE = 4096


def keep_blocks() -> None:
    """Asks glibc to keep freed blocks instead of returning them to the system.

    A fresh page costs more than the kernels that fill it: about 40 ns per 8-byte element, against 10 ns.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):
        return
    mallopt(_M_MMAP_THRESHOLD, 1 << 30)
    mallopt(_M_TRIM_THRESHOLD, 1 << 30)
    mallopt(_M_TOP_PAD, 16 << 20)


def release_blocks() -> None:
    """Returns the kept blocks of `keep_blocks` to the system (for set-up, where memory counts)."""
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)


class Arena:
    """One block of memory that is cut from the front; `reset` makes it whole again."""

    def __init__(self) -> None:
        self._block = np.empty(0, np.uint64)
        self._used = 0

    def reset(self, nbytes: int) -> None:
        """Makes room for `nbytes`; every earlier cut becomes invalid."""
        words = -(-nbytes // 8)
        if self._block.size < words:
            self._block = np.empty(0, np.uint64)  # releases the old block before it takes a new one
            self._block = np.zeros(words, np.uint64)
            self._block[:: _PAGE // 8] = 1  # touches the pages now, not in a measurement
        self._used = 0

    def cut(self, nbytes: int) -> np.ndarray:
        """Cuts `nbytes` (rounded up to words) from the block, as uint64."""
        words = -(-nbytes // 8)
        if self._used + words > self._block.size:
            raise MemoryError("the arena was sized for less")
        part = self._block[self._used : self._used + words]
        self._used += words
        return part


class Workspace:
    """Named scratch arrays that grow to the largest requested size."""

    def __init__(self) -> None:
        self._blocks: dict[str, np.ndarray] = {}

    def words(self, name: str, count: int, word: type[np.unsignedinteger] = np.uint64) -> np.ndarray:
        """Returns the first `count` words of the array called `name`; their content is arbitrary."""
        size = -(-count * np.dtype(word).itemsize // 8)
        block = self._blocks.get(name)
        if block is None or block.size < size:
            self._blocks.pop(name, None)
            block = self._blocks[name] = np.empty(size, np.uint64)
        return block.view(word)[:count]
