"""Disks that fill, writers that are killed, and writers that meet: files are whole, and no row is lost."""

from __future__ import annotations

import ctypes
import hashlib
import os
import resource
import signal
import tarfile
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from results_factory import make_accuracy_row, make_row

from faults import formats
from faults.fault import Fault, Observed
from faults.forked import forked_workers
from faults.formats import IDENTITY, network, read_checkpoint, state
from faults.numbers import block, is_right, noise, truth
from faults.stage import ANSWER_S, Stage
from pibench import api
from pibench.models import data
from pibench.models.manifest import read_manifest
from pibench.models.rows import read_rows
from pibench.models.training.files import Checkpoints
from pibench.models.training.rows import put_row, update_row
from pibench.models.weights import load, save_weights
from pibench.parties.driver import Parties
from pibench.store.results import Store
from pibench.store.results import read_rows as read_measured

LIMITS = (0, 100, 1000, 10_000)
"""Bytes that a file may have, by RLIMIT_FSIZE."""
FREE = (0, 4096, 16_384, 65_536)
"""Bytes that a disk has left."""
DISK = 16 << 20
DELAYS = (0.0, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2)
"""Seconds after its first item at which a writer is killed."""
NAMES = ("No space left", "File too large", r"\.json", r"-w2", r"\.pt\b", "cifar", "room")
CLONE_NEWNS, CLONE_NEWUSER = 0x20000, 0x10000000
MS_REC, MS_PRIVATE = 1 << 14, 1 << 18


@dataclass(frozen=True)
class Writer:
    """A way in which the suite writes.

    `write(folder, turn)` writes the item `turn`. `there(folder)` returns the items that a reader finds; it
    fails if a file is not whole. With `keeps` earlier items stay beside later ones.
    """

    write: Callable[[Path, int], Any]
    there: Callable[[Path], set[int]]
    keeps: bool = True


def _row(turn: int) -> dict[str, Any]:
    return make_row("baseline", "lean", count=2, case=f"case {turn}")


def _merge(folder: Path, turn: int) -> None:
    other = folder / f"other-{turn}"
    if not other.exists():
        Store(other / "bench.json").add(_row(turn))
    api.merge([other], folder / "bench.json")


def _cases(folder: Path) -> set[int]:
    return {int(row["case"].split()[1]) for row in read_measured(folder / "bench.json")}


def _trained(folder: Path) -> set[int]:
    return {row["seed"] for row in read_rows(folder / "accuracy.json")}


def _judge(folder: Path, turn: int) -> None:
    path = folder / "accuracy.json"
    if turn not in _trained(folder):
        put_row(path, make_accuracy_row(seed=turn))
    update_row(path, "baseline", 16, turn, {"accuracy_fixed_point": 0.5})


def _weights(folder: Path, turn: int) -> None:
    save_weights(network(turn), folder / f"turn{turn}-w2.safetensors")


def _stored(folder: Path) -> set[int]:
    names = [name for name in read_manifest(folder) if load(folder / name) is not None]
    return {int(name.removeprefix("turn").partition("-")[0]) for name in names}


def _checkpoint(folder: Path, turn: int) -> None:
    Checkpoints(folder / "baseline.pt", IDENTITY).save(state(turn))


def _newest(folder: Path) -> set[int]:
    found = read_checkpoint(folder / "baseline.pt")
    return set() if found is None else {len(found["history"])}


WRITERS: dict[str, Writer] = {
    "rows": Writer(lambda folder, turn: Store(folder / "bench.json").add(_row(turn)), _cases),
    "merge": Writer(_merge, _cases),
    "trained": Writer(
        lambda folder, turn: put_row(folder / "accuracy.json", make_accuracy_row(seed=turn)), _trained
    ),
    "judged": Writer(_judge, _trained),
    "weights": Writer(_weights, _stored),
    "checkpoint": Writer(_checkpoint, _newest, keeps=False),
}
ALONE = ("rows", "trained", "weights", "checkpoint")
"""Those that are killed."""
TOGETHER = ("rows", "trained", "judged", "weights", "checkpoint")
"""Those that meet others."""
COMMANDS = {
    "report": ("report", "--results", "{disk}", "--quiet"),
    "run": ("run", "resnet20:width=1", "--rounds", "1", "--results", "{disk}"),
    "merge": ("merge", "{disk}", "-o", "{disk}/both"),
}


def faults(seed: int) -> Iterator[Fault]:
    """Yields the faults of this family."""
    for name in WRITERS:
        for how, sizes in (("limit", LIMITS), ("full", FREE)):
            for size in sizes:
                arguments = {"name": name, "how": how, "size": size}
                yield Fault("disk", f"{name}-{how}-{size}", "disk.written", arguments, NAMES)
    for how, sizes in (("limit", LIMITS), ("full", FREE)):
        for size in sizes:
            arguments = {"how": how, "size": size}
            yield Fault("disk", f"download-{how}-{size}", "disk.downloaded", arguments, NAMES)
        for command in COMMANDS if how == "full" else ("report", "merge"):
            for size in sizes[2:] if how == "limit" else sizes[:3]:  # it has to print its complaint, too
                arguments = {"command": command, "how": how, "size": size}
                yield Fault("disk", f"{command}-command-{how}-{size}", "disk.commanded", arguments, NAMES,
                            seconds=30.0)  # fmt: skip
    for engine in ("stock", "lean"):
        for free in (0, 4096):
            yield Fault("disk", f"temporary-{free}", "disk.temporary", {"engine": engine, "free": free},
                        ("No space left", "TMPDIR", "temporary"), engine)  # fmt: skip
    for name in ALONE:
        for delay in DELAYS:
            yield Fault("kill", f"writer-{name}-{1000 * delay:g}ms", "disk.killed",
                        {"name": name, "delay": delay}, NAMES)  # fmt: skip
    for name in TOGETHER:
        for count in (2, 4):
            arguments = {"name": name, "count": count}
            yield Fault("race", f"writers-{name}-{count}", "disk.raced", arguments, NAMES, seconds=60.0)


def small_disk(folder: Path) -> bool:
    """Mounts a small disk at `folder`, which this process alone sees; returns whether it may."""
    libc = ctypes.CDLL(None, use_errno=True)
    user, group = os.getuid(), os.getgid()
    if libc.unshare(CLONE_NEWNS | (CLONE_NEWUSER if user else 0)):
        return False
    if user:
        with suppress(OSError):
            Path("/proc/self/setgroups").write_text("deny")
            Path("/proc/self/uid_map").write_text(f"0 {user} 1")
            Path("/proc/self/gid_map").write_text(f"0 {group} 1")
    folder.mkdir(exist_ok=True)
    libc.mount(b"none", b"/", None, MS_REC | MS_PRIVATE, None)
    return libc.mount(b"none", str(folder).encode(), b"tmpfs", 0, f"size={DISK}".encode()) == 0


class Narrow:
    """A folder whose files stay small (`limit`), or whose disk has only `size` bytes left (`full`).

    Where no disk can be mounted, the size of files is limited instead.
    """

    def __init__(self, folder: Path, how: str, size: int) -> None:
        self.folder = folder
        folder.mkdir(exist_ok=True)
        self._mounted = how == "full" and small_disk(folder)
        self._size = size
        self._hard = resource.getrlimit(resource.RLIMIT_FSIZE)[1]

    def __enter__(self) -> None:
        if not self._mounted:
            resource.setrlimit(resource.RLIMIT_FSIZE, (self._size, self._hard))
            return
        page = b"\0" * 4096
        with (self.folder / "filler").open("wb", buffering=0) as filler, suppress(OSError):
            while True:
                filler.write(page)
        os.truncate(self.folder / "filler", max(0, (self.folder / "filler").stat().st_size - self._size))

    def __exit__(self, *_: object) -> None:
        if not self._mounted:
            resource.setrlimit(resource.RLIMIT_FSIZE, (self._hard, self._hard))
        else:
            (self.folder / "filler").unlink()


def written(stage: Stage, name: str, how: str, size: int) -> Observed:
    """The suite adds an item to its files on a disk without room."""
    writer, folder = WRITERS[name], stage.folder / "disk"
    narrow = Narrow(folder, how, size)
    writer.write(folder, 1)
    if name == "merge":  # what is merged lies on another disk
        Store(folder / "other-2" / "bench.json").add(_row(2))

    def work() -> None:
        with narrow:
            writer.write(folder, 2)

    return _whole(stage.attempt(work), writer, folder, {1}, {2})


def _whole(observed: Observed, writer: Writer, folder: Path, old: set[int], new: set[int]) -> Observed:
    """Sees that a reader finds what was there, and what was added if the writer did not complain."""
    try:
        there = writer.there(folder)
    except Exception as error:
        return replace(observed, lost=(f"{type(error).__name__}: {error}",))
    wanted = old | new if observed.answered else old
    if not writer.keeps:  # the newest that is sure to be there, or a newer one
        wanted = {item for item in {max(wanted, default=0)} if max(there, default=0) < item}
    missing = tuple(f"item {turn}" for turn in sorted(wanted - there))
    return replace(observed, lost=missing, left=unfinished(folder))


def unfinished(folder: Path) -> tuple[str, ...]:
    """Names the parts of files that a writer who complained has left."""
    return tuple(path.name for path in folder.rglob("*") if path.name.endswith((".tmp", ".part", ".room")))


def downloaded(stage: Stage, how: str, size: int) -> Observed:
    """CIFAR-100 is downloaded to a disk without room."""
    archive, source = stage.folder / "archive", stage.folder / data.FOLDER
    source.mkdir()
    sums = {}
    for name in ("train", "test", "meta"):
        content = formats.cifar() + os.urandom(20_000)
        (source / name).write_bytes(content)
        sums[name] = hashlib.md5(content, usedforsecurity=False).hexdigest()
    with tarfile.open(archive, "w:gz") as tar:
        tar.add(source, data.FOLDER)
    md5 = hashlib.md5(archive.read_bytes(), usedforsecurity=False).hexdigest()
    narrow = Narrow(stage.folder / "disk", how, size)

    def work() -> Path:
        with narrow:
            return data.download(stage.folder / "disk", archive.as_uri(), md5, sums)

    observed = stage.attempt(work, lambda folder: {path.name for path in folder.iterdir()} == set(sums))
    there = [path for path in (stage.folder / "disk" / data.FOLDER).glob("*") if path.name not in sums]
    return replace(observed, left=tuple(path.name for path in there))


def commanded(stage: Stage, command: str, how: str, size: int) -> Observed:
    """A command writes into a results folder without room; the rows there stay."""
    disk = stage.folder / "disk"
    narrow = Narrow(disk, how, size)
    Store(disk / "bench.json").add(_row(1))
    before = (disk / "bench.json").read_bytes()
    with narrow:
        child = stage.command(*(word.format(disk=disk) for word in COMMANDS[command]))
        observed = child.observed(25.0)
    after = (disk / "bench.json").read_bytes()
    if after != before and _cases_of(disk) != {"case 1"} and command != "run":
        return replace(observed, lost=("the rows that were there",))
    return replace(observed, left=tuple(f"TMPDIR/{name}" for name in stage.temporary()))


def _cases_of(folder: Path) -> set[str]:
    return {row["case"] for row in read_measured(folder / "bench.json")}


def temporary(stage: Stage, engine: str, free: int) -> Observed:
    """The disk of TMPDIR is full when parties start."""
    disk = stage.folder / "disk"
    narrow = Narrow(disk, "full", free)
    images = noise(2, 3, 8, 8)
    exact = truth(block(), images[:1])
    os.environ["TMPDIR"] = str(disk)
    tempfile.tempdir = None

    def work() -> Any:
        with narrow, forked_workers(), Parties(engine=engine, timeout_s=8) as parties:
            parties.load(block(), images)
            parties.prepare(1)
            return parties.infer(images[:1])

    observed = stage.attempt(work, lambda answer: is_right(answer, exact))
    return replace(observed, left=tuple(entry.name for entry in disk.iterdir()))


def killed(stage: Stage, name: str, delay: float) -> Observed:
    """A writer is killed in the middle: what it had said to be written is there, and the next one goes on."""
    writer, folder = WRITERS[name], stage.folder / "disk"

    def work() -> None:
        for turn in range(1, 400):
            writer.write(folder, turn)
            print(f"wrote {turn}", flush=True)

    child = stage.fork(work, "writer")
    child.await_line("wrote", ANSWER_S)
    time.sleep(delay)
    child.send(signal.SIGKILL)
    child.wait(ANSWER_S)
    done = {int(line.split()[1]) for line in child.told() if line.startswith("wrote") and line[6:].isdigit()}
    observed = _whole(Observed(answered=True, right=True), writer, folder, done, set())
    if observed.lost:
        return observed
    seen = stage.attempt(lambda: writer.write(folder, 1000))
    # What the killed writer had begun is removed by a later one, an hour on: it may still be at work.
    return replace(_whole(seen, writer, folder, done, {1000}), left=())


def raced(stage: Stage, name: str, count: int) -> Observed:
    """Several processes write into one file at once: every item is there, and every process succeeds."""
    writer, folder = WRITERS[name], stage.folder / "disk"
    folder.mkdir()
    each = 6

    def work(number: int) -> Callable[[], None]:
        def write() -> None:
            for turn in range(each):
                writer.write(folder, 1 + number * each + turn)

        return write

    if name == "judged":
        for turn in range(1, 1 + count * each):
            WRITERS["trained"].write(folder, turn)
    children = [stage.fork(work(number), f"writer{number}") for number in range(count)]
    for child in children:
        seen = child.observed(50.0)
        if not seen.answered:
            for other in children:
                other.end()
            return seen
    wanted = set(range(1, 1 + count * each))
    ends = {1 + number * each + each - 1 for number in range(count)}
    if not writer.keeps:
        there = writer.there(folder)
        return Observed(answered=True, right=bool(there & ends))
    return _whole(Observed(answered=True, right=True), writer, folder, set(), wanted)
