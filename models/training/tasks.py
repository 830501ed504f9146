"""What is trained: each task is a network with its loss and with what happens between the steps."""

import copy
from collections.abc import Callable, Hashable, Iterable, Mapping
from itertools import islice
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from pibench.models.allocation import allocate, largest_masks, largest_network_masks
from pibench.models.training.loop import Setting
from pibench.models.training.losses import cross_entropy, distillation, lasso, pram
from pibench.models.training.relus import SoftReLU, TrainingReLU, masks_of, named_relus
from pibench.models.training.schedules import (
    ERRORS,
    GateSchedule,
    LassoSchedule,
    MaskSchedule,
    Schedule,
    SparseSchedule,
    check_known,
)
from pibench.models.training.shallow import GatedBlock, fit_shallow
from pibench.models.training.taps import STAGE_OUTPUTS, run_tapped
from pibench.models.variants import calibrate

TUNING = (0.1, 0.9, 1000.0)
"""Weights of cross-entropy, distillation and PRAM in SENet's fine-tuning."""
SEARCH = (0.5, 0.5, 0.0)
"""The same in its mask search."""


class Supervised:
    """Cross-entropy with label smoothing."""

    def __init__(self, model: nn.Module, schedule: Schedule) -> None:
        self.model = model
        self.schedule = schedule
        self.extra: dict[str, Tensor] = {}

    def start(self, setting: Setting) -> None:
        """Does nothing."""

    def optimizers(self, schedule: Schedule, steps: int) -> list[torch.optim.Optimizer]:
        """Returns SGD with Nesterov's momentum on all parameters but the slopes of `SoftReLU`."""
        slopes = {id(m.alpha) for m in self.model.modules() if isinstance(m, SoftReLU)}
        weights = [parameter for parameter in self.model.parameters() if id(parameter) not in slopes]
        sgd = torch.optim.SGD(
            weights,
            lr=schedule.peak,
            momentum=schedule.momentum,
            weight_decay=schedule.weight_decay,
            nesterov=True,
        )
        return [sgd]

    def before_step(self, done: float) -> None:
        """Does nothing."""

    def constants(self) -> Hashable | None:
        """Returns what the loss depends on besides tensors: nothing."""
        return ()

    def loss(self, x: Tensor, labels: Tensor) -> Tensor:
        """Returns the cross-entropy."""
        return cross_entropy(self.model(x), labels, self.schedule.smoothing)

    def after_step(self, done: float) -> None:
        """Does nothing."""

    def after_epoch(self, setting: Setting, epoch: int) -> dict[str, Any]:
        """Notes nothing."""
        return {}


class Distilled(Supervised):
    """Cross-entropy, distillation and PRAM from a frozen teacher in eval mode."""

    def __init__(
        self,
        model: nn.Module,
        schedule: Schedule,
        teacher: nn.Module,
        stages: Iterable[str] = STAGE_OUTPUTS,
    ) -> None:
        super().__init__(model, schedule)
        self.teacher, self.stages = teacher, tuple(stages)
        self.weights = TUNING

    def constants(self) -> Hashable | None:
        """Returns the losses' weights."""
        return self.weights

    def loss(self, x: Tensor, labels: Tensor) -> Tensor:
        """Returns the weighted sum; labels are not smoothed beside a teacher."""
        hard, soft, attention = self.weights
        stages = self.stages if attention else ()
        with torch.no_grad():
            wanted, theirs, _ = run_tapped(self.teacher, x, stages)
        logits, ours, _ = run_tapped(self.model, x, stages)
        loss = hard * cross_entropy(logits, labels) + soft * distillation(logits, wanted)
        if attention:
            loss = loss + attention * pram([ours[name] for name in stages], [theirs[name] for name in stages])
        return loss


def _scored(student: nn.Module) -> list[str]:
    """Returns the names of the ReLUs whose positions are scored, in the network's order."""
    return [name for name, relu in named_relus(student).items() if isinstance(relu, (nn.ReLU, TrainingReLU))]


@torch.no_grad()
def linearisation_error(
    reference: nn.Module, student: nn.Module, batches: Iterable[Tensor], score: str = "own"
) -> dict[str, Tensor]:
    """Returns what it costs each position of the student's ReLUs to be linear, [C, H, W] by name.

    Summed over the images, x_PR being the student's value before its ReLU, a_PR the one after, and a_AR the
    value after the ReLU of the all-ReLU reference:

        own         |ReLU(x_PR) - x_PR| = |min(x_PR, 0)|
        reference   |a_AR - x_PR|
        published   |a_AR - a_PR|           (arXiv 2301.09254)

    For a network that is its own reference the first two are the same. The published one is small on the
    positions that have their ReLU, so masks alternate between two sets; both it and `reference` also see how
    far the student's earlier layers have drifted. `own` is ours.
    """
    check_known("score", score, ERRORS)
    names = _scored(student)
    error: dict[str, Tensor] = {}
    for x in batches:
        active: dict[str, Tensor] = {}
        if score != "own":
            _, active, _ = run_tapped(reference, x, names)
        _, after, before = run_tapped(student, x, names if score == "published" else (), names)
        for name in names:
            value = (after if score == "published" else before)[name].float()
            part = ((active[name].float() if active else value.relu()) - value).abs().sum(0)
            error[name] = error.get(name, 0) + part
    return error


def taylor_error(teacher: nn.Module, student: nn.Module, batches: Iterable[Tensor]) -> dict[str, Tensor]:
    """Returns |dL/dy min(x, 0)| of all positions of the student's ReLUs, [C, H, W] by name, over all images.

    It is what the loss L changes by, to first order, when the position is made linear (y = ReLU(x) becomes x)
    or given its ReLU back; L is the cross-entropy of an image against the teacher's class. The criterion is
    the one of arXiv 1611.06440 for channels; for single ReLUs it is ours.
    """
    names = _scored(student)
    error: dict[str, Tensor] = {}
    for x in batches:
        with torch.no_grad():
            classes = teacher(x).argmax(1)
        logits, after, before = run_tapped(student, x.requires_grad_(), names, names)
        loss = functional.cross_entropy(logits.float(), classes, reduction="sum")
        gradients = torch.autograd.grad(loss, [after[name] for name in names])
        for name, gradient in zip(names, gradients, strict=True):
            part = (gradient.float() * before[name].detach().float().clamp(max=0)).abs().sum(0)
            error[name] = error.get(name, 0) + part
    return error


class MaskTuning(Distilled):
    """SENet's mask search, then fine-tuning with the masks frozen, in one cycle of the learning rate.

    `share` says how many positions of a budget each layer keeps; without it they are chosen over the entire
    network. `reference` is the same structure with all ReLUs, or with those of a larger budget: the masks
    start from its scores, since a random start needs the published 150 epochs. Where SENet sums over the
    images of the epoch with the weights of their steps, the masks are chosen by one pass over a sample with
    the weights at its end.
    """

    schedule: MaskSchedule

    def __init__(
        self,
        model: nn.Module,
        schedule: MaskSchedule,
        teacher: nn.Module,
        reference: nn.Module,
        budget: int,
        share: Callable[[int], Mapping[str, int]] | None = None,
        stages: Iterable[str] = STAGE_OUTPUTS,
    ) -> None:
        super().__init__(model, schedule, teacher, stages)
        self.reference, self.share = reference, share
        total = sum(int(mask.sum()) for mask in masks_of(model).values())
        self.budgets = [*schedule.budgets(total, budget), budget]
        self.search_epochs = round(schedule.search * schedule.epochs)
        self.extra = {"frozen": torch.tensor(self.search_epochs == 0)}

    def _choose(self, student: nn.Module, setting: Setting, score: str, epoch: int) -> dict[str, Tensor]:
        training = student.training
        student.eval()
        batches = setting.images.sample(self.schedule.images)
        with setting.autocast():
            if score == "taylor":
                error = taylor_error(self.teacher, student, batches)
            else:
                error = linearisation_error(self.reference, student, batches, score)
        student.train(training)
        error = {name: value.cpu() for name, value in error.items()}
        if student is self.reference:
            for name, mask in masks_of(student).items():
                error[name] = error[name].masked_fill(~mask.cpu(), -1.0)
        budget = self.budgets[min(epoch, len(self.budgets) - 1)]
        if self.share is None:
            return largest_network_masks(error, budget)
        return largest_masks(error, self.share(budget))

    def start(self, setting: Setting) -> None:
        """Chooses the first masks, by "own" unless Taylor's: the network is its own reference here.

        Of a reference that has masks only positions that are kept there are.
        """
        score = "taylor" if self.schedule.score == "taylor" else "own"
        for name, mask in self._choose(self.reference, setting, score, 0).items():
            self.model.get_submodule(name).set_mask(mask)

    def before_step(self, done: float) -> None:
        """Takes the losses of search or of fine-tuning."""
        epoch = round(done * self.schedule.epochs, 6)
        searching = epoch < self.search_epochs and not bool(self.extra["frozen"])
        self.weights = SEARCH if searching else TUNING

    def after_epoch(self, setting: Setting, epoch: int) -> dict[str, Any]:
        """Chooses the masks of the next epoch while they are searched or shrink.

        Notes how many ReLUs are kept then, and which share of them was not before.
        """
        searched = epoch < self.search_epochs and not self.extra["frozen"]
        shrinking = epoch < len(self.budgets) - 1
        if not (searched or shrinking):
            return {}
        old, new = masks_of(self.model), self._choose(self.model, setting, self.schedule.score, epoch + 1)
        changed = sum(int((mask & ~old[name].cpu()).sum()) for name, mask in new.items())
        for name, mask in new.items():
            self.model.get_submodule(name).set_mask(mask)
        kept = sum(int(mask.sum()) for mask in new.values())
        if not shrinking:
            self.extra["frozen"] = torch.tensor(changed < self.schedule.epsilon * kept)
        return {"masks_changed": changed / max(1, kept), "relus": kept}


class Gated(Distilled):
    """Joint reduction's learning: the gate of some blocks falls to 0 while the teacher is followed."""

    schedule: GateSchedule

    def __init__(
        self,
        model: nn.Module,
        schedule: GateSchedule,
        teacher: nn.Module,
        reference: nn.Module,
        stages: Iterable[str] = STAGE_OUTPUTS,
    ) -> None:
        super().__init__(model, schedule, teacher, stages)
        self.reference = reference
        self.blocks = {
            name: module for name, module in model.named_modules() if isinstance(module, GatedBlock)
        }
        for block in self.blocks.values():
            block.deep().requires_grad_(schedule.deep_learns)
            if schedule.bounded:
                block.bn2.requires_grad_(False)

    def gate(self, done: float) -> float:
        """Returns the gate when the fraction `done` of all steps is behind."""
        return max(0.0, 1.0 - done / self.schedule.fading)

    def start(self, setting: Setting) -> None:
        """Fits the shallow branches to the reference's deep ones, unless they start at random."""
        if self.schedule.start == "random":
            return
        fit_shallow(self.reference, self.blocks, setting.images.sample(self.schedule.images, 100))

    def before_step(self, done: float) -> None:
        """Sets the gate."""
        for block in self.blocks.values():
            block.gate = self.gate(done)

    def constants(self) -> Hashable | None:
        """Returns nothing settled while the gate falls."""
        return None if any(block.gate > 0 for block in self.blocks.values()) else super().constants()

    def after_epoch(self, setting: Setting, epoch: int) -> dict[str, Any]:
        """Takes the BatchNorm statistics anew if the gate has moved in this epoch; notes the gate.

        A moving gate changes the inputs of later layers faster than running statistics follow. Training uses
        the batch's and does not depend on them.
        """
        if self.gate(epoch / self.schedule.epochs) > 0:
            batches = setting.images.epoch(self.schedule.batch, setting.seed, epoch)
            with setting.autocast():
                calibrate(self.model, (x for x, _ in islice(batches, 16)))
        return {"gate": self.gate((epoch + 1) / self.schedule.epochs)}


class SparseProxy(Supervised):
    """Trains with few weights that move to where the momentum is: SENet's measure of sensitivity.

    Of each convolution the smallest weights are cut; as many grow again, shared among the layers by the mean
    momentum of their weights, at the largest momenta (sparse momentum, arXiv 1907.04840). The number of
    weights in all convolutions never changes.
    """

    schedule: SparseSchedule

    def __init__(self, model: nn.Module, schedule: SparseSchedule, seed: int = 0) -> None:
        super().__init__(model, schedule)
        self.convs = {name: module for name, module in model.named_modules() if isinstance(module, nn.Conv2d)}
        generator = torch.Generator().manual_seed(seed)
        for name, conv in self.convs.items():
            size = conv.weight.numel()
            chosen = torch.zeros(size, dtype=torch.bool)
            chosen[torch.randperm(size, generator=generator)[: round(schedule.density * size)]] = True
            self.extra[name] = chosen.view_as(conv.weight)

    def start(self, setting: Setting) -> None:
        """Cuts the first weights."""
        self._cut()

    @torch.no_grad()
    def _cut(self) -> None:
        for name, conv in self.convs.items():
            conv.weight.mul_(self.extra[name])

    def optimizers(self, schedule: Schedule, steps: int) -> list[torch.optim.Optimizer]:
        """Keeps the optimizer, whose momenta say where weights grow."""
        self.steps = steps
        (self.sgd,) = super().optimizers(schedule, steps)
        return [self.sgd]

    def after_step(self, done: float) -> None:
        """Keeps cut weights at 0, and moves weights at its times."""
        self._cut()
        step = round(done * self.steps)
        if (
            step < self.steps
            and step % max(1, self.steps // (self.schedule.epochs * self.schedule.moves)) == 0
        ):
            self._move(self.schedule.moved * (1 - done))

    @torch.no_grad()
    def _move(self, fraction: float) -> None:
        momenta = {
            name: self.sgd.state[conv.weight]["momentum_buffer"].abs() for name, conv in self.convs.items()
        }
        cut, means = 0, []
        for name, conv in self.convs.items():
            there = self.extra[name]
            count = int(there.sum())
            fewer = int(fraction * count)
            keep = largest_masks(
                {name: conv.weight.abs().masked_fill(~there, -1.0).cpu()}, {name: count - fewer}
            )
            self.extra[name] = keep[name].to(there.device)
            cut += fewer
            means.append(float(momenta[name][self.extra[name]].mean()) if count > fewer else 0.0)
        free = [int((~self.extra[name]).sum()) for name in self.convs]
        grown = dict(zip(self.convs, allocate(free, means, cut), strict=True))
        for name in self.convs:
            # -1 bars the places that are taken
            places = momenta[name].masked_fill(self.extra[name], -1.0).cpu()
            new = largest_masks({name: places}, {name: grown[name]})[name]
            self.extra[name] = self.extra[name] | new.to(self.extra[name].device)
        self._cut()

    def densities(self) -> dict[str, float]:
        """Returns the share of weights that each convolution has."""
        return {name: float(mask.float().mean()) for name, mask in self.extra.items()}


class Lasso(Distilled):
    """SNL's selection: weights and slopes trained together, with a lasso on the slopes.

    They learn labels or, if the schedule says so, from the teacher.

    The lasso's weight grows at every check at which the number of ReLUs (slopes above the threshold) has
    fallen by less than an even pace to the budget asks (SNL: when it stalls). At the budget slopes stay.
    Source: SNL (ICML 2022).
    """

    schedule: LassoSchedule

    def __init__(
        self,
        model: nn.Module,
        schedule: LassoSchedule,
        teacher: nn.Module,
        budget: int,
        stages: Iterable[str] = STAGE_OUTPUTS,
    ) -> None:
        super().__init__(model, schedule, teacher, stages)
        self.budget = budget
        self.softs = {name: relu for name, relu in named_relus(model).items() if isinstance(relu, SoftReLU)}
        self.extra = {
            "weight": torch.tensor(schedule.weight, dtype=torch.float64),
            "count": torch.tensor(self.count()),
            "full": torch.tensor(False),
        }

    def count(self) -> int:
        """Returns how many slopes are above the threshold."""
        return sum(int((soft.alpha > self.schedule.threshold).sum()) for soft in self.softs.values())

    def optimizers(self, schedule: Schedule, steps: int) -> list[torch.optim.Optimizer]:
        """Adds an Adam for the slopes."""
        self.steps = steps
        self.pace = self.schedule.travels / steps
        self.adam = torch.optim.Adam([soft.alpha for soft in self.softs.values()], lr=self.pace)
        return [*super().optimizers(schedule, steps), self.adam]

    def before_step(self, done: float) -> None:
        """Stops the slopes when the budget is reached."""
        self.stopped = bool(self.extra["full"])

    def constants(self) -> Hashable | None:
        """Returns whether the slopes stand still; the lasso's weight is a tensor."""
        return *super().constants(), self.stopped

    def loss(self, x: Tensor, labels: Tensor) -> Tensor:
        """Returns what is learnt and the lasso."""
        learnt = Distilled if self.schedule.distilled else Supervised
        loss = learnt.loss(self, x, labels)
        if self.stopped:
            return loss
        return loss + self.extra["weight"].float() * lasso(soft.alpha for soft in self.softs.values())

    @torch.no_grad()
    def after_step(self, done: float) -> None:
        """Keeps slopes in [0, 1]; checks their number at its times."""
        for group in self.adam.param_groups:
            group["lr"] = 0.0 if self.stopped else self.pace
        for soft in self.softs.values():
            soft.alpha.clamp_(0, 1)
        step, every = (
            round(done * self.steps),
            max(1, self.steps // (self.schedule.epochs * self.schedule.checks)),
        )
        if self.stopped or step % every:
            return
        count, before = self.count(), int(self.extra["count"])
        left = max(1, (self.steps - step) // every)
        self.extra["full"] = torch.tensor(count <= self.budget)
        if before - count < (before - self.budget) / left:
            self.extra["weight"].mul_(self.schedule.growth)  # in its place, where a recorded step reads it
        self.extra["count"] = torch.tensor(count)

    def after_epoch(self, setting: Setting, epoch: int) -> dict[str, Any]:
        """Notes the number of ReLUs and the lasso's weight."""
        return {"relus": self.count(), "lasso": float(self.extra["weight"])}


def frozen(model: nn.Module, device: torch.device) -> nn.Module:
    """Returns a copy in eval mode that learns nothing, in channels_last memory."""
    result = copy.deepcopy(model).eval().requires_grad_(False)
    return result.to(device, memory_format=torch.channels_last)
