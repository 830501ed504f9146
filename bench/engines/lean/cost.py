"""The traffic of a program without running it: rounds, and payload bytes sent by a party.

A word has w bytes (8, or 4 in a ring of 32 bits).

- A linear layer: w |x| bytes, 1 round.
- A ReLU layer of n evaluated elements (over the whole batch): 8 b ceil(n / 64) + w n bytes, 5 rounds. The b
  bits are generate bits, tree bits and one select bit: 63 + 146 + 1 where 64 bits are compared, 47 + 109 + 1
  for 48, 31 + 72 + 1 for 32, 15 + 34 + 1 for 16 (4 rounds). A truncated ReLU layer adds w bytes for each
  position that a mask leaves linear.
- A truncation alone: w bytes, 1 round.
- A product: 2 w bytes, 1 round. A square: w bytes, 1 round. If the second factor is repeated: w bytes for
  each element of both factors.
- The opening: w bytes a logit from party 0 to party 1, 1 round.
"""

from typing import NamedTuple

from pibench.engines.base import StepTraffic
from pibench.engines.lean.kernels import blocks, masks_of
from pibench.engines.lean.plan import (
    OPENING,
    Beaver,
    Bilinear,
    Broadcast,
    Gadget,
    Opening,
    Plan,
    Rectification,
    Truncation,
    make_plan,
)
from pibench.engines.lean.ring import Ring, arithmetic
from pibench.program.ir import Program


class Traffic(NamedTuple):
    """Rounds, and payload bytes that one party sends."""

    rounds: int
    bytes_sent: int


def gadget_traffic(ring: Ring, gadget: Gadget, batch: int, rank: int) -> Traffic:
    """Returns the traffic of one gadget at party `rank`."""
    word = ring.nbytes
    match gadget:
        case Truncation() | Bilinear():
            sent = word * batch * gadget.count
        case Rectification():
            n = batch * gadget.kept
            sent = 8 * masks_of(gadget.positions) * blocks(n) + word * (n + batch * gadget.linear)
        case Beaver():
            sent = word * batch * gadget.count * gadget.operands
        case Broadcast():
            sent = word * batch * sum(gadget.counts)
        case Opening():
            sent = word * batch * gadget.count if rank == 0 else 0
    return Traffic(gadget.rounds, sent)


def step_traffic(plan: Plan, batch: int = 1, rank: int = 0) -> dict[str, Traffic]:
    """Returns the traffic of each step, by name; the opening (with the last truncation) is `plan.OPENING`."""
    total = dict.fromkeys([*plan.steps, OPENING], Traffic(0, 0))
    for name, gadget in plan.gadgets():
        cost = gadget_traffic(plan.ring, gadget, batch, rank)
        total[name] = Traffic(total[name].rounds + cost.rounds, total[name].bytes_sent + cost.bytes_sent)
    return total


def traffic(engine: str, program: Program, batch: int, parties: int) -> list[StepTraffic]:
    """Returns the traffic of every step of one inference, and of the opening; a round is one hop."""
    plan = make_plan(program, *arithmetic(engine))
    ranks = [step_traffic(plan, batch, rank) for rank in range(parties)]
    kinds = {step.name: step.kind for step in program.steps}
    listed = []
    for name in [*kinds, OPENING]:
        rounds = max(each[name].rounds for each in ranks)
        by_party = tuple(each[name].bytes_sent for each in ranks)
        kind = kinds.get(name, "open")
        listed.append(StepTraffic("open" if name == OPENING else name, kind, rounds, rounds, by_party))
    return listed
