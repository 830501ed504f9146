"""The gradients of one step: computed anew each time, or replayed from a graph recorded on a CUDA device.

At width 16 a step is near a thousand short kernels, and a GPU waits for Python to launch them. A CUDA graph
records the launches of one step, loss and backward pass, and replays them at once. What a recorded step
depends on has to stand in tensors that keep their place: weights, masks, images. For what does not, such as
the weights of a loss, a task names its `constants`, and a step is recorded again when they change.
"""

from collections.abc import Callable, Hashable, Sequence
from contextlib import AbstractContextManager
from typing import Protocol

import torch
from torch import Tensor

WARM_UP = 3
"""Steps that run as usual before one is recorded, as CUDA graphs ask for."""


class Differentiable(Protocol):
    """What gradients need of a task."""

    def constants(self) -> Hashable | None:
        """Returns what the loss depends on besides tensors, None while that changes from step to step."""

    def loss(self, x: Tensor, labels: Tensor) -> Tensor:
        """Returns the loss of a batch x [N, C, H, W]."""


class Gradients:
    """Puts the gradients of a batch's loss into the parameters; calling it returns the loss, a scalar."""

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
    """Records a step once the task's constants have held for `WARM_UP` steps, then replays it.

    The loss that is returned is overwritten by the next step.
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
        """Takes a step on a stream of its own, as the recording will."""
        self.stream = self.stream or torch.cuda.Stream()
        self.stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(self.stream):
            loss = super().__call__(x, labels)
        torch.cuda.current_stream().wait_stream(self.stream)
        return loss

    def _record(self, x: Tensor, labels: Tensor) -> None:
        self._forget()  # what is recorded writes the gradients instead of adding to them
        self.x, self.labels = x.clone(), labels.clone()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            self.recorded = self._compute(self.x, self.labels)
        self.graph = graph
