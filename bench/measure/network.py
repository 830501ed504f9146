"""The networks that a name can mean: `pibench run NAME`.

A name is a variant (`senet-0.09`), a network of the zoo with options (`resnet18:width=32,classes=10`), a
network of timm (`timm:mobilenetv2_050`), a factory in a user's own code (`net.py:make` or
`package.module:make`) or a file of torch.export (`net.pt2`).
"""

from __future__ import annotations

import difflib
import inspect
import re
import subprocess
import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from functools import cache
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn

from pibench.measure.foreign import read_network
from pibench.models.catalogue import variant_names
from pibench.models.data import default_images
from pibench.models.transforms import fold_batchnorm
from pibench.models.variants import variant
from pibench.models.zoo import ZOO
from pibench.parties.processes import Supervisor
from pibench.program.outputs import with_output

SIZES = (16, 28, 32, 48, 64, 96, 128, 160, 224, 256, 299)
"""Heights and widths that are tried when a network does not say what images it takes."""
CAPTURE_S = 300.0


@dataclass(frozen=True)
class Chosen:
    """A network in eval mode, BatchNorm folded, and the `shape` of one input, without the batch.

    `variant` is the variant's name, or None for any other network. `name` is the name in rows and tables.
    """

    name: str
    model: nn.Module
    shape: tuple[int, ...]
    variant: str | None = None

    def inputs(self, count: int) -> Tensor:
        """Returns `count` inputs: the default images if the shape is theirs, else seeded normal numbers."""
        if len(self.shape) == 3 and self.shape[0] == 3 and self.shape[1] == self.shape[2]:
            return default_images(count, self.shape[1])[0]
        return torch.randn(count, *self.shape, generator=torch.Generator().manual_seed(0))


def nearest(kind: str, given: str, known: Iterable[str], remedy: str) -> str:
    """Returns one sentence: no `kind` is called `given`, the nearest known name if any, the remedy."""
    close = difflib.get_close_matches(given, list(known), n=1, cutoff=0.5)
    hint = f" (did you mean {close[0]!r}?)" if close else ""
    return f"no {kind} is called {given!r}{hint}: {remedy}"


def network(
    name: str,
    width: int = 64,
    image: int | None = None,
    shape: tuple[int, ...] | None = None,
    folder: Path | None = None,
    output: int | str | None = None,
) -> Chosen:
    """Returns the network that `name` means.

    `width` is that of variants, `image` the height and width of their images (32). `shape` is needed for a
    network that does not state its input. `folder` (here, if None) is the place at which a user's own code
    starts. `output` chooses one of several outputs, by its number or its name. Raises ValueError for an
    unknown name, for code that does not make a network, and for several outputs without a choice.
    """
    return answering(_named(name, width, image, shape, folder), output)


def answering(found: Chosen, output: int | str | None) -> Chosen:
    """Returns the network with one output; `output` chooses it where there are several."""
    if found.variant is not None:  # a variant returns its logits
        return found
    model = with_output(found.model, output, torch.zeros(1, *found.shape))
    if model is found.model:
        return found
    return replace(found, name=found.name if output is None else f"{found.name}[{output}]", model=model)


def _named(
    name: str, width: int, image: int | None, shape: tuple[int, ...] | None, folder: Path | None
) -> Chosen:
    if name in variant_names():
        size = image or 32
        return Chosen(name, variant(name).build(width, image_size=size), (3, size, size), name)
    kind, _, rest = name.partition(":")
    if kind in ZOO:
        size = image or 32
        return _finished(name, ZOO[kind](**_options(kind, rest)), shape or (3, size, size))
    if image is not None and shape is None:
        shape = (3, image, image)
    if kind == "timm":
        return _timm(name, rest, shape)
    if name.endswith(".pt2"):
        model, known = read_network(_file(Path(name), folder))
        return _finished(name, model, shape or known)
    if rest and re.fullmatch(r"[\w.]+", rest) and (kind.endswith(".py") or re.fullmatch(r"[\w.]+", kind)):
        return _foreign(name, kind, shape, (folder or Path.cwd()).resolve())
    raise ValueError(
        nearest(
            "network",
            name,
            [*variant_names(), *ZOO],
            "`pibench list` shows the known ones, and file.py:factory stands for a network of your own",
        )
    )


def _file(path: Path, folder: Path | None) -> Path:
    found = (folder or Path.cwd()) / path
    if not found.is_file():
        near = nearest("file", path.name, [p.name for p in found.parent.glob("*")], "check its path")
        raise ValueError(near)
    return found


def _options(kind: str, text: str) -> dict[str, Any]:
    """Reads `width=32,classes=10` by the parameters of a zoo network's function."""
    parameters = inspect.signature(ZOO[kind]).parameters
    found: dict[str, Any] = {}
    for part in filter(None, text.split(",")):
        key, _, value = (piece.strip() for piece in part.partition("="))
        if key not in parameters:
            raise ValueError(
                nearest(f"option of {kind}", key, parameters, f"it takes {', '.join(parameters)}")
            )
        default = parameters[key].default
        words = {"true": True, "false": False}
        if isinstance(default, str):
            found[key] = value
        elif isinstance(default, bool) and value.lower() in words:
            found[key] = words[value.lower()]
        elif not isinstance(default, bool) and re.fullmatch(r"\d+", value):
            found[key] = int(value)
        else:
            wanted = "true or false" if isinstance(default, bool) else "a whole number"
            raise ValueError(f"{key} of {kind} is {wanted}, not {value!r}")
    return found


def import_timm(name: str) -> ModuleType:
    """Imports timm for the network `name`; raises ValueError with the remedy where it is not installed.

    timm takes Python code alone from torchvision. A torchvision whose compiled operators do not fit this
    torch cannot be imported until two of them are declared.
    """
    if find_spec("timm") is None:
        raise ValueError(f"{name} needs timm, which is not installed: pip install timm")
    try:
        import_module("torchvision")
    except RuntimeError:
        _declare_operators_of_torchvision()
    return import_module("timm")


@cache
def _declare_operators_of_torchvision() -> torch.library.Library:
    """Declares what torchvision's Python code names; the declaration lasts as long as the returned object."""
    library = torch.library.Library("torchvision", "DEF")
    library.define("qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    library.define("nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    return library


def _timm(name: str, rest: str, shape: tuple[int, ...] | None) -> Chosen:
    timm = import_timm(name)
    if rest not in timm.list_models():
        raise ValueError(nearest("network of timm", rest, timm.list_models(), "timm.list_models() has them"))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = timm.create_model(rest, pretrained=False)
    return _finished(name, model, shape or tuple(model.pretrained_cfg["input_size"]))


def _foreign(name: str, place: str, shape: tuple[int, ...] | None, folder: Path) -> Chosen:
    """Makes and traces the network in a separate process, which starts in the user's folder."""
    if place.endswith(".py"):
        _file(Path(place), folder)
    with Supervisor() as owner:  # the folder goes, whatever happens to this process
        made = owner.folder / "network.pt"
        # -P: Python finds no module of the user until pibench itself has been imported.
        command = [sys.executable, "-P", "-m", "pibench.measure.foreign", name, str(made)]
        command += map(str, shape or ())
        try:
            run = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=CAPTURE_S)
        except subprocess.TimeoutExpired as error:
            raise ValueError(f"{name} did not give its network within {CAPTURE_S:g} s") from error
        if run.returncode != 0:
            said = run.stderr.strip().splitlines() or [f"the process ended with code {run.returncode}"]
            raise ValueError(f"{name}: {said[-1]}")
        model, known = read_network(made if made.exists() else made.with_suffix(".pt2"))
    return _finished(name, model, shape or known)


def _finished(name: str, model: nn.Module, shape: tuple[int, ...] | None) -> Chosen:
    model = model.eval().requires_grad_(False)
    shape = shape or _shape_of(name, model)
    try:
        with torch.no_grad():
            model(torch.zeros(1, *shape))
    except Exception as error:  # whatever the network's own code raises
        said = f"{type(error).__name__}: {error}".partition("\n")[0]
        raise ValueError(
            f"{name} does not take an input of shape {','.join(map(str, shape))} "
            f"({said}): give one input's shape, such as --shape 3,32,32"
            + ("; export it for a batch of any size (dynamic_shapes)" * name.endswith(".pt2"))
        ) from error
    return Chosen(re.sub(r"[/\\]", ".", name), _folded(model), shape)


def _folded(model: nn.Module) -> nn.Module:
    """Folds BatchNorm if the network can be traced; otherwise lowering folds it."""
    try:
        return fold_batchnorm(model)
    except (ValueError, TypeError, RuntimeError):
        return model


@torch.no_grad()
def _shape_of(name: str, model: nn.Module) -> tuple[int, ...]:
    """Finds the one usual shape that a network takes, from its first layer and by trying sizes."""
    first = next((m for m in model.modules() if isinstance(m, nn.Conv2d | nn.Linear)), None)
    remedy = f"{name} does not say what it takes: give one input's shape, such as --shape 3,32,32"
    if first is None:
        raise ValueError(remedy)
    tried = [(first.in_channels, size, size) for size in SIZES] if isinstance(first, nn.Conv2d) else []
    fitting = [shape for shape in tried or [(first.in_features,)] if _takes(model, shape)]
    if len(fitting) != 1:
        raise ValueError(remedy)
    return fitting[0]


def _takes(model: Callable[[Tensor], Any], shape: tuple[int, ...]) -> bool:
    try:
        model(torch.zeros(1, *shape))
    except Exception:  # whatever the network's own code raises
        return False
    return True
