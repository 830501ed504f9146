"""Every network of the zoo and every variant gives the plaintext's logits on both engines."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from torch import nn

from pibench.measure.subject import Subject
from pibench.models.data import normalised, picture_crops
from pibench.models.transforms import fold_batchnorm
from pibench.models.variants import VARIANTS, calibrate
from pibench.models.zoo import ZOO, resnet18, vgg16
from pibench.parties.driver import Parties

CLASSES = 10
NETWORKS = {
    **{name: (build, 1 if name == "wrn_22_8" else 4, {}) for name, build in ZOO.items()},
    "resnet18-imagenet": (resnet18, 4, {"stem": "imagenet"}),
    "vgg16-hidden": (vgg16, 4, {"hidden": True}),
}


def picture(size: int) -> torch.Tensor:
    return normalised(picture_crops(4, size))


def network(name: str) -> nn.Module:
    build, width, arguments = NETWORKS[name]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = build(classes=CLASSES, width=width, **arguments)
    calibrate(model, [normalised(picture_crops(16, 32))])
    return fold_batchnorm(model.eval())


@pytest.fixture(scope="module")
def lean() -> Iterator[Parties]:
    with Parties(engine="lean", timeout_s=60) as parties:
        yield parties


def assert_right(model: nn.Module, images: torch.Tensor, parties: Parties) -> None:
    subject = Subject(model, images, 1, parties)
    subject.prepare()
    assert subject.right(subject.infer()), f"the answer is off by more than 2 % of {subject.truth.spread:.3g}"
    assert subject.truth.spread > 0.1, "the logits hardly differ between images: the check proves nothing"


@pytest.mark.parametrize("name", NETWORKS)
def test_zoo(name, stock, lean):
    model = network(name)
    for parties in (stock, lean):
        assert_right(model, picture(32), parties)


@pytest.mark.parametrize("name", VARIANTS)
def test_variants(name, stock, lean):
    model = VARIANTS[name].build(width=8, weights=None, classes=CLASSES)
    for parties in (stock, lean):
        assert_right(model, picture(32), parties)
