"""The traffic of a program under SPU's protocols without running it: no call of SPU, no import of it.

`primitives` says what SPU computes for each operator. `semi2k`, `aby3` and `cheetah` price it. The counted
rounds are messages, as `node` counts them. The one-way trips in sequence are fewer: messages that do not wait
for each other are one trip.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from math import floor, prod

from pibench.engines.base import StepTraffic
from pibench.engines.spu import aby3, cheetah, semi2k
from pibench.engines.spu.price import Price, nothing, total
from pibench.engines.spu.primitives import Primitive, owners_of, primitives
from pibench.program.ir import Program

OPENS = 1
"""The party that sees the logits."""


def _varint(number: int) -> int:
    """Returns the bytes of a number in a protocol buffer."""
    return max(1, -(-number.bit_length() // 7))


def _described(share_type: str, shape: tuple[int, ...], share_bytes: int) -> int:
    """Returns the bytes of a share with its description (`link.packed`).

    They are the lengths of the parts (number, description, one chunk), the description (data type,
    visibility, shape, type of the share) and the chunk (its size and its words).
    """
    dims = sum(map(_varint, shape))
    shaped = 1 + _varint(dims) + dims
    meta = 2 + 2 + 1 + _varint(shaped) + shaped + 1 + _varint(len(share_type)) + len(share_type)
    chunk = 1 + _varint(share_bytes) + 1 + _varint(share_bytes) + share_bytes
    return 8 * 3 + meta + chunk


@dataclass(frozen=True)
class Law:
    """The law of a protocol: parties, the type of a share, its bytes for each word, and the prices.

    `image_type` is the type of what party 1 computes from the image alone, where that is not shared.
    """

    parties: int
    share_type: str
    share_bytes: int
    prices: Callable[[list[Primitive]], list[Price]]
    image_type: str | None = None


LAWS = {
    "spu-semi2k": Law(semi2k.PARTIES, semi2k.SHARE_TYPE, semi2k.WORD, semi2k.prices),
    "spu-aby3": Law(aby3.PARTIES, aby3.SHARE_TYPE, aby3.ELEMENT, aby3.prices),
    "spu-cheetah": Law(cheetah.PARTIES, cheetah.SHARE_TYPE, cheetah.WORD, cheetah.prices, cheetah.IMAGE_TYPE),
}
"""Laws by the name of the engine, as `protocols.PROTOCOLS`."""


def _opening(law: Law, program: Program, batch: int) -> Price:
    shapes = {program.input: program.input_shape} | {step.name: step.shape for step in program.steps}
    shape = (batch, *shapes[program.output])
    own = law.image_type if owners_of(program)[program.output] == "image" else None
    sent = _described(own or law.share_type, shape, law.share_bytes * prod(shape))
    return Price(
        tuple(0 if rank == OPENS else sent for rank in range(law.parties)),
        tuple(0 if rank == OPENS else 1 for rank in range(law.parties)),
        1,
    )


def traffic(engine: str, program: Program, batch: int) -> list[StepTraffic]:
    """Returns the traffic of every step of one inference, and of the opening.

    Fractions are rounded such that every sum of steps is rounded too.
    """
    law = LAWS[engine]
    steps = primitives(program, batch)
    priced = iter(law.prices([each for _, made in steps for each in made]))
    listed = [
        *((step.name, step.kind, total(law.parties, (next(priced) for _ in made))) for step, made in steps),
        ("open", "open", _opening(law, program, batch)),
    ]
    spent = nothing(law.parties)
    found = []
    for name, kind, price in listed:
        before, spent = spent, spent + price
        messages = _whole(before.messages, spent.messages)
        sent = _whole(before.sent, spent.sent)
        hops = floor(spent.hops + 0.5) - floor(before.hops + 0.5)
        found.append(StepTraffic(name, kind, max(messages), hops, sent, messages))
    return found


def _whole(before: tuple[float, ...], after: tuple[float, ...]) -> tuple[int, ...]:
    return tuple(floor(b + 0.5) - floor(a + 0.5) for a, b in zip(before, after, strict=True))
