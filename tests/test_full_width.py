"""The counts at full width, counted on real parties: ResNet-18, width 64, CIFAR-100."""

from __future__ import annotations

import pytest

from pibench.measure.count import cost_of
from pibench.measure.subject import Subject
from pibench.models.data import normalised, picture_crops
from pibench.models.variants import VARIANTS


@pytest.fixture(scope="module")
def pictures():
    return normalised(picture_crops(2, 32))


def test_baseline_on_the_stock_engine(stock, pictures):
    model = VARIANTS["baseline"].build(width=64)
    cost = cost_of(model, pictures)
    assert (cost.relus, cost.macs, cost.parameters) == (557_056, 555_468_800, 11_215_332)
    subject = Subject(model, pictures, 1, stock)
    subject.prepare()
    assert subject.right(subject.infer())
    assert (subject.traffic.rounds, subject.traffic.by_party) == (175, (224_258_336, 224_258_336))
    assert max(stock.peak_memory()) < 2e9


def test_relus_of_senet_009_send_under_12_megabytes(stock, pictures):
    model = VARIANTS["senet-0.09"].build(width=64)
    assert cost_of(model, pictures).relus == 50_135
    stock.load(model, pictures)
    sent = [cost.bytes_sent for cost in stock.profile(pictures[:1]) if cost.kind == "relu"]
    assert sum(sent) == 232 * 50_135 < 12e6
