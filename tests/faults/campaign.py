"""The whole campaign: what its kinds of faults are, and which faults a run carries out."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Iterator, Sequence

from faults import (
    arguments,
    disk,
    drivers,
    files,
    handshake,
    kernels,
    numbers,
    places,
    processes,
    trainings,
)
from faults.fault import Fault

KINDS = {
    "kill": "SIGKILL and other deadly signals to parties, dealer, relay, driver, writers and trainings",
    "stop": "SIGSTOP to parties, dealer and relay",
    "interrupt": "SIGINT, SIGTERM and SIGHUP to drivers, commands and trainings",
    "memory": "no further memory for a party (RLIMIT_AS)",
    "descriptors": "no further files for the driver or a party (RLIMIT_NOFILE)",
    "disk": "a full disk, or files that may not grow (a small file system, RLIMIT_FSIZE)",
    "truncate": "files that are cut off",
    "garble": "files and messages with other bytes, other shapes, forged parts; pipes and folders for files",
    "hostile": "strangers and misbehaving peers at every stage of the handshake of two hosts",
    "flood": "strangers at every port of a group, crowds before the driver's door",
    "race": "several writers, trainings and threads at once",
    "network": "networks with small and large numbers, from tables and at random",
    "image": "images of every size, and strange ones",
    "argument": "models, images, batches, hosts, links and settings that make no sense",
    "place": "odd folders, closed streams, odd environments, a user's own files",
}
"""The kinds, in the order of the table, and what is done."""
FAMILIES: tuple[Callable[[int], Iterator[Fault]], ...] = (
    *(processes.faults, drivers.faults, trainings.faults, disk.faults, handshake.faults),
    kernels.faults,
    *(numbers.faults, arguments.faults, places.faults, files.faults),
)
"""Those whose faults wait for processes come first, so that both lanes end at about the same time."""
SHORT = 2
"""Faults of each kind, act and engine that the short part takes, before its time is over."""


def all_faults(seed: int) -> list[Fault]:
    """Returns every fault of the campaign; the seed draws what is random in them."""
    return [fault for family in FAMILIES for fault in family(seed)]


def chosen(
    faults: Sequence[Fault],
    kinds: Iterable[str] = (),
    engines: Iterable[str] = (),
    only: Iterable[str] = (),
) -> list[Fault]:
    """Returns the faults of these kinds, engines and ids, or beginnings of ids; an empty choice is all."""
    kinds, engines, only = set(kinds), set(engines), tuple(only)
    return [
        fault
        for fault in faults
        if (not kinds or fault.kind in kinds)
        and (not engines or fault.engine in engines)
        and (not only or fault.id in only or any(fault.id.startswith(f"{each}/") for each in only))
    ]


def shortened(faults: Sequence[Fault], seed: int) -> list[Fault]:
    """Returns a few faults of every kind, act and engine, drawn by the seed, one round after the other."""
    groups: dict[tuple[str, str, str], list[Fault]] = {}
    for fault in faults:
        groups.setdefault((fault.kind, fault.act, fault.engine), []).append(fault)
    draw = random.Random(seed)
    drawn = [draw.sample(group, min(SHORT, len(group))) for group in groups.values()]
    return [group[turn] for turn in range(SHORT) for group in drawn if turn < len(group)]
