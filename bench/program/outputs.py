"""The outputs of a network that returns several tensors: their names, and the choice of one."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

T = TypeVar("T")


class OutputError(ValueError):
    """Raised when the answer of a network is not one tensor, and nothing valid says which one to take."""


class Output(nn.Module):
    """A network that returns one of the outputs of another one; `key` is the name or number of the output.

    Lowering looks through it: steps and weights keep the names of `network`.
    """

    def __init__(self, network: nn.Module, key: int | str) -> None:
        super().__init__()
        self.network = network
        self.key = key

    def forward(self, *inputs: Any) -> Tensor:
        answer: Tensor = choose(named_outputs(self.network(*inputs)), self.key)
        return answer


def named_outputs(returned: Any) -> dict[str, Any]:
    """Maps the names of the outputs to the outputs: keys and numbers of nested containers, joined by dots."""
    return {
        ".".join(
            str(getattr(key, "key", getattr(key, "idx", getattr(key, "name", key)))) for key in path
        ): value
        for path, value in pytree.tree_flatten_with_path(returned)[0]
    }


def outputs_of(returned: Any, kind: type[T]) -> dict[str, T]:
    """Maps the names of those outputs that are of a kind (tensors, or the nodes of a graph) to them."""
    return {name: value for name, value in named_outputs(returned).items() if isinstance(value, kind)}


def choose(found: Mapping[str, T], output: int | str | None) -> T:
    """Returns the output called `output`, or the only one for None; OutputError lists them otherwise."""
    if output is None and len(found) == 1:
        return next(iter(found.values()))
    if output is not None and str(output) in found:
        return found[str(output)]
    if list(found) == [""]:
        raise OutputError(f"the network returns one tensor, and no output {output!r}: leave output away")
    wrong = "" if output is None else f" and none of them is {output!r}"
    choice = next(iter(found))
    choice = choice if choice.isdigit() else repr(choice)
    raise OutputError(
        f"the network returns {len(found)} tensors ({', '.join(found)}){wrong}; "
        f"choose one, such as output={choice}, or return one tensor, the logits alone"
    )


@torch.no_grad()
def with_output(model: nn.Module, output: int | str | None, example: Tensor) -> nn.Module:
    """Returns `model` if it returns one tensor for `example` [N, ...], else the network of that output.

    Raises OutputError for a network that fails on the example, and without a valid choice of an output.
    """
    try:
        answer = model(example)
    except Exception as error:  # whatever the network's own code raises
        first = str(error).partition("\n")[0]
        raise OutputError(
            f"the network raises {type(error).__name__} ({first}) on images of "
            f"shape {list(example.shape[1:])}; give their right shape, or make it run in eval mode first"
        ) from error
    found = outputs_of(answer, Tensor)
    if not found:
        raise OutputError("the network must return one tensor that depends on its input; return the logits")
    choose(found, output)
    return model if list(found) == [""] else Output(model, next(iter(found)) if output is None else output)
