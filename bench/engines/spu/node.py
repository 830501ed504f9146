"""A party of an SPU engine: its memory holds shares by name, and SPU's code works on them."""

from __future__ import annotations

import gc
from collections.abc import Callable, Mapping

import numpy as np
import torch
from spu import libspu
from spu.api import Io, Runtime

from pibench.engines.base import Node, NotPrepared, Setting, StepCost
from pibench.engines.spu.compiler import START, Request, compiled, read_codes, weight, weight_shapes
from pibench.engines.spu.link import connect, packed, unpacked
from pibench.engines.spu.log import Log
from pibench.engines.spu.protocols import PROTOCOLS, runtime_config
from pibench.program.ir import Program, Step

OWNER_OF_WEIGHTS, OWNER_OF_IMAGES = 0, 1
COMPILES = 0


class SpuNode(Node):
    """A party that runs SPU's virtual machine.

    `meter` counts messages as rounds, because SPU counts no rounds. A message is a round wherever a party
    waits for one before it sends the next.
    """

    metered = True

    def __init__(self, setting: Setting) -> None:
        super().__init__(setting)
        self._link, self._store = connect(setting)
        config = runtime_config(PROTOCOLS[setting.engine], self.metered)
        self._io = Io(setting.parties, config)
        self._machine = Runtime(self._link, config)
        self._log = Log()
        self._networks: dict[int, libspu.Executable] = {}
        self._layers: dict[int, dict[str, libspu.Executable]] = {}
        self._held: set[str] = set()  # names in the machine's memory
        self._started = False
        self._prepared: int | None = None
        self._batch = 0

    def barrier(self) -> None:
        """Returns when every party has arrived."""
        self._link.barrier()

    def small_round(self) -> None:
        """Sends 64 bytes to every other party and receives as many."""
        self._link.all_gather("0" * 64)

    # Set-up

    def load(self, program: Program, weights: Mapping[str, torch.Tensor] | None) -> None:
        """Compiles for one image, shares the weights and starts the protocol.

        Party 0 makes the shares of the weights and sends each other party its own.
        """
        self.forget()
        start, self._networks[1] = self._compiled(Request(START, 1), self._request(program, 1))
        if not self._started:
            self._start(start)
        self.program = program
        for name, shape in weight_shapes(program.steps).items():
            plain = None if weights is None else weights[name].reshape(shape)
            self._share(weight(name), plain, OWNER_OF_WEIGHTS)

    def _start(self, start: libspu.Executable) -> None:
        """Multiplies and compares some zeros, so that no inference is the first computation.

        CHEETAH then exchanges its keys and makes its first oblivious transfers: 10 MB, some seconds.
        """
        for name, shape in weight_shapes(START.steps).items():
            self._share(weight(name), torch.zeros(shape), OWNER_OF_WEIGHTS)
        self._share(START.input, torch.zeros(1, *START.input_shape), OWNER_OF_IMAGES)
        self._execute(start)
        self._started = True

    def forget(self) -> None:
        """Empties the machine's memory."""
        self.program = None
        self._prepared = None
        self._networks.clear()
        self._layers.clear()
        for name in self._held:
            self._machine.del_var(name)
        self._held.clear()
        gc.collect()

    def plan(self, batch: int) -> None:
        """Compiles the program for a batch, once."""
        if batch not in self._networks:
            (self._networks[batch],) = self._compiled(self._request(self.program, batch))

    def prepare(self, batch: int) -> int:
        """Does nothing: these protocols do all their work in the inference."""
        self._prepared = batch
        return 0

    def start(self, batch: int) -> None:
        """Raises NotPrepared unless the code for this batch is compiled."""
        if self._prepared != batch:
            raise NotPrepared(f"nothing is prepared for a batch of {batch}; call prepare({batch}) first")
        self._prepared, self._batch = None, batch

    def _request(self, program: Program, batch: int) -> Request:
        """Asks for the code of the whole program."""
        return Request(program, batch)

    def _compiled(self, *requests: Request) -> list[libspu.Executable]:
        """Compiles at party 0, which sends the code to the others."""
        if self.rank == COMPILES:
            message = compiled(*requests)
            for rank in self._others():
                self._send(rank, message)
        else:
            message = self._link.recv(COMPILES)
        return [
            libspu.Executable(code.name, code.inputs, [code.output], code.text.encode())
            for code in read_codes(message)
        ]

    def _share(self, name: str, plain: torch.Tensor | None, owner: int) -> None:
        """Stores this party's share of a value, which `owner` alone receives, under `name` in the memory."""
        if self.rank == owner:
            array = np.ascontiguousarray(plain.numpy(), np.float32)
            shares = self._io.make_shares(array, libspu.Visibility.VIS_SECRET, owner)
            for rank in self._others():
                self._send(rank, packed(shares[rank]))
            own = shares[self.rank]
        else:
            own = unpacked(self._link.recv(owner))
        self._machine.set_var(name, own)
        self._held.add(name)

    def _others(self) -> list[int]:
        return [rank for rank in range(self.setting.parties) if rank != self.rank]

    def _send(self, rank: int, message: bytes) -> None:
        self._link.send(rank, message)
        self.meter.count(len(message))

    # Inference

    def share(self, images: torch.Tensor | None, batch: int) -> str:
        """Shares the images; party 1 makes the shares. Returns their name."""
        self._share(self.program.input, images, OWNER_OF_IMAGES)
        return self.program.input

    def run(self, shared: str, after: Callable[[Step], None] | None = None) -> torch.Tensor | None:
        """Runs the whole program at once, or step by step if `after` must be called."""
        if after is None:
            self._execute(self._networks[self._batch])
            return self.reveal(self.program.output)
        return super().run(shared, after)

    def profile(self, shared: str) -> list[StepCost]:
        """Runs each step's code alone, which is compiled before the clocks start."""
        if self._batch not in self._layers:
            layers = self._compiled(Request(self.program, self._batch, stepwise=True))
            self._layers[self._batch] = {layer.name: layer for layer in layers}
        self.barrier()
        return super().profile(shared)

    def apply(self, step: Step, *inputs: str) -> str:
        """Runs the code of one step; returns the name of its value."""
        self._execute(self._layers[self._batch][step.name])
        last = self.program.last_uses()
        for name in {name for name in inputs if last.get(name) == step.name}:
            self._machine.del_var(name)
            self._held.remove(name)
        return step.name

    def _execute(self, executable: libspu.Executable) -> None:
        self._machine.run(executable)
        self._held.update(executable.output_names)
        if not self.metered:
            return
        sent = self._log.sent()
        self.meter.rounds += sent.actions
        self.meter.hops += sent.actions
        self.meter.bytes_sent += sent.bytes_sent

    def reveal(self, value: str) -> torch.Tensor | None:
        """Opens the logits to party 1; the others send it their shares."""
        own = self._machine.get_var(value)
        if self.rank != OWNER_OF_IMAGES:
            self._send(OWNER_OF_IMAGES, packed(own))
            return None
        shares = [
            own if rank == self.rank else unpacked(self._link.recv(rank))
            for rank in range(self.setting.parties)
        ]
        return torch.from_numpy(self._io.reconstruct(shares)).float()


class ByHand(SpuNode):
    """A party that runs the CIFAR ResNet-18 of `byhand` instead of the program, with the program's weights.

    It runs without SPU's profile, as a user's own script would. Its rounds and bytes are therefore not
    counted, except those of the opening.
    """

    metered = False

    def _request(self, program: Program, batch: int) -> Request:
        return Request(program, batch, by_hand=True)
