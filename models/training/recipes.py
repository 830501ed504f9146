"""The recipes: how each variant is trained, from shared parts.

A recipe takes a `Run` and the variant's name and returns the trained network with what it went through. What
several variants share (the baseline, who is also everybody's teacher; SENet's sensitivity; one gated network
for each set of shallow blocks) is a phase that is trained once and loaded afterwards.
"""

import copy
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any, TextIO

import torch
from torch import Tensor, nn

from pibench.models.allocation import (
    RESNET18_BLOCKS,
    RESNET18_RELUS,
    SENET_SENSITIVITY,
    allocate_layers,
    largest_network_masks,
    least_sensitive_blocks,
)
from pibench.models.cost import count_cost, relu_shapes
from pibench.models.graph.moves import relu_nodes, trace
from pibench.models.training import tasks
from pibench.models.training.files import read_history, write_bytes
from pibench.models.training.images import accuracy
from pibench.models.training.loop import Outcome, Setting, phase_identity, train
from pibench.models.training.relus import (
    CutReLU,
    SoftReLU,
    deployed_relus,
    exchange_relus,
    mask_relus,
    named_relus,
)
from pibench.models.training.schedules import Plan, Schedule
from pibench.models.training.shallow import GatedBlock, fit_shallow
from pibench.models.transforms import absorb_skips, fold_batchnorm, shallow_blocks
from pibench.models.variants import VARIANTS, Variant, variant
from pibench.models.zoo import resnet18


@dataclass(frozen=True)
class Trained:
    """A trained network in its training form, and all phases that it went through, in order."""

    model: nn.Module
    phases: tuple[Outcome, ...]

    @property
    def digest(self) -> str:
        """Of the last phase's state."""
        return self.phases[-1].digest

    @property
    def epochs(self) -> int:
        """Of all phases, from random weights on."""
        return sum(len(phase.history) for phase in self.phases)

    @property
    def seconds(self) -> float:
        """Of all phases, from random weights on."""
        return sum(phase.seconds for phase in self.phases)


@dataclass
class Run:
    """One seed of all variants at one width: settings, folders, and what has been trained so far.

    Phases that are the same in a run of another plan are taken from its checkpoints, the folders `shared`. A
    run that is `tried` publishes no weights.
    """

    setting: Setting
    plan: Plan
    width: int
    checkpoints: Path
    logs: Path
    stream: TextIO | None = None
    shared: Sequence[Path] = ()
    tried: bool = False
    done: dict[str, Trained] = field(default_factory=dict)

    @property
    def classes(self) -> int:
        """Of the images."""
        return self.setting.images.classes

    def seeded(self, make: Callable[[], nn.Module]) -> nn.Module:
        """Returns what `make` returns, its weights drawn from the run's seed."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.setting.seed)
            return make()

    def network(self) -> nn.Module:
        """Returns the original network with random weights."""
        return self.seeded(lambda: resnet18(classes=self.classes, width=self.width))

    def train(
        self,
        phase: str,
        task: tasks.Supervised,
        schedule: Schedule,
        after: Sequence[Trained] = (),
    ) -> Trained:
        """Trains one phase, goes on with it, or loads it; `after` are what it starts or learns from."""
        if phase not in self.done:
            outcome = train(
                task,
                schedule,
                self.setting,
                phase,
                self.checkpoints,
                self.logs / f"{phase}.jsonl",
                " ".join(parent.digest[:16] for parent in after),
                self.stream,
                self.shared,
            )
            before = {earlier.name: earlier for parent in after for earlier in parent.phases}
            self.done[phase] = Trained(task.model, (*before.values(), outcome))
        return self.done[phase]

    def history(self, phase: str, schedule: Schedule) -> Sequence[Mapping[str, Any]]:
        """Returns the epochs of a phase that are behind: done here, in its checkpoint, or all of a shared."""
        if phase in self.done:
            return self.done[phase].phases[-1].history
        wanted = phase_identity(phase, schedule, self.setting)
        own, *others = (
            read_history(folder / f"{phase}.pt", wanted) for folder in (self.checkpoints, *self.shared)
        )
        whole = next((epochs for epochs in others if len(epochs) == schedule.epochs), None)
        return own if whole is None else whole

    def frozen(self, model: nn.Module) -> nn.Module:
        """Returns a copy of a network on the run's device that learns nothing."""
        return tasks.frozen(model, self.setting.device)

    def teacher(self) -> nn.Module:
        """Returns the baseline as it answers fastest: BatchNorm folded."""
        return self.frozen(fold_batchnorm(copy.deepcopy(self.baseline.model).eval()))

    @cached_property
    def baseline(self) -> Trained:
        """The network with all ReLUs, trained on labels alone: everybody's teacher."""
        schedule = self.plan.baseline
        return self.train("baseline", tasks.Supervised(self.network(), schedule), schedule)

    @cached_property
    def sensitivity(self) -> dict[str, float]:
        """The sensitivity of every ReLU: 1 - density of its convolution in a sparse proxy, or published.

        What was measured is written beside the logs, with the blocks that it would make shallow.
        """
        schedule = self.plan.sensitivity
        if schedule is None:
            return dict(zip(RESNET18_RELUS, SENET_SENSITIVITY, strict=True))
        task = tasks.SparseProxy(self.network(), schedule, self.setting.seed)
        self.train("sensitivity", task, schedule)
        densities = task.densities()
        result = {name: 1 - densities[name.replace("relu", "conv")] for name in RESNET18_RELUS[1:]}
        result = {RESNET18_RELUS[0]: 1 - densities["conv1"], **result}
        mid = [result[f"{block}.relu1"] for block in RESNET18_BLOCKS]
        ranking = {str(n): least_sensitive_blocks(n, RESNET18_BLOCKS, mid) for n in (3, 5)}
        content = {"sensitivity": result, "least_sensitive_blocks": ranking}
        write_bytes(self.logs / "sensitivity.json", (json.dumps(content, indent=1) + "\n").encode())
        return result

    def variant(self, name: str) -> Variant:
        """Returns a variant with the shallow blocks that the plan asks for, if it has any.

        Raises ValueError for blocks that it cannot have, naming those there are.
        """
        recipe, choice = variant(name), self.plan.gated.blocks
        with torch.device("meta"):
            own = shallow_of(recipe.structured(1))
        if choice == "sensitivity" or not own:
            return recipe
        blocks = self.cheapest_blocks[: len(own)] if choice == "cheapest" else choice.split(",")
        if len(set(blocks)) != len(own) or not set(blocks) <= set(RESNET18_BLOCKS):
            raise ValueError(
                f"{name} has {len(own)} shallow blocks, which {choice!r} does not name: "
                f"known are {', '.join(RESNET18_BLOCKS)}"
            )
        blocks = [block for block in RESNET18_BLOCKS if block in blocks]
        return replace(recipe, structure=(partial(shallow_blocks, blocks=blocks, seed=None),))

    def budget(self, name: str) -> int | None:
        """Returns how many ReLUs a variant keeps at the run's width and image size; None without a budget."""
        return variant(name).budget(self.width, self.setting.images.size)

    def check(self, rows: Iterable[str]) -> None:
        """Raises ValueError for blocks by name that a variant cannot have, before anything is trained."""
        if self.plan.gated.blocks != "cheapest":
            for name in rows:
                self.variant(name)

    @cached_property
    def cheapest_blocks(self) -> list[str]:
        """All blocks, first the one that loses least accuracy for the operations that it saves.

        What a block loses is the baseline's accuracy on held-out images less the one with this block alone
        replaced by its least-squares fit, nothing else trained. With a fixed budget of ReLUs a block saves
        MACs, its absorbed skip's included, and one layer of ReLUs, which is the same for all. Written beside
        the logs.
        """
        images = self.setting.images
        reference, model = self.frozen(self.baseline.model), copy.deepcopy(self.baseline.model)
        structured = shallow_blocks(self.network(), RESNET18_BLOCKS)
        gates = {block: put_gate(model, structured, block) for block in RESNET18_BLOCKS}
        model.to(self.setting.device, memory_format=torch.channels_last).eval()
        fit_shallow(reference, gates, images.sample(self.plan.gated.images, 100))
        example = torch.zeros(1, 3, images.size, images.size)
        macs = count_cost(self.network(), example).macs
        whole = accuracy(reference, images.heldout, images.heldout_labels)
        table = {}
        for block, gate in gates.items():
            gate.gate = 0.0
            lost = whole - accuracy(model, images.heldout, images.heldout_labels)
            gate.gate = 1.0
            alone = shallow_blocks(self.network(), [block]).eval()
            left = count_cost(absorb_skips(fold_batchnorm(alone)), example).macs
            table[block] = {"accuracy_lost": lost, "macs_saved": macs - left}
        order = sorted(
            table, key=lambda block: max(0, table[block]["accuracy_lost"]) / table[block]["macs_saved"]
        )
        content = {"accuracy_heldout": whole, "blocks": {block: table[block] for block in order}}
        write_bytes(self.logs / "blocks.json", (json.dumps(content, indent=1) + "\n").encode())
        return order

    def shapes(self, model: nn.Module) -> dict[str, tuple[int, ...]]:
        """Returns the shape of each ReLU's activation."""
        size = self.setting.images.size
        example = torch.zeros(1, 3, size, size, device=self.setting.device)
        return relu_shapes(copy.deepcopy(model), example)


def all_kept(shapes: dict[str, tuple[int, ...]]) -> dict[str, Tensor]:
    """Returns masks that keep everything."""
    return {name: torch.ones(shape, dtype=torch.bool) for name, shape in shapes.items()}


def baseline(run: Run, name: str) -> Trained:
    """Trains the original network."""
    return run.baseline


def _masked(run: Run, name: str, start: Trained) -> Trained:
    """Chooses masks on `start`, whose structure is the variant's, and tunes; the teacher is the baseline."""
    schedule = run.plan.masks
    if schedule.allocation == "lasso":
        return _selected(run, name, start, schedule, schedule.rewind)
    shapes, budget = run.shapes(start.model), run.budget(name)
    larger = next_larger(name) if schedule.descending else None
    before = start if larger is None else recipe_of(larger)(run, larger)
    model = copy.deepcopy(before.model)
    if larger is None:
        mask_relus(model, all_kept(shapes))
    share, parents = None, [run.baseline, before]
    if schedule.allocation == "sensitivity":
        share = partial(allocate_layers, shapes, run.sensitivity)
        parents += [run.done["sensitivity"]] if "sensitivity" in run.done else []
    task = tasks.MaskTuning(model, schedule, run.teacher(), run.frozen(before.model), budget, share)
    return run.train(name, task, schedule, parents)


def next_larger(name: str) -> str | None:
    """Returns the variant of the same family with the fewest ReLUs that are about twice as many or more.

    None if there is none. About: 1.9 times, for budgets are rounded.
    """
    fractions = {
        other: recipe.fraction for other, recipe in VARIANTS.items() if _family(other) == _family(name)
    }
    larger = [other for other, kept in fractions.items() if kept and kept >= 1.9 * fractions[name]]
    return min(larger, key=fractions.__getitem__, default=None)


def _selected(run: Run, name: str, start: Trained, schedule: Schedule, rewind: bool = False) -> Trained:
    """Selects ReLUs of `start` by SNL's lasso, binarised at the budget over the entire network, and tunes.

    What is tuned are the weights that the lasso leaves, with `rewind` those of `start`.
    """
    shapes, budget = run.shapes(start.model), run.budget(name)
    model = copy.deepcopy(start.model)
    exchange_relus(model, {relu: SoftReLU(shape) for relu, shape in shapes.items()})
    task = tasks.Lasso(model, run.plan.lasso, run.teacher(), budget)
    selection = run.train(f"{name}-lasso", task, run.plan.lasso, (start,))
    slopes = {relu: selection.model.get_submodule(relu).alpha.detach()[0].cpu() for relu in shapes}
    model = copy.deepcopy((start if rewind else selection).model)
    mask_relus(model, largest_network_masks(slopes, budget))
    return _tuned(run, name, model, schedule, (run.baseline, selection))


def senet(run: Run, name: str) -> Trained:
    """SENet: ReLUs only, from the baseline's weights."""
    return _masked(run, name, run.baseline)


def shallow_of(structured: nn.Module) -> list[str]:
    """Returns the blocks that are shallow in a variant's structure."""
    names = {module for module, _ in structured.named_modules()}
    return [block for block in RESNET18_BLOCKS if f"{block}.shallow" in names]


def put_gate(model: nn.Module, structured: nn.Module, block: str) -> GatedBlock:
    """Makes a block of `model` a gated one, in place, with the shallow branch of `structured`; returns it."""
    parts = (structured.get_submodule(f"{block}.{part}") for part in ("shallow", "shallow_bn"))
    gate = GatedBlock(model.get_submodule(block), *parts)
    model.set_submodule(block, gate)
    return gate


def gated(run: Run, name: str) -> Trained:
    """Learns the shallow structure of a joint variant, all its ReLUs kept; shared by all budgets of it."""
    recipe, schedule = run.variant(name), run.plan.gated
    structured = run.seeded(lambda: recipe.structured(run.width, run.classes))
    blocks = shallow_of(structured)
    phase = f"gated-{len(blocks)}"
    if phase in run.done:
        return run.done[phase]
    model = copy.deepcopy(run.baseline.model)
    for block in blocks:
        put_gate(model, structured, block)
    task = tasks.Gated(model, schedule, run.teacher(), run.frozen(run.baseline.model))
    trained = run.train(phase, task, schedule, (run.baseline,))
    learnt = trained.model.state_dict()
    structured.load_state_dict({key: learnt[key] for key in structured.state_dict()})
    structured.to(run.setting.device, memory_format=torch.channels_last).eval()
    run.done[phase] = Trained(structured, trained.phases)
    return run.done[phase]


def joint(run: Run, name: str) -> Trained:
    """Joint reduction: a shallow structure, learnt by a gate, then SENet's masks on what is left, if any."""
    start = gated(run, name)
    return start if run.budget(name) is None else _masked(run, name, start)


def snl(run: Run, name: str) -> Trained:
    """SNL: slopes and weights with a lasso, binarised at the budget over the entire network, then tuned."""
    return _selected(run, name, run.baseline, run.plan.tune)


def _tuned(run: Run, name: str, model: nn.Module, schedule: Schedule, parents: Sequence[Trained]) -> Trained:
    """Fine-tunes a network whose ReLUs are settled, as SENet does, with the baseline as teacher."""
    return run.train(name, tasks.Distilled(model, schedule, run.teacher()), schedule, parents)


def _cut(run: Run, name: str) -> nn.Module:
    """Returns the baseline, its ReLUs cut as in the variant's structure."""
    with torch.device("meta"):
        kept = relu_nodes(trace(variant(name).structured(run.width, run.classes)))
    model = copy.deepcopy(run.baseline.model)
    exchange_relus(model, {relu: CutReLU() for relu in named_relus(model) if relu not in kept})
    return model


def culled(run: Run, name: str) -> Trained:
    """DeepReDuce's way: whole ReLU layers are cut from the baseline, which is then tuned."""
    return _tuned(run, name, _cut(run, name), run.plan.tune, (run.baseline,))


def hoist_in_training(model: nn.Module, blocks: Sequence[str]) -> None:
    """Moves the padding of each block's second convolution to its first, in place, BatchNorm between them.

    What is trained is then what merging computes, borders included: conv1 pads by p1 + s1 p2, conv2 by
    nothing (the same formula as in `pibench.models.transforms.hoist_padding`, which finds nothing left to
    do).
    """
    for block in blocks:
        conv1, conv2 = (model.get_submodule(f"{block}.{conv}") for conv in ("conv1", "conv2"))
        pairs = zip(conv1.padding, conv1.stride, conv2.padding, strict=True)
        conv1.padding = tuple(p1 + s1 * p2 for p1, s1, p2 in pairs)
        conv2.padding = (0, 0)


def merged(run: Run, name: str) -> Trained:
    """Exact merging: mid ReLUs are cut and paddings hoisted, then the baseline's weights are tuned."""
    model = _cut(run, name)
    relus = named_relus(model)
    hoist_in_training(
        model, [block for block in RESNET18_BLOCKS if isinstance(relus[f"{block}.relu1"], CutReLU)]
    )
    return _tuned(run, name, model, run.plan.tune, (run.baseline,))


_FAMILIES = {
    "baseline": baseline,
    "senet": senet,
    "joint": joint,
    "joint3": joint,
    "snl": snl,
    "deepreduce": culled,
    "merged": merged,
}


def _family(name: str) -> str:
    return name.split("-")[0]


def recipe_of(name: str) -> Callable[[Run, str], Trained]:
    """Returns the recipe of a variant, by the first word of its name; ValueError if there is none."""
    family = _family(variant(name).name)
    if family not in _FAMILIES:
        raise ValueError(f"the variant {name} has no recipe: known are those of {', '.join(_FAMILIES)}")
    return _FAMILIES[family]


def schedules_of(name: str, plan: Plan) -> dict[str, Schedule]:
    """Returns the phases that a variant goes through, each with its schedule."""
    phases: dict[str, Schedule] = {"baseline": plan.baseline}
    recipe = recipe_of(name)
    if recipe in (senet, joint):
        if recipe is joint:
            with torch.device("meta"):
                phases[f"gated-{len(shallow_of(variant(name).structured(1)))}"] = plan.gated
        if variant(name).fraction is None:
            return phases
        if plan.masks.allocation == "lasso":
            phases[f"{name}-lasso"] = plan.lasso
        elif plan.masks.allocation == "sensitivity" and plan.sensitivity is not None:
            phases["sensitivity"] = plan.sensitivity
        if plan.masks.descending and (larger := next_larger(name)):
            phases |= schedules_of(larger, plan)
        return phases | {name: plan.masks}
    if recipe is snl:
        phases[f"{name}-lasso"] = plan.lasso
    return phases if recipe is baseline else phases | {name: plan.tune}


def planned(name: str, plan: Plan) -> dict[str, int]:
    """Returns the phases that a variant goes through, and the epochs of each."""
    return {phase: schedule.epochs for phase, schedule in schedules_of(name, plan).items()}


ROWS = tuple(name for name in VARIANTS if _family(name) in _FAMILIES)
"""All variants that can be trained, in their order: what others start from comes first."""


def deployed(name: str, model: nn.Module) -> nn.Module:
    """Returns a trained network as it is run: masks final, BatchNorm folded, skips absorbed, on the CPU."""
    copied = copy.deepcopy(model).cpu().to(memory_format=torch.contiguous_format).eval()
    return variant(name).finished(deployed_relus(copied)).requires_grad_(False)
