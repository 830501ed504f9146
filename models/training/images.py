"""The images in memory: decoded once, split once, augmented on tensors.

A stratified part of the training images is held out. Only this part makes choices (schedules, blocks, the
best recipe). The test set is not here: only the final report reads it.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F

from pibench.models.data import MD5, MEAN, STD, DataError, load_cifar100

PAD = 4


def stratified(labels: Tensor, count: int, seed: int = 0) -> Tensor:
    """Returns the places of the held-out images, bool [N]: the same number of every class, `count` in all.

    The remainder of the division goes to the first classes. The images are drawn from a seeded generator.
    """
    generator = torch.Generator().manual_seed(seed)
    classes = labels.unique().tolist()
    chosen = torch.zeros(len(labels), dtype=torch.bool)
    for index, label in enumerate(classes):
        members = (labels == label).nonzero().flatten()
        share = count // len(classes) + (index < count % len(classes))
        if share >= len(members):
            raise DataError(
                f"class {label} has {len(members)} training images, {share} cannot be held out of them"
            )
        chosen[members[torch.randperm(len(members), generator=generator)[:share]]] = True
    return chosen


def crop_and_flip(padded: Tensor, index: Tensor, generator: torch.Generator) -> Tensor:
    """Returns the images `index` [B] of `padded` uint8 [N, H + 8, W + 8, 3], randomly shifted and mirrored.

    The result is uint8 [B, H, W, 3]. The shift is uniform in -4 ... 4 on both axes. Half of the images are
    mirrored.
    """
    count, device = len(index), padded.device
    height, width = padded.shape[1] - 2 * PAD, padded.shape[2] - 2 * PAD
    top, left = torch.randint(0, 2 * PAD + 1, (2, count, 1), generator=generator)
    mirrored = torch.rand(count, 1, generator=generator) < 0.5
    rows = top + torch.arange(height)
    columns = torch.arange(width)
    columns = left + torch.where(mirrored, columns.flip(0), columns)
    places = (index.view(-1, 1, 1), rows.unsqueeze(2), columns.unsqueeze(1))
    return padded[tuple(place.to(device, non_blocking=True) for place in places)]


@dataclass(frozen=True)
class Images:
    """Training and held-out images of one data set on one device.

    `padded` is uint8 [N, H + 8, W + 8, 3] with black borders, `heldout` uint8 [M, 3, H, W].
    """

    padded: Tensor
    labels: Tensor
    heldout: Tensor
    heldout_labels: Tensor
    classes: int

    @classmethod
    def split(
        cls, images: Tensor, labels: Tensor, heldout: int, classes: int, device: str | torch.device = "cpu"
    ) -> "Images":
        """Holds out `heldout` of the images uint8 [N, 3, H, W] and pads the others."""
        out = stratified(labels, heldout)
        padded = F.pad(images[~out], (PAD,) * 4).permute(0, 2, 3, 1).contiguous()
        return cls(
            padded.to(device),
            labels[~out].to(device),
            images[out].to(device),
            labels[out].to(device),
            classes,
        )

    @classmethod
    def cifar100(
        cls,
        root: str | Path = "data",
        device: str | torch.device = "cpu",
        heldout: int = 5000,
        checksums: Mapping[str, str] | None = MD5,
    ) -> "Images":
        """Reads the training images of CIFAR-100 at `root`.

        Raises DataError when they are missing or damaged.
        """
        images, labels = load_cifar100(root, "train", checksums)
        return cls.split(images, labels, heldout, 100, device)

    @property
    def size(self) -> int:
        """The images' height."""
        return self.heldout.shape[2]

    def steps(self, batch: int) -> int:
        """Returns the number of full batches of an epoch; the remaining images are left out."""
        return max(1, len(self.labels) // batch)

    def epoch(self, batch: int, seed: int, epoch: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Yields the batches of an epoch, normalised and augmented: float32 [B, 3, H, W], labels [B].

        One generator makes all random choices. It is seeded by `seed` and the number of the epoch, so an
        epoch can be repeated without the earlier ones.
        """
        generator = torch.Generator().manual_seed(1_000_003 * seed + epoch)
        order = torch.randperm(len(self.labels), generator=generator)
        for step in range(self.steps(batch)):
            index = order[step * batch : (step + 1) * batch]
            crops = crop_and_flip(self.padded, index, generator)
            yield standardised(crops), self.labels[index.to(self.labels.device, non_blocking=True)]

    def sample(self, count: int, batch: int = 250) -> Iterator[Tensor]:
        """Yields `count` training images (or all) in batches, not augmented, the same at every call."""
        order = torch.randperm(len(self.labels), generator=torch.Generator().manual_seed(0))[:count]
        for index in order.split(batch):
            yield standardised(self.padded[index.to(self.padded.device), PAD:-PAD, PAD:-PAD])


@cache
def _scale(device: torch.device) -> tuple[Tensor, Tensor]:
    """Returns mean and deviation on a device; they are copied there once."""
    return torch.tensor(MEAN, device=device), torch.tensor(STD, device=device)


def standardised(images: Tensor) -> Tensor:
    """Maps uint8 [N, H, W, 3] to the values of `data.normalised`: float32 [N, 3, H, W], channels_last."""
    mean, std = _scale(images.device)
    return ((images.float() / 255 - mean) / std).permute(0, 3, 1, 2)


@torch.no_grad()
def accuracy(model: torch.nn.Module, images: Tensor, labels: Tensor, batch: int = 500) -> float:
    """Returns the fraction of images uint8 [N, 3, H, W] that the model classifies correctly.

    The function puts the model in eval mode.
    """
    training = model.training
    model.eval()
    right = 0
    for chunk, expected in zip(images.split(batch), labels.split(batch), strict=True):
        right += int((model(standardised(chunk.permute(0, 2, 3, 1))).argmax(1) == expected).sum())
    model.train(training)
    return right / len(labels)
