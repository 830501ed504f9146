"""The structure of a network as data: its architecture and the transforms that changed it. No torch.

A weights file carries this in its header, so that the structure is rebuilt from the file and never from a
name. The choices of training (masks, blocks, channels, ranks, coefficients) are arguments of transforms. An
argument is a JSON value, or a tensor of the file, written as {"tensor": its name there}.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from pibench.models.files import parse_json

FORMAT = 1
_SIZES = ("width", "classes", "image_size")


@dataclass(frozen=True)
class Step:
    """A transform by name, with its arguments after the model."""

    transform: str
    arguments: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Decisions:
    """A network of the zoo and its transforms, in order.

    `variant` is the name under which the network was made. `width` is that of the architecture's first stage.
    `image_size` is the size for which masks were made. Nothing is rebuilt from `variant`.
    """

    variant: str
    network: str
    width: int
    classes: int
    image_size: int
    steps: tuple[Step, ...]

    def to_json(self) -> str:
        """Returns the text of the header."""
        steps = [[step.transform, dict(step.arguments)] for step in self.steps]
        return json.dumps(vars(self) | {"format": FORMAT, "steps": steps})

    @classmethod
    def from_json(cls, text: str) -> Decisions:
        """Reads a header's text.

        Raises ValueError, with one clause, for text that `to_json` does not write.
        """
        content = parse_json(text)
        if not isinstance(content, dict):
            raise ValueError("its decisions are no JSON object")
        if content.pop("format", None) != FORMAT:
            raise ValueError(f"its decisions are not of format {FORMAT}")
        wanted = {"variant", "network", "steps", *_SIZES}
        if odd := sorted(wanted ^ content.keys()):
            raise ValueError(f"its decisions lack or do not know {odd[0]!r}")
        for name in ("variant", "network"):
            if not isinstance(content[name], str):
                raise ValueError(f"its {name} is no text")
        for name in _SIZES:
            if type(content[name]) is not int or content[name] < 1:
                raise ValueError(f"its {name} is no positive whole number")
        if not isinstance(content["steps"], list):
            raise ValueError("its steps are no list")
        for step in content["steps"]:
            if not (
                isinstance(step, list)
                and len(step) == 2
                and isinstance(step[0], str)
                and isinstance(step[1], dict)
            ):
                raise ValueError(f"{step!r:.60} is no pair of a transform's name and its arguments")
        return cls(**content | {"steps": tuple(Step(*step) for step in content["steps"])})

    def tensors(self) -> set[str]:
        """Returns the names of all tensors that are arguments."""
        return {name for step in self.steps for name in _tensors(step.arguments)}


def tensor_name(value: Any) -> str | None:
    """Returns the tensor's name if an argument is one, or None for any other value."""
    named = isinstance(value, Mapping) and value.keys() == {"tensor"} and isinstance(value["tensor"], str)
    return value["tensor"] if named else None


def _tensors(value: Any) -> Iterator[str]:
    name = tensor_name(value)
    if name is not None:
        yield name
    elif isinstance(value, Mapping):
        for inner in value.values():
            yield from _tensors(inner)
    elif isinstance(value, list | tuple):
        for inner in value:
            yield from _tensors(inner)
