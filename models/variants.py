"""The named recipes: a ResNet-18 on CIFAR-100 and its reductions.

The number in a name is the fraction of the original network's ReLUs (557,056 at width 64 on 32x32) that is
kept. In every variant BatchNorm is folded.

- `senet-F`: ReLUs only. SENet's allocation of the budget, random masks of that size until trained.
- `snl-F`: ReLUs only, one random per-pixel mask over the entire network. SNL learns how many ReLUs each layer
  keeps; until it is trained the even distribution is ours.
- `joint`: the five blocks with the least sensitive mid ReLU become shallow (one 3x3 convolution), their skips
  are absorbed; every other ReLU is kept.
- `joint-F`: the same, then SENet's allocation on the ReLU layers that are left. `joint3-F` has three such
  blocks.
- `deepreduce`: ReLUs only, whole layers culled (after DeepReDuce): stages 3 and 4 keep each block's second
  ReLU, all others are gone. 49,152 ReLUs as in DeepReDuce's row of 49.2 K, in 4 layers instead of 17.
- `merged-exact`: in the same five blocks the mid ReLU is dropped, the padding hoisted, the two convolutions
  are merged exactly (5x5, 7x7 where the first strides) and the skip is absorbed.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from math import prod
from pathlib import Path

import torch
from torch import Tensor, fx, nn

from pibench.models import weights as checkpoint
from pibench.models.allocation import (
    RESNET18_BLOCKS,
    RESNET18_RELUS,
    SENET_SENSITIVITY,
    allocate_layers,
    least_sensitive_blocks,
    random_masks,
    random_network_masks,
)
from pibench.models.cost import relu_shapes
from pibench.models.data import normalised, picture_crops
from pibench.models.graph.relu import MaskedReLU
from pibench.models.transforms import (
    Transform,
    absorb_skips,
    fold_batchnorm,
    hoist_padding,
    linearize_relus,
    merge_convs,
    shallow_blocks,
)
from pibench.models.weights import Checkpoint, WeightsError, put_weights, read_manifest, read_weights
from pibench.models.zoo import resnet18
from pibench.models.zoo.initialise import check_sizes

CALIBRATION_IMAGES = 32
Shapes = Mapping[str, tuple[int, ...]]
Masks = dict[str, Tensor]


def senet_masks(shapes: Shapes, budget: int, seed: int) -> Masks:
    """Draws random masks whose sizes are SENet's allocation of the budget over ResNet-18's ReLU layers."""
    sensitivity = dict(zip(RESNET18_RELUS, SENET_SENSITIVITY, strict=True))
    return random_masks(shapes, allocate_layers(shapes, sensitivity, budget), seed)


@dataclass(frozen=True)
class Variant:
    """A recipe from an architecture to the network that is run.

    `structure` are the transforms that make the trainable structure, before BatchNorm is folded; `fraction`
    of the architecture's ReLUs is then kept (None keeps those that are left), at positions that `masks`
    draws; `finish` are the transforms after calibration or training, BatchNorm folding first.
    """

    name: str
    architecture: Callable[..., nn.Module]
    structure: tuple[Transform, ...] = ()
    fraction: float | None = None
    masks: Callable[[Shapes, int, int], Masks] | None = None
    finish: tuple[Transform, ...] = (fold_batchnorm,)

    def build(
        self,
        width: int = 64,
        weights: str | Path | None = "auto",
        seed: int = 0,
        classes: int = 100,
        image_size: int = 32,
    ) -> fx.GraphModule:
        """Returns the network in eval mode, for images [N, 3, image_size, image_size].

        `weights` is "auto" (trained weights if the project has them for this width, number of classes and
        image size, else seeded ones), None (seeded), or the path of a weights file. Seeded networks take
        their BatchNorm statistics from one batch of the embedded picture, so that activations stay near 1.
        torch's global generator is left as it was. `meta` of the result says variant, width, seed and whether
        the weights are `trained`. Raises WeightsError for a damaged file or another architecture's.
        """
        check_sizes(width=width, classes=classes, image_size=image_size)
        stored = self._stored(width, weights, classes, image_size)
        with torch.random.fork_rng(devices=[]), torch.no_grad():
            torch.manual_seed(seed)
            if stored is None:
                model = self.trainable(width, seed, classes, image_size)
                calibrate(model, [normalised(picture_crops(CALIBRATION_IMAGES, image_size))])
            else:
                model = self.structured(width, classes)
                model = linearize_relus(model, self._stored_masks(stored, model, width, image_size))
            model = self.finished(model)
        if stored is not None:
            put_weights(model, stored)
        model.meta.update(variant=self.name, width=width, seed=seed, trained=stored is not None)
        return model.requires_grad_(False).eval()

    def trainable(
        self, width: int = 64, seed: int = 0, classes: int = 100, image_size: int = 32
    ) -> nn.Module:
        """Returns the network before BatchNorm is folded, masks drawn, weights random: what is trained."""
        check_sizes(width=width, classes=classes, image_size=image_size)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            model = self.structured(width, classes)
            if self.fraction is None:
                return model
            shapes = relu_shapes(model, torch.zeros(1, 3, image_size, image_size))
            return linearize_relus(model, self.masks(shapes, self.budget(width, image_size), seed))

    def budget(self, width: int = 64, image_size: int = 32) -> int | None:
        """Returns how many ReLUs are kept: the fraction of the architecture's, rounded; None without one."""
        check_sizes(width=width, image_size=image_size)
        if self.fraction is None:
            return None
        with torch.device("meta"):  # shapes alone: no weights, no random numbers
            shapes = relu_shapes(self.architecture(width=width), torch.zeros(1, 3, image_size, image_size))
        return round(self.fraction * sum(prod(shape) for shape in shapes.values()))

    def structured(self, width: int = 64, classes: int = 100) -> nn.Module:
        """Returns the trainable structure, all its ReLUs whole, weights drawn from torch's generator."""
        model = self.architecture(classes=classes, width=width)
        for transform in self.structure:
            model = transform(model)
        return model

    def finished(self, model: nn.Module) -> nn.Module:
        """Returns `model`, a trained structure, after the transforms of `finish`, in eval mode."""
        model = model.eval()
        for transform in self.finish:
            model = transform(model)
        return model

    def _stored(
        self, width: int, weights: str | Path | None, classes: int, image_size: int
    ) -> Checkpoint | None:
        if weights is None:
            return None
        if weights != "auto":
            return read_weights(weights)
        path = checkpoint.FOLDER / checkpoint.file_name(self.name, width)
        entry = read_manifest(path.parent).get(path.name)
        if entry is None or (entry["classes"], entry["image_size"]) != (classes, image_size):
            return None
        return read_weights(path)

    def _stored_masks(
        self, stored: Checkpoint, model: nn.Module, width: int, image_size: int
    ) -> dict[str, Tensor | bool]:
        """Returns what each ReLU of `model` keeps by the file; WeightsError if that is not this variant."""
        shapes = relu_shapes(model, torch.zeros(1, 3, image_size, image_size))
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
        keep = {name: stored.relus.get(name, False) for name in shapes}
        wanted = self.budget(width, image_size)
        if wanted is None:
            wanted = sum(prod(shape) for shape in shapes.values())
        if kept != wanted:
            raise WeightsError(f"{stored.path.name} keeps {kept} ReLUs, {self.name} has {wanted}")
        return keep


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


def is_trained(name: str, width: int = 64) -> bool:
    """Returns whether the project has trained weights for a variant at a width."""
    return checkpoint.file_name(variant(name).name, width) in read_manifest(checkpoint.FOLDER)


def _senet(fraction: float) -> Variant:
    return Variant(f"senet-{fraction}", resnet18, fraction=fraction, masks=senet_masks)


def _joint(fraction: float | None, blocks: int = 5) -> Variant:
    return Variant(
        f"joint{'' if blocks == 5 else blocks}{'' if fraction is None else f'-{fraction}'}",
        resnet18,
        structure=(partial(shallow_blocks, blocks=least_sensitive_blocks(blocks), seed=None),),
        fraction=fraction,
        masks=None if fraction is None else senet_masks,
        finish=(fold_batchnorm, absorb_skips),
    )


_DROPPED = {f"{block}.relu1": False for block in least_sensitive_blocks(5)}
_KEPT_LAYERS = tuple(f"{block}.relu2" for block in RESNET18_BLOCKS[4:])
_CULLED = {name: False for name in RESNET18_RELUS if name not in _KEPT_LAYERS}


class UnknownVariantError(KeyError, ValueError):
    """Raised for a name that no variant bears; its text is the plain sentence, unlike KeyError's."""

    __str__ = Exception.__str__


class _Variants(dict[str, Variant]):
    def __missing__(self, name: str) -> Variant:
        raise UnknownVariantError(f"unknown variant {name!r}: known are {', '.join(self)}")


VARIANTS: dict[str, Variant] = _Variants(
    (recipe.name, recipe)
    for recipe in (
        Variant("baseline", resnet18),
        _senet(0.36),
        _senet(0.18),
        _senet(0.09),
        _senet(0.045),
        Variant("snl-0.09", resnet18, fraction=0.09, masks=random_network_masks),
        _joint(None),
        _joint(0.208),
        _joint(0.104),
        _joint(0.09),
        _joint(0.052),
        _joint(0.026),
        _joint(0.052, blocks=3),
        Variant("deepreduce", resnet18, structure=(partial(linearize_relus, keep=_CULLED),)),
        Variant(
            "merged-exact",
            resnet18,
            structure=(partial(linearize_relus, keep=_DROPPED),),
            finish=(fold_batchnorm, hoist_padding, merge_convs, absorb_skips),
        ),
    )
)


def variant(name: str) -> Variant:
    """Returns the variant of this name; UnknownVariantError (a ValueError) that names the known ones."""
    return VARIANTS[name]
