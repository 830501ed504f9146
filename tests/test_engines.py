"""Every network of the zoo and every variant on both engines: the right logits, the predicted traffic."""

from __future__ import annotations

from functools import cache

import pytest
import torch
from torch import nn

from pibench.costs.predict import predict
from pibench.measure.verdict import truth_of
from pibench.models.data import normalised, picture_crops
from pibench.models.transforms import fold_batchnorm
from pibench.models.variants import VARIANTS, calibrate
from pibench.models.zoo import ZOO, resnet18, vgg16

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


@cache
def built(name: str) -> nn.Module:
    return network(name) if name in NETWORKS else VARIANTS[name].build(8, weights=None, classes=CLASSES)


@pytest.mark.parametrize("engine", ["stock", "lean"])
@pytest.mark.parametrize("name", [*NETWORKS, *VARIANTS])
def test_answer_and_predicted_traffic(name, engine, request):
    """The counters are the predicted ones: of the inference whose answer is right, and step by step."""
    parties, model, images = request.getfixturevalue(engine), built(name), picture(32)
    truth = truth_of(model, images).first(1)
    parties.load(model, images)
    parties.prepare()
    assert truth.right(parties.infer(images[:1])).all(), f"off by more than 2 % of {truth.spread:.3g}"
    assert truth.spread > 0.1, "the logits hardly differ between images: the check proves nothing"
    made = predict(parties.lowered.program, engine)
    sent = parties.sent
    assert (made.rounds, made.by_party, made.hops) == (sent.rounds, sent.by_party, parties.hops)
    assert [(step.name, step.kind, step.rounds, step.bytes_sent) for step in made.steps] == [
        (cost.name, cost.kind, cost.rounds, cost.bytes_sent) for cost in parties.profile(images[:1])
    ]
