import dataclasses
import errno
import io
import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from training_setup import BATCH, CLASSES, TINY, banded, tiny_images, tiny_run

from pibench.models.training import loop
from pibench.models.training.files import TrainingError, digest, locked, read_history, sealed, write_bytes
from pibench.models.training.images import Images, accuracy
from pibench.models.training.loop import Progress, Setting, train
from pibench.models.training.memory import memory_format
from pibench.models.training.phases import plan_named, planned
from pibench.models.training.schedules import PLANS, MaskSchedule, Plan, Schedule, assembled
from pibench.models.training.tasks.sparse_proxy import SparseProxy, densities
from pibench.models.training.tasks.supervised import Supervised
from pibench.models.variants import VARIANTS
from pibench.models.zoo import resnet18

SCHEDULE = Schedule(3, 0.1, batch=BATCH)


def network(width=2, seed=0):
    torch.manual_seed(seed)
    return resnet18(classes=CLASSES, width=width)


def trained(folder, task=None, schedule=SCHEDULE, seed=0, precision="bfloat16", after=""):
    task = task or Supervised(network(), schedule)
    setting = Setting(tiny_images(), seed=seed, precision=precision)
    stream = io.StringIO()
    outcome = train(task, schedule, setting, "phase", folder, folder / "phase.jsonl", after, stream)
    return outcome, task, stream.getvalue()


def test_the_rate_is_torchs_one_cycle():
    schedule = Schedule(4, 0.4, warmup=0.3)
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1)
    # torch's cycle reaches its last rate one step before the end
    cycle = torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.4, total_steps=101, cycle_momentum=False)
    for step in range(100):
        optimizer.step()
        cycle.step()
        expected = optimizer.param_groups[0]["lr"]
        assert schedule.rate((step + 1) / 100) == pytest.approx(expected, rel=0.1, abs=1e-3)
    assert schedule.rate(0) == pytest.approx(0.4 / 25)
    assert schedule.rate(0.3) == pytest.approx(0.4)
    assert schedule.rate(1) == pytest.approx(0.4 / 250_000)


def test_schedules_are_scaled_and_checked():
    for plan in map(plan_named, PLANS):
        short = plan.scaled(1e-9)
        assert {part.epochs for part in short.parts.values() if part is not None} == {1}
        assert plan.scaled(1) == plan
        twice = dataclasses.replace(plan["masks"], epochs=2 * plan["masks"].epochs)
        assert plan.scaled(2)["masks"] == twice
    with pytest.raises(ValueError, match="positive factor"):
        plan_named("quick").scaled(0)
    with pytest.raises(ValueError, match="no schedule"):
        MaskSchedule(0, 0.1)


def test_a_tiny_network_learns(tmp_path):
    images = Images.split(*banded(240), 40, CLASSES)
    schedule = Schedule(8, 0.1, batch=20)
    task = Supervised(network(4), schedule)
    train(task, schedule, Setting(images), "learns", tmp_path, tmp_path / "log.jsonl", stream=io.StringIO())
    assert accuracy(task.model, *banded(80, seed=5)) > 0.9


@pytest.mark.parametrize(("width", "channels_last"), [(2, False), (16, True)])
@pytest.mark.parametrize(("precision", "dtype"), [("bfloat16", torch.bfloat16), ("float32", torch.float32)])
def test_convolutions_run_in_the_precision_and_in_the_memory_format(
    tmp_path, precision, dtype, width, channels_last
):
    task, seen = Supervised(network(width), SCHEDULE), set()

    def look(module, args, value):
        seen.add((value.dtype, value.is_contiguous(memory_format=torch.channels_last)))

    for module in task.model.modules():
        if isinstance(module, torch.nn.Conv2d) and module.kernel_size == (3, 3):
            module.register_forward_hook(look)
    setting = Setting(tiny_images(), precision=precision)
    train(task, SCHEDULE, setting, "phase", tmp_path, tmp_path / "log.jsonl", stream=io.StringIO())
    assert seen == {(dtype, channels_last)}


@pytest.mark.parametrize("channels", [2, 4, 8, 12, 16])
def test_the_gradient_of_a_narrow_strided_convolution_is_right_in_the_memory_format(channels):
    """The faster format writes past its buffer there: the process may die."""
    torch.manual_seed(0)
    conv = torch.nn.Conv2d(channels, 2 * channels, 1, stride=2, bias=False)
    images = torch.randn(40, channels, 32, 32)
    wanted = torch.einsum("nchw->c", images[:, :, ::2, ::2].double()).repeat(2 * channels, 1)
    order = memory_format(conv)
    conv.to(memory_format=torch.channels_last).to(memory_format=order)
    for _ in range(10):
        conv.zero_grad()
        conv(images.contiguous(memory_format=order)).sum().backward()
        torch.testing.assert_close(conv.weight.grad[:, :, 0, 0].double(), wanted, rtol=1e-4, atol=1e-2)


def test_every_epoch_is_a_line_of_the_log_and_of_the_progress(tmp_path):
    outcome, task, text = trained(tmp_path)
    rows = [json.loads(line) for line in (tmp_path / "phase.jsonl").read_text().splitlines()]
    assert [row["epoch"] for row in rows] == [1, 2, 3]
    assert rows == list(outcome.history)
    assert {"phase", "loss", "rate", "accuracy_heldout", "wall_s"} <= rows[0].keys()
    assert text.count("\n") == 3
    assert "phase  epoch 2/3" in text
    assert " left" in text
    assert outcome.seconds == sum(row["wall_s"] for row in rows)
    assert not task.model.training


def test_time_left_is_told_within_an_epoch_on_a_terminal(monkeypatch):
    clock = [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: clock[0])

    class Terminal(io.StringIO):
        def isatty(self):
            return True

    progress = Progress("name", 2, 100, Terminal())
    for step in range(1, 52):
        progress.step(0, step, lambda: 1.5)
        clock[0] += 36
    assert "epoch 1/2  step 51/100  loss 1.500  1:29:24 left" in progress.stream.getvalue()


def test_a_finished_phase_is_loaded_and_not_trained(tmp_path, monkeypatch):
    first, _, _ = trained(tmp_path)
    monkeypatch.setattr(loop, "_epoch", None)
    again, other, text = trained(tmp_path)
    assert again.digest == first.digest == digest(other.model.state_dict())
    assert again.history == first.history
    assert text == ""


def stop_after(monkeypatch, epochs, error):
    """Makes training fail in the epoch after `epochs` epochs, in its midst."""
    original = loop._epoch

    def epoch(task, schedule, setting, gradients, number, progress):
        if number == epochs:
            inner = task.loss
            calls = []

            def loss(x, labels):
                calls.append(x)
                if len(calls) == 2:
                    raise error
                return inner(x, labels)

            task.loss = loss
        return original(task, schedule, setting, gradients, number, progress)

    monkeypatch.setattr(loop, "_epoch", epoch)


@pytest.mark.parametrize("precision", ["bfloat16", "float32"])
def test_an_epoch_that_was_interrupted_is_done_again(tmp_path, monkeypatch, precision):
    whole, _, _ = trained(tmp_path / "whole", precision=precision)
    with monkeypatch.context() as patch:
        stop_after(patch, 2, KeyboardInterrupt())
        with pytest.raises(KeyboardInterrupt):
            trained(tmp_path / "part", precision=precision)
    resumed, _, text = trained(tmp_path / "part", precision=precision)
    assert text.count("\n") == 1
    assert resumed.digest == whole.digest
    assert [row["loss"] for row in resumed.history] == [row["loss"] for row in whole.history]


RUN = """
import sys
from pathlib import Path
import torch
torch.set_num_threads(1)
sys.path.insert(0, {tests!r})
from training_setup import tiny_run
run = tiny_run(Path(sys.argv[1]))
run.stream = sys.stdout
for name in ("senet-0.09", "joint-0.09"):
    print(name, run.trained(name).digest, flush=True)
"""


def test_a_killed_process_goes_on_to_the_same_bits(tmp_path):
    """SIGKILL, wherever it finds the process; two recipes with all their phases."""
    code = RUN.format(tests=str(Path(__file__).parent))
    chance = random.Random()
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(__file__).parent.parent)}

    def start(folder):
        return subprocess.Popen(
            [sys.executable, "-c", code, str(folder)], stdout=subprocess.PIPE, text=True, env=environment
        )

    whole = tiny_run(tmp_path / "whole")
    expected = [f"{name} {whole.trained(name).digest}" for name in ("senet-0.09", "joint-0.09")]
    for _ in range(2):
        with start(tmp_path / "killed") as process:
            for _ in range(chance.randint(1, 4)):
                process.stdout.readline()
            time.sleep(chance.random() * 0.3)
            os.kill(process.pid, signal.SIGKILL)
    with start(tmp_path / "killed") as process:
        lines = process.stdout.read().splitlines()
    assert [line for line in lines if line in expected] == expected


def test_a_loss_that_is_no_number_stops_and_keeps_the_last_good_checkpoint(tmp_path, monkeypatch):
    task = Supervised(network(), SCHEDULE)
    inner, calls = task.loss, []

    def loss(x, labels):
        calls.append(x)
        return inner(x, labels) * (float("nan") if len(calls) == 4 else 1)

    task.loss = loss
    with pytest.raises(
        TrainingError,
        match=r"phase: at step 2 of epoch 2 \(rate .*\) the loss is nan: the checkpoint of epoch 1 is kept",
    ):
        trained(tmp_path, task)
    assert len(torch.load(tmp_path / "phase.pt", weights_only=True)["history"]) == 1
    assert trained(tmp_path)[0].digest == trained(tmp_path / "other")[0].digest


def test_weights_that_are_no_numbers_are_not_saved(tmp_path):
    task = Supervised(network(), SCHEDULE)
    task.after_step = lambda done: task.model.fc.bias.data.fill_(torch.inf) if done == 1 / 3 else None
    with pytest.raises(
        TrainingError, match=r"step 2 of epoch 1 .*weights are no numbers.*no epoch was finished"
    ):
        trained(tmp_path, task)
    assert not (tmp_path / "phase.pt").exists()


def test_a_full_disk_leaves_the_last_checkpoint_intact(tmp_path, monkeypatch):
    whole = trained(tmp_path / "whole")[0].digest
    synced = []

    def fsync(descriptor):
        synced.append(descriptor)
        if len(synced) == 3:  # checkpoint and log of epoch 1 are written
            raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", fsync)
        with pytest.raises(
            TrainingError, match=r"phase\.pt cannot be written \(No space left on device; .*MB"
        ):
            trained(tmp_path / "full")
    names = sorted(path.name for path in (tmp_path / "full").iterdir())
    assert names == ["phase.jsonl", "phase.lock", "phase.pt"]
    assert len(torch.load(tmp_path / "full" / "phase.pt", weights_only=True)["history"]) == 1
    assert trained(tmp_path / "full")[0].digest == whole


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"task": lambda: Supervised(network(3), SCHEDULE)}, "architecture"),
        ({"schedule": Schedule(3, 0.2, batch=BATCH)}, 'schedule .*"peak": 0.1.* there, .*"peak": 0.2.* here'),
        ({"seed": 1}, "seed 0 there, 1 here"),
        ({"precision": "float32"}, 'precision "bfloat16" there, "float32" here'),
        ({"after": "abc"}, 'after "" there, "abc" here'),
    ],
)
def test_a_checkpoint_of_another_training_is_refused(tmp_path, changes, reason):
    trained(tmp_path)
    before = (tmp_path / "phase.pt").read_bytes()
    if "task" in changes:
        changes = changes | {"task": changes["task"]()}
    with pytest.raises(TrainingError, match=rf"phase\.pt belongs to another training \({reason}.*remove it"):
        trained(tmp_path, **changes)
    assert (tmp_path / "phase.pt").read_bytes() == before


@pytest.mark.parametrize("content", [b"", b"nonsense", b"PK\x03\x04 truncated"])
def test_a_damaged_checkpoint_is_named(tmp_path, content):
    (tmp_path / "phase.pt").write_bytes(content)
    with pytest.raises(TrainingError, match=r"phase\.pt is no checkpoint of this project or is damaged"):
        trained(tmp_path)


ONE = Schedule(1, 0.1, batch=BATCH)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """The checkpoint of one epoch, and its content."""
    path = tmp_path_factory.mktemp("checkpoint") / "phase.pt"
    trained(path.parent, schedule=ONE)
    return path, path.read_bytes()


def demand_refused(path, reason):
    before = path.read_bytes()
    with pytest.raises(
        TrainingError, match=rf"phase\.pt is no checkpoint .*\({reason}.*: remove it to train"
    ):
        trained(path.parent, schedule=ONE)
    assert read_history(path, {}) == []
    assert path.read_bytes() == before


@settings(max_examples=25, deadline=None, derandomize=True)
@given(place=st.floats(0, 1, exclude_max=True), bit=st.integers(0, 7))
def test_a_flipped_bit_is_found_wherever_it_is(checkpoint, place, bit):
    path, whole = checkpoint
    damaged = bytearray(whole)
    at = int(place * (len(whole) - 74))  # the length and the text of the seal follow
    damaged[at] ^= 1 << bit
    path.write_bytes(damaged)
    demand_refused(path, "its SHA-256 is not the one at its end")


@pytest.mark.parametrize("share", [0.0, 0.3, 0.99, 1 - 1e-5])
def test_a_checkpoint_that_is_cut_off_is_named(checkpoint, share):
    path, whole = checkpoint
    path.write_bytes(whole[: int(share * len(whole))])
    demand_refused(path, "it has no checksum at its end: it is cut off, or older than checksums")


def test_an_older_checkpoint_is_named_until_it_is_sealed(checkpoint):
    path, whole = checkpoint
    state = torch.load(io.BytesIO(whole), weights_only=True)
    older = io.BytesIO()
    torch.save(state, older)
    path.write_bytes(older.getvalue())
    demand_refused(path, "it has no checksum at its end")
    path.write_bytes(sealed(older.getvalue()))
    trained(path.parent, schedule=ONE)
    assert len(read_history(path, {"seed": 0})) == 1


@pytest.mark.parametrize("make", [Path.mkdir, os.mkfifo])
def test_what_is_no_file_in_the_place_of_a_checkpoint_is_named(tmp_path, make):
    make(tmp_path / "phase.pt")
    with pytest.raises(TrainingError, match=r"phase\.pt is no checkpoint of this project or is damaged"):
        trained(tmp_path)


def test_six_trainings_of_one_phase_end_alike(tmp_path):
    """Threads write like processes here: every unfinished file has a name of its own."""
    with ThreadPoolExecutor(6) as pool:
        found = [each.result()[0] for each in [pool.submit(trained, tmp_path) for _ in range(6)]]
    assert len({outcome.digest for outcome in found}) == 1
    assert sorted(path.name for path in tmp_path.iterdir()) == ["phase.jsonl", "phase.lock", "phase.pt"]


def test_a_second_process_waits_for_the_phase_and_takes_it(tmp_path, monkeypatch):
    """Threads lock like processes here: every `locked` opens its own file."""
    whole = trained(tmp_path / "whole")[0].digest
    began, inner, answers = threading.Event(), loop._epoch, []

    def epoch(*args):
        began.set()
        time.sleep(0.2)
        return inner(*args)

    monkeypatch.setattr(loop, "_epoch", epoch)
    with ThreadPoolExecutor() as pool:
        first = pool.submit(trained, tmp_path / "two")
        assert began.wait(60)
        answers = [trained(tmp_path / "two"), first.result()]
    assert {outcome.digest for outcome, _, _ in answers} == {whole}
    assert answers[0][2] == "phase: another training is at it: waiting for its end\n"


def test_a_lock_is_free_again_when_its_holder_is_killed(tmp_path):
    code = (
        "import sys, time; from pathlib import Path; from pibench.models.training.files import locked\n"
        "with locked(Path(sys.argv[1])): print('locked', flush=True); time.sleep(600)"
    )
    command = [sys.executable, "-c", code, str(tmp_path / "lock")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline() == "locked\n"
        with pytest.raises(InterruptedError), locked(tmp_path / "lock", _interrupt):
            pass
        process.kill()
    with locked(tmp_path / "lock", _interrupt):
        pass


def _interrupt():
    raise InterruptedError


def test_a_changed_plan_takes_the_phases_that_are_the_same(tmp_path, monkeypatch):
    def run(name, schedule=SCHEDULE, shared=()):
        folder = tmp_path / name
        task, stream = Supervised(network(), schedule), io.StringIO()
        setting = Setting(tiny_images())
        log = folder / "phase.jsonl"
        return train(task, schedule, setting, "phase", folder, log, "", stream, shared), stream.getvalue()

    first, _ = run("base")
    again, text = run("try", shared=[tmp_path / "nothing", tmp_path / "base"])
    assert (again.digest, text) == (first.digest, "")
    assert (tmp_path / "try" / "phase.jsonl").exists()
    changed, text = run("other", Schedule(3, 0.2, batch=BATCH), [tmp_path / "base"])
    assert changed.digest != first.digest
    assert text.count("\n") == 3


def test_plans_are_changed_by_name():
    plan = plan_named("standard")
    changed = plan.changed({"masks.peak": 1, "gated.epochs": 3, "sensitivity": None})
    assert changed["masks"] == dataclasses.replace(plan["masks"], peak=1.0)
    assert isinstance(changed["masks"].peak, float)
    assert (changed["gated"].epochs, changed["sensitivity"], changed["tune"]) == (3, None, plan["tune"])
    assert plan.changed({"sensitivity.epochs": 3, "sensitivity": None})["sensitivity"] is None
    for changes, reason in (
        ({"masks.imges": 0}, r"no 'masks.imges': known are masks.epochs, .*masks.images"),
        ({"mask.images": 0}, r"no 'mask.images': known are baseline, tune, sensitivity"),
        ({"masks": 0}, r"no 'masks': known are masks.epochs"),
        ({"masks.epochs": 1.5}, r"masks.epochs is 14 in the plan and cannot be 1.5"),
        ({"masks.standardized": "yes"}, r"masks.standardized is False in the plan and cannot be 'yes'"),
        ({"masks.epochs": 0}, r"no schedule"),
    ):
        with pytest.raises(ValueError, match=reason):
            plan.changed(changes)


def test_a_plan_is_assembled_from_what_reductions_declare():
    one, two = Schedule(1, 0.1), Schedule(2, 0.1)
    declared = {"a": {"long": one}, "b": {"long": one, "quick": two, "standard": None}}
    assert assembled([declared], "quick") == Plan({"a": one, "b": two})
    assert assembled([declared], "standard") == Plan({"a": one, "b": None})
    assert assembled([declared], "paper") == Plan({"a": one, "b": one})
    with pytest.raises(ValueError, match="two reductions declare the phase 'a'"):
        assembled([declared, {"a": {"long": one}}], "long")
    with pytest.raises(
        ValueError, match="unknown plan 'short': known are quick, standard, long, scored, paper"
    ):
        assembled([declared], "short")


def test_a_file_appears_complete_or_not_at_all(tmp_path):
    path = tmp_path / "new" / "file"
    write_bytes(path, b"one")
    write_bytes(path, b"two")
    assert path.read_bytes() == b"two"
    assert [entry.name for entry in path.parent.iterdir()] == ["file"]
    with pytest.raises(TrainingError, match="cannot be written"):
        write_bytes(path / "below", b"three")


def test_the_proxy_keeps_its_number_of_weights_and_moves_them(tmp_path):
    schedule = dataclasses.replace(TINY["sensitivity"], epochs=3, density=0.1)
    task = SparseProxy(network(4), schedule)
    before = {name: mask.clone() for name, mask in task.extra.items()}
    trained(tmp_path, task, schedule)
    counts = [sum(int(mask.sum()) for mask in masks.values()) for masks in (before, task.extra)]
    assert counts[0] == counts[1]
    assert any(int(before[name].sum()) != int(task.extra[name].sum()) for name in before)
    for name, conv in task.convs.items():
        assert not conv.weight[~task.extra[name]].any()
    shares = densities(task.extra)
    sizes = {name: conv.weight.numel() for name, conv in task.convs.items()}
    total = sum(shares[name] * size for name, size in sizes.items())
    assert total == pytest.approx(0.1 * sum(sizes.values()), rel=0.02)


def test_every_row_has_a_phase_and_a_run_is_its_seed(tmp_path):
    assert all(phases for phases in (planned(recipe, TINY) for recipe in VARIANTS.values()))
    digests = {digest(tiny_run(tmp_path, seed).original().state_dict()) for seed in (0, 1, 0)}
    assert len(digests) == 2
