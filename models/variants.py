"""Variants as networks: the declaration of a reduction, built with seeded or with trained weights."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import fields, replace
from functools import cache
from itertools import takewhile
from math import prod
from pathlib import Path

import torch
from torch import Tensor, fx, nn

from pibench.models import base, catalogue, manifest
from pibench.models import weights as checkpoint
from pibench.models.cost import relu_shapes
from pibench.models.data import normalised, picture_crops
from pibench.models.decisions import Decisions, Step
from pibench.models.graph.relu import MaskedReLU
from pibench.models.layout import Layout
from pibench.models.transforms import linearize_relus
from pibench.models.weights import Checkpoint, WeightsError, apply, read_weights
from pibench.models.zoo import ZOO, layout_of
from pibench.models.zoo.initialise import check_sizes

CALIBRATION_IMAGES = 32


@cache
def _original_relus(network: str, width: int, image_size: int) -> int:
    """Returns the ReLUs of an architecture for one image; torch's global generator is left as it was.

    The network is a real one: to compute shapes on the meta device torch would import its compiler, which
    takes longer.
    """
    with torch.random.fork_rng(devices=[]):
        model = ZOO[network](width=width)
    shapes = relu_shapes(model, torch.zeros(1, 3, image_size, image_size))
    return sum(prod(shape) for shape in shapes.values())


class Variant(base.Variant):
    """A variant that can be built."""

    @property
    def layout(self) -> Layout:
        """The layout of its architecture."""
        return layout_of(self.network)

    @property
    def steps(self) -> tuple[Step, ...]:
        """The transforms that make the trainable structure of its architecture.

        Raises ValueError for an architecture without the parts that the reduction changes.
        """
        try:
            return self.structure(self.layout)
        except ValueError as error:
            raise ValueError(f"{self.name} cannot be made of {self.network}: {error}") from error

    def build(
        self,
        width: int = 64,
        weights: str | Path | None = "auto",
        seed: int = 0,
        classes: int = 100,
        image_size: int = 32,
    ) -> fx.GraphModule:
        """Returns the network in eval mode, for images [N, 3, image_size, image_size].

        `weights` is "auto", None or the path of a weights file. "auto" takes trained weights if the project
        has them for this width, number of classes and image size, else those of the variant's `source`, and
        else seeded ones. None takes seeded ones. Seeded networks take their BatchNorm statistics from one
        batch of the embedded picture, so that activations stay near 1. torch's global generator does not
        change. `meta` of the result holds variant, width, seed, whether the weights are `trained`, and its
        `decisions`. Raises WeightsError for a damaged file and for a file of another variant, architecture or
        size.
        """
        check_sizes(width=width, classes=classes, image_size=image_size)
        stored, origin = self._stored(width, weights, classes, image_size), self
        if stored is None and weights == "auto" and self.source is not None:
            source = replace(variant(self.source), network=self.network)
            if source.fraction == self.fraction:
                origin, stored = source, source._stored(width, weights, classes, image_size)
        if stored is None:
            with torch.random.fork_rng(devices=[]), torch.no_grad():
                model, masks = self._untrained(width, seed, classes, image_size)
                early = tuple(takewhile(lambda step: step != base.FOLD, self.finish))
                model = apply(model, early)
                calibrate(model, [normalised(picture_crops(CALIBRATION_IMAGES, image_size))])
                model = apply(model.eval(), self.finish[len(early) :])
            decisions = self.decisions(width, classes, image_size, masks)
        else:
            decisions = stored.decisions or origin._older(stored, width, classes, image_size)
            wanted = (origin.name, self.network, width, classes, image_size)
            made = decisions.variant, decisions.network, decisions.width, decisions.classes
            if (*made, decisions.image_size) != wanted:
                raise WeightsError(
                    f"{stored.path.name} was made for another network: variant, architecture, width, classes "
                    f"and image size are {(*made, decisions.image_size)} there, {wanted} here"
                )
            model = checkpoint.rebuilt(decisions, stored)
            if origin is not self:
                more = self.finish[len(origin.finish) :]
                model = apply(model, more)
                decisions = replace(decisions, variant=self.name, steps=(*decisions.steps, *more))
        model.meta.update(
            variant=self.name, width=width, seed=seed, trained=stored is not None, decisions=decisions
        )
        return model.requires_grad_(False).eval()

    def _untrained(
        self, width: int, seed: int, classes: int, image_size: int
    ) -> tuple[nn.Module, dict[str, Tensor | bool]]:
        """Returns the untrained network and its masks by ReLU, which are empty without a budget."""
        torch.manual_seed(seed)
        model = self.structured(width, classes)
        if self.fraction is None:
            return model, {}
        shapes = relu_shapes(model, torch.zeros(1, 3, image_size, image_size))
        masks = self.masks(self.layout, shapes, self.budget(width, image_size), seed)
        return linearize_relus(model, masks), masks

    def budget(self, width: int = 64, image_size: int = 32) -> int | None:
        """Returns the number of kept ReLUs, the rounded fraction of the architecture's.

        None without a fraction.
        """
        check_sizes(width=width, image_size=image_size)
        if self.fraction is None:
            return None
        return round(self.fraction * _original_relus(self.network, width, image_size))

    def structured(self, width: int = 64, classes: int = 100) -> nn.Module:
        """Returns the trainable structure with all its ReLUs, and weights from torch's generator.

        Raises ValueError for an architecture without the parts that the reduction changes.
        """
        return apply(ZOO[self.network](classes=classes, width=width), self.steps)

    def finished(self, model: nn.Module) -> nn.Module:
        """Returns `model`, a trained structure, after the transforms of `finish`, in eval mode."""
        return apply(model.eval(), self.finish)

    def decisions(
        self,
        width: int,
        classes: int,
        image_size: int,
        masks: Mapping[str, Tensor | bool],
        structure: tuple[Step, ...] | None = None,
    ) -> Decisions:
        """Returns the decisions that describe a network of this variant.

        `masks` maps ReLUs to the kept positions; ReLUs without an entry are whole. `structure` lists the
        transforms before the masks; the default is the variant's own.
        """
        keep: dict[str, object] = {}
        for name, mask in masks.items():
            whole = bool(mask.all()) if isinstance(mask, Tensor) else mask
            if not whole:
                partial = isinstance(mask, Tensor) and mask.any()
                keep[name] = {"tensor": f"{name}.mask"} if partial else False
        chosen = (Step("linearize_relus", {"keep": keep}),) if keep else ()
        before = self.steps if structure is None else structure
        steps = (*before, *chosen, *self.finish)
        return Decisions(self.name, self.network, width, classes, image_size, steps)

    def _stored(
        self, width: int, weights: str | Path | None, classes: int, image_size: int
    ) -> Checkpoint | None:
        if weights is None:
            return None
        if weights != "auto":
            return read_weights(weights)
        path = manifest.FOLDER / checkpoint.file_name(self.name, width, self.network)
        entry = manifest.read_manifest(path.parent).get(path.name)
        if entry is None or (entry["classes"], entry["image_size"]) != (classes, image_size):
            return None
        return read_weights(path)

    def _older(self, stored: Checkpoint, width: int, classes: int, image_size: int) -> Decisions:
        """Returns the decisions of an older file, whose header holds only the masks of its ReLUs.

        Everything else comes from this variant. Raises WeightsError when the file does not fit it.
        """
        with torch.device("meta"):
            shapes = relu_shapes(self.structured(width, classes), torch.zeros(1, 3, image_size, image_size))
        kept = 0
        for name, mask in stored.relus.items():
            if name not in shapes:
                raise WeightsError(
                    f"{stored.path.name} was made for another architecture: {self.name} has no ReLU {name}"
                )
            try:
                kept += (
                    MaskedReLU(mask).kept(shapes[name]) if isinstance(mask, Tensor) else prod(shapes[name])
                )
            except (TypeError, ValueError) as error:
                raise WeightsError(
                    f"{stored.path.name} was made for another architecture: {name}: {error}"
                ) from error
        wanted = self.budget(width, image_size)
        if wanted is None:
            wanted = sum(prod(shape) for shape in shapes.values())
        if kept != wanted:
            raise WeightsError(f"{stored.path.name} keeps {kept} ReLUs, {self.name} has {wanted}")
        keep = {name: stored.relus.get(name, False) for name in shapes}
        return self.decisions(width, classes, image_size, keep)


@torch.no_grad()
def calibrate(model: nn.Module, batches: Iterable[Tensor]) -> None:
    """Sets every BatchNorm's running statistics, in place, to the mean over `batches` [N, 3, H, W]."""
    norms = [module for module in model.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)]
    momenta, training = [norm.momentum for norm in norms], model.training
    model.train()
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None
    for images in batches:
        model(images)
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
    model.train(training)


class UnknownVariantError(KeyError, ValueError):
    """Raised for a name that no variant has; unlike KeyError its text is the plain sentence."""

    __str__ = Exception.__str__


class _Variants(Mapping[str, Variant]):
    """The variants of the catalogue by name, always up to date."""

    def __getitem__(self, name: str) -> Variant:
        declared = catalogue.variants()
        if name not in declared:
            raise UnknownVariantError(f"unknown variant {name!r}: known are {', '.join(declared)}")
        return buildable(declared[name])

    def __iter__(self) -> Iterator[str]:
        return iter(catalogue.variants())

    def __len__(self) -> int:
        return len(catalogue.variants())


VARIANTS: Mapping[str, Variant] = _Variants()


def buildable(declared: base.Variant) -> Variant:
    """Returns a declared variant as one that can be built."""
    return Variant(**{field.name: getattr(declared, field.name) for field in fields(declared)})


def variant(name: str) -> Variant:
    """Returns the variant of this name.

    Raises UnknownVariantError (a ValueError) that names the known ones.
    """
    return VARIANTS[name]
