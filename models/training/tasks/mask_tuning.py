"""Learning with masks that are chosen at the start."""

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor, nn

from pibench.models.masks import largest_masks
from pibench.models.training.loop import Setting
from pibench.models.training.relus import named_relus
from pibench.models.training.schedules import MaskSchedule
from pibench.models.training.taps import run_tapped
from pibench.models.training.tasks.distilled import Distilled


@torch.no_grad()
def linearisation_error(model: nn.Module, batches: Iterable[Tensor]) -> dict[str, Tensor]:
    """Returns the error of making each position of a network's ReLUs linear, [C, H, W] by name.

    It is |ReLU(x) - x| = |min(x, 0)| of the value x before the ReLU, summed over the images. This choice is
    ours. SENet takes |a_AR - a_PR|, the change of the value after the ReLU compared with the network with all
    ReLUs (arXiv 2301.09254). That change is almost 0 at every position with a ReLU, so a mask chosen by it
    would drop exactly these positions.
    """
    names = [name for name, relu in named_relus(model).items() if isinstance(relu, nn.ReLU)]
    error: dict[str, Tensor] = {}
    for x in batches:
        _, _, before = run_tapped(model, x, (), names)
        for name in names:
            value = before[name].float()
            error[name] = error.get(name, 0) + (value.relu() - value).abs().sum(0)
    return error


class MaskTuning(Distilled):
    """SENet's fine-tuning with fixed masks, chosen at the start instead of by its search.

    `share` is the number of positions that each layer keeps. `reference` is the same structure with all
    ReLUs. In each layer the positions with the largest `linearisation_error` there are kept.
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
        """Chooses the masks."""
        with setting.autocast():
            error = linearisation_error(self.reference, setting.images.sample(self.schedule.images))
        error = {name: value.cpu() for name, value in error.items()}
        for name, mask in largest_masks(error, self.share).items():
            self.model.get_submodule(name).set_mask(mask)
