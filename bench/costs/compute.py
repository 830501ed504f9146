"""The seconds of computing of one inference, as a measured machine needs them: from profiles of layers.

A profile holds the seconds, rounds and bytes of each layer on loopback (`layers` of a row). From the profiles
of an engine `pace_of` learns, by non-negative least squares, how long its steps take:

- A convolution or linear layer with m windows of k numbers and n outputs:
  c0 + c1 m k n + c2 m k + c3 k n + c4 m n, that is multiply-accumulates, windows, weights and outputs.
- Every other step that sends something: c5 a round + c6 a byte.
- A step that sends nothing, and the opening: their mean.

A residual is divided by the root of what was measured, so that long layers decide and short ones count. The
seconds contain what loopback itself takes. Kinds of steps that no profile holds (maximum pooling, products of
values) are priced by their rounds and bytes as if they were ReLUs: a rough guess.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np

from pibench.engines.base import StepTraffic
from pibench.program.ir import Convolution, Linear, Program, Step

PRODUCTS = ("convolution", "linear")


@dataclass(frozen=True)
class Pace:
    """The seconds that steps of an engine take on a machine.

    `product` are the five coefficients of a convolution or linear layer, `exchange` the seconds of a round
    and of a byte of other steps, `local_s` and `opening_s` the seconds of a step that sends nothing and of
    the opening. `machine` names the processor.
    """

    product: tuple[float, ...]
    exchange: tuple[float, ...]
    local_s: float
    opening_s: float
    machine: str

    def seconds(self, program: Program, traffic: Sequence[StepTraffic], batch: int) -> float:
        """Returns the seconds of one inference of `batch` images; `traffic` are its steps (`predict`)."""
        *steps, _ = traffic
        return self.opening_s + sum(
            self._step_s(step, sent, batch) for step, sent in zip(program.steps, steps, strict=True)
        )

    def _step_s(self, step: Step, sent: StepTraffic, batch: int) -> float:
        if isinstance(step.operator, Convolution | Linear):
            return float(np.dot(self.product, _of_step(step, batch)))
        if sent.rounds == 0:
            return self.local_s
        return float(np.dot(self.exchange, (sent.rounds, sent.bytes_sent)))


def pace_of(engine: str, rows: Iterable[Mapping[str, Any]]) -> Pace | None:
    """Learns the pace of an engine from the profiled loopback rows of results/bench.json.

    Returns None if there are none with all sorts of steps.
    """
    profiled = [
        row
        for row in rows
        if row["engine"] == engine and row["link"] == "loopback" and row["layers"] and row["network"]
    ]
    products: list[tuple[Sequence[float], float]] = []
    exchanges: list[tuple[Sequence[float], float]] = []
    local: list[float] = []
    opening: list[float] = []
    for row in profiled:
        shapes = {layer["name"]: layer for layer in row["network"]["linear"]}
        for layer in row["layers"]:
            if layer["kind"] == "open":
                opening.append(layer["seconds"])
            elif layer["kind"] in PRODUCTS:
                products.append((_of_layer(shapes[layer["name"]], row["batch"]), layer["seconds"]))
            elif layer["rounds"]:
                exchanges.append(((layer["rounds"], layer["bytes_sent"]), layer["seconds"]))
            else:
                local.append(layer["seconds"])
    if not (products and exchanges and local and opening):
        return None
    return Pace(
        _fitted(products),
        _fitted(exchanges),
        float(np.mean(local)),
        float(np.mean(opening)),
        profiled[0]["machine"]["cpu"],
    )


def _of_layer(layer: Mapping[str, Any], batch: int) -> tuple[float, ...]:
    """Returns the features of a linear layer as rows describe it (`costs.literature.LinearLayer`)."""
    inner = layer["inputs"] * prod(layer["kernel"]) // layer["groups"]
    return _features(batch * prod(layer["out_map"]), inner, layer["outputs"])


def _of_step(step: Step, batch: int) -> tuple[float, ...]:
    columns = step.operator.weight_shape[0]
    return _features(batch * step.size // columns, prod(step.operator.weight_shape[1:]), columns)


def _features(rows: int, inner: int, columns: int) -> tuple[float, ...]:
    return (1.0, rows * inner * columns, rows * inner, inner * columns, rows * columns)


def _fitted(measured: Sequence[tuple[Sequence[float], float]]) -> tuple[float, ...]:
    """Returns the coefficients that are not negative and explain the seconds best."""
    from scipy.optimize import nnls

    features = np.array([each for each, _ in measured], float)
    seconds = np.array([each for _, each in measured])
    weights = seconds**-0.5
    found, _ = nnls(features * weights[:, None], seconds * weights)
    return tuple(map(float, found))
