"""Judges a network before parties run it: compares the answer in an engine's fixed point with float64.

Fixed point has 16 fractional bits, so small numbers are lost silently: a weight below 2^-17 is 0. A loss of 2
% of the answer's largest number is refused, and a loss of 0.5 % gives a warning. The message names the layer
at which the loss begins. It is the first layer with this property: fixed point up to and including it, with
float64 after it, loses 2 % (or half of the loss, if that is less). The remedy is a rescaling. It is found
from three sizes: the numbers that go into the layer, the numbers by which it multiplies, and the numbers by
which later layers multiply.
"""

from __future__ import annotations

import math
import warnings
from bisect import bisect_left
from collections.abc import Mapping

import torch
from torch import Tensor

from pibench.program import ir
from pibench.program.fixed_point import BITS, nearest
from pibench.program.lower import ExportError, Lowered
from pibench.program.plaintext import Rehearsal, evaluate, value_of, walk

WARNED = 0.005  # of the largest number of the answer
REFUSED = 0.02
WARNED_APPROXIMATION = 0.01  # one smooth activation alone is up to 0.7 % off
WARNED_FAILURES = 0.01  # wrong local truncations expected in one inference of one image
REFUSED_FAILURES = 0.1
CHECKED = 2
"""Images that are judged: those with the largest numbers."""

LARGE = 16.0  # numbers that a later layer can share with an earlier one


class PrecisionWarning(UserWarning):
    """Warns that fixed point changes the answers of a network noticeably."""


def widest(images: Tensor) -> Tensor:
    """Returns the images, at most two, with the largest numbers."""
    ranges = images.detach().abs().flatten(1).amax(1)
    return images[ranges.topk(min(CHECKED, len(images))).indices]


def exact_answer(lowered: Lowered, images: Tensor) -> Tensor:
    """Returns the program's answer to `images` [N, ...] in float64."""
    return evaluate(lowered.program, lowered.weights, images.to(torch.float64))


def demand_precision(lowered: Lowered, images: Tensor, exact: Tensor, rehearse: Rehearsal) -> None:
    """Raises ExportError if fixed point loses too much of the `exact` answers to `images`; warns of less.

    `lowered` is the network with its values on these images [N, ...].
    """
    images = images.to(torch.float64)
    loss = _loss(rehearse(lowered.program, lowered.weights, images, None), exact)
    if loss <= WARNED:
        return
    cause = _cause(lowered, _beginning(lowered, images, rehearse, exact, min(loss / 2, REFUSED)))
    reason = f"fixed point loses {100 * loss:.3g} % of the answer's largest number, {cause}"
    if loss > REFUSED:
        raise ExportError(reason)
    warnings.warn(reason, PrecisionWarning, stacklevel=3)


def demand_faithful(lowered: Lowered, exact: Tensor, answer: Tensor) -> None:
    """Raises ExportError if the program's `exact` answer is too far from the network's own, or warns.

    The difference is that of the sums of ReLUs that stand for smooth activations.
    """
    loss = _loss(exact, answer)
    if loss <= WARNED_APPROXIMATION:
        return
    smooth = [
        repr(step.name)
        for step in lowered.program.steps
        if isinstance(step.operator, ir.PiecewiseLinear) and len(step.operator.knots) > 2
    ]
    if smooth:
        named = ", ".join(smooth[:3]) + (f" and {len(smooth) - 3} more" if len(smooth) > 3 else "")
        reason = (
            f"the sums of ReLUs that stand for sigmoid, SiLU, GELU or tanh ({named}) change the answer by "
            f"{100 * loss:.3g} % of its largest number; train with ReLU or hard-swish, which are exact"
        )
    else:
        reason = (
            f"the captured network answers {100 * loss:.3g} % of the largest number away from the network "
            "itself; its forward must depend on its input alone"
        )
    if loss > REFUSED:
        raise ExportError(reason)
    warnings.warn(reason, PrecisionWarning, stacklevel=3)


def demand_truncations(lowered: Lowered) -> None:
    """Raises ExportError if too many local truncations are expected to go wrong; warns of fewer."""
    expected = lowered.truncation_failures
    if expected <= WARNED_FAILURES:
        return
    name = max(lowered.largest, key=lambda name: lowered.largest[name])
    reason = (
        f"{expected:.2g} wrong truncations are expected in an inference of one image, as this engine "
        f"truncates locally and values reach {lowered.largest[name]:.3g} at {name!r}; scale down what leads "
        "there, or use engine='lean'"
    )
    if expected > REFUSED_FAILURES:
        raise ExportError(reason)
    warnings.warn(reason, PrecisionWarning, stacklevel=3)


def _loss(answer: Tensor, exact: Tensor) -> float:
    """Returns the largest error of an answer relative to its largest number; 0 for an answer of zeros."""
    largest = exact.abs().max().item()
    return (answer - exact).abs().max().item() / largest if largest else 0.0


def _beginning(lowered: Lowered, images: Tensor, rehearse: Rehearsal, exact: Tensor, loss: float) -> int:
    """Returns the number of steps in fixed point after which so much is lost.

    The number is 0 if the images alone cause the loss.
    """
    fixed: dict[str, Tensor] = {}

    def keep(step: ir.Step, value: Tensor) -> None:
        fixed[step.name] = value

    rehearse(lowered.program, lowered.weights, images, keep)
    steps = lowered.program.steps

    def lost(count: int) -> float:
        done = {step.name for step in steps[:count]}

        def apply(step: ir.Step, *inputs: Tensor) -> Tensor:
            known = step.name in done
            return fixed[step.name] if known else value_of(step.operator, lowered.weights, *inputs)

        return _loss(walk(lowered.program, nearest(images), apply), exact)

    return bisect_left(range(len(steps)), loss, key=lost)


def _multipliers(step: ir.Step, weights: Mapping[str, Tensor]) -> float | None:
    """Returns the largest number by which a step multiplies, or None if there is none."""
    op = step.operator
    if isinstance(op, ir.Convolution | ir.Linear | ir.Affine):
        return weights[op.weight].abs().max().item()
    if isinstance(op, ir.Scale):
        return abs(op.factor)
    if isinstance(op, ir.Combine):
        return max(map(abs, op.factors))
    if isinstance(op, ir.Weigh):
        return float(abs(op.factors).max())
    return None


def _cause(lowered: Lowered, count: int) -> str:
    """Returns a text: the step at which the loss begins, the numbers that are too small, the rescaling."""
    steps, largest = lowered.program.steps, lowered.largest
    if not count:
        reach = largest[lowered.program.input]
        return (
            f"as the images are at most {reach:.2g}: multiply them by 2^{_power(reach)} and divide the "
            "weights of the layer that takes them by the same"
        )
    step = steps[count - 1]
    into = max(largest[name] for name in step.inputs)
    own = _multipliers(step, lowered.weights)
    if own is None:
        small = min(into, largest[step.name])
        what = f"whose values are at most {small:.2g}: multiply what goes into it"
    else:
        small = own
        what = f"whose weights, with the scales after it, are at most {small:.2g}: multiply them"
    power = _power(small)
    where = f"from {step.name!r} ({step.kind}) on, {what}"
    if own is not None and into >= 2.0 ** (power / 2):
        power = min(power, math.floor(math.log2(into)))
        return f"{where} by 2^{power} and divide what goes into it, now up to {into:.2g}, by the same"
    for later in steps[count:]:
        factor = _multipliers(later, lowered.weights) or 0.0
        if factor >= LARGE:
            power = min(power, math.floor(math.log2(factor)))
            return f"{where} by 2^{power} and divide the weights of {later.name!r} by the same"
    return f"{where} and every later bias by 2^{power}, and divide the answer by the same after the inference"


def _power(small: float) -> int:
    """Returns the power of two that brings a number to about 1, at least 2^4."""
    return max(4, round(-math.log2(small))) if small > 0 else BITS
