"""Judges a network before parties run it, and the answers that they give.

Before: the answer in an engine's fixed point is compared with float64.

Fixed point has 16 fractional bits, so small numbers are lost silently: a weight below 2^-17 is 0. A loss of 2
% of the answer's largest number is refused, and a loss of 0.5 % gives a warning. The message names the layer
at which the loss begins. It is the first layer with this property: fixed point up to and including it, with
float64 after it, loses 2 % (or half of the loss, if that is less). The remedy is a rescaling. It is found
from three sizes: the numbers that go into the layer, the numbers by which it multiplies, and the numbers by
which later layers multiply.

After: the opened answer is compared with the network's own in float64. An error of 2 % of the largest number
is wrong, whatever its cause: fixed point, a local truncation, or parties that computed something else.
"""

from __future__ import annotations

import math
import warnings
from bisect import bisect_left
from collections.abc import Callable, Mapping

import torch
import torch.nn.functional as F
from torch import Tensor

from pibench.program import ir
from pibench.program.approximations import GELU, SIGMOID, SILU, TANH
from pibench.program.fixed_point import BITS, nearest
from pibench.program.lower import ExportError, Lowered
from pibench.program.plaintext import Rehearsal, evaluate, value_of, walk

REFUSED = 0.02  # of the largest number of the answer
WARNED_APPROXIMATION = 0.01  # one smooth activation alone is up to 0.7 % off
WARNED_FAILURES = 0.01  # wrong local truncations expected in one inference of one image
REFUSED_FAILURES = 0.1
CHECKED = 2
"""Images that are judged: those with the largest numbers."""

LARGE = 16.0  # numbers that a later layer can share with an earlier one

CHUNK = 16
"""Images that are evaluated at once."""

DRAWN = 2**15
MOST_DRAWS = 32
"""A network of fewer values than DRAWN is rehearsed again, MOST_DRAWS times at most.

Truncations round at random. The many values of a usual network average this, and one draw tells its loss. One
draw of a few values may be lucky.
"""

FLOOR = 2.0**-10
"""The error from which an answer is wrong where all numbers should be 0."""

SMOOTH: dict[ir.PiecewiseLinear, Callable[[Tensor], Tensor]] = {
    SIGMOID: torch.sigmoid,
    SILU: F.silu,
    GELU: F.gelu,
    TANH: torch.tanh,
}
"""Functions that sums of ReLUs stand for."""


class PrecisionWarning(UserWarning):
    """Warns that fixed point changes the answers of a network noticeably."""


class WrongAnswer(AssertionError):  # noqa: N818 (what happened, as pytest prints it)
    """Raised when the parties' logits are not those of the network."""


def widest(images: Tensor) -> Tensor:
    """Returns the images, at most two, with the largest numbers."""
    ranges = images.detach().abs().flatten(1).amax(1)
    return images[ranges.topk(min(CHECKED, len(images))).indices]


def exact_answer(lowered: Lowered, images: Tensor) -> Tensor:
    """Returns the program's answer to `images` [N, ...] in float64."""
    return evaluate(lowered.program, lowered.weights, images.to(torch.float64))


@torch.no_grad()
def own_answer(lowered: Lowered, images: Tensor) -> Tensor:
    """Returns the network's own answer to `images` [N, ...] in float64: smooth activations are themselves."""

    def apply(step: ir.Step, *inputs: Tensor) -> Tensor:
        op = step.operator
        smooth = SMOOTH.get(op) if isinstance(op, ir.PiecewiseLinear) else None
        return value_of(op, lowered.weights, *inputs) if smooth is None else smooth(*inputs)

    chunks = torch.split(images.to(torch.float64), CHUNK)
    return torch.cat([walk(lowered.program, chunk, apply) for chunk in chunks])


def demand_right(answer: Tensor, own: Tensor, scale: float, cause: Callable[[Tensor], str]) -> None:
    """Raises WrongAnswer for opened answers [N, ...] that are off by 2 % of the largest number or more.

    `own` are the network's own answers, and `scale` is the largest number of those to the example. The
    largest number is that of both. `cause(wrong)` says in words why the images of these numbers may have gone
    wrong. Warns of an answer that is right in this sense and yet off by 2 % of its own largest number.
    """
    exact = own.reshape(len(own), -1)
    errors = (answer.to(torch.float64).reshape(len(own), -1) - exact).abs().amax(1)
    sizes = exact.abs().amax(1)
    largest = max(scale, sizes.max().item())
    right = errors <= (REFUSED * largest or FLOOR)  # NaN is wrong
    if not right.all():
        wrong = (~right).nonzero().flatten()
        raise WrongAnswer(
            f"the answer to {_listed(wrong)} is off by {errors[wrong].max():.3g}, more than 2 % of the "
            f"largest number {largest:.3g}: {cause(wrong)}"
        )
    lost = ((errors > REFUSED * sizes) & (sizes > 0)).nonzero().flatten()
    if len(lost):
        warnings.warn(
            f"fixed point loses up to {100 * (errors / sizes)[lost].max():.3g} % of the answer to "
            f"{_listed(lost)}, whose numbers are at most {sizes[lost].max():.2g} where others reach "
            f"{largest:.2g}; with such images as the example, `load` names a rescaling",
            PrecisionWarning,
            stacklevel=4,
        )


def _listed(numbers: Tensor) -> str:
    """Returns the numbers of images in words, three at most."""
    shown = ", ".join(map(str, numbers[:3].tolist()))
    more = f" and {len(numbers) - 3} more" if len(numbers) > 3 else ""
    return f"image {shown}" if len(numbers) == 1 else f"images {shown}{more}"


def demand_precision(
    lowered: Lowered, images: Tensor, exact: Tensor, rehearse: Rehearsal, usual: float
) -> None:
    """Raises ExportError if fixed point loses too much of the `exact` answers to `images`; warns of less.

    `lowered` is the network with its values on these images [N, ...]. A `usual` loss, as a share of the
    largest number of the answers, needs no warning.
    """
    values = sum(math.prod(step.shape) for step in lowered.program.steps)
    draws = min(max(DRAWN // max(values, 1), 1), MOST_DRAWS)
    images, exact = (torch.cat([each.to(torch.float64)] * draws) for each in (images, exact))
    loss = _loss(rehearse(lowered.program, lowered.weights, images, None), exact)
    if loss <= usual:
        return
    cause = _cause(lowered, _beginning(lowered, images, rehearse, exact, min(loss / 2, REFUSED)))
    reason = f"fixed point loses {100 * loss:.3g} % of the answer's largest number, {cause}"
    if loss > REFUSED:
        raise ExportError(reason)
    warnings.warn(reason, PrecisionWarning, stacklevel=5)


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
        "there"
    )
    if expected > REFUSED_FAILURES:
        raise ExportError(reason)
    warnings.warn(reason, PrecisionWarning, stacklevel=6)


def _loss(answer: Tensor, exact: Tensor) -> float:
    """Returns the largest error of an answer relative to its largest number.

    An error up to FLOOR in an answer of zeros is none.
    """
    largest, error = exact.abs().max().item(), (answer - exact).abs().max().item()
    if largest and not math.isnan(error):
        return error / largest
    return 0.0 if error <= FLOOR else math.inf


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
