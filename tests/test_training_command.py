import json
import pickle
import re
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import numpy as np
import pytest
from dry_run import dry_run
from training_setup import TINY, banded, tiny_run

from pibench.models import manifest
from pibench.models import weights as checkpoint
from pibench.models.data import FOLDER, load_cifar100
from pibench.models.graph.relu import MaskedReLU
from pibench.models.reductions.senet import measured
from pibench.models.rows import ResultsError, read_rows
from pibench.models.training import command, rows, run
from pibench.models.training.__main__ import main
from pibench.models.training.files import TrainingError
from pibench.models.training.images import Images
from pibench.models.training.phases import plan_named, planned
from pibench.models.training.rows import put_row, update_row
from pibench.models.variants import VARIANTS
from pibench.models.weights import WeightsError


def test_rows_are_replaced_and_kept_in_order(tmp_path):
    path = tmp_path / "accuracy.json"
    assert read_rows(path) == []
    for name, seed, value in (
        ("senet-0.09", 1, 0.1),
        ("senet-0.09", 0, 0.2),
        ("baseline", 0, 0.3),
        ("senet-0.09", 1, 0.4),
    ):
        put_row(path, {"variant": name, "width": 16, "seed": seed, "accuracy_test": value})
    assert [(row["variant"], row["seed"], row["accuracy_test"]) for row in read_rows(path)] == [
        ("baseline", 0, 0.3),
        ("senet-0.09", 0, 0.2),
        ("senet-0.09", 1, 0.4),
    ]
    update_row(path, "senet-0.09", 16, 1, {"more": 5})
    assert [row.get("more") for row in read_rows(path)] == [None, None, 5]
    with pytest.raises(TrainingError, match=r"no row of joint-0.09, width 16, seed 1: train it first"):
        update_row(path, "joint-0.09", 16, 1, {"more": 5})
    put_row(path, {"variant": "senet-0.09", "width": 16, "seed": 1, "accuracy_test": 0.6})
    assert "more" not in read_rows(path)[-1]
    with ThreadPoolExecutor(8) as pool:
        list(
            pool.map(lambda seed: put_row(path, {"variant": "snl-0.09", "width": 8, "seed": seed}), range(32))
        )
    assert [row["seed"] for row in read_rows(path) if row["width"] == 8] == list(range(32))
    before = path.read_bytes()
    with pytest.raises(ResultsError, match="`accuracy_test` is 60 where a share from 0 to 1"):
        put_row(path, {"variant": "baseline", "width": 16, "seed": 0, "accuracy_test": 60})
    with pytest.raises(ResultsError, match=r"`relus` is 1\.5 where a whole number"):
        update_row(path, "baseline", 16, 0, {"relus": 1.5})
    assert path.read_bytes() == before
    for content, reason in (
        ("{", r"accuracy\.json cannot be read"),
        ("[1]", r"Row 0 of .*accuracy\.json is unusable, `the row` is 1 where an object"),
        ('[{"variant": "baseline"}]', r"Row 0 of .*accuracy\.json is unusable, the row lacks `width`"),
    ):
        path.write_text(content)
        with pytest.raises(ResultsError, match=reason):
            put_row(path, {"variant": "baseline", "width": 16, "seed": 0})
        assert path.read_text() == content


@pytest.fixture
def cifar(tmp_path, monkeypatch):
    """Tiny files in CIFAR's format, and the command made to take them; returns common options."""
    folder = tmp_path / "data" / FOLDER
    folder.mkdir(parents=True)
    for seed, (split, count) in enumerate((("train", 100), ("test", 40))):
        images, labels = banded(count, seed)
        entries = {b"data": np.asarray(images.view(count, -1)), b"fine_labels": labels.tolist()}
        (folder / split).write_bytes(pickle.dumps(entries, protocol=4))
    monkeypatch.setattr(Images, "cifar100", partial(Images.cifar100, heldout=20, checksums=None))
    monkeypatch.setattr(command, "load_cifar100", partial(load_cifar100, checksums=None))
    plans = {"long": TINY, "scored": TINY}
    monkeypatch.setattr(command, "plan_named", plans.__getitem__)
    options = ["--width", "2", "--device", "cpu", "--precision", "bfloat16", "--data", str(tmp_path / "data")]
    for name in ("results", "checkpoints", "weights"):
        options += [f"--{name}", str(tmp_path / name)]
    return tmp_path, options, plans


def test_one_command_trains_what_is_missing(cifar, monkeypatch, capsys):
    folder, options, _ = cifar
    assert main([*options, "--rows", "senet-0.09", "baseline"]) == 0
    found = read_rows(folder / "results" / "accuracy.json")
    assert [row["variant"] for row in found] == ["baseline", "senet-0.09"]
    assert (folder / "results" / "training" / "w2-s0-long" / "senet-0.09.jsonl").exists()
    monkeypatch.setattr(manifest, "FOLDER", folder / "weights")
    loaded = VARIANTS["senet-0.09"].build(width=2)
    assert loaded.meta["trained"]
    assert any(isinstance(module, MaskedReLU) for module in loaded.modules())
    capsys.readouterr()
    assert main([*options, "--rows", "baseline", "--list"]) == 0
    assert capsys.readouterr().out == "baseline         finished\n"
    monkeypatch.setattr(run, "train", None)
    assert main([*options, "--rows", "baseline", "senet-0.09"]) == 0
    assert "baseline: finished before" in capsys.readouterr().err
    older = found[1] | {"phases": found[1]["phases"] | {"sensitivity": 1}}
    put_row(folder / "results" / "accuracy.json", older)  # by another recipe, or other lengths
    assert main([*options, "--rows", "baseline", "senet-0.09", "--list"]) == 0
    assert capsys.readouterr().out.split() == ["baseline", "finished", "senet-0.09", "to", "be", "trained"]
    path = folder / "weights" / "baseline-w2.safetensors"
    path.write_bytes(path.read_bytes()[:-1] + b"x")
    with pytest.raises(WeightsError, match="is damaged"):
        VARIANTS["baseline"].build(width=2)


def test_a_stored_network_is_trained_on_without_the_training_of_its_row(cifar, monkeypatch, capsys):
    folder, options, _ = cifar
    monkeypatch.setattr(manifest, "FOLDER", folder / "nothing")
    assert main([*options, "--rows", "baseline", "senet-0.09"]) == 0
    for checkpoint_of in (folder / "checkpoints" / "w2-s0-long").glob("*.pt"):
        checkpoint_of.unlink()
    capsys.readouterr()
    assert main([*options, "--rows", "senet-merged-0.09"]) == 0
    assert "senet-merged-0.09 at width 2; in all 1 epochs to go" in capsys.readouterr().err
    assert [path.stem for path in (folder / "checkpoints").glob("*/*.pt")] == ["senet-merged-0.09"]
    rows = {row["variant"]: row for row in read_rows(folder / "results" / "accuracy.json")}
    source, merged = rows["senet-0.09"], rows["senet-merged-0.09"]
    assert merged["phases"] == source["phases"] | {"senet-merged-0.09": 1}
    assert merged["epochs"] == source["epochs"] + 1
    assert merged["wall_s"] >= source["wall_s"]
    assert merged["relus"] == source["relus"]
    masks = [
        {
            name: one
            for name, one in VARIANTS[row]
            .build(2, folder / "weights" / f"{row}-w2.safetensors", classes=100)
            .state_dict()
            .items()
            if name.endswith(".mask")
        }
        for row in rows
        if row != "baseline"
    ]
    assert masks[0].keys() == masks[1].keys()
    assert all((masks[0][name] == masks[1][name]).all() for name in masks[0])
    assert main([*options, "--rows", "senet-merged-0.09", "--list"]) == 0
    assert "finished" in capsys.readouterr().out
    (folder / "checkpoints" / "w2-s0-long" / "senet-merged-0.09.pt").unlink()
    put_row(folder / "results" / "accuracy.json", source | {"phases": {"baseline": 3, "senet-0.09": 2}})
    monkeypatch.setattr(run, "train", None)  # the chain would be trained: the row is of another training
    with pytest.raises(TypeError):
        main([*options, "--rows", "senet-merged-0.09", "--weights", str(folder / "other")])


def test_every_row_has_its_plan_and_takes_what_the_usual_one_has_trained(cifar, monkeypatch, capsys):
    folder, options, plans = cifar
    monkeypatch.setitem(plans, "scored", TINY.changed({"gated.bounded": True, "gated.epochs": 3}))
    monkeypatch.setattr(manifest, "FOLDER", folder / "weights")
    read, decoded = Images.cifar100, []
    monkeypatch.setattr(Images, "cifar100", lambda *args: decoded.append(args) or read(*args))
    assert main([*options, "--rows", "joint", "baseline"]) == 0
    assert len(decoded) == 1  # for both plans
    rows = {row["variant"]: row for row in read_rows(folder / "results" / "accuracy.json")}
    assert {name: row["plan"] for name, row in rows.items()} == {"baseline": "long", "joint": "scored"}
    assert rows["joint"]["phases"] == {"baseline": 2, "gated-5": 3, "joint": 1}
    assert capsys.readouterr().err.count("baseline  epoch") == 2
    assert VARIANTS["joint"].build(width=2).meta["trained"]
    assert main([*options, "--rows", "joint", "baseline", "--list"]) == 0
    assert capsys.readouterr().out.count("finished") == 2
    assert main([*options, "--rows", "joint", "--plan", "long", "--list"]) == 0
    assert "to be trained" in capsys.readouterr().out
    assert main([*options, "--rows", "joint", "--plan", "scored", "--try"]) == 1
    assert "no try: nothing differs from what joint is trained with" in capsys.readouterr().err
    assert main([*options, "--rows", "joint", "--plan", "long", "--try"]) == 0
    assert main([*options, "--rows", "joint", "--set", "gated.fading=0.9"]) == 0
    changes = [row["changes"] for row in json.loads((folder / "results" / "tries.json").read_text())]
    assert {"plan": "long"} in changes
    assert {"plan": "long", "gated.fading": 0.9} in changes


def test_a_try_of_a_plan_takes_what_that_plan_has_taken(cifar, monkeypatch, capsys):
    """The baseline belongs to the usual plan: the other plan takes it from there, and so must its tries."""
    folder, options, plans = cifar
    monkeypatch.setitem(plans, "scored", TINY.changed({"gated.bounded": True, "gated.epochs": 3}))
    assert main([*options, "--rows", "joint", "baseline"]) == 0
    assert not (folder / "checkpoints" / "w2-s0-scored" / "baseline.pt").exists()
    capsys.readouterr()
    tried = [*options, "--rows", "joint", "--plan", "scored", "--set", "gated.fading=0.9"]
    assert main(tried) == 0
    said = capsys.readouterr().err
    assert "gated-5  epoch" in said
    assert "baseline  epoch" not in said


def test_a_row_is_finished_by_whatever_plan_has_the_same_phases(cifar, monkeypatch, capsys):
    folder, options, plans = cifar
    monkeypatch.setitem(plans, "scored", TINY.changed({"gated.bounded": True}))
    assert main([*options, "--rows", "baseline", "joint", "--plan", "long"]) == 0
    capsys.readouterr()
    for plan, state in (("long", "finished"), ("scored", "to be trained")):
        assert main([*options, "--rows", "baseline", "joint", "--plan", plan, "--list"]) == 0
        lines = dict(line.split(maxsplit=1) for line in capsys.readouterr().out.splitlines())
        assert lines == {"baseline": "finished", "joint": state}
    path = folder / "results" / "accuracy.json"
    put_row(path, read_rows(path)[0] | {"plan": "forgotten"})
    assert main([*options, "--rows", "baseline", "--list"]) == 0
    assert "to be trained" in capsys.readouterr().out


def test_wide_networks_are_finished_without_published_weights(cifar, monkeypatch, capsys):
    folder, options, _ = cifar
    monkeypatch.setattr(rows, "PUBLISHED_WIDTH", 1)
    assert main([*options, "--rows", "baseline"]) == 0
    assert not (folder / "weights").exists()
    assert (folder / "checkpoints" / "w2-s0-long" / "baseline-w2.safetensors").exists()
    capsys.readouterr()
    assert main([*options, "--rows", "baseline", "--list"]) == 0
    assert capsys.readouterr().out == "baseline         finished\n"


def test_another_seed_has_its_row_but_no_published_weights(cifar):
    folder, options, _ = cifar
    assert main([*options, "--rows", "baseline", "--seed", "3", "--epochs-scale", "0.5"]) == 0
    (row,) = read_rows(folder / "results" / "accuracy.json")
    assert (row["seed"], row["epochs"], row["epochs_scale"]) == (3, 1, 0.5)
    assert not (folder / "weights").exists()
    assert (folder / "checkpoints" / "w2-s3-long-x0.5" / "baseline-w2.safetensors").exists()


def test_a_try_shares_phases_and_stays_apart(cifar, monkeypatch, capsys):
    folder, options, plans = cifar
    options = [*options, "--rows", "senet-0.09"]
    assert main(options) == 0
    weights = (folder / "weights" / "senet-0.09-w2.safetensors").read_bytes()
    capsys.readouterr()
    for _ in range(2):
        assert main([*options, "--set", "masks.peak=0.2", "masks.images=20"]) == 0
    lines = capsys.readouterr().err
    assert "senet-0.09  epoch 1/" in lines
    assert "baseline  epoch" not in lines
    assert "% test" not in lines
    assert lines.count("% held out") == 1
    (row,) = json.loads((folder / "results" / "tries.json").read_text())
    assert row["changes"] == {"masks.peak": 0.2, "masks.images": 20}
    assert "accuracy_test" not in row
    assert [row["variant"] for row in read_rows(folder / "results" / "accuracy.json")] == ["senet-0.09"]
    assert (folder / "weights" / "senet-0.09-w2.safetensors").read_bytes() == weights
    monkeypatch.setitem(plans, "standard", TINY)
    for _ in range(2):
        assert main([*options, "--plan", "standard", "--try"]) == 0
        assert main([*options, "--plan", "standard", "--set", "masks.peak=0.2"]) == 0
    assert capsys.readouterr().err.count("% held out") == 2
    changes = [row["changes"] for row in json.loads((folder / "results" / "tries.json").read_text())]
    assert {"plan": "standard"} in changes
    assert {"plan": "standard", "masks.peak": 0.2} in changes
    assert len(changes) == 3
    assert (folder / "weights" / "senet-0.09-w2.safetensors").read_bytes() == weights
    assert [row["plan"] for row in read_rows(folder / "results" / "accuracy.json")] == ["long"]
    assert (folder / "results" / "training" / "w2-s0-standard-try" / "senet-0.09.jsonl").exists()
    assert not (folder / "results" / "training" / "w2-s0-standard").exists()
    assert main([*options, "--epochs-scale", "0.5", "--set", "masks.peak=0.2"]) == 0
    scaled = json.loads((folder / "results" / "tries.json").read_text())
    assert {"epochs_scale": 0.5, "masks.peak": 0.2} in [row["changes"] for row in scaled]
    assert len(scaled) == 4
    capsys.readouterr()
    assert main([*options, "--try"]) == 1
    assert "no try: nothing differs" in capsys.readouterr().err
    assert main([*options, "--set", "masks.nonsense=1"]) == 1
    assert "the plan has no 'masks.nonsense'" in capsys.readouterr().err


def test_the_lengths_of_the_papers_are_one_command(cifar, monkeypatch):
    """The plan is the real one, shortened to one step a phase."""
    folder, options, plans = cifar
    monkeypatch.setitem(plans, "paper", plan_named("paper"))
    name = "joint-snl-0.052"
    assert planned(VARIANTS[name], plans["paper"]) == {
        **{"baseline": 200, "gated-5": 120},
        **{f"{name}-lasso": 300, name: 100},
    }
    said = dry_run("longer", "LONGER=--epochs-scale 0.003").replace("\\\n", " ")
    commands = re.findall(r"-m pibench\.models\.training (.+)", said)
    assert len(commands) == 2
    for words in map(str.split, commands):
        assert words[:3] == ["--plan", "paper", "--width"]
        assert words[4] == "--rows"
        assert main([*options, "--plan", "paper", *words[4:]]) == 0
    named = {word for words in commands for word in words.split() if word in VARIANTS}
    rows = {row["variant"]: row for row in read_rows(folder / "results" / "accuracy.json")}
    assert set(rows) == named >= {"senet-0.72", "joint-0.416", "joint", "snl-0.18", "joint-snl-0.052"}
    budgets = {each: VARIANTS[each].budget(2) for each in named if VARIANTS[each].fraction}
    assert {(row["plan"], row["epochs_scale"]) for row in rows.values()} == {("paper", 0.003)}
    assert {each: rows[each]["relus"] for each in budgets} == budgets
    weights = folder / "weights"
    monkeypatch.setattr(manifest, "FOLDER", weights)
    assert all(VARIANTS[row].build(width=2).meta["trained"] for row in rows)


def test_a_published_baseline_takes_the_place_of_its_training(cifar, monkeypatch, capsys):
    folder, options, plans = cifar
    shorter = TINY.changed({"baseline.epochs": 1, "masks.epochs": 1})
    monkeypatch.setitem(plans, "standard", shorter)
    reference = folder / "reference"
    at_reference = partial(command.Folders, reference=reference / "results")
    monkeypatch.setattr("pibench.models.training.__main__.Folders", at_reference)
    monkeypatch.setattr(manifest, "FOLDER", reference / "weights")
    start = [*options, "--from-published"]
    assert main([*start, "--rows", "senet-0.09"]) == 1
    assert (
        "no baseline of resnet18 of width 2 and seed 0 is published: leave --from-published out"
        in capsys.readouterr().err
    )
    moved = [*options, "--results", str(reference / "results"), "--weights", str(reference / "weights")]
    assert main([*moved, "--rows", "baseline"]) == 0
    capsys.readouterr()
    assert main([*start, "--rows", "baseline", "senet-0.09"]) == 0
    said = capsys.readouterr().err
    assert "baseline: the published one is the start of the others" in said
    assert "in all 4 epochs to go" in said  # sensitivity, then masks
    assert "baseline  epoch" not in said
    (row,) = read_rows(folder / "results" / "accuracy.json")
    assert row["start"] == "published"
    assert row["phases"] == {"baseline": 2, "sensitivity": 2, "senet-0.09": 2}
    assert (folder / "checkpoints" / "w2-s0-long-published" / "senet-0.09.pt").exists()
    for plan, state in (("long", "finished"), ("standard", "to be trained")):
        assert main([*options, "--rows", "senet-0.09", "--plan", plan, "--list"]) == 0
        assert state in capsys.readouterr().out
    assert main([*start, "--rows", "senet-0.09", "--plan", "standard"]) == 0
    (row,) = read_rows(folder / "results" / "accuracy.json")
    assert row["phases"] == {"baseline": 2, "sensitivity": 2, "senet-0.09": 1}
    capsys.readouterr()
    assert main([*options, "--rows", "senet-0.09", "--plan", "standard", "--list"]) == 0
    assert "finished" in capsys.readouterr().out  # the plan's own baseline would be shorter
    assert main([*start, "--rows", "eca-hard"]) == 0
    row = next(row for row in read_rows(folder / "results" / "accuracy.json") if row["variant"] == "eca-hard")
    assert list(row["phases"]) == ["eca-hard"]
    assert "start" not in row  # from random weights
    logs = reference / "results" / "training" / "w2-s0-long"
    assert main([*moved, "--rows", "senet-0.09"]) == 0
    for file in (folder / "checkpoints").glob("*/*.pt"):
        file.unlink()
    capsys.readouterr()
    assert main([*start, "--rows", "joint-0.09", "--plan", "long"]) == 0
    said = capsys.readouterr().err
    assert "in all 4 epochs to go" in said  # gated, then masks
    assert "sensitivity  epoch" not in said
    rows_by_name = {row["variant"]: row for row in read_rows(folder / "results" / "accuracy.json")}
    joint = rows_by_name["joint-0.09"]
    assert joint["phases"] == {"baseline": 2, "gated-5": 2, "sensitivity": 2, "joint-0.09": 2}
    of_file = json.loads((logs / "sensitivity.json").read_text())["sensitivity"]
    trained = command.stored_sensitivity(tiny_run(folder), logs)
    assert measured(tiny_run(folder).layout, trained.phases[-1].extra) == pytest.approx(of_file, abs=1e-6)
    (logs / "sensitivity.json").write_text("{")
    assert main([*start, "--rows", "snl-0.09"]) == 1
    assert "holds no measured sensitivity" in capsys.readouterr().err
    (logs / "sensitivity.json").unlink()
    assert main([*start, "--rows", "senet-0.09", "--set", "masks.peak=0.2"]) == 0
    (tried,) = json.loads((folder / "results" / "tries.json").read_text())
    assert tried["changes"] == {"start": "published", "masks.peak": 0.2}


@pytest.mark.parametrize(
    ("device", "able", "precision"),
    [
        ("cpu", {"avx2": True, "avx512_bf16": False, "amx_bf16": False}, "float32"),
        ("cpu", {"architecture": "arm64"}, "float32"),
        ("cpu", {"avx512_bf16": True}, "bfloat16"),
        ("cpu", {"amx_bf16": True}, "bfloat16"),
        ("cuda", {}, "bfloat16"),
    ],
)
def test_the_precision_is_the_faster_one_of_the_device(cifar, monkeypatch, capsys, device, able, precision):
    folder, options, _ = cifar
    monkeypatch.setattr(command.torch.cpu, "get_capabilities", lambda: able)
    assert command.fast_precision(device) == precision
    if device == "cpu":
        at = options.index("--precision")
        automatic = [*options[:at], *options[at + 2 :], "--rows", "baseline"]
        assert main(automatic) == 0
        assert read_rows(folder / "results" / "accuracy.json")[0]["precision"] == precision
        capsys.readouterr()
        for chosen in ("auto", precision):
            assert main([*automatic, "--precision", chosen, "--list"]) == 0
            assert "finished" in capsys.readouterr().out
        monkeypatch.setattr(command.torch.cpu, "get_capabilities", lambda: {"avx512_bf16": not able})
        assert main([*automatic, "--list"]) == 0
        assert "finished" in capsys.readouterr().out  # elsewhere it is finished too
        other = {"float32": "bfloat16", "bfloat16": "float32"}[precision]
        assert main([*automatic, "--precision", other, "--list"]) == 0
        assert "to be trained" in capsys.readouterr().out


def test_missing_data_and_devices_are_one_clear_line(cifar, capsys):
    folder, options, _ = cifar
    (folder / "data" / FOLDER / "train").unlink()
    assert main(options) == 1
    assert "train cannot be read" in capsys.readouterr().err
    assert main([*options, "--device", "nonsense"]) == 1
    assert "the device 'nonsense' cannot be used" in capsys.readouterr().err
    assert main([*options, "--epochs-scale", "0"]) == 1
    assert "positive factor" in capsys.readouterr().err
    assert main([*options, "--epochs-scale", "inf"]) == 1
    assert "positive factor" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main(["--rows", "nonsense"])


def test_files_that_cannot_be_read_or_written_are_one_clear_line(cifar, capsys):
    folder, options, _ = cifar
    (folder / "checkpoints").write_text("a file where a folder is wanted")
    assert main([*options, "--rows", "baseline"]) == 1
    said = capsys.readouterr().err
    assert "cannot be written (Not a directory): make room or allow writing there" in said
    (folder / "weights").mkdir()
    (folder / "weights" / "manifest.json").write_text("{")
    assert main([*options, "--rows", "baseline"]) == 1
    assert "manifest.json is no JSON" in capsys.readouterr().err.splitlines()[-1]


@pytest.mark.parametrize("name", ["results", "checkpoints", "weights"])
def test_a_folder_that_takes_no_files_is_found_before_anything_is_trained(cifar, monkeypatch, capsys, name):
    folder, options, _ = cifar
    full = command.demand_room

    def demand(path):
        if path.parent.name == name:
            raise OSError(28, "No space left on device", str(path))
        full(path)

    monkeypatch.setattr(command, "demand_room", demand)
    monkeypatch.setattr(run, "train", lambda *_: pytest.fail("a phase was trained"))
    assert main([*options, "--rows", "baseline"]) == 1
    said = capsys.readouterr().err
    assert f"{folder / name}" in said
    assert said.endswith(
        "cannot be written (No space left on device): make room or allow writing there, then run the same "
        "command to go on\n"
    )


def test_an_interrupt_says_how_to_go_on(cifar, monkeypatch, capsys):
    _, options, _ = cifar

    def stop(*args, **kwargs):
        raise KeyboardInterrupt

    monkeypatch.setattr(run, "train", stop)
    assert main([*options, "--rows", "baseline"]) == 130
    assert "run the same command to go on" in capsys.readouterr().err


def test_another_network_has_rows_and_weights_of_its_own(cifar, capsys):
    folder, options, _ = cifar
    options = [*options, "--network", "resnet20"]
    assert main([*options, "--rows", "senet-0.09"]) == 0
    (row,) = read_rows(folder / "results" / "accuracy-resnet20.json")
    assert row["relus"] == round(0.09 * 188_416 * 2 / 16)
    assert not (folder / "results" / "accuracy.json").exists()
    path = folder / "weights" / "senet-0.09-resnet20-w2.safetensors"
    assert checkpoint.load(path).meta["decisions"].network == "resnet20"
    assert main([*options, "--rows", "senet-0.09", "--list"]) == 0
    assert "finished" in capsys.readouterr().out
    assert main([*options[:-1], "vgg16", "--rows", "joint"]) == 1
    assert "joint cannot be made of vgg16: the network has no residual blocks" in capsys.readouterr().err


def test_the_command_is_a_function(cifar):
    folder, _, _ = cifar
    folders = command.Folders(*(folder / name for name in ("data", "results", "checkpoints", "weights")))
    options = command.Options(width=2, device="cpu", folders=folders)
    (row,) = command.train(["baseline"], options)
    assert row == read_rows(options.accuracy)[0]
    assert command.finished(["baseline", "joint"], options) == ["baseline"]
    assert command.train(["baseline"], options) == []
