"""The statistics of BatchNorm: computed anew where running ones lag behind, or given."""

from itertools import islice

from torch import Tensor, nn

from pibench.models.training.loop import Setting
from pibench.models.variants import calibrate

BATCHES = 16
"""So many batches of an epoch give the statistics."""


def recompute_statistics(model: nn.Module, setting: Setting, batch: int, epoch: int) -> None:
    """Sets the running statistics of every BatchNorm to those of the first batches of an epoch, in place.

    Training uses the statistics of the batch and does not depend on them.
    """
    batches = setting.images.epoch(batch, setting.seed, epoch)
    with setting.autocast():
        calibrate(model, (x for x, _ in islice(batches, BATCHES)))


def set_batchnorm(norm: nn.BatchNorm2d, mean: Tensor, variance: Tensor, gamma: Tensor, beta: Tensor) -> None:
    """Gives BatchNorm its running statistics and parameters [C], in place; call it under `torch.no_grad`."""
    assert norm.running_mean is not None
    assert norm.running_var is not None
    norm.running_mean.copy_(mean)
    norm.running_var.copy_(variance)
    norm.weight.copy_(gamma)
    norm.bias.copy_(beta)
