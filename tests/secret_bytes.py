"""Searches bytes, such as the memory of a process, for weights and images in every form they may have."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import TypeVar

import numba
import numpy as np
import torch

Result = TypeVar("Result")
RUN = 4  # neighbours that make a needle: no memory holds four such numbers in a row by chance
LONGEST = 8 * RUN
LEAST_WORD = 256  # smaller whole numbers stand in a row in many tables
PAGE = os.sysconf("SC_PAGE_SIZE")
GAP = 64  # pages that are read along: each reading waits for the thread that works
_SWAPPED, _FILE_OR_SHARED, _EXCLUSIVE = np.uint64(1 << 62), np.uint64(1 << 61), np.uint64(1 << 56)
_THERE = np.uint64(1 << 63) | _SWAPPED
_OWN = _EXCLUSIVE | _FILE_OR_SHARED | _SWAPPED
"""Flags of /proc/PID/pagemap."""
SIEVE_BITS = 20
_SHIFT = np.uint64(64 - SIEVE_BITS)
_SPREAD = np.uint64(0x9E3779B97F4A7C15)
_BYTE, _TOP = np.uint64(8), np.uint64(56)


class Secrets:
    """Named groups of tensors, as needles: runs of four neighbours along each axis of a tensor.

    The numbers are float32, float64, and fixed point in 64 bits with 16 or 32 fractional bits.
    """

    def __init__(self, **groups: Sequence[torch.Tensor]) -> None:
        names = {
            needle: name for name, tensors in groups.items() for each in tensors for needle in _needles(each)
        }
        ordered = sorted(names, key=lambda needle: int.from_bytes(needle[:8], "little"))
        self._names = np.array([names[needle] for needle in ordered])
        self._lengths = np.array([len(needle) for needle in ordered])
        whole = b"".join(needle.ljust(LONGEST, b"\0") for needle in ordered)
        self._needles = np.frombuffer(whole, np.uint8).reshape(-1, LONGEST)
        self._first = np.array([int.from_bytes(needle[:8], "little") for needle in ordered], np.uint64)
        self._sieve = np.zeros(1 << SIEVE_BITS, np.bool_)
        self._sieve[(self._first * _SPREAD) >> _SHIFT] = True

    def found(self, data: bytes) -> set[str]:
        """The names of the groups of which a needle lies anywhere in `data`."""
        hit = np.zeros(len(self._names), np.bool_)
        block = np.frombuffer(data, np.uint8)
        _mark(block, self._first, self._needles, self._lengths, self._sieve, hit)
        return set(self._names[hit].tolist())

    def held(self, pid: int) -> set[str]:
        """The names of the groups of which a needle lies in the memory of a process."""
        return set().union(*map(self.found, memory(pid)))


def _needles(tensor: torch.Tensor) -> Iterator[bytes]:
    values = tensor.detach().double().numpy()
    for axis in range(values.ndim):
        flat = np.moveaxis(values, axis, -1).reshape(-1)
        forms = [flat.astype(np.float32), flat]
        for bits in (16, 32):
            forms += [rounded(flat * 2.0**bits).astype(np.int64) for rounded in (np.round, np.trunc)]
        for form in forms if flat.size >= RUN else ():
            runs = np.lib.stride_tricks.sliding_window_view(form, RUN)
            whole = form.dtype.kind == "i"
            yield from (
                run.tobytes() for run in runs[(np.abs(runs) >= (LEAST_WORD if whole else 1e-9)).all(1)]
            )


@numba.njit(nogil=True)
def _mark(block, first, needles, lengths, sieve, hit):  # pragma: no cover (compiled)
    """Marks the needles in `block`; the sieve passes few of the words that begin no needle."""
    word = np.uint64(0)
    for last in range(block.size):
        word = (word >> _BYTE) | (np.uint64(block[last]) << _TOP)
        if not sieve[(word * _SPREAD) >> _SHIFT]:
            continue
        start = last - 7
        place = np.searchsorted(first, word)
        while place < first.size and first[place] == word:
            length = lengths[place]
            same = start >= 0 and start + length <= block.size
            for at in range(8, length):
                same = same and block[start + at] == needles[place, at]
            hit[place] = hit[place] or same
            place += 1


def memory(pid: int) -> Iterator[bytes]:
    """What a process has written to, or shares with others to write; one piece for each mapping.

    Left out are files that it has mapped only to read, and pages that it has in common with the process from
    which it was forked: they are older than its inputs.
    """
    with ExitStack() as stack:
        whole, pages = (
            stack.enter_context(Path(f"/proc/{pid}/{name}").open("rb", buffering=0))
            for name in ("mem", "pagemap")
        )
        for line in Path(f"/proc/{pid}/maps").read_text().splitlines():
            span, rights, _, _, inode, *name = line.split(maxsplit=5)
            if rights[0] != "r" or (rights[1] != "w" and inode != "0") or (name and name[0].startswith("[v")):
                continue
            first, last = (int(bound, 16) // PAGE for bound in span.split("-"))
            flags = np.frombuffer(os.pread(pages.fileno(), 8 * (last - first), 8 * first), np.uint64)
            own = np.flatnonzero((flags & _THERE != 0) & (flags & _OWN != 0))
            parts = []
            for run in np.split(own, np.flatnonzero(np.diff(own) > GAP) + 1):
                if run.size:
                    with suppress(OSError):  # the process has just given it back
                        size = int(run[-1] - run[0]) + 1
                        parts.append(os.pread(whole.fileno(), PAGE * size, PAGE * (first + int(run[0]))))
            yield b"".join(parts)


def meanwhile(work: Callable[[], object], look: Callable[[], Result]) -> Result:
    """Does `work` once, then again and again until `look`, in another thread, has its result."""
    work()
    with ThreadPoolExecutor(1) as pool:
        looked = pool.submit(look)
        while not looked.done():
            work()
        return looked.result()
