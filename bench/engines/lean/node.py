"""A party of the lean engine: additive shares in Z_2^l, with steps that follow the plan."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, MutableMapping
from dataclasses import dataclass
from functools import singledispatchmethod
from math import prod

import numpy as np
import torch
import torch.nn.functional as F

from pibench.engines.base import Node, NotPrepared, Setting
from pibench.engines.lean import material, relu
from pibench.engines.lean.channel import connect
from pibench.engines.lean.dealer import DEALER_RANK, WORLD
from pibench.engines.lean.keystream import KEY_BYTES, Keystream, fresh_key
from pibench.engines.lean.linear import Lowering, bias_shape, lowering
from pibench.engines.lean.material import Material
from pibench.engines.lean.memory import Arena, Workspace, release_blocks
from pibench.engines.lean.plan import OPENING, Bilinear, Plan, StepPlan, make_plan
from pibench.engines.lean.ring import Ring, arithmetic
from pibench.program.ir import (
    Add,
    Affine,
    AveragePool,
    Combine,
    Concatenate,
    Convolution,
    Flatten,
    Linear,
    MaxPool,
    Mean,
    Multiply,
    PiecewiseLinear,
    Program,
    Rearrange,
    Relu,
    Scale,
    Shift,
    Square,
    Step,
    Sum,
    Weigh,
)
from pibench.program.plaintext import rearranged


@dataclass
class Shared:
    """A party's share of a tensor [N, ...] (signed words of the ring) at `scale` fractional bits."""

    tensor: torch.Tensor
    scale: int


@dataclass(frozen=True)
class Weights:
    """A party's part of a linear layer: its share of W, the opened W - B, and the bias at party 0."""

    lowering: Lowering
    share: torch.Tensor
    delta: torch.Tensor
    bias: torch.Tensor | None


class Bundle:
    """The prepared randomness of one inference: each step's material can be taken only once."""

    def __init__(self, batch: int) -> None:
        self.batch = batch
        self.nbytes = 0
        self._items: dict[str, list[Material]] = {}

    def put(self, key: str, item: Material) -> None:
        """Adds the next material of a step."""
        self._items.setdefault(key, []).append(item)
        self.nbytes += sum(part.nbytes for part in item.fields.values())

    def take(self, key: str) -> Material:
        """Returns the next material of a step and forgets it; raises NotPrepared if it was used already."""
        items = self._items.get(key)
        if not items:
            raise NotPrepared(f"the randomness of step {key!r} was used already: call prepare again")
        return items.pop(0)


def encode(values: torch.Tensor, scale: int, ring: Ring) -> torch.Tensor:
    """Returns round(v 2^scale) modulo 2^l, as signed words of the ring."""
    return torch.round(values.detach().to(torch.float64) * 2.0**scale).to(torch.int64).to(ring.torch)


class LeanNode(Node):
    """Party 0 or 1.

    `consumed` lists the keystream ranges (stream, start, stop) of all material taken since the start of the
    process, of the weights' masks and of the inputs' shares. No range may occur twice.
    """

    def __init__(self, setting: Setting) -> None:
        super().__init__(setting)
        self._arithmetic = arithmetic(setting.engine)
        self.ring, _ = self._arithmetic
        channels, self._store = connect(setting, WORLD)
        self.peer = channels[1 - self.rank]
        self._dealer = channels[DEALER_RANK]
        self._space = Workspace()
        self._arena = Arena()
        self._plan: Plan | None = None
        self._weights: dict[str, Weights] = {}
        self._shifts: dict[str, torch.Tensor] = {}
        self._stream: Keystream | None = None
        self._pair: Keystream | None = None
        self._prepared: Bundle | None = None
        self._bundle: Bundle | None = None
        self.consumed: list[material.Range] = []

    def barrier(self) -> None:
        """Returns when the other party has arrived."""
        self.peer.exchange(b"\0", bytearray(1))

    def small_round(self) -> None:
        """Exchanges 64 bytes."""
        self.peer.exchange(bytes(64), bytearray(64))

    def _exchange(self, out: np.ndarray, into: np.ndarray) -> None:
        self.peer.exchange(out, into)
        self.meter.count(out.nbytes)

    # Set-up

    def forget(self) -> None:
        """Drops the weights, the randomness and the buffers of the loaded network."""
        self.program = self._plan = None
        self._prepared = self._bundle = None
        self._weights, self._shifts = {}, {}
        self._space, self._arena = Workspace(), Arena()
        release_blocks()

    def load(self, program: Program, weights: MutableMapping[str, torch.Tensor] | None) -> None:
        """Shares the weights W and opens W - B, once; B and all keys are fresh.

        Party 1 expands its share of W from a key that the parties have in common. W itself is therefore never
        sent. Every layer's W is dropped from `weights` as soon as it is shared.
        """
        if self.rank == 0 and weights is None:
            raise ValueError("party 0 holds the weights: load(program, weights) needs them there")
        self.forget()
        self.program, self._plan = program, make_plan(program, *self._arithmetic)
        self.ring = self._plan.ring
        key = bytearray(KEY_BYTES)
        self._dealer.receive(key)
        self._stream = Keystream(bytes(key))
        self._pair = Keystream(self._agree())
        layers = [(name, g.step) for name, g in self._plan.gadgets() if isinstance(g, Bilinear)]
        sizes = [prod(step.operator.weight_shape) for _, step in layers]
        uses = Counter(step.operator.weight for _, step in layers)
        shares = []
        for (name, step), size in zip(layers, sizes, strict=True):
            share = self._drawn(self._pair, size)
            if self.rank == 0:
                weight = step.operator.weight
                own = encode(weights[weight], self._plan.steps[name].weights, self.ring).reshape(-1).numpy()
                np.subtract(own, share, out=share)
                del own
                uses[weight] -= 1
                if not uses[weight]:
                    del weights[weight]
            shares.append(share)
        opened = self._opened(shares, sum(sizes))
        for (name, step), size in zip(reversed(layers), reversed(sizes), strict=True):
            how, shape = lowering(step), step.operator.weight_shape
            share = shares.pop()
            delta = opened[opened.size - size :].copy()
            opened.resize(opened.size - size, refcheck=False)  # its memory is free for the next layers
            bias = None
            if self.rank == 0 and step.operator.bias is not None:
                scale = self._plan.steps[name].scale
                bias = encode(weights[step.operator.bias], scale, self.ring).view(bias_shape(step))
            arranged = (how.arrange(torch.from_numpy(part).view(shape)) for part in (share, delta))
            self._weights[name] = Weights(how, *arranged, bias)
            del share, delta, arranged
            release_blocks()  # otherwise the peak holds every share twice
        if self.rank == 0:
            for name, plan in self._plan.steps.items():
                if isinstance(plan.step.operator, Shift):
                    self._shifts[name] = encode(weights[plan.step.operator.bias], plan.scale, self.ring)
        release_blocks()

    def _opened(self, shares: list[np.ndarray], size: int) -> np.ndarray:
        """Opens W - B of all layers in a row, in one round."""
        delta, at = np.empty(size, self.ring.signed), 0
        for share in shares:
            part = delta[at : at + share.size]
            self.consumed.append(self._stream.fill(part))
            np.subtract(share, part, out=part)
            at += share.size
        self.peer.open(delta)
        self.meter.count(delta.nbytes)
        return delta

    def _agree(self) -> bytes:
        """Returns a common key of the two parties, made by party 1."""
        key = np.frombuffer(bytearray(fresh_key()), np.uint8)
        empty = key[:0]
        if self.rank == 1:
            self._exchange(key, empty)
        else:
            self._exchange(empty, key)
        return key.tobytes()

    def _drawn(self, stream: Keystream, count: int) -> np.ndarray:
        words = np.empty(count, self.ring.signed)
        self.consumed.append(stream.fill(words))
        return words

    # Offline

    def plan(self, batch: int) -> None:
        """Takes the memory for a batch before the offline phase is timed; drops earlier preparations."""
        self._prepared = self._bundle = None
        gadgets = self._loaded().gadgets()
        self._arena.reset(sum(material.layout(self.ring, gadget, batch).nbytes for _, gadget in gadgets))

    def prepare(self, batch: int) -> int:
        """Expands, or receives, one inference's randomness; drops earlier preparations. Returns its bytes."""
        plan = self._loaded()
        self._prepared = self._bundle = None
        gadgets = plan.gadgets()
        self._arena.reset(sum(material.layout(self.ring, gadget, batch).nbytes for _, gadget in gadgets))
        bundle = Bundle(batch)
        receive = self._dealer.receive if self.rank == 0 else None
        for key, gadget in gadgets:
            item = material.expand(self.ring, self._stream, self._arena, gadget, batch, receive)
            if isinstance(gadget, Bilinear):
                weights = self._weights[key]
                a = _tensor(item.fields["a"], (batch, *gadget.step.input_shapes[0]))
                c = _tensor(item.fields["c"], (batch, *gadget.step.shape))
                c += weights.lowering.apply(a, weights.delta)
                if weights.bias is not None:
                    c += weights.bias
            bundle.put(key, item)
        self._prepared = bundle
        return bundle.nbytes

    def start(self, batch: int) -> None:
        """Takes the prepared randomness, once."""
        self._bundle = None
        bundle = self._prepared
        if bundle is None or bundle.batch != batch:
            have = "nothing is" if bundle is None else f"batch {bundle.batch} is"
            raise NotPrepared(f"{have} prepared, batch {batch} is asked for: call prepare({batch}) first")
        self._prepared, self._bundle = None, bundle

    def _take(self, key: str) -> Mapping[str, np.ndarray]:
        if self._bundle is None:
            raise NotPrepared("call prepare, then start, before each run")
        item = self._bundle.take(key)
        self.consumed.extend(item.ranges)
        return item.fields

    def _loaded(self) -> Plan:
        if self._plan is None:
            raise RuntimeError("no program is loaded: call load first")
        return self._plan

    # Online

    def share(self, images: torch.Tensor | None, batch: int) -> Shared:
        """Shares the images without sending anything.

        Party 0's share comes from the parties' common key. Party 1's share is the rest.
        """
        shape = (batch, *self._loaded().program.input_shape)
        if self.rank == 1 and (images is None or tuple(images.shape) != shape):
            have = "none" if images is None else str(tuple(images.shape))
            raise ValueError(f"party 1 holds the images: expected shape {shape}, got {have}")
        base = self.ring.fraction
        mask = torch.from_numpy(self._drawn(self._pair, prod(shape))).view(shape)
        return Shared(mask if self.rank == 0 else encode(images, base, self.ring) - mask, base)

    def apply(self, step: Step, *inputs: Shared) -> Shared:
        """Truncates the inputs that the plan truncates, then runs the step."""
        plan = self._plan.steps[step.name]
        for name in plan.truncate:
            self._truncate(step.name, inputs[step.inputs.index(name)])
        tensor = self._rule(type(step.operator))(self, step.operator, plan, *inputs)
        return Shared(tensor, plan.scale)

    def reveal(self, value: Shared) -> torch.Tensor | None:
        """Truncates the logits to the fractional bits of the ring and opens them to party 1."""
        if self._plan.truncate_output:
            self._truncate(OPENING, value)
        self._take(OPENING)
        words = _words(value.tensor)
        if self.rank == 0:
            self._exchange(words, words[:0])
            return None
        other = np.empty_like(words)
        self._exchange(words[:0], other)
        other += words
        return _tensor(other, value.tensor.shape).to(torch.float64).mul_(2.0**-self.ring.fraction).float()

    def _truncate(self, key: str, value: Shared) -> None:
        """Brings a value down to the fractional bits of the ring, for this use and every later one."""
        base = self.ring.fraction
        words = _words(value.tensor)
        out = torch.empty_like(value.tensor, memory_format=torch.contiguous_format)
        fields = self._take(key)
        relu.truncate(self.rank, self._exchange, words, value.scale - base, fields, self._space, _words(out))
        value.tensor, value.scale = out, base

    @singledispatchmethod
    def _apply(self, operator: object, plan: StepPlan, *inputs: Shared) -> torch.Tensor:
        raise NotImplementedError(type(operator).__name__)

    _rule = staticmethod(_apply.dispatcher.dispatch)
    """Finds the rule of an operator's class in a tenth of the time that the method itself takes."""

    @_apply.register(Convolution)
    @_apply.register(Linear)
    @_apply.register(Affine)
    def _(self, operator, plan, x):
        weights, fields = self._weights[plan.step.name], self._take(plan.step.name)
        eps = relu.open_difference(self._exchange, _words(x.tensor), fields["a"], self._space)
        y = weights.lowering.apply(_tensor(eps, x.tensor.shape), weights.share)
        return y.add_(_tensor(fields["c"], y.shape))

    @_apply.register
    def _(self, operator: Relu, plan, x):
        if plan.kept is not None and plan.kept.numel() == 0:
            return x.tensor
        if plan.kept is None:
            return self._rectify(plan, x.tensor, x.scale - self.ring.fraction)
        flat = x.tensor.reshape(x.tensor.shape[0], -1)
        rest = flat.index_select(1, plan.rest)
        y = torch.empty_like(flat)
        shift = x.scale - self.ring.fraction
        if shift:
            rest_y = torch.empty_like(rest)
            y[:, plan.kept] = self._rectify(plan, flat.index_select(1, plan.kept), shift, rest, rest_y)
            rest = rest_y
        else:
            y[:, plan.kept] = self._rectify(plan, flat.index_select(1, plan.kept), shift)
        y[:, plan.rest] = rest
        return y.view(x.tensor.shape)

    def _rectify(self, plan, x, shift, rest=None, rest_y=None) -> torch.Tensor:
        y = torch.empty_like(x, memory_format=torch.contiguous_format)
        none = np.empty(0, self.ring.word)
        relu.rectify(
            self.rank,
            self._exchange,
            _words(x),
            none if rest is None else _words(rest),
            shift,
            plan.positions,
            self._take(plan.step.name),
            self._space,
            _words(y),
            none if rest_y is None else _words(rest_y),
        )
        return y

    @_apply.register
    def _(self, operator: MaxPool, plan, x):
        (kh, kw), (ph, pw) = operator.kernel, operator.padding
        padded = x.tensor
        if ph or pw:
            # Below every value, and a difference to one has its sign in the bits that are compared.
            lowest = -(1 << (plan.positions - 2)) if self.rank == 0 else 0
            padded = F.pad(padded, (pw, pw, ph, ph), value=lowest)
        left = _windows(padded, (kh, kw), operator.stride, operator.dilation, plan.step.shape)
        while len(left) > 1:
            pairs = len(left) // 2
            b = torch.stack(left[pairs : 2 * pairs])
            a = torch.stack(left[:pairs])
            b += self._rectify(plan, a.sub_(b), 0)
            left = [*b, *left[2 * pairs :]]
        return left[0].contiguous()

    @_apply.register
    def _(self, operator: AveragePool, plan, x):
        (ph, pw), (h, w) = operator.padding, x.tensor.shape[2:]
        if operator.kernel == (h, w) and not (ph or pw):
            y = x.tensor.sum((2, 3), keepdim=True, dtype=x.tensor.dtype)
        else:
            padded = F.pad(x.tensor, (pw, pw, ph, ph)) if ph or pw else x.tensor
            windows = _windows(padded, operator.kernel, operator.stride, (1, 1), plan.step.shape)
            y = windows[0].clone()
            for window in windows[1:]:
                y += window
        return y if plan.factor == 1 else y.mul_(plan.factor)

    @_apply.register
    def _(self, operator: Mean, plan, x):
        y = x.tensor.sum(operator.dims, keepdim=operator.keepdim, dtype=x.tensor.dtype)
        return y if plan.factor == 1 else y.mul_(plan.factor)

    @_apply.register
    def _(self, operator: Add, plan, x, y):
        if x.scale < y.scale:
            x, y = y, x
        return torch.add(x.tensor, y.tensor, alpha=1 << (x.scale - y.scale))

    @_apply.register
    def _(self, operator: Shift, plan, x):
        """Adds the shift at party 0, which alone knows it."""
        return x.tensor + self._shifts[plan.step.name] if self.rank == 0 else x.tensor

    @_apply.register
    def _(self, operator: Combine, plan, *inputs):
        total = 0
        top = max(value.scale for value in inputs)
        for factor, value in zip(plan.factors, inputs, strict=True):
            total = torch.add(value.tensor * (factor << (top - value.scale)), total)
        return total

    @_apply.register
    def _(self, operator: PiecewiseLinear, plan, x):
        """Compares with all knots at once: [K, N, ...] values x - t_k, which party 0 shifts."""
        shift = x.scale - self.ring.fraction
        above = x.tensor.expand(len(operator.knots), *x.tensor.shape).clone()
        if self.rank == 0:
            knots = torch.tensor(operator.knots, dtype=torch.float64)
            above -= encode(knots, x.scale, self.ring).view(-1, *[1] * x.tensor.dim())
        slope, *jumps = plan.factors
        own, own_y = x.tensor, x.tensor
        if shift and slope:
            own_y = torch.empty_like(own, memory_format=torch.contiguous_format)
            positive = self._rectify(plan, above, shift, own, own_y)
        else:
            positive = self._rectify(plan, above, shift)
        y = own_y * slope if slope else torch.zeros_like(own)
        for jump, part in zip(jumps, positive, strict=True):
            y.add_(part, alpha=jump)
        if self.rank == 0 and operator.offset:
            y += round(operator.offset * 2**plan.scale)
        return y

    @_apply.register
    def _(self, operator: Weigh, plan, x):
        bits = plan.scale - x.scale
        return x.tensor * encode(torch.as_tensor(operator.factors), bits, self.ring)

    @_apply.register
    def _(self, operator: Rearrange, plan, x):
        return rearranged(x.tensor, operator)

    @_apply.register
    def _(self, operator: Sum, plan, x):
        return x.tensor.sum(operator.dims, keepdim=operator.keepdim, dtype=x.tensor.dtype)

    @_apply.register(Multiply)
    @_apply.register(Square)
    def _(self, operator, plan, *inputs):
        fields = self._take(plan.step.name)
        if len(set(plan.step.input_shapes)) > 1:
            x, y = (value.tensor.contiguous().numpy().view(self.ring.word) for value in inputs)
            product = relu.multiply_repeated(self.rank, self._exchange, x, y, fields, self._space)
            return _tensor(product, x.shape)
        operands = tuple(_words(value.tensor) for value in inputs)
        product = relu.multiply(self.rank, self._exchange, operands, fields, self._space)
        return _tensor(product, inputs[0].tensor.shape)

    @_apply.register
    def _(self, operator: Scale, plan, x):
        return x.tensor * plan.factor

    @_apply.register
    def _(self, operator: Concatenate, plan, *inputs):
        return torch.cat([value.tensor << (plan.scale - value.scale) for value in inputs], operator.dim)

    @_apply.register
    def _(self, operator: Flatten, plan, x):
        return x.tensor.flatten(operator.start, operator.end)


def _words(tensor: torch.Tensor) -> np.ndarray:
    """Returns a tensor's elements as flat unsigned words (the same memory if it is contiguous)."""
    return tensor.contiguous().view(-1).numpy().view(f"uint{8 * tensor.dtype.itemsize}")


def _tensor(words: np.ndarray, shape) -> torch.Tensor:
    return torch.from_numpy(words.view(f"int{8 * words.itemsize}")).view(tuple(shape))


def _windows(
    x: torch.Tensor,
    kernel: tuple[int, int],
    stride: tuple[int, int],
    dilation: tuple[int, int],
    shape: tuple[int, ...],
) -> list[torch.Tensor]:
    """Returns views [N, C, H', W'] of a padded map, one for each place of the kernel."""
    h, w = shape[-2:]
    views = []
    for i in range(kernel[0]):
        for j in range(kernel[1]):
            rows = x[:, :, i * dilation[0] :, :][:, :, : (h - 1) * stride[0] + 1 : stride[0]]
            views.append(rows[:, :, :, j * dilation[1] :][..., : (w - 1) * stride[1] + 1 : stride[1]])
    return views
