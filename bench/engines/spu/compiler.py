"""Compiles a program to SPU's code, in a separate process.

jax is heavy and starts threads, so the parties do not import it. Party 0 starts this module as a child
(`compiled`), writes the program to it and reads the code. The child ends with its parent.
"""

from __future__ import annotations

import ctypes
import json
import os
import pickle
import signal
import subprocess
import sys
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from typing import Any

from pibench.program import ir

PR_SET_PDEATHSIG = 1


@dataclass(frozen=True)
class Code:
    """SPU's code of a function: its text, and the names of the values that it reads and writes."""

    name: str
    inputs: list[str]
    output: str
    text: str


@dataclass(frozen=True)
class Request:
    """The input of one compilation for a batch: a whole program, each of its steps, or its twin by hand."""

    program: ir.Program
    batch: int
    stepwise: bool = False
    by_hand: bool = False


_IMAGE, _MAPS = (4, 8, 8), (8, 8, 8)
START = ir.Program(
    "start",
    _IMAGE,
    (
        ir.Step(
            "start products",
            ir.Convolution("start", None, (8, 4, 3, 3), padding=(1, 1)),
            ("start",),
            (_IMAGE,),
            _MAPS,
        ),
        ir.Step("start signs", ir.Relu(), ("start products",), (_MAPS,), _MAPS),
    ),
    "start signs",
)
"""Some products and comparisons: what a protocol does once, it does at the latest for them."""


def weight_shapes(steps: Iterable[ir.Step]) -> dict[str, tuple[int, ...]]:
    """Maps the names of the weights that the steps use to their shapes."""
    return {name: shape for step in steps for name, shape in ir.stored_of(step.operator).items()}


def weight(name: str) -> str:
    """Returns the name of a weight in a party's memory, which differs from the name of every value."""
    return f"weight {name}"


def read_codes(message: bytes) -> list[Code]:
    """Reads the output of `compiled`."""
    return [Code(**fields) for fields in json.loads(message)]


def compiled(*requests: Request) -> bytes:
    """Compiles in a child process; returns the codes of all requests in order, as JSON.

    Raises RuntimeError with the child's words when it fails.
    """
    child = subprocess.run(
        [sys.executable, "-P", "-m", "pibench.engines.spu.compiler", str(os.getpid())],
        input=pickle.dumps(requests),
        capture_output=True,
        check=False,
    )
    if child.returncode:
        said = child.stderr.decode(errors="replace")[-2000:]
        raise RuntimeError(f"SPU's compiler ended with code {child.returncode}:\n{said}")
    return child.stdout


def compile_request(request: Request) -> list[Code]:
    """Compiles in this process: one function for the program, or one for each step."""
    from pibench.engines.spu.byhand import by_hand
    from pibench.engines.spu.networks import network

    program, batch = request.program, request.batch
    if not request.stepwise:
        shapes = weight_shapes(program.steps)
        inputs = {program.input: (batch, *program.input_shape)}
        made = by_hand(tuple(shapes)) if request.by_hand else network(program, tuple(shapes))
        return [_code("network", made, shapes, inputs, program.output)]
    codes = []
    for step in program.steps:
        shapes = weight_shapes([step])
        # A value may be an operator's input twice, but a function's inputs have different names.
        inputs = {name: (batch, *shape) for name, shape in zip(step.inputs, step.input_shapes, strict=True)}
        codes.append(_code(step.name, _of_names(step, tuple(shapes)), shapes, inputs, step.name))
    return codes


def _of_names(step: ir.Step, weights: tuple[str, ...]) -> Callable[..., Any]:
    """Returns a step's function of its different inputs."""
    from pibench.engines.spu.networks import layer

    whole = layer(step, weights)
    names = tuple(dict.fromkeys(step.inputs))

    def run(*arguments: Any) -> Any:
        values = dict(zip(names, arguments[len(weights) :], strict=True))
        return whole(*arguments[: len(weights)], *(values[name] for name in step.inputs))

    return run


def _code(
    name: str,
    function: Callable[..., Any],
    weights: dict[str, tuple[int, ...]],
    inputs: dict[str, tuple[int, ...]],
    output: str,
) -> Code:
    import jax
    import numpy as np
    from spu import libspu
    from spu.utils.frontend import Kind, compile

    shapes = {weight(name): shape for name, shape in weights.items()} | inputs
    executable, _ = compile(
        Kind.JAX,
        function,
        [jax.ShapeDtypeStruct(shape, np.float32) for shape in shapes.values()],
        {},
        list(shapes),
        [libspu.Visibility.VIS_SECRET] * len(shapes),
        lambda _: [output],
        copts=libspu.CompilerOptions(),
    )
    return Code(name, list(executable.input_names), output, executable.code.decode())


def main() -> None:
    """Reads the requests, writes the codes."""
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != int(sys.argv[1]):
        return  # the party had ended before the kernel knew that it must end this process too
    requests = pickle.load(sys.stdin.buffer)
    result, sys.stdout = sys.stdout, sys.stderr
    codes = [code for request in requests for code in compile_request(request)]
    result.write(json.dumps([asdict(code) for code in codes]))
    result.flush()


if __name__ == "__main__":
    main()
