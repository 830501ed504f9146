"""Gates that the client computes: their price by the traffic laws, and what the docs give and run."""

import re
from pathlib import Path

import pytest
import torch
from torch import nn

from pibench.costs.predict import predict
from pibench.models.training.images import Images
from pibench.models.training.schedules import Schedule
from pibench.program.lower import lower

PAGE = (Path(__file__).parent.parent / "docs" / "reductions.md").read_text()


class Hidden(nn.Module):
    """One hidden layer: linear, with ReLUs, or with gates behind the image."""

    def __init__(self, kind):
        super().__init__()
        self.kind, self.conv, self.fc = kind, nn.Conv2d(3, 64, 3, padding=1), nn.Linear(1024, 100)

    def forward(self, x):
        y = self.conv(x[:, :3])
        y = {"linear": lambda: y, "relu": y.relu, "gated": lambda: x[:, 3:] * y}[self.kind]()
        return self.fc(nn.functional.avg_pool2d(y, 8).flatten(1))


def price(kind, engine):
    x = torch.randn(1, 67 if kind == "gated" else 3, 32, 32)
    return predict(lower(Hidden(kind).eval(), x).program, engine)


def test_a_gate_is_one_product_of_secrets_on_stock():
    linear, gated, relu = (price(kind, "stock") for kind in ("linear", "gated", "relu"))
    elements = 64 * 32 * 32
    assert gated.rounds - linear.rounds == 1
    assert gated.bytes_sent - linear.bytes_sent == 16 * elements
    assert (relu.rounds - linear.rounds, relu.bytes_sent - linear.bytes_sent) == (9, 232 * elements)


@pytest.mark.parametrize("engine", ["stock", "lean"])
def test_the_docs_give_the_prices(engine):
    (line,) = re.findall(rf"^\| {engine} \| (.+) \|$", PAGE, re.MULTILINE)
    for cell, kind in zip(line.split(" | "), ("relu", "gated"), strict=True):
        rounds, megabytes = cell.split(", ")
        found = price(kind, engine)
        assert int(rounds) == found.rounds
        assert float(megabytes) == pytest.approx(found.bytes_sent / 1e6, rel=0.01)


def test_the_docs_train_both(tmp_path, monkeypatch):
    """The block of the page, for one epoch, on images that stand for CIFAR-100."""
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (300, 3, 32, 32), generator=generator, dtype=torch.uint8)
    labels = torch.arange(300) % 100
    monkeypatch.setattr(Images, "cifar100", lambda: Images.split(images, labels, 100, 100))
    monkeypatch.setattr("pibench.models.data.load_cifar100", lambda split: (images[:100], labels[:100]))
    monkeypatch.chdir(tmp_path)
    Path("results").mkdir()
    (block,) = (
        block
        for block in re.findall(r"^```python\n(.*?)^```", PAGE, re.DOTALL | re.MULTILINE)
        if "Small" in block
    )
    names = {}
    exec(block, names)
    before = {name: weight.clone() for name, weight in names["public"].state_dict().items()}
    schedule = Schedule(1, 0.1, batch=50)
    for name, model in {"small-relu": names["Small"](False), "small-gated": names["Both"]()}.items():
        assert 0 <= names["learn"](name, model, schedule) <= 1
        assert (tmp_path / "results" / f"{name}.jsonl").read_text().count("\n") == 1
        assert (tmp_path / "results" / f"{name}.pt").exists()
    for name, weight in names["public"].state_dict().items():
        assert torch.equal(weight, before[name]), "public vectors are not trained"
    model = model.eval()
    image = names["image"]
    gates = (names["public"](image) > 0).float()
    assert torch.equal(model(image), model.server(torch.cat([image, gates], 1))), (
        "the server sees gates alone"
    )
