"""The gradients of one step: computed anew each time, or replayed from a graph recorded on a CUDA device.

At width 16 a step has about a thousand short kernels, and a GPU waits for Python to launch them. A CUDA graph
records the launches of one step, loss and backward pass, and replays them at once. A recorded step may depend
only on tensors that keep their place: weights, masks, images. A task lists all other dependences, such as the
weights of a loss, as its `constants`. A step is recorded again when they change.
"""

from collections.abc import Callable, Hashable, Sequence
from contextlib import AbstractContextManager
from typing import Protocol

import torch
from torch import Tensor

WARM_UP = 3
"""Steps that run as usual before one is recorded, as CUDA graphs ask for."""


class Differentiable(Protocol):
    """The part of a task that computes gradients."""

    def constants(self) -> Hashable | None:
        """Returns the values, besides tensors, on which the loss depends.

        None if they change at every step.
        """

    def loss(self, x: Tensor, labels: Tensor) -> Tensor:
        """Returns the loss of a batch x [N, C, H, W]."""


class Gradients:
    """Writes the gradients of a batch's loss into the parameters; calling it returns the loss, a scalar."""

    def __init__(
        self,
        task: Differentiable,
        optimizers: Sequence[torch.optim.Optimizer],
        autocast: Callable[[], AbstractContextManager],
    ) -> None:
        self.task, self.optimizers, self.autocast = task, optimizers, autocast

    def _forget(self) -> None:
        for optimizer in self.optimizers:
            optimizer.zero_grad()

    def _compute(self, x: Tensor, labels: Tensor) -> Tensor:
        with self.autocast():
            loss = self.task.loss(x, labels)
        loss.backward()
        return loss.detach()

    def __call__(self, x: Tensor, labels: Tensor) -> Tensor:
        self._forget()
        return self._compute(x, labels)


class RecordedGradients(Gradients):
    """Records a step after the task's constants have stayed equal for `WARM_UP` steps, then replays it.

    The next step overwrites the returned loss.
    """

    graph: torch.cuda.CUDAGraph | None = None
    stream: torch.cuda.Stream | None = None
    held: Hashable | None = None
    steps = 0

    def __call__(self, x: Tensor, labels: Tensor) -> Tensor:
        constants = self.task.constants()
        key = None if constants is None else (constants, x.shape)
        if key != self.held:
            self.graph, self.held, self.steps = None, key, 0
        if key is None:
            return super().__call__(x, labels)
        if self.graph is None and self.steps < WARM_UP:
            self.steps += 1
            return self._aside(x, labels)
        if self.graph is None:
            self._record(x, labels)
        self.x.copy_(x)
        self.labels.copy_(labels)
        self.graph.replay()
        return self.recorded

    def _aside(self, x: Tensor, labels: Tensor) -> Tensor:
        """Takes a step on a separate stream, as the recording will."""
        self.stream = self.stream or torch.cuda.Stream()
        self.stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(self.stream):
            loss = super().__call__(x, labels)
        torch.cuda.current_stream().wait_stream(self.stream)
        return loss

    def _record(self, x: Tensor, labels: Tensor) -> None:
        self._forget()  # the recorded step then writes the gradients instead of adding to them
        self.x, self.labels = x.clone(), labels.clone()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            self.recorded = self._compute(self.x, self.labels)
        self.graph = graph
