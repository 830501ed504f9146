"""The command that judges trained networks in fixed point and by real parties."""

from __future__ import annotations

import os
import pickle
import signal
from functools import partial
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from training_setup import CLASSES, banded

from pibench.engines.lean.plaintext import FixedPoint
from pibench.measure import accuracy as command
from pibench.measure.accuracy import AccuracyError, InFixedPoint, fixed_point, judge, sample
from pibench.measure.verdict import TOLERANCE, WrongAnswer
from pibench.models.data import FOLDER, load_cifar100, normalised
from pibench.models.rows import read_rows
from pibench.models.training.rows import find_row, put_row
from pibench.models.variants import variant
from pibench.models.weights import file_name, save_weights
from pibench.parties.driver import Parties

WIDTH = 2
TEST_IMAGES = 24
PRIVATE_IMAGES = 12
SEEDED = {"baseline": 0, "joint-0.052": 1}
MARGIN = 1e-2  # margin of the two largest logits: ten times the error of fixed point


def network(name="baseline", seed=0):
    return variant(name).build(WIDTH, None, seed=seed, classes=CLASSES)


def pictures(count=PRIVATE_IMAGES):
    images, labels = banded(count)
    return normalised(images), labels


@torch.no_grad()
def logits_of(model, images):
    return model(images)


# What is compared.


def test_a_sample_has_one_image_of_each_class():
    labels = torch.arange(1000) % 100
    chosen = sample(labels, 100)
    assert labels[chosen].tolist() == list(range(100))
    assert chosen.tolist() == sample(labels, 100).tolist()
    assert chosen.tolist() != sample(labels, 100, seed=1).tolist()
    assert labels[sample(labels, 250)].bincount().tolist() == [3] * 50 + [2] * 50
    assert labels[sample(labels, 3)].tolist() == [0, 1, 2]


def test_classes_that_lack_images_are_made_up_for():
    labels = torch.tensor([0, 1, 1, 1, 1, 2, 2])
    chosen = sample(labels, 6)
    assert labels[chosen].tolist() == [0, 1, 1, 1, 2, 2]
    assert len(set(chosen.tolist())) == 6


@pytest.mark.parametrize("count", [-1, 0, 1, 8])
def test_samples_that_cannot_be_drawn_are_refused(count):
    with pytest.raises(AccuracyError, match="ask for 2 to 7"):
        sample(torch.zeros(7, dtype=torch.int64), count)


def test_fixed_point_is_judged_on_labels_and_on_plaintext(monkeypatch):
    model, (images, _) = network(), pictures(30)
    logits = logits_of(model, images)
    best, second = logits.topk(2).values.T
    assert (best - second).min() > MARGIN, "choose other images: their classes are nearly tied"
    predicted = logits.argmax(1)
    labels = torch.where(torch.arange(30) < 6, (predicted + 1) % CLASSES, predicted)
    assert fixed_point(model, images, labels) == InFixedPoint(30, 0.8, 0.8, 1.0)

    def coarse(self, images, generator):
        logits = logits_of(model, images)
        logits[:2] = -logits[:2]
        return logits

    monkeypatch.setattr(FixedPoint, "logits", coarse)  # two images of each chunk of 20 go wrong
    found = fixed_point(model, images, predicted)
    assert (found.accuracy, found.agreement, found.accuracy_plaintext) == (26 / 30, 26 / 30, 1.0)


class Oracle:
    """Answers in plaintext like parties, with the changes that `spoil(logits, call)` makes."""

    def __init__(self, model, spoil, law):
        self.model, self.spoil, self.calls = model, spoil, 0
        self.exact_truncation = law == 0
        self.law = law

    def load(self, model, images):
        self.lowered = SimpleNamespace(truncation_failures=self.law)

    def prepare(self, batch):
        self.batch = batch

    def infer(self, images):
        assert len(images) == self.batch <= command.BATCH
        self.calls += 1
        return self.spoil(logits_of(self.model, images), self.calls)


def judged(spoil, law=0.0, seed=0):
    model, (images, _) = network(seed=seed), pictures()
    labels = logits_of(model, images).argmax(1)
    return judge(model, images, labels, Oracle(model, spoil, law))


def truncated_wrongly(logits, call):
    if call == 1:
        logits[3] = logits[3].roll(1) + 2.0**32
    return logits


def again_wrong(logits, call):
    """Spoils one image; the repeated image alone is wrong again."""
    return truncated_wrongly(logits, call) + (len(logits) == 1)


def test_a_wrong_truncation_is_counted_and_kept_in_the_shares():
    found = judged(truncated_wrongly, law=0.01)
    assert found.wrong_truncations == {"expected": pytest.approx(0.01 * PRIVATE_IMAGES), "observed": 1}
    assert found.agreement == found.accuracy == 1 - 1 / PRIVATE_IMAGES
    assert found.accuracy_plaintext == 1
    assert 0 < found.max_logit_error < 1e-4


def test_wrong_truncations_need_a_law_and_do_not_recur():
    with pytest.raises(WrongAnswer, match="1 of 12 private answers are off"):
        judged(truncated_wrongly, law=0.0)
    with pytest.raises(WrongAnswer, match="1 of 12 private answers are off"):
        judged(again_wrong, law=0.01)
    with pytest.raises(WrongAnswer, match="12 of 12"):
        judged(lambda logits, call: logits + (call < 3), law=0.01)
    with pytest.raises(WrongAnswer, match="12 of 12"):
        judged(lambda logits, call: logits * float("nan"), law=0.01)


def test_a_class_that_tips_over_is_a_disagreement():
    """An error that is small enough for the protocol may still change the predicted class."""
    model, (images, _) = network(seed=4), pictures()
    logits = logits_of(model, images)
    spread = (logits.max(0).values - logits.min(0).values).max()
    best, second = logits.topk(2).values.T
    gaps = (best - second) / 2 + 1e-4
    assert (gaps < TOLERANCE * spread).any()
    assert (gaps > TOLERANCE * spread).any()
    tipped = int((gaps < TOLERANCE * spread).sum())

    def nudge(logits, call):
        for row in logits:
            (high, low), places = row.topk(2)
            gap = (high - low) / 2 + 1e-4
            if gap < TOLERANCE * spread:
                row[places[0]] -= gap
                row[places[1]] += gap
        return logits

    found = judged(nudge, seed=4)
    assert found.agreement == found.accuracy == 1 - tipped / PRIVATE_IMAGES
    assert found.wrong_truncations["observed"] == 0
    assert found.max_logit_error == pytest.approx(gaps[gaps < TOLERANCE * spread].max().item(), abs=1e-5)


def test_parties_that_hold_other_weights_are_found_out(lean, monkeypatch):
    model, other, (images, labels) = network(), network(seed=5), pictures()
    load = lean.load
    monkeypatch.setattr(lean, "load", lambda _, images: load(other, images))
    with pytest.raises(WrongAnswer, match="do not compute this network"):
        judge(model, images, labels, lean)


@pytest.mark.parametrize("engine", ["lean", "stock"])
def test_parties_agree_with_plaintext(engine, request):
    model, (images, labels) = network("joint-0.052", seed=1), pictures()
    logits = logits_of(model, images)
    found = judge(model, images, labels, request.getfixturevalue(engine))
    best, second = logits.topk(2).values.T
    close = int((best - second < MARGIN).sum())
    assert close < PRIVATE_IMAGES / 2
    assert found.agreement >= 1 - close / PRIVATE_IMAGES
    assert found.accuracy_plaintext == int((logits.argmax(1) == labels).sum()) / PRIVATE_IMAGES
    assert abs(found.accuracy - found.accuracy_plaintext) <= close / PRIVATE_IMAGES
    assert 0 < found.max_logit_error < MARGIN / 2
    assert found.wrong_truncations["observed"] == 0
    assert (found.wrong_truncations["expected"] > 0) == (engine == "stock")


# The command.


@pytest.fixture
def trained(tmp_path, monkeypatch):
    """Weights of two seeded networks, their rows, a tiny test set; returns the folder and the options."""
    folder = tmp_path / "data" / FOLDER
    folder.mkdir(parents=True)
    images, labels = banded(TEST_IMAGES)
    entries = {b"data": np.asarray(images.view(TEST_IMAGES, -1)), b"fine_labels": labels.tolist()}
    (folder / "test").write_bytes(pickle.dumps(entries, protocol=4))
    monkeypatch.setattr(command, "load_cifar100", partial(load_cifar100, checksums=None))
    for name, seed in SEEDED.items():
        store(tmp_path, name, seed)
    put_row(rows_path(tmp_path), {"variant": "baseline", "width": WIDTH, "seed": 7, "accuracy_test": 0.5})
    options = ["--width", str(WIDTH), "--images", "8"]
    for name in ("data", "results", "weights"):
        options += [f"--{name}", str(tmp_path / name)]
    return tmp_path, options


def rows_path(folder):
    return folder / "results" / "accuracy.json"


def store(folder, name, seed):
    """Stores a seeded network as a trained one, and puts its row."""
    path = folder / "weights" / file_name(name, WIDTH)
    save_weights(network(name, seed), path)
    images, labels = pictures(TEST_IMAGES)
    model = variant(name).build(WIDTH, path, classes=CLASSES)
    right = (logits_of(model, images).argmax(1) == labels).float().mean().item()
    row = {"variant": name, "width": WIDTH, "seed": 0, "epochs": 3, "accuracy_test": right}
    put_row(rows_path(folder), row)


def row_of(folder, name="baseline", seed=0):
    return find_row(read_rows(rows_path(folder)), name, WIDTH, seed)


def forbid_parties(monkeypatch):
    def start(*_, **__):
        raise AssertionError("parties were started though nothing was to be judged")

    monkeypatch.setattr(command, "Parties", start)


def test_one_command_judges_every_row_once(trained, monkeypatch, capsys):
    folder, options = trained
    before = read_rows(rows_path(folder))
    assert command.main([*options, "--engines", "lean"]) == 0
    said = capsys.readouterr().err.splitlines()
    assert [line.split(":")[0] for line in said] == [
        "[1/2] baseline at width 2",
        "[2/2] joint-0.052 at width 2",
    ]
    assert row_of(folder, seed=7) == {"variant": "baseline", "width": 2, "seed": 7, "accuracy_test": 0.5}
    for name in SEEDED:
        row = row_of(folder, name)
        assert row.items() >= find_row(before, name, WIDTH, 0).items()
        assert len(row["weights_sha256"]) == 64
        assert row["accuracy_fixed_point"] == pytest.approx(row["accuracy_test"], abs=1.5 / TEST_IMAGES)
        assert row["fixed_point"]["images"] == TEST_IMAGES
        assert row["private"].keys() == {"lean"}
        assert row["private"]["lean"]["images"] == 8
        assert row["private"]["lean"]["agreement"] >= 7 / 8
        assert row["private"]["lean"]["wrong_truncations"] == {"expected": 0.0, "observed": 0}
        assert not [key for key in row["private"]["lean"] if key.endswith("_s")]

    first = {name: row_of(folder, name) for name in SEEDED}
    with monkeypatch.context() as patch:
        forbid_parties(patch)
        assert command.main([*options, "--engines", "lean"]) == 0
        fewer = ["--images", "4", "--test-images", "20"]  # which do not replace what is known of more
        assert command.main([*options, *fewer, "--engines", "lean"]) == 0
    assert capsys.readouterr().err.count("(judged before)") == 4
    assert {name: row_of(folder, name) for name in SEEDED} == first

    # Other weights: judged anew, what was known of the former ones gone. An engine more: added.
    store(folder, "baseline", 3)
    assert "private" not in row_of(folder)
    assert command.main([*options, "--engines", "lean"]) == 0
    second = row_of(folder)
    assert second["weights_sha256"] != first["baseline"]["weights_sha256"]
    assert (
        second["private"]["lean"]["max_logit_error"]
        != first["baseline"]["private"]["lean"]["max_logit_error"]
    )
    assert row_of(folder, "joint-0.052") == first["joint-0.052"]
    assert command.main([*options, "--rows", "baseline", "--engines", "stock"]) == 0
    third = row_of(folder)
    assert third["private"].keys() == {"lean", "stock"}
    assert third["private"]["lean"] == second["private"]["lean"]


def test_rows_are_judged_by_a_call_too(trained):
    folder, _ = trained
    said = []
    places = {name: folder / name for name in ("data", "results", "weights")}
    command.judge_rows(["baseline"], width=WIDTH, engines=["lean"], images=4, say=said.append, **places)
    assert row_of(folder)["private"]["lean"]["images"] == 4
    assert [line.split(":")[0] for line in said] == ["[1/1] baseline at width 2"]


def test_a_place_that_takes_no_rows_is_found_before_anything_is_judged(trained, monkeypatch):
    def full(path):
        raise OSError(28, "No space left on device", str(path))

    def never(*_):
        raise AssertionError("a row was judged")

    monkeypatch.setattr(command, "demand_room", full)
    monkeypatch.setattr(command, "additions", never)
    places = {name: trained[0] / name for name in ("data", "results", "weights")}
    with pytest.raises(command.AccuracyError, match=r"accuracy\.json cannot be written \(No space left"):
        command.judge_rows(["baseline"], width=WIDTH, engines=["lean"], images=4, **places)


def test_damaged_weights_of_a_later_row_are_found_before_a_row_is_changed(trained, monkeypatch, capsys):
    folder, options = trained
    before = rows_path(folder).read_bytes()
    forbid_parties(monkeypatch)
    monkeypatch.setattr(command, "additions", lambda *_: pytest.fail("a row was judged"))
    path = folder / "weights" / file_name("joint-0.052", WIDTH)
    path.write_bytes(path.read_bytes()[:-1])
    line = refusal(options, capsys)
    assert line.startswith("joint-0.052-w2.safetensors is damaged")
    assert rows_path(folder).read_bytes() == before


def test_a_row_that_lacks_a_part_of_what_is_known_is_judged_again(trained, monkeypatch, capsys):
    """Its line could not be said otherwise, after the row was changed."""
    folder, options = trained
    digest = command.read_manifest(folder / "weights")[file_name("baseline", WIDTH)]["sha256"]
    known = {"weights_sha256": digest, "fixed_point": {"images": TEST_IMAGES, "agreement": 1.0}}
    put_row(rows_path(folder), row_of(folder) | known)
    monkeypatch.setattr(Parties, "__enter__", lambda self: self)
    wrong = {"expected": 0, "observed": 8}
    monkeypatch.setattr(command, "judge", lambda *_: command.Private(8, 1, 1, 1, None, 1, wrong))
    assert command.main([*options, "--rows", "baseline", "--engines", "lean"]) == 0
    assert "in fixed point" in capsys.readouterr().err
    row = row_of(folder)
    assert row["accuracy_fixed_point"] == pytest.approx(row["accuracy_test"], abs=1.5 / TEST_IMAGES)
    assert row["private"]["lean"]["max_logit_error"] is None


def test_weights_that_changed_without_their_row_are_judged_anew(trained, monkeypatch):
    folder, options = trained
    calls = []

    def judge(model, images, labels, parties):
        calls.append(len(images))
        return command.Private(
            len(images), 1.0, 1.0, 1.0, len(calls) * 1e-4, 1.0, {"expected": 0, "observed": 0}
        )

    monkeypatch.setattr(command, "judge", judge)
    monkeypatch.setattr(Parties, "__enter__", lambda self: self)
    options = [*options, "--rows", "baseline", "--test-images", "20"]
    assert command.main(options) == 0
    assert command.main(options) == 0
    assert len(calls) == 2  # an engine each
    save_weights(network("baseline", 4), folder / "weights" / file_name("baseline", WIDTH))
    assert command.main([*options, "--engines", "lean"]) == 0
    assert len(calls) == 3
    assert row_of(folder)["private"].keys() == {"lean"}, "what other weights gave was kept"
    assert command.main([*options, "--engines", "lean", "--again"]) == 0
    assert row_of(folder)["private"]["lean"]["max_logit_error"] == pytest.approx(4e-4)
    assert row_of(folder)["fixed_point"]["images"] == 20


def test_a_row_that_is_trained_while_it_is_judged_is_left_alone(trained, monkeypatch, capsys):
    folder, options = trained

    def retrain(*_):
        store(folder, "baseline", 9)
        return InFixedPoint(TEST_IMAGES, 0.5, row_of(folder)["accuracy_test"], 1.0)

    monkeypatch.setattr(command, "fixed_point", retrain)
    monkeypatch.setattr(command, "_demand_same", lambda *_: None)
    monkeypatch.setattr(command, "judge", lambda *_: command.Private(8, 1, 1, 1, 0, 1, {}))
    monkeypatch.setattr(Parties, "__enter__", lambda self: self)
    assert command.main([*options, "--rows", "baseline"]) == 1
    assert "was trained again while it was judged" in capsys.readouterr().err
    assert row_of(folder).keys() == {"variant", "width", "seed", "epochs", "accuracy_test"}


def refusal(options, capsys):
    assert command.main(options) == 1
    (line,) = capsys.readouterr().err.splitlines()
    return line


def test_what_is_missing_is_named_with_its_remedy(trained, monkeypatch, capsys):
    folder, options = trained
    forbid_parties(monkeypatch)
    assert 'no row of snl-0.09 at width 2, seed 0: not trained yet, make train TRAIN="--rows snl-0.09' in (
        refusal([*options, "--rows", "baseline", "snl-0.09"], capsys)
    )
    assert 'make train TRAIN="--width 5"' in refusal([*options, "--width", "5"], capsys)
    assert "ask for 2 to 24" in refusal([*options, "--images", "25"], capsys)
    assert "--test-images takes 2 to 24" in refusal([*options, "--test-images", "0"], capsys)
    elsewhere = folder / "elsewhere"
    assert "not trained yet" in refusal([*options, "--results", str(elsewhere)], capsys)
    assert "`make data`" in refusal([*options, "--data", str(elsewhere)], capsys)
    unlisted = [*options, "--weights", str(elsewhere), "--rows", "baseline"]
    assert "lists no baseline-w2.safetensors" in refusal(unlisted, capsys)
    path = folder / "weights" / file_name("baseline", WIDTH)
    content = path.read_bytes()
    path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    assert "is damaged" in (line := refusal(options, capsys))
    assert "restore" in line
    path.unlink()
    assert "the file is missing" in refusal(options, capsys)
    rows_path(folder).write_text("{")
    assert "move it away" in refusal(options, capsys)


def test_weights_of_another_training_than_the_rows_are_refused(trained, monkeypatch, capsys):
    folder, options = trained
    forbid_parties(monkeypatch)
    row = row_of(folder)
    put_row(rows_path(folder), {**row, "accuracy_test": row["accuracy_test"] - 0.1})
    assert "they are of different trainings" in refusal([*options, "--rows", "baseline"], capsys)


def test_a_party_that_dies_is_one_sentence_and_the_row_stays(trained, monkeypatch, capsys):
    folder, options = trained
    before = rows_path(folder).read_text()
    prepare = Parties.prepare

    def kill(parties, batch):
        os.kill(parties.pids[1], signal.SIGKILL)
        return prepare(parties, batch)

    monkeypatch.setattr(Parties, "prepare", kill)
    line = refusal([*options, "--engines", "lean"], capsys)
    assert line.startswith("baseline at width 2: the lean engine failed (party 1 died by signal 9 (SIGKILL)")
    assert line.endswith("run the same command to go on")
    assert rows_path(folder).read_text() == before


def test_an_engine_that_is_not_installed_says_what_installs_it(trained, monkeypatch, capsys):
    """Every offered engine can be asked for by name."""
    monkeypatch.setattr("pibench.engines.base.find_spec", lambda name: None)
    line = refusal([*trained[1], "--engines", "spu-semi2k"], capsys)
    assert line.startswith("the spu-semi2k engine needs spu")
