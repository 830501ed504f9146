"""The stock engine: CrypTen's own operators, two or three parties, TFP or TTP as provider.

Shares are arithmetic in Z_2^64, with 16 fractional bits. Beaver tuples come from a dealer: party 0 itself
under TFP, a separate process under TTP. The offline phase is CrypTen's tuple cache. `plan` records the
requests of one inference once for each batch size. `prepare` makes the tuples for exactly one inference.
"""

from __future__ import annotations

import hmac
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import singledispatchmethod, wraps
from typing import Any

import torch

from pibench.engines.base import Helper, Meter, Node, NotPrepared, Setting
from pibench.engines.crypten.compat import crypten
from pibench.engines.crypten.gloo import demand_relayed, shaped_rendezvous
from pibench.links.model import ring_hops
from pibench.program import ir
from pibench.program.plaintext import rearranged


def connect(setting: Setting) -> None:
    """Tells CrypTen the process group to join and the provider of tuples."""
    crypten.cfg.mpc.provider = setting.provider
    os.environ.update(
        DISTRIBUTED_BACKEND="gloo",
        RENDEZVOUS=shaped_rendezvous(setting.rendezvous, setting.relay)
        if setting.relay
        else setting.rendezvous,
        WORLD_SIZE=str(setting.parties),
        RANK=str(setting.rank),
    )


def demand_key(setting: Setting) -> None:
    """Raises ConnectionError unless the others of the group know its key; gloo itself checks no key."""
    group = crypten.communicator.get().main_group

    def gathered(own: bytes) -> list[bytes]:
        parts = [torch.zeros(32, dtype=torch.uint8) for _ in range(setting.parties)]
        torch.distributed.all_gather(parts, torch.frombuffer(bytearray(own), dtype=torch.uint8), group=group)
        return [bytes(part.tolist()) for part in parts]

    nonces = b"".join(gathered(os.urandom(32)))
    proofs = [hmac.digest(setting.key, bytes([rank]) + nonces, "sha256") for rank in range(setting.parties)]
    for rank, proof in enumerate(gathered(proofs[setting.rank])):
        if not hmac.compare_digest(proof, proofs[rank]):
            raise ConnectionError(f"a stranger came to gloo's port in the place of party {rank}")


def make_node(setting: Setting) -> Node | Helper:
    """Returns the node of this process, joined to CrypTen's process group."""
    torch.set_num_threads(1)
    connect(setting)
    if setting.role == "ttp":
        return TrustedThirdParty(setting)
    return StockParty(setting)


class TrustedThirdParty(Helper):
    """CrypTen's TTP server, which deals tuples to the parties on request."""

    serves = True

    def serve(self) -> None:
        """Serves requests until party 0 leaves."""
        from crypten.mpc.provider.ttp_provider import TTPServer

        TTPServer()

    def load(self, program: ir.Program) -> None:
        """Does nothing: requests carry their sizes."""

    def prepare(self, batch: int) -> int:
        """Does nothing: the parties' requests drive the server."""
        return 0


class StockParty(Node):
    """A party that computes with CrypTen tensors."""

    def __init__(self, setting: Setting) -> None:
        super().__init__(setting)
        self.round_hops = ring_hops(0, setting.parties)
        crypten.init()
        if setting.relay:
            demand_relayed()
        demand_key(setting)
        _attach(self.meter, crypten.communicator.get(), setting.parties)
        self.provider = crypten.mpc.get_default_provider()
        self.weights: dict[str, Any] = {}
        self.requests: dict[int, list[Any]] = {}
        self.prepared: int | None = None

    def load(self, program: ir.Program, weights: Mapping[str, torch.Tensor] | None) -> None:
        self.forget()
        self.program = program
        for step in program.steps:
            for name, shape in ir.stored_of(step.operator).items():
                plain = torch.zeros(shape) if weights is None else weights[name]
                self.weights[name] = crypten.cryptensor(plain, src=0)

    def forget(self) -> None:
        self.program = None
        self.weights = {}
        self.requests.clear()
        self.drop()

    def plan(self, batch: int) -> None:
        """Records the tuple requests of one inference by running one on zeros.

        Requests depend only on shapes. Each party therefore runs alone and sends the others nothing, which
        saves time on a slow link. (Under TTP party 0 still asks the server.)
        """
        if batch in self.requests:
            return
        shared = self.share(torch.zeros(batch, *self.program.input_shape), batch)
        self.drop()
        self.provider.request_cache = []
        self.provider.trace(True)
        try:
            with _alone(crypten.communicator.get()):
                self.run(shared)
        finally:
            self.provider.trace(False)
        self.requests[batch] = self.provider.request_cache

    def prepare(self, batch: int) -> int:
        self.drop()
        self.provider.request_cache = self.requests[batch]
        self.provider.fill_cache()
        self.prepared = batch
        return sum(
            part.share.nelement() * part.share.element_size()
            for results in self.provider.tuple_cache.values()
            for result in results
            for part in result
        )

    def drop(self) -> None:
        """Drops the prepared tuples, so that none outlives its inference."""
        self.prepared = None
        self.provider.tuple_cache = {}

    def barrier(self) -> None:
        torch.distributed.barrier(group=crypten.communicator.get().main_group)

    def small_round(self) -> None:
        """Sums 16 words over all parties."""
        group = crypten.communicator.get().main_group
        torch.distributed.all_reduce(torch.zeros(16, dtype=torch.int64), group=group)

    def start(self, batch: int) -> None:
        if self.prepared != batch:
            raise NotPrepared(f"no tuples are prepared for a batch of {batch}; call prepare({batch}) first")
        self.prepared = None

    def share(self, images: torch.Tensor | None, batch: int) -> Any:
        plain = torch.zeros(batch, *self.program.input_shape) if images is None else images
        return crypten.cryptensor(plain, src=1)

    def run(self, shared: Any, after: Callable[[ir.Step], None] | None = None) -> torch.Tensor | None:
        with crypten.no_grad():
            logits = super().run(shared, after)
        self.finish()
        return logits

    def finish(self) -> None:
        """Raises RuntimeError unless an inference used every prepared tuple and made none online.

        Requests repeat exactly, so a request that was not served from the cache leaves a tuple there.
        """
        if self.provider.tracing:
            return
        left = sum(map(len, self.provider.tuple_cache.values()))
        self.drop()
        if left:
            raise RuntimeError(f"{left} prepared tuples were not used: others were made online instead")

    def reveal(self, value: Any) -> torch.Tensor:
        """Opens the value to every party, as CrypTen's users do."""
        return value.get_plain_text()

    # One small function for each operator.

    def apply(self, step: ir.Step, *inputs: Any) -> Any:
        return self._apply(step.operator, *inputs)

    @singledispatchmethod
    def _apply(self, op: Any, *inputs: Any) -> Any:
        raise TypeError(f"the stock engine has no operator {type(op).__name__}")

    @_apply.register
    def _(self, op: ir.Convolution, x: Any) -> Any:
        y = x.conv2d(
            self.weights[op.weight],
            stride=op.stride,
            padding=op.padding,
            dilation=op.dilation,
            groups=op.groups,
        )
        return y if op.bias is None else y.add(self.weights[op.bias].view(1, -1, 1, 1))

    @_apply.register
    def _(self, op: ir.Linear, x: Any) -> Any:
        y = x.matmul(self.weights[op.weight].t())
        return y if op.bias is None else y.add(self.weights[op.bias])

    @_apply.register
    def _(self, op: ir.Relu, x: Any) -> Any:
        if op.kept is None:
            return x.relu()
        # Positions are public: gather, compare once, scatter. Indexing and writing shares is local.
        y = x.clone()
        flat, kept = y.share.flatten(1), torch.from_numpy(op.kept)
        flat[:, kept] = x.flatten(start_dim=1)[:, kept].relu().share
        y.share = flat.view(x.share.shape)
        return y

    @_apply.register
    def _(self, op: ir.AveragePool, x: Any) -> Any:
        return x.avg_pool2d(op.kernel, stride=op.stride, padding=op.padding)

    @_apply.register
    def _(self, op: ir.MaxPool, x: Any) -> Any:
        """Pads first: CrypTen mixes up the axes of an uneven padding, and pads with only -2^8 a party."""
        if any(op.padding):
            x = x.pad((op.padding[1], op.padding[1], op.padding[0], op.padding[0]), value=PADDING)
        return x.max_pool2d(op.kernel, padding=0, stride=op.stride, dilation=op.dilation)

    @_apply.register
    def _(self, op: ir.Add, x: Any, y: Any) -> Any:
        return x.add(y)

    @_apply.register
    def _(self, op: ir.Multiply, x: Any, y: Any) -> Any:
        return x.mul(y)

    @_apply.register
    def _(self, op: ir.Square, x: Any) -> Any:
        return x.square()

    @_apply.register
    def _(self, op: ir.Scale, x: Any) -> Any:
        return x.mul(op.factor)

    @_apply.register
    def _(self, op: ir.Concatenate, *inputs: Any) -> Any:
        return crypten.cat(list(inputs), dim=op.dim)

    @_apply.register
    def _(self, op: ir.Flatten, x: Any) -> Any:
        return x.flatten(start_dim=op.start, end_dim=op.end)

    @_apply.register
    def _(self, op: ir.Mean, x: Any) -> Any:
        return x.mean(op.dims, keepdim=op.keepdim)

    @_apply.register
    def _(self, op: ir.Sum, x: Any) -> Any:
        return _with_share(x, x.share.sum(op.dims, keepdim=op.keepdim))

    @_apply.register
    def _(self, op: ir.Affine, x: Any) -> Any:
        y = x.mul(self.weights[op.weight])
        return y if op.bias is None else y.add(self.weights[op.bias])

    @_apply.register
    def _(self, op: ir.Shift, x: Any) -> Any:
        return x.add(self.weights[op.bias])

    @_apply.register
    def _(self, op: ir.Rearrange, x: Any) -> Any:
        return _with_share(x, rearranged(x.share, op))

    @_apply.register
    def _(self, op: ir.Weigh, x: Any) -> Any:
        return _combined([x], [torch.as_tensor(op.factors)], op.integer)

    @_apply.register
    def _(self, op: ir.Combine, *inputs: Any) -> Any:
        return _combined(inputs, op.factors, op.integer)

    @_apply.register
    def _(self, op: ir.PiecewiseLinear, x: Any) -> Any:
        """Compares with all knots at once: [K, N, ...] values x - t_k."""
        knots = torch.tensor(op.knots, dtype=torch.float64).view(-1, *[1] * x.dim())
        above = _with_share(x, x.share.expand(len(op.knots), *x.share.shape).clone()).sub(knots)
        positive = above.relu()
        parts = [x, *(_with_share(x, part) for part in positive.share)]
        y = _combined(parts, (op.slope, *op.jumps), op.integer)
        return y.add(op.offset) if op.offset else y


def _with_share(x: Any, share: torch.Tensor) -> Any:
    """Returns a tensor like `x` with another share; linear work on a share needs no other party."""
    y = x.shallow_copy()
    y._tensor = x._tensor.shallow_copy()
    y.share = share
    return y


def _combined(inputs: Sequence[Any], factors: Sequence[Any], integer: bool) -> Any:
    """Returns the sum of products with public numbers, truncated once if these have fractional bits."""
    scale = 1 if integer else inputs[0].encoder.scale
    share = 0
    for x, factor in zip(inputs, factors, strict=True):
        encoded = torch.round(torch.as_tensor(factor, dtype=torch.float64) * scale).to(torch.int64)
        share = share + x.share * encoded
    y = _with_share(inputs[0], share)
    return y if integer else y.div_(scale)


PADDING = -(2.0**31)  # below every allowed value; differences stay far inside the ring


@contextmanager
def _alone(communicator: Any) -> Iterator[None]:
    """Makes the collectives of an inference return at once, with this party's own payload as every answer."""

    def copy(payload: Any, *_: Any, **__: Any) -> Any:
        return [p.clone() for p in payload] if isinstance(payload, list) else payload.clone()

    def gather(payload: Any, dst: int) -> list[Any]:
        present = communicator.get_rank() == dst
        return [payload.clone() if present else None for _ in range(communicator.get_world_size())]

    stand_ins = {"all_reduce": copy, "reduce": copy, "gather": gather}
    real = {name: getattr(communicator, name) for name in stand_ins}
    for name, stand_in in stand_ins.items():
        setattr(communicator, name, stand_in)
    try:
        yield
    finally:
        for name, call in real.items():
            setattr(communicator, name, call)


def _attach(meter: Meter, communicator: Any, parties: int) -> None:
    """Counts at each collective what this party sends, on the communicator of this process.

    Bytes are those of gloo's algorithms for a payload of n bytes. A ring all-reduce sends 2 (P - 1) / P n. A
    gather sends n to its destination. Scatter and broadcast send n to each other party, and so does an
    all-gather. With two parties the total equals CrypTen's own counter divided by two. Hops are those of a
    ring for an all-reduce (for a list: its longest). The other collectives have two hops: the receiver's
    ready message and the data.
    """
    rank = communicator.get_rank()

    def size(payload: Any) -> int:
        tensors = payload if isinstance(payload, list) else [payload]
        return sum(t.nelement() * t.element_size() for t in tensors)

    def hops(payload: Any) -> int:
        tensors = payload if isinstance(payload, list) else [payload]
        return max(ring_hops(size(tensor), parties) for tensor in tensors)

    def shares_to(payload: Any, src: int, *_: Any, **__: Any) -> int:
        return sum(size(p) for i, p in enumerate(payload) if i != rank) if src == rank else 0

    sends: dict[str, Callable[..., int]] = {
        "all_reduce": lambda payload, *_, **__: 2 * (parties - 1) * size(payload) // parties,
        "reduce": lambda payload, dst, *_, **__: 0 if dst == rank else size(payload),
        "gather": lambda payload, dst, *_, **__: 0 if dst == rank else size(payload),
        "all_gather": lambda payload, *_, **__: (parties - 1) * size(payload),
        "scatter": shares_to,
        "broadcast": lambda payload, src, *_, **__: (parties - 1) * size(payload) if src == rank else 0,
        "send": lambda payload, *_, **__: size(payload),
        "isend": lambda payload, *_, **__: size(payload),
    }

    def counted(call: Callable[..., Any], sent: Callable[..., int], ring: bool) -> Callable[..., Any]:
        @wraps(call)
        def wrapper(*args: Any, **kwargs: Any) -> Any:
            meter.count(sent(*args, **kwargs), hops(args[0]) if ring else 2)
            return call(*args, **kwargs)

        return wrapper

    for name, sent in sends.items():
        setattr(communicator, name, counted(getattr(communicator, name), sent, name == "all_reduce"))
