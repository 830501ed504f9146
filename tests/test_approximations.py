"""The documented error of each approximation, in float64 and in the fixed point of both engines."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from networks import Apply, logits_of

from pibench.engines import ENGINES
from pibench.program.approximations import GELU, HARD_SIGMOID, SIGMOID, SILU, TANH
from pibench.program.ir import PiecewiseLinear
from pibench.program.lower import lower
from pibench.program.plaintext import value_of

ERRORS = {  # of bench/program/approximations.py and docs/operators.md
    "sigmoid": (torch.sigmoid, SIGMOID, 0.0036),
    "silu": (F.silu, SILU, 0.0017),
    "gelu": (F.gelu, GELU, 0.0050),
    "tanh": (torch.tanh, TANH, 0.0071),
    "hardsigmoid": (F.hardsigmoid, HARD_SIGMOID, 1e-9),
}
UNIT = 2.0**-16
GRID = torch.linspace(-30, 30, 120_001, dtype=torch.float64)


def error(name: str, values: torch.Tensor) -> torch.Tensor:
    return (values - ERRORS[name][0](GRID)).abs().max()


@pytest.mark.parametrize("name", ERRORS)
def test_the_error_in_float_is_the_documented_one(name):
    function, curve, largest = ERRORS[name]
    found = error(name, value_of(curve, {}, GRID))
    assert found <= largest
    assert found >= 0.9 * largest or name == "hardsigmoid", "the documented error is too careful"
    far = torch.tensor([-1e6, -1e3, 1e3, 1e6], dtype=torch.float64)
    assert (value_of(curve, {}, far) - function(far)).abs().max() <= largest + 1e-9 * far.abs().max()


@pytest.mark.parametrize("engine", ["stock", "lean", "spu-semi2k"])
@pytest.mark.parametrize("name", ERRORS)
def test_fixed_point_adds_little(name, engine):
    """A truncated ReLU is off by a unit for each knot, times a jump; 1/6 is rounded by 2^-17."""
    function, curve, largest = ERRORS[name]
    lowered = lower(Apply(lambda m, x: function(x)), GRID[None, :5])
    assert [type(step.operator) for step in lowered.program.steps] == [PiecewiseLinear]
    program = lower(Apply(lambda m, x: function(x)), GRID[None]).program
    found = ENGINES[engine].rehearse(program, {}, GRID[None], None)
    jumps = sum(map(abs, curve.jumps))
    rounding = 60 * UNIT if name == "hardsigmoid" else 0.0
    if engine == "stock":
        rounding += len(curve.knots) * UNIT  # knots are encoded toward zero
    assert error(name, found[0]) <= largest + (jumps + 2) * UNIT + rounding


def test_both_forms_of_gelu():
    """The approximation is of the one with erf; torch's other form, with tanh, is 0.0005 from it."""
    x = GRID[None]
    for form in ("none", "tanh"):
        logits = logits_of(lower(Apply(lambda m, x, form=form: F.gelu(x, approximate=form)), x), x)
        assert (logits - F.gelu(x, approximate=form)).abs().max() <= 0.0050 + 0.0005
