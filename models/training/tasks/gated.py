"""Learning while the deep branch of some blocks fades."""

from collections.abc import Hashable, Iterable
from typing import Any

from torch import nn

from pibench.models.training.loop import Setting
from pibench.models.training.schedules import GateSchedule
from pibench.models.training.shallow import GatedBlock, fit_shallow
from pibench.models.training.statistics import recompute_statistics
from pibench.models.training.tasks.distilled import Distilled


class Gated(Distilled):
    """Joint reduction's training: the gate of some blocks falls to 0, and the network follows the teacher."""

    schedule: GateSchedule

    def __init__(
        self,
        model: nn.Module,
        schedule: GateSchedule,
        teacher: nn.Module,
        stages: Iterable[str],
        reference: nn.Module,
    ) -> None:
        super().__init__(model, schedule, teacher, stages)
        self.reference = reference
        self.blocks = {
            name: module for name, module in model.named_modules() if isinstance(module, GatedBlock)
        }
        for block in self.blocks.values():
            if schedule.bounded:
                block.get_submodule(block.end).requires_grad_(False)

    def gate(self, done: float) -> float:
        """Returns the gate after the fraction `done` of all steps."""
        return max(0.0, 1.0 - done / self.schedule.fading)

    def start(self, setting: Setting) -> None:
        """Fits the shallow branches to the reference's deep ones."""
        fit_shallow(self.reference, self.blocks, setting.images.sample(self.schedule.images, 100))

    def before_step(self, done: float) -> None:
        """Sets the gate."""
        gate = self.gate(done)
        for block in self.blocks.values():
            block.gate = gate

    def constants(self) -> Hashable | None:
        """Returns None while the gate falls, because the loss then changes at every step."""
        return None if any(block.gate > 0 for block in self.blocks.values()) else super().constants()

    def after_epoch(self, setting: Setting, epoch: int) -> dict[str, Any]:
        """Recomputes the BatchNorm statistics if the gate has moved in this epoch; logs the gate.

        A moving gate changes the inputs of later layers faster than running statistics follow.
        """
        if self.gate(epoch / self.schedule.epochs) > 0:
            recompute_statistics(self.model, setting, self.schedule.batch, epoch)
        return {"gate": self.gate((epoch + 1) / self.schedule.epochs)}
