"""A tiny training: images that can be learnt, schedules of one or two epochs, a run at width 2."""

import io

import torch

from pibench.models.training.images import Images
from pibench.models.training.loop import Setting
from pibench.models.training.run import Run
from pibench.models.training.schedules import (
    ConstraintSchedule,
    FoldSchedule,
    GateSchedule,
    HysteresisSchedule,
    LassoSchedule,
    MaskSchedule,
    Plan,
    RankSchedule,
    Schedule,
    ShrinkSchedule,
    SparseSchedule,
)

CLASSES = 4
BATCH = 40
TINY = Plan(
    {
        "baseline": Schedule(2, 0.1, batch=BATCH),
        "sensitivity": SparseSchedule(2, 0.1, batch=BATCH),
        "gated": GateSchedule(2, 0.05, batch=BATCH, images=40),
        "masks": MaskSchedule(2, 0.02, batch=BATCH, images=40),
        "lasso": LassoSchedule(2, 0.02, batch=BATCH),
        "hysteresis": HysteresisSchedule(2, 0.02, batch=BATCH),
        "quadratics": Schedule(1, 0.02, batch=BATCH),
        "gates": ConstraintSchedule(2, 0.02, batch=BATCH),
        "shrinkage": ShrinkSchedule(2, 0.02, batch=BATCH),
        "slopes": FoldSchedule(2, 0.02, batch=BATCH, travels=0.5),
        "statistics": Schedule(1, 1e-9, batch=BATCH),
        "pixels": Schedule(2, 0.02, batch=BATCH),
        "ranks": RankSchedule(2, 0.02, batch=BATCH, every=1),
        "attention": Schedule(2, 0.1, batch=BATCH),
        "fixed_gates": Schedule(2, 0.1, batch=BATCH),
        "bilinear": Schedule(2, 0.05, batch=BATCH),
        "factored": Schedule(1, 0.02, batch=BATCH),
        "tune": Schedule(1, 0.02, batch=BATCH),
        "whole": Schedule(1, 0.02, batch=BATCH),
        "merged": Schedule(1, 0.002, batch=BATCH),
    }
)


def banded(count, seed=0):
    """Returns noise whose class is the band of rows that is bright, uint8 [count, 3, 32, 32], and labels."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(count) % CLASSES
    images = torch.randint(0, 120, (count, 3, 32, 32), generator=generator, dtype=torch.uint8)
    for index, label in enumerate(labels.tolist()):
        images[index, :, 8 * label : 8 * label + 8] += 100
    return images, labels


def tiny_images(count=100, heldout=20):
    return Images.split(*banded(count), heldout, CLASSES)


def tiny_run(folder, seed=0, plan=TINY, network="resnet18", width=2, **changes):
    setting = Setting(tiny_images(), seed=seed, **changes)
    folders = folder / "checkpoints", folder / "logs"
    return Run(setting, plan, width, *folders, io.StringIO(), network=network)
