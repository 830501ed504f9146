"""Arguments that make no sense, or that no machine can serve: one sentence refuses them."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any

import torch
from networks import Apply
from torch import nn

from faults.fault import Fault, Observed
from faults.forked import forked_workers
from faults.numbers import block, noise, parties
from faults.stage import Stage
from pibench.hosts.remote import Remote
from pibench.links.link import Link, parse_link
from pibench.parties.driver import Parties

ENGINES = ("stock", "lean")


def _linear(change: Callable[[nn.Linear], object]) -> nn.Module:
    layer = nn.Linear(192, 5)
    change(layer)
    return nn.Sequential(nn.Flatten(), layer)


def _fill(value: float) -> nn.Module:
    return _linear(lambda layer: layer.weight.data.fill_(value))


class _Raises(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        raise LookupError("a fault of the user's own")


class _Mine(torch.Tensor):
    """A subclass of a tensor."""


MODELS: dict[str, tuple[Callable[[], Any], tuple[str, ...]]] = {
    "raises": (_Raises, ("a fault of the user's own",)),
    "scripted": (lambda: torch.jit.script(block()), ("script",)),
    "compiled": (lambda: torch.compile(block()), ("compile",)),
    "meta": (lambda: block().to("meta"), ("meta",)),
    "sparse": (
        lambda: _linear(lambda m: setattr(m, "weight", nn.Parameter(m.weight.data.to_sparse()))),
        ("sparse", "weight"),
    ),
    "nan": (lambda: _fill(math.nan), ("nan",)),
    "inf": (lambda: _fill(math.inf), ("inf",)),
    "half": (lambda: block().half(), ("half", "float16", "dtype")),
    "double": (lambda: block().double(), ("double", "float64", "dtype")),
    "complex": (lambda: Apply(lambda m, x: torch.fft.fft(x).abs()), ("fft", "complex")),
    "integer": (lambda: Apply(lambda m, x: x.long()), ("long", "int", "_to_copy")),
    "no-outputs": (lambda: nn.Sequential(nn.Flatten(), nn.Linear(192, 0)), ("0", "output")),
    "empty": (lambda: Apply(lambda m, x: x[:, :0]), ("0", "empty", "output")),
    "two-outputs": (lambda: Apply(lambda m, x: (x, x)), ("output",)),
    "none": (lambda: Apply(lambda m, x: None), ("None", "output")),
    "constant": (lambda: Apply(lambda m, x: torch.ones(2, 3)), ("input", "output", "constant", "batch")),
    "beyond": (lambda: Apply(lambda m, x: x * 2.0**70), ("2\\^",)),
    "random": (lambda: Apply(lambda m, x: x + torch.rand(())), ("rand", "forward")),
    "loop": (lambda: Apply(lambda m, x: _until(x)), ("'|depend|data|batch|forward",)),
    "mixes-images": (lambda: Apply(lambda m, x: x - x.mean(0, keepdim=True)), ("batch", "images", "dim")),
    "pool-unbatched": (lambda: Apply(lambda m, x: nn.functional.max_pool2d(x[:, 0], 2)), ("pool", "'")),
    "divides": (lambda: Apply(lambda m, x: 1 / x), ("'", "div", "reciprocal")),
    "text": (lambda: "resnet18", ("Module", "str")),
    "nothing": (lambda: None, ("Module", "None")),
    "class": (lambda: nn.ReLU, ("Module", "type")),
}
IMAGES: dict[str, tuple[Callable[[], Any], tuple[str, ...]]] = {
    "subclass": (lambda: noise(2, 3, 8, 8).as_subclass(_Mine), ("Tensor", "_Mine", "subclass")),
    "sparse": (lambda: noise(2, 3, 8, 8).to_sparse(), ("sparse", "dense")),
    "meta": (lambda: noise(2, 3, 8, 8).to("meta"), ("meta",)),
    "unbatched": (lambda: noise(3, 8, 8), ("shape", "N")),
    "empty": (lambda: noise(0, 3, 8, 8), ("shape", "image")),
    "integers": (lambda: torch.ones(2, 3, 8, 8, dtype=torch.int32), ("int32", "floating")),
    "complex": (lambda: noise(2, 3, 8, 8).to(torch.complex64), ("complex", "floating")),
    "list": (lambda: [[1.0]], ("list", "tensor")),
    "none": (lambda: None, ("None", "tensor")),
    "array": (lambda: noise(2, 3, 8, 8).numpy(), ("ndarray", "tensor")),
    "quantized": (
        lambda: torch.quantize_per_tensor(noise(2, 3, 8, 8), 0.1, 0, torch.qint8),
        ("qint8", "quant"),
    ),
    "nan": (lambda: noise(2, 3, 8, 8) * math.nan, ("NaN",)),
    "scalar": (lambda: torch.tensor(1.0), ("shape",)),
}
BATCHES: tuple[Any, ...] = (
    *(0, -1, 1.5, True, "1", None, 10**6, 2**31, 2**40, 2**63, 10**30, math.nan, math.inf, [1]),
)
SETTINGS: dict[str, tuple[dict[str, Any], tuple[str, ...]]] = {
    "engine": ({"engine": "fast"}, ("engine",)),
    "engine-none": ({"engine": None}, ("engine",)),
    "engine-list": ({"engine": ["lean"]}, ("engine",)),
    "engine-byhand": ({"engine": "byhand"}, ("engine",)),
    "count": ({"count": 7}, ("parties",)),
    "count-text": ({"count": "2"}, ("parties",)),
    "timeout-zero": ({"timeout_s": 0}, ("timeout",)),
    "timeout-nan": ({"timeout_s": math.nan}, ("timeout",)),
    "timeout-huge": ({"timeout_s": 1e300}, ("timeout",)),
    "timeout-long": ({"timeout_s": 1e11}, ("timeout",)),
    "timeout-text": ({"timeout_s": "soon"}, ("timeout",)),
    "timeout-tiny": ({"timeout_s": 1e-9}, ("timeout", "party", "within")),
    "provider": ({"provider": "HE"}, ("provider",)),
    "provider-list": ({"provider": ["TTP"]}, ("provider",)),
    "link": ({"link": "fast"}, ("link",)),
    "link-none": ({"link": None}, ("link",)),
    "link-number": ({"link": 5}, ("link",)),
    "link-huge": ({"link": "1Mbit/1e300ms"}, ("link",)),
    "shaper": ({"link": "lan", "shaper": "magic"}, ("shaper", "link")),
    "shaper-nothing": ({"shaper": "user-space"}, ("shaper", "link")),
    "remote-text": ({"remote": "10.0.0.1"}, ("remote",)),
    "remote-number": ({"remote": 5}, ("remote",)),
    "remote-class": ({"remote": Remote}, ("remote",)),
}
HOSTS = ("0", "00.0.0.0", "0.0.0.0", "::", "", "0x0", "127.1", " ", "no.such.host.invalid", "300.1.1.1", "-1")
"""Addresses at which a driver may not listen, or cannot; 127.1 is the loopback."""
LINKS = ("", "/", "Mbit/ms", "1Mbit", "-1Mbit/1ms", "0Mbit/1ms", "1Mbit/-1ms", "nan/nan", "1e400Mbit/1ms",
         "inf/1ms", "1Mbit/inf", "1Mbit/1ms/1ms", "1" * 5000, "١Mbit/١ms")  # fmt: skip


def faults(seed: int) -> Iterator[Fault]:
    """Yields the faults of this family."""
    for engine in ENGINES:
        for table, values in (("model", MODELS), ("example", IMAGES), ("images", IMAGES)):
            for name, (_, names) in values.items():
                yield Fault("argument", f"{table}-{name}", "arguments.given",
                            {"engine": engine, "table": table, "name": name}, names, engine, 40.0,
                            together=f"{engine} {table}")  # fmt: skip
        for place, _ in enumerate(BATCHES):
            arguments = {"engine": engine, "place": place}
            yield Fault("argument", f"batch-{place}", "arguments.prepared", arguments, ("batch",), engine,
                        together=f"{engine} batch")  # fmt: skip
    for name, (_, names) in SETTINGS.items():
        yield Fault("argument", f"setting-{name}", "arguments.opened", {"name": name}, names)
    for place, _ in enumerate(HOSTS):
        yield Fault("argument", f"host-{place}", "arguments.listened", {"place": place}, ("address", "host"))
    for place, _ in enumerate(LINKS):
        yield Fault("argument", f"link-{place}", "arguments.linked", {"place": place}, ("link",))


def _until(x: torch.Tensor) -> torch.Tensor:
    """A loop whose length depends on the input."""
    while x.sum() > 0:
        x = x - 1
    return x


def given(stage: Stage, engine: str, table: str, name: str) -> Observed:
    """A model, an example or images that parties cannot take, or can."""
    images = noise(2, 3, 8, 8)
    running = parties(stage, engine)
    if table == "model":
        model = MODELS[name][0]()
        return stage.attempt(lambda: _right(running, model, images, images), bool)
    strange = IMAGES[name][0]()
    example, asked = (strange, images) if table == "example" else (images, strange)
    return stage.attempt(lambda: _right(running, block(), example, asked), bool)


def _right(running: Parties, model: Any, example: Any, images: Any) -> bool:
    """Loads and infers; tells whether the answer is that of the network in its own precision."""
    running.load(model, example)
    running.prepare(len(images))
    answer = running.infer(images)
    kind = next((p.dtype for p in model.parameters()), torch.float32)
    with torch.no_grad():
        exact = model(images.to(kind)).double()
    return bool((answer.double() - exact).abs().max() <= 0.03 * exact.abs().max() + 1e-3)


def prepared(stage: Stage, engine: str, place: int) -> Observed:
    """A batch that is no number of images, or more than memory holds."""
    running = parties(stage, engine)
    running.load(block(), noise(2, 3, 8, 8))
    return stage.attempt(lambda: running.prepare(BATCHES[place]), lambda _: False)


def opened(stage: Stage, name: str) -> Observed:
    """Parties are opened with a setting that makes no sense."""

    def work() -> None:
        with forked_workers(), Parties(**SETTINGS[name][0]) as running:
            running.load(block(), noise(2, 3, 8, 8))

    return stage.attempt(work, lambda _: name in ("timeout-long", "timeout-huge"))


def listened(stage: Stage, place: int) -> Observed:
    """A driver is told to listen at an address that is every interface, or none."""
    host = HOSTS[place]

    def work() -> None:
        remote = Remote(host, 0, "a token of the campaign", timeout_s=0.3, say=lambda line: None)
        remote.__enter__()

    return stage.attempt(work, lambda _: False)


def linked(stage: Stage, place: int) -> Observed:
    """A text that means no link."""

    def usable(link: Link) -> bool:
        return 0 <= link.rtt_s < math.inf and 0 < link.bandwidth_bits_s < math.inf

    return stage.attempt(lambda: parse_link(LINKS[place]), usable)
