"""The choice of one of several outputs, in lowering, on parties and in measurements."""

from __future__ import annotations

import pytest
import torch
from networks import Apply, logits_of
from torch import nn

import pibench
from pibench.program.lower import ExportError, lower
from pibench.program.outputs import Output, OutputError, named_outputs, with_output

IMAGES = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(1))


class Heads(nn.Module):
    """Two heads, and the maps that they read, in nested containers."""

    def __init__(self) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            self.conv, self.fc, self.aux = nn.Conv2d(3, 4, 3), nn.Linear(144, 5), nn.Linear(144, 3)

    def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor | list[torch.Tensor]]:
        x = self.conv(x).relu().flatten(1)
        return {"logits": self.fc(x), "aux": [self.aux(x), x]}


HEADS = Heads().eval()


@pytest.mark.parametrize(("output", "number"), [("logits", 5), ("aux.0", 3), ("aux.1", 144)])
def test_names_of_containers_are_joined(output, number):
    chosen = with_output(HEADS, output, IMAGES)
    with torch.no_grad():
        expected = chosen(IMAGES)
    assert expected.shape == (2, number)
    direct, wrapped = lower(HEADS, IMAGES, output), lower(chosen, IMAGES)
    for lowered in (direct, wrapped):
        torch.testing.assert_close(logits_of(lowered, IMAGES).float(), expected, atol=1e-5, rtol=0)
        assert lowered.program.steps[0].name == "conv"
    assert set(direct.weights) == set(wrapped.weights)


@pytest.mark.parametrize(
    ("function", "output", "shape"),
    [
        (lambda m, x: (x.relu(), -x[:, :1]), 1, (2, 1, 8, 8)),
        (lambda m, x: [x.relu(), -x[:, :1]], "1", (2, 1, 8, 8)),
        (lambda m, x: {"a": x.relu(), "b": -x[:, :1]}, "b", (2, 1, 8, 8)),
        (lambda m, x: {"a": x.relu()}, None, (2, 3, 8, 8)),
        (lambda m, x: (x.relu(), 7, None), None, (2, 3, 8, 8)),
        (lambda m, x: x.relu(), None, (2, 3, 8, 8)),
    ],
)
def test_lists_tuples_and_mappings(function, output, shape):
    model = Apply(function)
    assert logits_of(lower(model, IMAGES, output), IMAGES).shape == shape
    chosen = with_output(model, output, IMAGES)
    assert chosen(IMAGES).shape == shape
    assert isinstance(chosen, Output) == (not isinstance(model(IMAGES), torch.Tensor))


@pytest.mark.parametrize(
    ("model", "output", "message"),
    [
        (HEADS, None, r"returns 3 tensors \(logits, aux.0, aux.1\); choose one, such as output='logits', or"),
        (HEADS, "head", r"none of them is 'head'; choose one, such as output='logits'"),
        (
            Apply(lambda m, x: (x.relu(), -x)),
            2,
            r"returns 2 tensors \(0, 1\).* is 2; choose one, .* output=0",
        ),
        (nn.ReLU(), "logits", "returns one tensor, and no output 'logits': leave output away"),
        (Apply(lambda m, x: None), None, "must return one tensor"),
    ],
)
def test_a_missing_or_wrong_choice_is_one_sentence(model, output, message):
    with pytest.raises(OutputError, match=message):
        with_output(model, output, IMAGES)
    with pytest.raises(ExportError, match=message):
        lower(model, IMAGES, output)


def test_a_tensor_is_the_output_without_a_name():
    assert list(named_outputs(IMAGES)) == [""]


def test_parties_and_measurements_take_the_output(stock, tmp_path):
    stock.load(HEADS, IMAGES, output="aux.0")
    stock.prepare(2)
    torch.testing.assert_close(stock.infer(IMAGES), HEADS(IMAGES)["aux"][0].detach(), atol=2e-3, rtol=0)
    frame = pibench.measure(HEADS, IMAGES, output="aux.0", rounds=1, results=tmp_path)
    assert frame["variant"].tolist() == ["Heads[aux.0]"]
    assert frame["repetitions_succeeded"].tolist() == [1]
    with pytest.raises(OutputError, match="choose one, such as output='logits'"):
        pibench.measure(HEADS, IMAGES, rounds=1, results=tmp_path)
