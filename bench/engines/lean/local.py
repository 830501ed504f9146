"""Both parties and the dealer in one process: the protocols alone, for tests and operator benchmarks."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import NamedTuple, TypeVar

import numpy as np

from pibench.engines.lean import material, relu
from pibench.engines.lean.keystream import Keystream, fresh_key
from pibench.engines.lean.material import Material
from pibench.engines.lean.memory import Arena, Workspace
from pibench.engines.lean.plan import Gadget, Rectification
from pibench.engines.lean.ring import WIDE, Ring

T = TypeVar("T")


def run_both(party: Callable[[int, relu.Exchange], T], timeout_s: float = 60.0) -> tuple[T, T]:
    """Runs `party(rank, exchange)` for both ranks, in two threads that exchange by copying.

    Raises the error of a party if one fails.
    """
    gate = threading.Barrier(2, timeout=timeout_s)
    posted: list[np.ndarray | None] = [None, None]
    results: list[T | BaseException | None] = [None, None]

    def run(rank: int) -> None:
        def exchange(out: np.ndarray, into: np.ndarray) -> None:
            posted[rank] = out
            gate.wait()
            into[:] = posted[1 - rank]
            gate.wait()

        try:
            results[rank] = party(rank, exchange)
        except BaseException as error:
            results[rank] = error
            gate.abort()

    threads = [threading.Thread(target=run, args=(rank,)) for rank in (0, 1)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    errors = [result for result in results if isinstance(result, BaseException)]
    if errors:
        raise next((e for e in errors if not isinstance(e, threading.BrokenBarrierError)), errors[0])
    return results[0], results[1]


class LocalDealer:
    """Deals a gadget's material to two parties in this process; the next call reuses the memory."""

    def __init__(self, ring: Ring = WIDE) -> None:
        keys = fresh_key(), fresh_key()
        self._ring = ring
        self._dealer = [Keystream(key) for key in keys]
        self._parties = [Keystream(key) for key in keys]
        self._arenas = [Arena() for _ in range(4)]

    def deal(self, gadget: Gadget, batch: int = 1) -> tuple[Material, Material]:
        """Returns the materials of party 0 and party 1."""
        shape = material.layout(self._ring, gadget, batch)
        for arena in self._arenas:
            arena.reset(shape.nbytes)
        first, second = (
            material.expand_part(stream, arena, shape.drawn)
            for stream, arena in zip(self._dealer, self._arenas[:2], strict=True)
        )
        corrections = self._arenas[1].cut(material.part_bytes(shape.dealt))
        self._dealer[1].fill(corrections)
        material.deal(gadget, first, second, material.views(shape.dealt, corrections))

        def receive(words: np.ndarray) -> None:
            words[:] = corrections

        return (
            material.expand(self._ring, self._parties[0], self._arenas[2], gadget, batch, receive),
            material.expand(self._ring, self._parties[1], self._arenas[3], gadget, batch),
        )


class Check(NamedTuple):
    """The result of `check_relu`: compared elements, failures and the worst error in units of the last place.

    A failure is an element that is wrong by more than one unit.
    """

    elements: int
    failures: int
    worst: int


class LocalRelu:
    """Evaluates the ReLU of whole arrays by the protocol, with both parties in this process."""

    def __init__(self, ring: Ring = WIDE, positions: int | None = None) -> None:
        self._ring = ring
        self._positions = positions or ring.bits
        self._dealer = LocalDealer(ring)
        self._spaces = (Workspace(), Workspace())
        self._shares = Keystream(fresh_key())

    def __call__(self, z: np.ndarray, shift: int) -> np.ndarray:
        """Returns max(z, 0) >> shift for signed words z: shares, evaluates and opens it."""
        word, signed = self._ring.word, self._ring.signed
        materials = self._dealer.deal(Rectification(z.size, 0, shift, self._positions))
        other = self._shares.words(z.size, signed)
        shares = (z - other).view(word), other.view(word)
        none = np.empty(0, word)

        def party(rank: int, exchange: relu.Exchange) -> np.ndarray:
            y = np.empty(z.size, word)
            fields, space = materials[rank].fields, self._spaces[rank]
            relu.rectify(rank, exchange, shares[rank], none, shift, self._positions, fields, space, y, none)
            return y

        y0, y1 = run_both(party)
        return (y0 + y1).view(signed)


def check_relu(
    elements: int,
    mean: float = 6e3,
    shift: int = 16,
    chunk: int = 1 << 19,
    seed: int = 0,
    ring: Ring = WIDE,
    positions: int | None = None,
) -> Check:
    """Compares `elements` fused ReLUs with the exact ones; the values have mean |v| = `mean`.

    The values have a two-sided exponential distribution, at the scale `shift` above that of `ring`, and are
    cut at half the range of the `positions` that are compared (default: all). The function works in chunks,
    so memory does not grow with `elements`: 1e8 elements take about half a minute on two cores.
    """
    draw = np.random.default_rng(seed)
    relu_of = LocalRelu(ring, positions)
    most = 2.0 ** (min(ring.top, (positions or ring.bits) - 1)) - 1
    failures = worst = done = 0
    while done < elements:
        n = min(chunk, elements - done)
        z = draw.exponential(mean, n) * draw.choice((-1.0, 1.0), n) * 2.0 ** (ring.fraction + shift)
        z = np.clip(z, -most, most).astype(ring.signed)
        difference = np.abs(relu_of(z, shift) - (np.maximum(z, 0) >> shift))
        failures += int(np.count_nonzero(difference > 1))
        worst = max(worst, int(difference.max()))
        done += n
    return Check(elements, failures, worst)
