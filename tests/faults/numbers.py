"""Networks and images across the range of fixed point: the answer is right, or somebody says that it is not.

An answer is right if no logit is further from the float64 network than 3 % of the largest logit: the suite
promises 2 %.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import torch
from networks import Apply, Block
from random_networks import random_case
from torch import Tensor, nn

from faults.fault import Fault, Observed
from faults.forked import forked_workers
from faults.stage import Stage
from pibench.models.zoo import resnet18
from pibench.parties.driver import Parties
from pibench.program.guard import PrecisionWarning

TOLERANCE = 0.03
NAMES = (r"'[\w.]+'", "images", "fixed point", "truncat")
RANDOM = 50
BATCH = 10
"""Random networks, and how many of them share their parties."""
ENGINES = ("stock", "lean")


def block(first: float = 1.0, last: float = 1.0, seed: int = 0) -> nn.Module:
    """Returns the small block with the weights of its first and last layer multiplied."""
    model = Block(seed).eval()
    model.conv.weight.data *= first
    model.conv.bias.data *= first
    model.fc.weight.data *= last
    model.fc.bias.data *= last
    return model


def small_resnet(scale: float) -> nn.Module:
    """Returns a ResNet-18 of width 4 whose input is multiplied."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        net = resnet18(classes=5, width=4).eval()
    return Apply(lambda m, x: m.net(scale * x), net=net).eval()


NETWORKS: dict[str, Callable[[float], nn.Module]] = {
    "factor": lambda s: Apply(lambda m, x: x * s),
    "factor-back": lambda s: Apply(lambda m, x: (x * s) * (1 / s)),
    "weights": lambda s: block(s, s),
    "first-layer": lambda s: block(first=s),
    "classifier": lambda s: block(last=s),
    "first-against-last": lambda s: block(first=s, last=1 / s),
    "square": lambda s: Apply(lambda m, x: (s * x).square()),
    "fourth-power": lambda s: Apply(lambda m, x: (s * x).square().square()),
    "constant": lambda s: Apply(lambda m, x: x + s),
    "difference": lambda s: Apply(lambda m, x: (x + s) - s),
    "product": lambda s: Apply(lambda m, x: (s * x) * (x + x.relu())),
    "resnet": small_resnet,
}
POWERS = (-7, -5, -4, -3, -2, -1, 1, 2, 3, 4, 5, 6, 8, 12)
IMAGES = ("square", "fourth-power", "first-layer", "resnet")
IMAGE_POWERS = (-8, -6, -5, -4, -3, -2, -1, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10)
HEAVY = (-6, -3, 3, 5, 7)
"""Powers for a network whose capture takes seconds."""
SPECIAL = (
    "nan",
    "inf",
    "-inf",
    "zeros",
    "one-hot",
    "just-under",
    "half",
    "double",
    "view",
    "grad",
    "strided",
)
"""Images that are strange in another way than by their size."""


def faults(seed: int) -> Iterator[Fault]:
    """Yields the faults of this family."""
    for engine in ENGINES:
        for net in NETWORKS:
            for power in HEAVY if net == "resnet" else POWERS:
                yield _fault("network", f"{net}-1e{power}", engine, net=net, scale=10.0**power, reach=1.0)
        for net in IMAGES:
            for power in HEAVY if net == "resnet" else IMAGE_POWERS:
                yield _fault("image", f"{net}-1e{power}", engine, net=net, scale=1.0, reach=10.0**power)
        for special in SPECIAL:
            yield Fault(
                *("image", special, "numbers.strange", {"engine": engine, "special": special}),
                *(("NaN", "images", "infinit"), engine, 30.0),
                together=f"{engine} images",
            )
        for turn in range(RANDOM):
            yield Fault(
                *("network", f"random-{turn}", "numbers.drawn", {"engine": engine}, NAMES, engine, 30.0),
                together=f"{engine} random {turn // BATCH}",
            )


def _fault(kind: str, name: str, engine: str, **arguments: Any) -> Fault:
    return Fault(
        *(kind, name, "numbers.ladder", {"engine": engine, **arguments}, NAMES, engine, 30.0),
        together=f"{engine} {arguments['net']} {kind}",
    )


def parties(stage: Stage, engine: str) -> Parties:
    """Returns running parties that the faults of one process share."""
    known = stage.shared.get(engine)
    if known is None or not known.pids:
        with forked_workers():
            known = stage.shared[engine] = Parties(engine=engine, timeout_s=25).__enter__()
    return known


def noise(*shape: int, seed: int = 1) -> Tensor:
    """Returns seeded normal numbers."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@torch.no_grad()
def truth(model: nn.Module, images: Tensor) -> Tensor:
    """Returns the network's answer in float64."""
    return copy.deepcopy(model).double()(images.detach().double())


def is_right(answer: Tensor, exact: Tensor) -> bool:
    """Tells whether an answer is within the tolerance; NaN is not."""
    return bool((answer.double() - exact).abs().max() <= TOLERANCE * exact.abs().max())


def inferred(stage: Stage, engine: str, model: nn.Module, example: Tensor, images: Tensor) -> Observed:
    """Loads a network with `example`, infers `images` [N, ...], and compares with float64.

    An answer that is off, with a warning that says so, counts as an error.
    """
    exact = truth(model, images)
    running = parties(stage, engine)

    def work() -> Tensor:
        running.load(model, example)
        running.prepare(len(images))
        return running.infer(images)

    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        observed = stage.attempt(work, lambda answer: is_right(answer, exact))
    doubts = [str(one.message) for one in told if issubclass(one.category, PrecisionWarning)]
    if observed.answered and not observed.right and doubts:
        return Observed(message=doubts[-1], raised="PrecisionWarning", deliberate=True)
    return observed


def ladder(stage: Stage, engine: str, net: str, scale: float, reach: float) -> Observed:
    """A network with numbers of this size, or images `reach` times as large as the example."""
    size = 32 if net == "resnet" else 8
    model, images = NETWORKS[net](scale), noise(2, 3, size, size)
    return inferred(stage, engine, model, images, reach * images[:1])


def drawn(stage: Stage, engine: str) -> Observed:
    """A random network, an example for it, and images of a scale of their own."""
    case = random_case(stage.rng)
    return inferred(stage, engine, case.network.module().eval(), case.example, case.images)


def strange(stage: Stage, engine: str, special: str) -> Observed:
    """Images that are strange in another way than by their size."""
    images = noise(2, 3, 8, 8)
    given = images.clone()
    if special in ("nan", "inf", "-inf"):
        given[0, 1, 2, 3] = float(special)
    elif special == "zeros":
        given = torch.zeros_like(images)
    elif special == "one-hot":
        given = torch.zeros_like(images)
        given[0, 0, 0, 0] = 1
    elif special == "just-under":
        given[0, 0, 0, 0] = 2.0**30 - 64
    elif special in ("half", "double"):
        given = getattr(images, special)()
    elif special == "view":
        given = torch.cat([images] * 50)[40:42]
    elif special == "grad":
        given = images.clone().requires_grad_()
    else:
        given = noise(2, 8, 8, 3).permute(0, 3, 1, 2)
    return inferred(stage, engine, block(), images, given)
