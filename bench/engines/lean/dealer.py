"""The dealer: a process that knows both parties' keys and deals the randomness that depends on both.

It takes part in load and prepare only, before any input exists. It never sees a share or an opened value.
"""

from __future__ import annotations

import torch

from pibench.engines.base import Helper, Setting
from pibench.engines.lean import material
from pibench.engines.lean.channel import connect
from pibench.engines.lean.keystream import Keystream, fresh_key
from pibench.engines.lean.linear import lowering
from pibench.engines.lean.memory import Workspace
from pibench.engines.lean.plan import Bilinear, Plan, make_plan
from pibench.engines.lean.ring import arithmetic
from pibench.program.ir import Program

DEALER_RANK = 2
WORLD = 3


class Dealer(Helper):
    """Deals the corrections that turn independent masks into correlated randomness."""

    def __init__(self, setting: Setting) -> None:
        super().__init__(setting)
        self._channels, self._store = connect(setting, WORLD)
        self._ring, self._compare = arithmetic(setting.engine)
        self._space = Workspace()
        self._plan: Plan | None = None
        self._masks: dict[str, torch.Tensor] = {}
        self.streams: tuple[Keystream, Keystream] | None = None

    def load(self, program: Program) -> None:
        """Sends fresh keys and expands the parties' shares of the weight masks B."""
        self._plan = make_plan(program, self._ring, self._compare)
        keys = fresh_key(), fresh_key()
        for rank, key in enumerate(keys):
            self._channels[rank].send(key)
        self.streams = Keystream(keys[0]), Keystream(keys[1])
        self._masks = {}
        for name, gadget in self._plan.gadgets():
            if isinstance(gadget, Bilinear):
                shape = gadget.step.operator.weight_shape
                size = torch.Size(shape).numel()
                mask = self.streams[0].words(size, self._ring.signed)
                mask += self.streams[1].words(size, self._ring.signed)
                self._masks[name] = lowering(gadget.step).arrange(torch.from_numpy(mask).view(shape))

    def prepare(self, batch: int) -> int:
        """Deals one inference's randomness to party 0; returns the bytes sent."""
        if self._plan is None:
            raise RuntimeError("the dealer was asked to prepare before it knew a program: call load first")
        sent = 0
        for name, gadget in self._plan.gadgets():
            shape = material.layout(self._ring, gadget, batch)
            drawn, dealt = material.part_bytes(shape.drawn) // 8, material.part_bytes(shape.dealt) // 8
            if not dealt:
                continue
            first, second = self._space.words("first", drawn), self._space.words("second", drawn)
            corrections = self._space.words("corrections", dealt)
            self.streams[0].fill(first)
            self.streams[1].fill(second)
            self.streams[1].fill(corrections)

            def product(a, name=name, gadget=gadget):
                x = torch.from_numpy(a.view(self._ring.signed)).view(batch, *gadget.step.input_shapes[0])
                y = lowering(gadget.step).apply(x, self._masks[name])
                return y.reshape(-1).numpy().view(self._ring.word)

            material.deal(
                gadget,
                material.views(shape.drawn, first),
                material.views(shape.drawn, second),
                material.views(shape.dealt, corrections),
                product,
            )
            self._channels[0].send(corrections)
            sent += corrections.nbytes
        return sent
