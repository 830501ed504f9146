"""The traffic of a program on the stock engine, without running it: every collective of an inference.

Each operator is a list of the collectives of CrypTen 0.4.1. They are taken from its source
(`crypten/mpc/primitives`, `crypten/common/functions`) with the default configuration: Beaver protocol,
maximum by log reduction. One collective is one round. n counts elements of the whole batch, a word is 8
bytes, P is the number of parties.

    AND of n words             one all-reduce of n and n
    sum of two binary words    1 AND of n, then log2(64) = 6 levels that update S and P at once: ANDs of 2n
    sign (x < 0)               P binary shares summed in a tree, then one bit to arithmetic: all-reduce of n
    ReLU                       sign, then a product: (2 + 6 * 4 + 1 + 2) n = 29 n words and 9 rounds for P = 2
    product / square           all-reduce of n and n / of n
    linear map                 all-reduce of |x| and |W|: the weights are masked and opened again
    division by a constant     nothing for P = 2; a gather of n at party 0 (the wrap count) for P = 3

Tensors of one all-reduce travel at the same time, so the larger one decides the number of one-way trips
(`pibench.links.model.ring_hops`). A gather takes two: the receiver is ready, then the data. The truncation
after a fixed-point product is such a division; a product with a bit needs none. This module neither imports
CrypTen nor starts a process.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import singledispatch
from math import log, prod

from pibench.engines.base import StepTraffic
from pibench.links.model import ring_hops
from pibench.program import ir

WORD = 8
BITS = 64
LEVELS = 6
"""Levels of the carry tree: log2(BITS)."""
FRACTION_BITS = 16
PAIRWISE_LIMIT = 2 * BITS
"""CrypTen multiplies fewer pairwise comparisons than this and counts as many or more."""


@dataclass(frozen=True)
class AllReduce:
    """Opens `words` shared words to every party, by a ring; `beside` more at the same time, by another."""

    words: int
    beside: int = 0

    def sent(self, rank: int, parties: int) -> int:
        """Returns the bytes that a party sends: 2 (P - 1) / P of the payload."""
        return 2 * (parties - 1) * WORD * (self.words + self.beside) // parties

    def hops(self, parties: int) -> int:
        """Returns the one-way trips in sequence: those of the larger tensor."""
        return ring_hops(WORD * max(self.words, self.beside), parties)


@dataclass(frozen=True)
class Gather:
    """Sends `words` words of each party to party 0."""

    words: int

    def sent(self, rank: int, parties: int) -> int:
        """Returns the bytes that a party sends: the payload, or 0 at party 0."""
        return 0 if rank == 0 else WORD * self.words

    def hops(self, parties: int) -> int:
        """Returns the one-way trips in sequence: party 0 is ready, then the data."""
        return 2


Collective = AllReduce | Gather
Collectives = list[Collective]


def conjunction(n: int) -> Collectives:
    """Lists the collectives of n ANDs of binary words."""
    return [AllReduce(n, n)]


def binary_sum(n: int) -> Collectives:
    """Lists the collectives of the sums of n pairs of binary shared words."""
    return conjunction(n) + LEVELS * conjunction(2 * n)


def to_binary(n: int, parties: int) -> Collectives:
    """Lists the collectives that turn n arithmetic words into binary ones: a tree of sums of shares."""
    made: Collectives = []
    left = parties
    while left > 1:
        made += binary_sum(left // 2 * n)
        left -= left // 2
    return made


def sign(n: int, parties: int) -> Collectives:
    """Lists the collectives of one bit x < 0 for each of n words, as arithmetic shares."""
    return [*to_binary(n, parties), AllReduce(n)]


def equality(n: int, parties: int) -> Collectives:
    """Lists the collectives of one bit x = 0 for each of n words.

    Two parties use an AND tree of their words. Three parties compute x < 0 and -x < 0 at once.
    """
    if parties == 2:
        return [*(LEVELS * conjunction(n)), AllReduce(n)]
    return sign(2 * n, parties)


def product(n: int) -> Collectives:
    """Lists the collectives of n products of two secrets, not truncated."""
    return [AllReduce(n, n)]


def division(n: int, parties: int) -> Collectives:
    """Lists the collectives of n divisions by a public integer; truncations are such divisions."""
    return [] if parties == 2 else [Gather(n)]


def rectified(n: int, parties: int) -> Collectives:
    """Lists the collectives of n ReLUs; the bit x >= 0 is an integer, so its product needs no truncation."""
    return sign(n, parties) + product(n)


def one_of_ties(rows: int, window: int, parties: int) -> Collectives:
    """Lists the collectives that keep one marked entry of each row at random.

    16 random bits a row are scaled and compared with sums.
    """
    return [AllReduce(FRACTION_BITS * rows), *product(rows), *sign(window * rows, parties)]


def maximum(rows: int, window: int, parties: int) -> Collectives:
    """Lists the collectives of the maximum of `rows` rows of `window` entries, with the one-hot argmax.

    The log reduction has floor(ln window) halvings. It compares all pairs of the remaining entries and
    multiplies them by their one-hot maximum. The argmax then runs over the entire window. Pooling does not
    need it, but CrypTen computes it in any case.
    """
    made: Collectives = []
    left = window
    for _ in range(int(log(window))):
        pairs = left // 2
        made += sign(pairs * rows, parties) + 2 * product(pairs * rows)
        left -= pairs
    others = max(left - 1, 1)
    made += sign(others * left * rows, parties)
    if others < PAIRWISE_LIMIT:
        while others > 1:
            made += product(others // 2 * left * rows)
            others -= others // 2
    else:
        made += sign(left * rows, parties)
    made += one_of_ties(rows, left, parties) + product(left * rows)
    return made + equality(window * rows, parties) + one_of_ties(rows, window, parties)


@singledispatch
def _collectives(operator: object, step: ir.Step, batch: int, parties: int) -> Collectives:
    raise NotImplementedError(
        f"the cost of {step.kind!r} (step {step.name!r}) on the stock engine is unknown; "
        "add it to bench/engines/crypten/cost.py"
    )


@_collectives.register(ir.Convolution)
@_collectives.register(ir.Linear)
@_collectives.register(ir.Affine)
def _(
    operator: ir.Convolution | ir.Linear | ir.Affine, step: ir.Step, batch: int, parties: int
) -> Collectives:
    opened = AllReduce(batch * step.input_size, prod(operator.weight_shape))
    return [opened, *division(batch * step.size, parties)]


@_collectives.register
def _(operator: ir.Relu, step: ir.Step, batch: int, parties: int) -> Collectives:
    return rectified(batch * (step.size if operator.kept is None else operator.kept.size), parties)


@_collectives.register(ir.AveragePool)
@_collectives.register(ir.Mean)
@_collectives.register(ir.Scale)
def _(operator: object, step: ir.Step, batch: int, parties: int) -> Collectives:
    return division(batch * step.size, parties)


@_collectives.register
def _(operator: ir.MaxPool, step: ir.Step, batch: int, parties: int) -> Collectives:
    return maximum(batch * step.size, prod(operator.kernel), parties)


@_collectives.register
def _(operator: ir.Multiply, step: ir.Step, batch: int, parties: int) -> Collectives:
    factors = AllReduce(*(batch * prod(shape) for shape in step.input_shapes))
    return [factors, *division(batch * step.size, parties)]


@_collectives.register
def _(operator: ir.PiecewiseLinear, step: ir.Step, batch: int, parties: int) -> Collectives:
    made = rectified(len(operator.knots) * batch * step.size, parties)
    return made if operator.integer else made + division(batch * step.size, parties)


@_collectives.register(ir.Combine)
@_collectives.register(ir.Weigh)
def _(operator: ir.Combine | ir.Weigh, step: ir.Step, batch: int, parties: int) -> Collectives:
    return [] if operator.integer else division(batch * step.size, parties)


@_collectives.register
def _(operator: ir.Square, step: ir.Step, batch: int, parties: int) -> Collectives:
    return [AllReduce(batch * step.size), *division(batch * step.size, parties)]


@_collectives.register(ir.Add)
@_collectives.register(ir.Concatenate)
@_collectives.register(ir.Flatten)
@_collectives.register(ir.Rearrange)
@_collectives.register(ir.Shift)
@_collectives.register(ir.Sum)
def _(operator: object, step: ir.Step, batch: int, parties: int) -> Collectives:
    return []


def step_collectives(step: ir.Step, batch: int = 1, parties: int = 2) -> Collectives:
    """Returns the collectives of one step, in order."""
    return _collectives(step.operator, step, batch, parties)


def opening_collectives(program: ir.Program, batch: int = 1) -> Collectives:
    """Returns the collective that opens the output to every party."""
    sizes = {program.input: prod(program.input_shape)} | {step.name: step.size for step in program.steps}
    return [AllReduce(batch * sizes[program.output])]


def traffic(program: ir.Program, batch: int, parties: int) -> list[StepTraffic]:
    """Returns the traffic of every step of one inference, and of the opening."""

    def sent(name: str, kind: str, made: Collectives) -> StepTraffic:
        by_party = tuple(sum(each.sent(rank, parties) for each in made) for rank in range(parties))
        return StepTraffic(name, kind, len(made), sum(each.hops(parties) for each in made), by_party)

    listed = [sent(s.name, s.kind, step_collectives(s, batch, parties)) for s in program.steps]
    return [*listed, sent("open", "open", opening_collectives(program, batch))]
