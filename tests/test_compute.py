"""The modelled seconds of computing: learnt from profiles, recovered exactly from made-up ones."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from networks import small
from torch import nn

from pibench.costs import literature
from pibench.costs.compute import pace_of
from pibench.costs.predict import predict
from pibench.models.transforms import fold_batchnorm
from pibench.program.lower import lower

ENGINE = "lean"
COEFFICIENTS = (1e-4, 3e-11, 5e-10, 4e-10, 6e-9)
LEARNT = ("resnet18", "resnet20", "wrn_22_8")
ROUND_S, BYTE_S, LOCAL_S, OPENING_S = 7e-5, 1e-9, 2e-5, 1e-4


def program_of(name: str):
    return lower(fold_batchnorm(small(name)).float(), torch.zeros(1, 3, 32, 32)).program


def layers_of(program, factor: float = 1.0) -> list[dict]:
    """Returns a profile of a program whose layers take what the constants say."""
    operators = {step.name: step.operator for step in program.steps}
    sizes = {step.name: step.size for step in program.steps}
    layers = []
    for step in predict(program, ENGINE).steps:
        if step.kind == "open":
            seconds = OPENING_S
        elif step.kind in ("convolution", "linear"):
            n, *window = operators[step.name].weight_shape
            m, k = sizes[step.name] // n, np.prod(window)
            seconds = float(np.dot(COEFFICIENTS, (1, m * k * n, m * k, k * n, m * n)))
        elif step.rounds:
            seconds = ROUND_S * step.rounds + BYTE_S * step.bytes_sent
        else:
            seconds = LOCAL_S
        measured = {"rounds": step.rounds, "bytes_sent": step.bytes_sent, "seconds": factor * seconds}
        layers.append({"name": step.name, "kind": step.kind, **measured})
    return layers


def row_of(program, factor: float = 1.0) -> dict:
    """Returns the parts of a row that profiles are learnt from."""
    return {
        "engine": ENGINE,
        "link": "loopback",
        "batch": 1,
        "layers": layers_of(program, factor),
        "network": literature.describe("made up", program).as_dict(),
        "machine": {"cpu": "made up"},
    }


def test_what_layers_take_is_recovered_and_carried_to_another_network():
    rows = [row_of(program_of(name)) for name in LEARNT]
    pace = pace_of(ENGINE, rows)
    assert pace.machine == "made up"
    assert pace.exchange == pytest.approx((ROUND_S, BYTE_S))
    assert (pace.local_s, pace.opening_s) == pytest.approx((LOCAL_S, OPENING_S))
    other = program_of("vgg16")
    assert "maxpool" in {step.kind for step in other.steps}
    expected = sum(layer["seconds"] for layer in layers_of(other))
    assert pace.seconds(other, predict(other, ENGINE).steps, 1) == pytest.approx(expected)
    twice = pace_of(ENGINE, [row_of(program_of("resnet18"), factor=2.0)])
    assert twice.local_s == pytest.approx(2 * LOCAL_S)


def test_a_batch_multiplies_the_windows_and_not_the_weights():
    pace = pace_of(ENGINE, [row_of(program_of(name)) for name in LEARNT])
    program = lower(nn.Linear(300, 200), torch.zeros(1, 300)).program
    one, two = (pace.seconds(program, predict(program, ENGINE, batch).steps, batch) for batch in (1, 2))
    assert two - one == pytest.approx(np.dot(COEFFICIENTS, (0, 60_000, 300, 0, 200)))


def test_rows_that_hold_no_profile_teach_nothing():
    row = row_of(program_of("resnet18"))
    assert pace_of("stock", [row]) is None
    assert pace_of(ENGINE, []) is None
    for part, value in (("link", "wan"), ("layers", []), ("network", None)):
        assert pace_of(ENGINE, [{**row, part: value}]) is None
    lacking = copy.deepcopy(row)
    lacking["layers"] = [layer for layer in lacking["layers"] if layer["kind"] != "relu"]
    assert pace_of(ENGINE, [lacking]) is None
