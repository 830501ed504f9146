"""The traffic of a program without running it: rounds, and payload bytes sent by a party.

- A linear layer: 8 |x| bytes, 1 round.
- A ReLU layer of n evaluated elements (over the whole batch): 1,680 ceil(n / 64) + 8 n bytes, 5 rounds. These
  are 63 generate bits, 146 tree bits, 1 select bit and one word. A truncated ReLU layer adds 8 bytes for each
  position that a mask leaves linear.
- A truncation alone: 8 bytes, 1 round.
- A product: 16 bytes, 1 round. A square: 8 bytes, 1 round. If the second factor is repeated: 8 bytes for each
  element of both factors.
- The opening: 8 bytes a logit from party 0 to party 1, 1 round.
"""

from typing import NamedTuple

from pibench.engines.base import StepTraffic
from pibench.engines.lean.plan import (
    OPENING,
    Beaver,
    Bilinear,
    Broadcast,
    Gadget,
    Opening,
    Rectification,
    Truncation,
    make_plan,
)
from pibench.program.ir import Program


class Traffic(NamedTuple):
    """Rounds, and payload bytes that one party sends."""

    rounds: int
    bytes_sent: int


def gadget_traffic(gadget: Gadget, batch: int, rank: int) -> Traffic:
    """Returns the traffic of one gadget at party `rank`."""
    match gadget:
        case Truncation() | Bilinear():
            sent = 8 * batch * gadget.count
        case Rectification():
            n = batch * gadget.kept
            sent = 1680 * -(-n // 64) + 8 * n + 8 * batch * gadget.linear
        case Beaver():
            sent = 8 * batch * gadget.count * gadget.operands
        case Broadcast():
            sent = 8 * batch * sum(gadget.counts)
        case Opening():
            sent = 8 * batch * gadget.count if rank == 0 else 0
    return Traffic(gadget.rounds, sent)


def step_traffic(program: Program, batch: int = 1, rank: int = 0) -> dict[str, Traffic]:
    """Returns the traffic of each step, by name; the opening (with the last truncation) is `plan.OPENING`."""
    plan = make_plan(program)
    total = dict.fromkeys([*plan.steps, OPENING], Traffic(0, 0))
    for name, gadget in plan.gadgets():
        cost = gadget_traffic(gadget, batch, rank)
        total[name] = Traffic(total[name].rounds + cost.rounds, total[name].bytes_sent + cost.bytes_sent)
    return total


def traffic(program: Program, batch: int, parties: int) -> list[StepTraffic]:
    """Returns the traffic of every step of one inference, and of the opening; a round is one hop."""
    ranks = [step_traffic(program, batch, rank) for rank in range(parties)]
    kinds = {step.name: step.kind for step in program.steps}
    listed = []
    for name in [*kinds, OPENING]:
        rounds = max(each[name].rounds for each in ranks)
        by_party = tuple(each[name].bytes_sent for each in ranks)
        kind = kinds.get(name, "open")
        listed.append(StepTraffic("open" if name == OPENING else name, kind, rounds, rounds, by_party))
    return listed
