"""Learning with masks that are chosen at the start."""

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor, nn

from pibench.models.masks import largest_masks
from pibench.models.training.loop import Setting
from pibench.models.training.relus import TrainingReLU, masks_of, named_relus
from pibench.models.training.schedules import MaskSchedule
from pibench.models.training.taps import run_tapped
from pibench.models.training.tasks.distilled import Distilled


@torch.no_grad()
def linearisation_error(model: nn.Module, batches: Iterable[Tensor]) -> dict[str, Tensor]:
    """Returns what it costs each position of a network's ReLUs to be linear, [C, H, W] by name.

    It is |ReLU(x) - x| = |min(x, 0)| of the value x before the ReLU, summed over the images. Ours: SENet
    takes |a_AR - a_PR|, the change of the value after the ReLU against the network with all ReLUs (arXiv
    2301.09254), which is almost 0 where a ReLU stands, so that a mask chosen by it flees from itself.
    """
    kinds = (nn.ReLU, TrainingReLU)
    names = [name for name, relu in named_relus(model).items() if isinstance(relu, kinds)]
    error: dict[str, Tensor] = {}
    for x in batches:
        _, _, before = run_tapped(model, x, (), names)
        for name in names:
            value = before[name].float()
            error[name] = error.get(name, 0) + (value.relu() - value).abs().sum(0)
    return error


class MaskTuning(Distilled):
    """SENet's fine-tuning with masks that stay, chosen at the start in place of its search.

    `share` says how many positions each layer keeps. `reference` is the same structure with all ReLUs, or
    with those of a larger budget: in each layer the positions with the largest `linearisation_error` there
    are kept.
    """

    schedule: MaskSchedule

    def __init__(
        self,
        model: nn.Module,
        schedule: MaskSchedule,
        teacher: nn.Module,
        stages: Iterable[str],
        reference: nn.Module,
        share: Mapping[str, int],
    ) -> None:
        super().__init__(model, schedule, teacher, stages)
        self.reference, self.share = reference, share

    def start(self, setting: Setting) -> None:
        """Chooses the masks; of a reference that has masks only positions that are kept there are."""
        with setting.autocast():
            error = linearisation_error(self.reference, setting.images.sample(self.schedule.images))
        error = {name: value.cpu() for name, value in error.items()}
        for name, mask in masks_of(self.reference).items():
            error[name] = error[name].masked_fill(~mask.cpu(), -1.0)
        for name, mask in largest_masks(error, self.share).items():
            self.model.get_submodule(name).set_mask(mask)
