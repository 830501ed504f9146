"""The answer check: what must make a case fail, what is explained, and what an interruption leaves."""

from __future__ import annotations

import copy
import itertools
import json
import os
import platform
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pandas as pd
import pytest
import torch
from accidents import descendants, gone

import pibench
from pibench import report
from pibench.engines import ENGINES
from pibench.links import LINKS
from pibench.measure.case import Case
from pibench.measure.count import cost_of
from pibench.measure.rounds import Measurement, Rounds
from pibench.measure.row import row_of
from pibench.measure.session import Session
from pibench.measure.subject import Subject
from pibench.measure.suites import (
    HEADLINE,
    OTHERS,
    REFUSED,
    TRAINED_WIDTH,
    default_cases,
    protocol_cases,
    protocol_link_cases,
    select,
    small,
    smoke_cases,
    sweep_cases,
)
from pibench.measure.verdict import WrongAnswer
from pibench.models.catalogue import variant_names
from pibench.models.variants import VARIANTS
from pibench.parties.driver import Parties, PartyFailed
from pibench.report.statistics import FEWEST
from pibench.store.results import Store, validate

ROOT = Path(__file__).resolve().parent.parent
CASE = Case("baseline", width=8, rounds=2, profiles=1)


def measure(model, images, parties, rounds: int = 2, reference: Subject | None = None) -> dict:
    case = CASE if reference is None else replace(CASE, reference=CASE)
    measurement = Measurement(case, Subject(model, images, 1, parties), reference)
    for _ in range(rounds):
        measurement.before()
        measurement.online()
    context = {"machine": {}, "versions": {}, "commit": None, "dirty": None}
    return row_of(measurement, cost_of(model, images), "seeded", "noise", "test", context)


def test_right_answer_gives_a_full_row(block, images, stock):
    row = measure(block, images, stock)
    row["machine"] = dict.fromkeys(("cpu", "cores", "memory_bytes", "system", "python"))
    validate(row)
    assert row["rounds"] == {"attempted": 2, "succeeded": 2}
    assert row["times"]["total_s"] == [
        a + b for a, b in zip(row["times"]["offline_s"], row["times"]["online_s"], strict=True)
    ]
    assert 0 < row["answer"]["relative_error"] < 0.02
    assert row["cost"]["relus"] == 256
    assert [layer["relus"] for layer in row["layers"] if layer["kind"] == "relu"] == [256]
    assert sum(layer["macs"] for layer in row["layers"]) == row["cost"]["macs"] == 64 * 108 + 64 * 5
    assert sum(layer["bytes_sent"] for layer in row["layers"]) == row["traffic"]["bytes_sent"]
    assert row["truncation"]["observed"] == 0
    assert row["setup"]["bytes_sent_by_party"] == [0, 0]


class Counted:
    """Stands for a `Subject` that is always right, and notes what it is asked to do."""

    def __init__(self, name: str, asked: list[str]) -> None:
        self.name, self.asked, self.attempted = name, asked, 0
        self.parties = SimpleNamespace(online_s=1.0)
        self.traffic = None

    def prepare(self) -> float:
        self.asked.append(f"{self.name} offline")
        return 1.0

    def plaintext(self) -> float:
        return 0.1

    def infer(self) -> None:
        self.asked.append(f"{self.name} online")

    def right(self, logits: None) -> bool:
        self.attempted += 1
        return True


def test_a_reference_is_warmed_up_once():
    asked: list[str] = []
    reference = Counted("reference", asked)
    for first in (True, False):
        asked.clear()
        measurement = Measurement(replace(CASE, reference=CASE), Counted("case", asked), reference)
        measurement.warm_up()
        whole = ["reference offline", "reference online", "case offline", "case online"]
        assert asked == (whole if first else whole[2:])
        assert measurement.rounds == measurement.reference_rounds == Rounds(("offline", "online"))
        measurement.before()
        measurement.online()
        assert asked[-4:] == whole
        assert len(measurement.rounds.online_s) == len(measurement.reference_rounds.online_s) == 1


def loads_instead(monkeypatch, parties, wrong) -> None:
    original = parties.load
    monkeypatch.setattr(parties, "load", lambda model, example: original(wrong, example))


def test_wrong_weights_fail(block, images, stock, monkeypatch):
    wrong = copy.deepcopy(block)
    wrong.fc.weight.data[2, :16].neg_()
    loads_instead(monkeypatch, stock, wrong)
    with pytest.raises(WrongAnswer, match=r"3 of 3 answers are off"):
        measure(block, images, stock)


def test_swapped_layers_fail(images, stock, monkeypatch):
    def network(first, second):
        return torch.nn.Sequential(first, torch.nn.ReLU(), second, torch.nn.Flatten())

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        one, two = (torch.nn.Conv2d(3, 3, 3, padding=1) for _ in range(2))
    loads_instead(monkeypatch, stock, network(two, one))
    with pytest.raises(WrongAnswer):
        measure(network(one, two), images, stock)


def test_another_image_fails(block, images, stock, monkeypatch):
    original = stock.infer
    monkeypatch.setattr(stock, "infer", lambda batch: original(images[1:2]))
    with pytest.raises(WrongAnswer):
        measure(block, images, stock)


def test_killed_party_fails(block, images, stock):
    subject = Subject(block, images, 1, stock)
    measurement = Measurement(CASE, subject)
    measurement.before()
    os.kill(stock.pids[0], signal.SIGKILL)
    with pytest.raises(PartyFailed, match="party 0 died"):
        measurement.online()


def ruin_once(monkeypatch, parties) -> None:
    """Changes the first answer as a failed truncation would."""
    original, calls = parties.infer, []

    def infer(images):
        logits = original(images)
        calls.append(1)
        return logits + 2.0**20 if len(calls) == 1 else logits

    monkeypatch.setattr(parties, "infer", infer)


def with_law(monkeypatch, parties, failures: float) -> None:
    original = parties.load

    def load(model, example):
        original(model, example)
        parties.lowered = replace(parties.lowered, truncation_failures=failures)

    monkeypatch.setattr(parties, "load", load)


def test_explained_truncation_failure_is_counted_and_not_timed(block, images, stock, monkeypatch):
    ruin_once(monkeypatch, stock)
    with_law(monkeypatch, stock, 1e-3)
    row = measure(block, images, stock, rounds=3)
    assert row["rounds"] == {"attempted": 3, "succeeded": 2}
    assert len(row["times"]["online_s"]) == len(row["times"]["offline_s"]) == 2
    assert row["truncation"]["observed"] == 1
    assert row["truncation"]["expected"] == pytest.approx(4e-3)  # three rounds and the repetition


@pytest.mark.parametrize("exact", [False, True])
def test_failure_that_the_law_does_not_explain_fails(exact, block, images, stock, monkeypatch):
    ruin_once(monkeypatch, stock)
    with_law(monkeypatch, stock, 1.0 if exact else 1e-12)
    monkeypatch.setattr(stock, "exact_truncation", exact)
    with pytest.raises(WrongAnswer, match="1 of 3 answers"):
        measure(block, images, stock)


def test_reference_rounds_pair_up(block, images, stock, monkeypatch):
    reference = Subject(block, images, 1, stock)
    row = measure(block, images, stock, rounds=3, reference=reference)
    assert row["reference"]["case"] == CASE.id
    assert len(row["reference"]["online_s"]) == 3
    assert all(seconds > 0 for seconds in row["reference"]["total_s"])


def test_a_row_of_one_clock(block, images, monkeypatch, tmp_path):
    """The stock engine, told to have one clock and traffic that varies: every round's is kept."""
    one = replace(ENGINES["stock"], clocks=("all_phases",), steady_traffic=False)
    monkeypatch.setitem(ENGINES, "stock", one)
    sizes = iter([1, 9, 5, 7, 5, 5, 5])
    infer = Parties.infer

    def varying(parties, pictures):
        logits = infer(parties, pictures)
        parties.sent = replace(parties.sent, by_party=(next(sizes), 0))
        return logits

    monkeypatch.setattr(Parties, "infer", varying)
    first = Case.of("linear", block.eval(), images, rounds=1, warm_up=False, profiles=0)
    case = Case.of("mine", block, images, rounds=2, warm_up=False, profiles=1, reference=first)
    with Session((first, case), tmp_path, "test") as session:
        assert session.obstacle(case) is None
        session.measure(first)
        row = session.measure(case)
        assert session.progress(row, 2).startswith(
            f"{case.id}: all phases {row['times']['all_phases_s'][0]:.2f}"[:-2]
        )
    validate(row)
    assert set(row["times"]) == {"all_phases_s"}
    assert set(row["reference"]) == {"case", "link_check", "all_phases_s"}
    assert len(row["reference"]["all_phases_s"]) == len(row["times"]["all_phases_s"]) == 2
    assert all(seconds > 0 for seconds in row["times"]["all_phases_s"])
    sent = [each["bytes_sent_by_party"] for each in row["traffic_of_rounds"]]
    assert sent == [[5, 0], [5, 0]]
    assert row["options"] == {"ring_bits": 64, "fraction_bits": 16}
    assert row["trust"] == one.trust
    assert row["setup"]["seconds"] > 0
    assert "all_phases_s" in row["conventions"]
    assert "online_s" not in row["conventions"]


def test_cases_of_other_clocks_are_not_paired():
    case = Case("baseline", engine="spu-semi2k", reference=Case("baseline"))
    with pytest.raises(ValueError, match="have other clocks and cannot be paired"):
        Measurement(case, None)


def test_cases_of_an_engine_that_is_not_installed_are_skipped_one_by_one(monkeypatch, tmp_path):
    for engine in ("spu-semi2k", "spu-aby3"):
        monkeypatch.setitem(ENGINES, engine, replace(ENGINES[engine], modules=("no_such_package",)))
    cases = [case for case in protocol_cases() if case.engine in ("spu-semi2k", "spu-aby3")]
    with Session(cases, tmp_path, "test") as session:
        for case in cases:
            assert "needs no_such_package" in session.obstacle(case)
            session.skip(case)
        assert session.waiting == []


def test_too_few_images(block, images, stock):
    with pytest.raises(ValueError, match="too few"):
        Subject(block, images[:1], 1, stock)


def test_cases_are_distinct_and_their_references_are_cases():
    cases = default_cases()
    assert len({case.id for case in cases}) == len(cases)
    assert {case.reference.id for case in cases if case.reference} <= {case.id for case in cases}
    for engine in ("stock", "lean", "lean32"):
        assert {case.variant for case in cases if case.engine == engine and case.role == "headline"} >= {
            "baseline",
            "senet-0.09",
            "joint-0.052",
            "merged-exact",
        }
    spu = {"spu-semi2k", "spu-aby3", "spu-cheetah"}
    assert {case.engine for case in smoke_cases()} == {"stock", "lean", "lean32"} | spu
    assert all(case.width == 8 and case.rounds == 1 for case in smoke_cases())
    lean = select(cases, "lean")
    assert all(case.reference is None or case.reference.engine == "lean" for case in lean)


def test_the_same_networks_under_five_protocols():
    cases = protocol_cases()
    assert len({case.id for case in cases}) == len(cases) == 30
    assert {(case.engine, case.variant) for case in cases} == set(
        itertools.product(
            ("stock", "lean", "spu-semi2k", "spu-aby3", "spu-cheetah"),
            ("baseline", "senet-0.36", "senet-0.09", "joint-0.208", "joint-0.052", "merged-exact"),
        )
    )
    assert all(case.width == 64 and case.link == "loopback" for case in cases)
    assert all(case.rounds >= FEWEST for case in cases if case.role == "protocol")
    assert {case.id for case in cases if case.role == "headline"} <= {case.id for case in default_cases()}
    by_id = {case.id: case for case in cases}
    for case in cases:
        assert case.parties in ENGINES[case.engine].parties
        if case.reference is not None:
            assert by_id[case.reference.id] == case.reference
            assert ENGINES[case.reference.engine].clocks == ENGINES[case.engine].clocks
    links = protocol_link_cases()
    assert {(case.engine, case.link) for case in links} == set(
        itertools.product(("spu-semi2k", "spu-aby3", "spu-cheetah"), ("lan", "wan"))
    )
    assert all(case.role == "protocol" for case in links)
    assert not {case.id for case in links} & {case.id for case in cases}


def test_a_sweep_adds_every_variant_on_every_link_and_at_the_trained_width():
    default, sweep = default_cases(), sweep_cases()
    assert len({case.id for case in sweep}) == len(sweep)
    measured = {
        (case.variant, case.engine, case.width, case.link)
        for case in (*default, *sweep)
        if case.batch == 1 and case.parties == 2
    }
    engines = ("stock", "lean", "lean32")
    wanted = {
        *itertools.product(VARIANTS, engines, (64,), ("loopback", "lan", "wan")),
        *itertools.product(HEADLINE, engines, (64,), ("wan-slow",)),
        *itertools.product(VARIANTS, ("stock", "lean"), (TRAINED_WIDTH,), ("loopback",)),
    }
    assert {(engine, name) for name, engine, _, _ in wanted - measured} == REFUSED
    assert {link for _, _, _, link in measured} == {"loopback", *LINKS}
    for case in sweep:
        if case.link == "lan":
            other = {"variant": "baseline"} if case.variant in OTHERS else {"link": "loopback"}
            assert case.reference.id == replace(case, **other).id
    headline = {case.id for case in default if case.role == "headline"}
    assert not headline & {case.id for case in sweep}
    assert {case.reference.id for case in sweep if case.reference} <= headline | {case.id for case in sweep}


def test_every_variant_of_the_catalogue_is_in_the_sweep():
    assert set(HEADLINE) | set(OTHERS) == set(variant_names()) == set(VARIANTS)
    assert not set(HEADLINE) & set(OTHERS)


@pytest.mark.parametrize("engine", ["stock", "lean"])
def test_a_users_own_network_is_measured_like_a_variant(engine, block, images, tmp_path):
    """Compares it with another network of the user, and that one with a variant."""
    block.eval()
    other = copy.deepcopy(block)
    other.relu = torch.nn.Identity()
    settings = {"engine": engine, "rounds": 2, "profiles": 1}
    variant_case = replace(CASE, engine=engine)
    first = Case.of("linear", other, images, **settings, reference=variant_case)
    second = Case.of("mine", block, images, **settings, batch=2, reference=first)
    cases = (variant_case, first, second)
    with Session(cases, tmp_path, "test") as session:
        assert [session.obstacle(case) for case in cases] == [None] * 3
        rows = [session.measure(case) for case in cases]
    stored = Store(tmp_path / "bench.json").rows()
    assert [row["case"] for row in stored] == [
        *(f"{engine}/baseline/w8/b1/2p/loopback", f"{engine}/linear/w4/b1/2p/loopback"),
        f"{engine}/mine/w4/b2/2p/loopback",
    ]
    assert {key: type(value) for key, value in rows[2].items()} == {
        key: type(value) for key, value in rows[1].items()
    }
    assert rows[0].keys() == rows[2].keys()
    mine, variant_row = stored[2], stored[1]
    assert (mine["weights"], mine["images"], mine["cost"]["relus"]) == ("own", "own", 256)
    assert mine["reference"]["case"] == first.id
    assert len(mine["reference"]["online_s"]) == len(mine["times"]["online_s"]) == 2
    assert variant_row["reference"]["case"] == variant_case.id
    assert 0 < mine["answer"]["relative_error"] < 0.02
    summary = report.summarize(stored).set_index("variant").loc["mine"]
    assert (summary["engine"], summary["relus"], summary["reference_case"]) == (engine, 256, first.id)


def test_what_is_up_to_date_is_not_measured_again(block, images, tmp_path, monkeypatch, capsys):
    block.eval()
    settings = {"engine": "lean", "rounds": 2, "results": tmp_path}
    first = pibench.measure(block, images, **settings)
    assert "up to date" not in capsys.readouterr().out
    stored = Store(tmp_path / "bench.json").rows()

    def never(*_):
        raise AssertionError("parties were started")

    with monkeypatch.context() as patched:
        patched.setattr(Parties, "__enter__", never)
        again = pibench.measure(copy.deepcopy(block), images.clone(), **settings)
        assert capsys.readouterr().out == "1 of 1 cases are up to date; --again measures them anew\n"
        pd.testing.assert_frame_equal(again, first)
        for changes in ({"rounds": 3}, {"again": True}):
            with pytest.raises(AssertionError, match="were started"):
                pibench.measure(block, images, **settings | changes)
        block.fc.bias.data += 1
        with pytest.raises(AssertionError, match="were started"):
            pibench.measure(block, images, **settings)
    assert Store(tmp_path / "bench.json").rows() == stored


def test_an_interrupted_run_goes_on_with_the_references_that_it_still_needs(block, images, tmp_path):
    """The first case is there; the second one pairs with it, so it runs in turn once more."""
    first = Case.of("first", block.eval(), images, engine="lean", rounds=2, profiles=0)
    second = Case.of("second", block, images, engine="lean", rounds=2, profiles=0, reference=first)
    with Session((first, second), tmp_path, "one") as session:
        session.measure(first)
    with Session((first, second), tmp_path, "two") as session:
        assert session.said_of_kept() == "1 of 2 cases are up to date; --again measures them anew"
        assert [case.variant for case in session.waiting] == ["second"]
        session.measure(second)
    kept, fresh = Store(tmp_path / "bench.json").rows()
    assert (kept["run"], fresh["run"]) == ("one", "two")
    assert len(fresh["reference"]["online_s"]) == 2
    assert fresh["reference"]["online_s"] != kept["times"]["online_s"]
    assert fresh["host"] == platform.node()


def test_a_users_network_that_the_parties_do_not_compute_is_found_out(block, images, tmp_path, monkeypatch):
    wrong = copy.deepcopy(block.eval())
    wrong.fc.weight.data[2, :16].neg_()
    load = Parties.load
    monkeypatch.setattr(Parties, "load", lambda parties, model, example: load(parties, wrong, example))
    case = Case.of("mine", block, images, engine="lean", rounds=1)
    with Session([case], tmp_path, "test") as session, pytest.raises(WrongAnswer, match="3 of 3 answers"):
        session.measure(case)
    assert not (tmp_path / "bench.json").exists()


def test_names_that_a_users_network_cannot_bear(block, images):
    with pytest.raises(ValueError, match="'baseline' is a variant's name: give your network another one"):
        Case.of("baseline", block, images)
    with pytest.raises(ValueError, match="without slashes, not 'a/b'"):
        Case.of("a/b", block, images)
    assert small(Case.of("mine", block, images)).width == 4


def test_interrupted_run_keeps_its_rows_and_leaves_no_process(tmp_path):
    results = tmp_path / "results"
    command = [sys.executable, "-m", "pytest", "bench/bench_latency.py", "--smoke", "--benchmark-disable"]
    run = subprocess.Popen(
        [*command, "--engine", "stock", "--results", str(results), "-p", "no:cacheprovider"],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # a shell's background ignores it
    )
    path = results / "bench.json"
    deadline = time.monotonic() + 60
    while not path.exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    time.sleep(0.3)  # into the next case
    started = descendants(run.pid)
    assert len(started) >= 3  # a supervisor and two parties
    run.send_signal(signal.SIGINT)
    output, _ = run.communicate(timeout=30)
    assert run.returncode == 130, output
    rows = json.loads(path.read_text())["rows"]
    assert 1 <= len(rows) < 13
    assert gone(started)
    assert sorted(file.name for file in results.iterdir()) == [".bench.json.lock", "bench.json"]


def test_unusable_results_file_is_found_before_anything_is_measured(tmp_path):
    (tmp_path / "bench.json").write_text("{ not json")
    command = [sys.executable, "-m", "pytest", "bench/bench_latency.py", "--smoke", "--benchmark-disable"]
    run = subprocess.run(
        [*command, "--engine", "stock", "--results", str(tmp_path), "-x", "-p", "no:cacheprovider"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert run.returncode == 1
    assert "bench.json is not valid JSON" in run.stdout
    assert (tmp_path / "bench.json").read_text() == "{ not json"
