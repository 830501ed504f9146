"""Correlated randomness: its layout for each gadget, its expansion at a party, its completion by the dealer.

The material of a gadget has two parts. The *drawn* part holds independent masks: each party expands its own
share from its key. The *dealt* part holds functions of the masks: party 1 expands a uniform share from its
key, and party 0 receives the rest. The dealer knows both keys. The wire therefore carries only the dealt
part, and only to party 0.

A truncation by f draws r and deals U = r >> f (signed) and mu = msb(r). Only mu modulo 2^f matters, so its
shares have 16 bits (32 if f > 16). A fused ReLU deals rho, rho U, U, mu, rho mu and the products of bit
masks: 93 bytes an element of 64 bits that all are compared. It draws 34 bytes an element.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import numpy as np

from pibench.engines.lean import kernels
from pibench.engines.lean.keystream import Keystream
from pibench.engines.lean.memory import Arena
from pibench.engines.lean.plan import Beaver, Bilinear, Broadcast, Gadget, Opening, Rectification, Truncation
from pibench.engines.lean.ring import Ring

Fields = tuple[tuple[str, type, int], ...]
Range = tuple[str, int, int]


@dataclass(frozen=True)
class Layout:
    """The fields (name, type, count) of both parts."""

    drawn: Fields
    dealt: Fields

    @property
    def nbytes(self) -> int:
        """Bytes of both parts."""
        return part_bytes(self.drawn) + part_bytes(self.dealt)


@dataclass
class Material:
    """One gadget's randomness at one process.

    `ranges` are the keystream ranges from which it was expanded.
    """

    gadget: Gadget
    fields: dict[str, np.ndarray]
    ranges: list[Range] = field(default_factory=list)


def layout(ring: Ring, gadget: Gadget, batch: int) -> Layout:
    """Returns the fields that `gadget` consumes for `batch` images, in words of `ring`."""
    word = ring.word
    match gadget:
        case Truncation():
            n, bit = batch * gadget.count, _bit_type(gadget.shift)
            return Layout((("r", word, n),), (("u", word, n), ("mu", bit, n)))
        case Rectification():
            n, m, bit = batch * gadget.kept, batch * gadget.linear, _bit_type(gadget.shift)
            words = kernels.tiles(n) * kernels.TILE
            masks = ("masks", np.uint64, words * kernels.masks_of(gadget.positions))
            products = ("products", np.uint64, words * kernels.products_of(gadget.positions))
            if gadget.shift == 0:
                return Layout((masks, ("a", word, n)), (products, ("rho", word, n), ("rho_a", word, n)))
            fused = (("rho", word, n), ("rho_u", word, n), ("u", word, n), ("mu", bit, n), ("rho_mu", bit, n))
            linear = (("rest_u", word, m), ("rest_mu", bit, m))
            return Layout((masks, ("r", word, n), ("rest_r", word, m)), (products, *fused, *linear))
        case Bilinear():
            return Layout((("a", word, batch * gadget.count),), (("c", word, batch * gadget.outputs),))
        case Beaver():
            n = batch * gadget.count
            return Layout((("a", word, n * gadget.operands),), (("c", word, n),))
        case Broadcast():
            n, m = gadget.counts
            return Layout((("a", word, batch * n), ("b", word, batch * m)), (("c", word, batch * n),))
        case Opening():
            return Layout((), ())


def part_bytes(fields: Fields) -> int:
    """Returns the bytes of a part; every field begins at a whole word."""
    return sum(8 * _words(dtype, count) for _, dtype, count in fields)


def views(fields: Fields, words: np.ndarray) -> dict[str, np.ndarray]:
    """Cuts a part's words into its fields."""
    cut, at = {}, 0
    for name, dtype, count in fields:
        size = _words(dtype, count)
        cut[name] = words[at : at + size].view(dtype)[:count]
        at += size
    return cut


def expand_part(stream: Keystream, arena: Arena, fields: Fields) -> dict[str, np.ndarray]:
    """Expands one part from a stream."""
    words = arena.cut(part_bytes(fields))
    stream.fill(words)
    return views(fields, words)


def expand(
    ring: Ring,
    stream: Keystream,
    arena: Arena,
    gadget: Gadget,
    batch: int,
    receive: Callable[[np.ndarray], None] | None = None,
) -> Material:
    """Returns a party's material.

    Party 1 expands both parts from its stream. Party 0 expands the drawn part and gets the dealt part from
    `receive(words)`.
    """
    shape = layout(ring, gadget, batch)
    drawn, dealt = arena.cut(part_bytes(shape.drawn)), arena.cut(part_bytes(shape.dealt))
    ranges = [stream.fill(drawn)] if drawn.size else []
    if dealt.size:
        if receive is None:
            ranges.append(stream.fill(dealt))
        else:
            receive(dealt)
    return Material(gadget, views(shape.drawn, drawn) | views(shape.dealt, dealt), ranges)


def deal(
    gadget: Gadget,
    first: Mapping[str, np.ndarray],
    second: Mapping[str, np.ndarray],
    corrections: Mapping[str, np.ndarray],
    product: Callable[[np.ndarray], np.ndarray] | None = None,
) -> None:
    """Turns party 1's shares of the dealt part (`corrections`) into party 0's, in place.

    `first` and `second` are the drawn parts of parties 0 and 1. `product` computes a * B for a linear layer.
    """
    out = corrections
    match gadget:
        case Truncation():
            kernels.deal_truncate(gadget.shift, first["r"], second["r"], out["u"], out["mu"])
        case Rectification():
            a, b = first["masks"], second["masks"]
            kernels.deal_products(gadget.positions, a, b, out["products"])
            if gadget.shift == 0:
                kernels.deal_select(gadget.positions, a, b, first["a"], second["a"], out["rho"], out["rho_a"])
                return
            kernels.deal_select_truncate(
                gadget.positions,
                gadget.shift,
                a,
                b,
                first["r"],
                second["r"],
                out["rho"],
                out["rho_u"],
                out["u"],
                out["mu"],
                out["rho_mu"],
            )
            kernels.deal_truncate(
                gadget.shift, first["rest_r"], second["rest_r"], out["rest_u"], out["rest_mu"]
            )
        case Bilinear():
            a = first["a"]
            a += second["a"]
            np.subtract(product(a), out["c"], out=out["c"])
        case Beaver():
            a = first["a"] + second["a"]
            count = out["c"].size
            np.subtract(a[:count] * a[-count:], out["c"], out=out["c"])
        case Broadcast():
            a = (first["a"] + second["a"]).reshape(-1, *gadget.shape)
            b = (first["b"] + second["b"]).reshape(-1, *gadget.smaller)
            np.subtract((a * b).reshape(-1), out["c"], out=out["c"])


def _bit_type(shift: int) -> type:
    return np.uint16 if shift <= 16 else np.uint32


def _words(dtype: type, count: int) -> int:
    return -(-count * np.dtype(dtype).itemsize // 8)
