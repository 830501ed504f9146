"""Learning under a constraint on what the network costs."""

from collections.abc import Mapping
from typing import Any

import cooper
import torch
from torch import Tensor, nn

from pibench.models.training.gates import GatedReLU
from pibench.models.training.loop import Setting
from pibench.models.training.schedules import ConstraintSchedule, Schedule
from pibench.models.training.tasks.supervised import Supervised


class Constrained(Supervised):
    """Minimises the cross-entropy where the expected cost of open gates is at most a share of the whole.

        min_w max_(m >= 0)  cross-entropy + m (cost / whole - target)

    `unit` is the cost of one open gate of each `GatedReLU`, and `fixed` what no gate changes, in any one
    unit: ReLUs, MACs or seconds. The weights and gates descend, the multiplier m ascends and starts again
    from 0 whenever the constraint holds. Source: controlled sparsity (arXiv 2208.04425), by the library
    Cooper. Ours: a gate's Adam, whose rate lets its log-odds travel `travels` times from the first value to
    its opposite.
    """

    schedule: ConstraintSchedule

    def __init__(
        self,
        model: nn.Module,
        schedule: ConstraintSchedule,
        unit: Mapping[str, float],
        fixed: float,
        target: float,
        seed: int,
    ) -> None:
        super().__init__(model, schedule)
        self.gates = {name: each for name, each in model.named_modules() if isinstance(each, GatedReLU)}
        self.unit, self.fixed, self.target, self.seed = unit, fixed, target, seed
        self.whole = fixed + sum(unit[name] * gate.odds.numel() for name, gate in self.gates.items())
        self.multiplier = cooper.multipliers.DenseMultiplier(num_constraints=1)
        self.constraint = cooper.Constraint(
            cooper.ConstraintType.INEQUALITY, cooper.formulations.Lagrangian, self.multiplier
        )
        self.extra = {"multiplier": torch.zeros(1)}

    def violation(self) -> Tensor:
        """Returns by how much the expected cost exceeds the target, as a share of the whole: [1]."""
        opened = torch.stack([self.unit[name] * gate.open().sum() for name, gate in self.gates.items()])
        return ((self.fixed + opened.sum()) / self.whole - self.target).reshape(1)

    def optimizers(self, schedule: Schedule, steps: int) -> list[torch.optim.Optimizer]:
        """Returns the optimizer of the weights and an Adam for the gates."""
        self.steps = steps
        odds = [gate.odds for gate in self.gates.values()]
        inside = {id(each) for each in odds}
        (sgd,) = super().optimizers(schedule, steps)
        for group in sgd.param_groups:
            group["params"] = [each for each in group["params"] if id(each) not in inside]
        adam = torch.optim.Adam(odds, lr=4.0 * self.schedule.travels / steps)
        self.dual = torch.optim.SGD(
            self.multiplier.parameters(), lr=self.schedule.dual / steps, maximize=True
        )
        return [sgd, adam]

    def before_step(self, done: float) -> None:
        """Draws the noise of the gates, by the run's seed and the step's number; none after the last step."""
        if done == 1:
            return
        generator = torch.Generator().manual_seed(1_000_003 * self.seed + round(done * self.steps))
        for gate in self.gates.values():
            gate.draw(generator)

    def state(self, loss: Tensor | None, violation: Tensor) -> cooper.CMPState:
        """Returns the problem's state for Cooper, with the multiplier of `extra`."""
        self.multiplier.weight.data = self.extra["multiplier"].clone()
        held = cooper.ConstraintState(violation=violation)
        return cooper.CMPState(loss=loss, observed_constraints={self.constraint: held})

    def loss(self, x: Tensor, labels: Tensor) -> Tensor:
        """Returns the Lagrangian."""
        return self.state(super().loss(x, labels), self.violation()).compute_primal_lagrangian().lagrangian

    def after_step(self, done: float) -> None:
        """Lets the multiplier ascend; begins again from 0 where the constraint holds."""
        violation = self.violation().detach()
        self.dual.zero_grad()
        self.state(None, violation).compute_dual_lagrangian().backward()
        self.dual.step()
        self.multiplier.post_step_()
        held = bool(violation <= 0)
        multiplier = self.extra["multiplier"]  # in place: a recorded step reads this tensor
        multiplier.copy_(torch.zeros_like(multiplier) if held else self.multiplier.weight.detach())

    def after_epoch(self, setting: Setting, epoch: int) -> dict[str, Any]:
        """Returns the expected cost, as a share of the whole, and the multiplier for the log."""
        cost = self.violation().item() + self.target
        return {"cost": round(cost, 4), "multiplier": round(self.extra["multiplier"].item(), 4)}
