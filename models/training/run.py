"""A run: one seed of all variants at one width, and the networks that it has trained so far."""

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TextIO

import torch
from torch import nn

from pibench.models import base
from pibench.models.cost import relu_shapes
from pibench.models.decisions import Decisions, Step
from pibench.models.layout import Layout
from pibench.models.training.files import read_history
from pibench.models.training.loop import Outcome, Setting, phase_identity, train
from pibench.models.training.phases import Phase, last_phase
from pibench.models.training.relus import deployed_relus, masks_of
from pibench.models.training.schedules import Plan
from pibench.models.training.tasks.distilled import frozen
from pibench.models.transforms import fold_batchnorm
from pibench.models.variants import Variant, buildable, variant
from pibench.models.zoo import ZOO, layout_of


@dataclass(frozen=True)
class Trained:
    """A trained network in its training form, and all its phases in order.

    `chosen` are the transforms that training chose for its structure, and `finish` the last ones; None means
    the variant's own. A stored network is in its deployed form, and `decisions` are those of its file.
    """

    model: nn.Module
    phases: tuple[Outcome, ...]
    chosen: tuple[Step, ...] | None = None
    finish: tuple[Step, ...] | None = None
    decisions: Decisions | None = None

    @property
    def digest(self) -> str:
        """The digest of the last phase's state."""
        return self.phases[-1].digest

    @property
    def epochs(self) -> int:
        """The epochs of all phases, from random weights on."""
        return sum(len(phase.history) for phase in self.phases)

    @property
    def seconds(self) -> float:
        """The seconds of all phases, from random weights on."""
        return sum(phase.seconds for phase in self.phases)


@dataclass
class Run:
    """One seed of all variants of a network at one width: settings, folders, and the trained networks.

    A phase that a run of another plan has already trained is taken from its checkpoints, in the folders
    `shared`. `stored` are finished rows by variant, for phases that need a deployed network alone.
    `published` are networks by phase that take the place of its training. A run that is `tried` publishes no
    weights.
    """

    setting: Setting
    plan: Plan
    width: int
    checkpoints: Path
    logs: Path
    stream: TextIO | None = None
    shared: Sequence[Path] = ()
    stored: Mapping[str, Trained] = field(default_factory=dict)
    tried: bool = False
    network: str = "resnet18"
    published: dict[str, Trained] = field(default_factory=dict)
    done: dict[str, Trained] = field(default_factory=dict)

    @property
    def classes(self) -> int:
        """The number of classes of the images."""
        return self.setting.images.classes

    @property
    def layout(self) -> Layout:
        """The layout of the network."""
        return layout_of(self.network)

    def variant(self, name: str) -> Variant:
        """Returns a variant of the run's network."""
        return replace(variant(name), network=self.network)

    def phase(self, name: str) -> Phase:
        """Returns the last phase of a variant's training.

        Raises ValueError for a variant that does not fit the run's network.
        """
        known = self.variant(name)
        _ = known.steps
        return last_phase(known, self.plan)

    def trained(self, name: str) -> Trained:
        """Trains a variant, continues its training, or loads it."""
        return self.train(self.phase(name))

    def train(self, phase: Phase) -> Trained:
        """Trains one phase and the earlier ones, continues their training, or loads them."""
        if phase.row is not None and phase.row in self.stored:
            return self.stored[phase.row]
        if phase.name in self.published:
            return self.published[phase.name]
        if phase.name not in self.done:
            after = [self.train(before) for before in phase.after]
            task = phase.task(self, *after)
            outcome = train(
                task,
                phase.schedule,
                self.setting,
                phase.name,
                self.checkpoints,
                self.logs / f"{phase.name}.jsonl",
                " ".join(parent.digest[:16] for parent in after),
                self.stream,
                self.shared,
            )
            before = {earlier.name: earlier for parent in after for earlier in parent.phases}
            model = task.model if phase.settle is None else phase.settle(self, task)
            inherited = next((p.chosen for p in reversed(after) if p.chosen is not None), None)
            chosen = inherited if phase.chosen is None else phase.chosen(self, task)
            finish = None if phase.finish is None else phase.finish(self, task)
            self.done[phase.name] = Trained(model, (*before.values(), outcome), chosen, finish)
        return self.done[phase.name]

    def history(self, phase: Phase) -> Sequence[Mapping[str, Any]]:
        """Returns the finished epochs of a phase: from this run, its checkpoint, or a finished shared one."""
        if phase.name in self.done:
            return self.done[phase.name].phases[-1].history
        wanted = phase_identity(phase.name, phase.schedule, self.setting)
        own, *others = (
            read_history(folder / f"{phase.name}.pt", wanted) for folder in (self.checkpoints, *self.shared)
        )
        whole = next((epochs for epochs in others if len(epochs) == phase.schedule.epochs), None)
        return own if whole is None else whole

    def seeded(self, make: Callable[[], nn.Module]) -> nn.Module:
        """Returns the network from `make`, with weights drawn from the run's seed."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.setting.seed)
            return make()

    def original(self) -> nn.Module:
        """Returns the original network with random weights."""
        return self.seeded(lambda: ZOO[self.network](classes=self.classes, width=self.width))

    def structured(self, variant: base.Variant) -> nn.Module:
        """Returns a variant's trainable structure with random weights."""
        return self.seeded(lambda: buildable(variant).structured(self.width, self.classes))

    def placed(self, model: nn.Module) -> nn.Module:
        """Moves a network to the run's device, in channels_last memory and eval mode; returns it."""
        return model.to(self.setting.device, memory_format=torch.channels_last).eval()

    def budget(self, variant: base.Variant) -> int:
        """Returns the number of ReLUs that a variant keeps at the run's width and image size.

        Raises ValueError for a variant without a budget.
        """
        found = buildable(variant).budget(self.width, self.setting.images.size)
        if found is None:
            raise ValueError(f"{variant.name} has no budget of ReLUs: its file says no fraction")
        return found

    def frozen(self, model: nn.Module) -> nn.Module:
        """Returns a copy of a network on the run's device that learns nothing."""
        return frozen(model, self.setting.device)

    def teacher(self, trained: Trained) -> nn.Module:
        """Returns a trained network in its fastest form, with BatchNorm folded."""
        return self.frozen(fold_batchnorm(copy.deepcopy(trained.model).eval()))

    def shapes(self, model: nn.Module) -> dict[str, tuple[int, ...]]:
        """Returns the shape of each ReLU's activation."""
        size = self.setting.images.size
        example = torch.zeros(1, 3, size, size, device=self.setting.device)
        return relu_shapes(copy.deepcopy(model), example)

    def deployed(self, variant: Variant, trained: Trained) -> tuple[nn.Module, Decisions]:
        """Returns a trained network in its deployed form, on the CPU, and the decisions that rebuild it.

        Masks are final, BatchNorm is folded, and the other steps of the variant's `finish` are done.
        """
        if trained.decisions is not None:
            return copy.deepcopy(trained.model), trained.decisions
        copied = copy.deepcopy(trained.model).cpu().to(memory_format=torch.contiguous_format).eval()
        size = self.setting.images.size
        if trained.finish is not None:
            variant = replace(variant, finish=trained.finish)
        decisions = variant.decisions(self.width, self.classes, size, masks_of(copied), trained.chosen)
        return variant.finished(deployed_relus(copied)).requires_grad_(False), decisions
