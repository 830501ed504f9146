"""The judge of every number: an engine must hold a network's values, and its parties must answer right."""

from __future__ import annotations

import warnings

from torch import Tensor

from pibench.engines import ENGINES
from pibench.engines.base import Engine
from pibench.program.guard import (
    PrecisionWarning,
    demand_faithful,
    demand_precision,
    demand_right,
    demand_truncations,
    exact_answer,
    own_answer,
    widest,
)
from pibench.program.lower import ExportError, Lowered


def judge(engine: Engine, lowered: Lowered, images: Tensor, exact: Tensor) -> None:
    """Raises ExportError unless an engine can hold a network's values on `images` [N, ...] and the answer.

    `lowered` has these values, and `exact` is the program's answer in float64. The message names the place
    and a remedy: another engine only if that one can hold the values. A smaller loss is a PrecisionWarning.
    """
    try:
        _demand_held(engine, lowered)
    except ExportError as error:
        raise ExportError(f"{error}{_elsewhere(engine, lowered)}") from error
    if engine.rehearse is not None:
        demand_precision(lowered, images, exact, engine.rehearse, engine.usual_loss)


def judge_answer(engine: Engine, lowered: Lowered, images: Tensor, answer: Tensor, scale: float) -> None:
    """Raises WrongAnswer unless an opened `answer` [N, ...] is the network's own to `images` [N, ...].

    `scale` is the largest number of the answer to the example (`pibench.program.guard.demand_right`). The
    message says why the answer may be wrong.
    """

    def cause(wrong: Tensor) -> str:
        return _cause(engine, lowered, widest(images[wrong]))

    demand_right(answer, own_answer(lowered, images), scale, cause)


def _demand_held(engine: Engine, lowered: Lowered) -> None:
    try:
        limits = engine.value_limits(lowered.program)
    except ValueError as error:  # no scales hold the calibrated values
        raise ExportError(str(error)) from error
    lowered.demand(limits)
    if not engine.exact_truncation:
        demand_truncations(lowered)


def _elsewhere(engine: Engine, lowered: Lowered) -> str:
    """Names another engine that can hold the values, as the end of a sentence: of few parties, and fast."""
    for name, other in sorted(ENGINES.items(), key=lambda item: (item[1].parties, item[1].compute)):
        if not other.offered or other.calibrated or name == engine.name:
            continue
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("error", PrecisionWarning)
                _demand_held(other, lowered)
        except (ExportError, NotImplementedError, PrecisionWarning):
            continue
        return f", or use engine={name!r}"
    return ""


def _cause(engine: Engine, lowered: Lowered, images: Tensor) -> str:
    """Returns why an answer may be wrong: fixed point, smooth activations, truncations, or the parties."""
    try:
        held = lowered.on(images)
        exact = exact_answer(held, images)
        with warnings.catch_warnings():
            warnings.simplefilter("error", PrecisionWarning)  # what is nearly refused is a cause, too
            judge(engine, held, images, exact)
            demand_faithful(held, exact, own_answer(held, images))
    except (ExportError, PrecisionWarning) as error:
        return str(error)
    if engine.exact_truncation:
        return "fixed point can hold these images, so the parties did not compute the network that was loaded"
    return (
        f"{held.truncation_failures:.2g} wrong local truncations are expected in an inference of one such "
        "image; repeat it, and if it fails again, the parties did not compute the network that was loaded"
    )
