"""The fault campaign finds every sort of failure: each is planted here, for the same lanes and judge."""

from __future__ import annotations

import json
import random
import re
import subprocess
import tempfile
import time
from collections import Counter
from dataclasses import asdict, replace
from importlib import import_module
from types import SimpleNamespace

import pytest
import torch
from faults import campaign, disk, garbles, numbers, table
from faults.__main__ import main
from faults.fault import ID, Fault, Observed, Outcome, Verdict
from faults.judge import is_clear, judge
from faults.lane import children
from faults.runner import Lane, batches, run
from faults.stage import Stage, alive, observed_of, survivors
from results_factory import make_row

from pibench.links.link import parse_link
from pibench.store.results import Store, read_rows

BENCH = (r"bench\.json",)


def planted(act: str, *, seconds: float = 10.0, names: tuple[str, ...] = BENCH, **arguments) -> Fault:
    """Returns a fault of `faults.planted`."""
    words = [act, *(re.sub(r"[^a-z0-9.]+", "-", str(value).lower()) for value in arguments.values())]
    return Fault("kill", "-".join(words).strip("-"), f"planted.{act}", arguments, names, seconds=seconds)


PLANTED = [
    (planted("answer", given=2), Verdict.RIGHT),
    (planted("process"), Verdict.LEFT),
    (planted("folder"), Verdict.LEFT),
    (planted("answer", given=3), Verdict.WRONG),
    (planted("hang", length=60, seconds=1.0), Verdict.HANG),
    (planted("row"), Verdict.LOST),
    (planted("inside"), Verdict.OBSCURE),
    (planted("nameless"), Verdict.OBSCURE),
    (planted("traceback"), Verdict.OBSCURE),
    (planted("crash"), Verdict.OBSCURE),
    (planted("broken"), Verdict.BROKEN),
    (planted("command", text="bench.json is no results file", code=1), Verdict.CLEAR),
    (planted("command", text="it did not work", code=1), Verdict.OBSCURE),
    (planted("command", text="", code=3), Verdict.OBSCURE),
    (planted("command", text="all is well", code=0), Verdict.RIGHT),
]


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory):
    """What the lanes make of the planted failures, by id; the campaign's own folder is gone then."""
    folder = tmp_path_factory.mktemp("campaign")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tempfile, "tempdir", str(folder))
        found = run([fault for fault, _ in PLANTED], 5, modules=())
    assert list(folder.iterdir()) == []
    return {outcome.fault.id: outcome for outcome in found}


@pytest.mark.parametrize(("fault", "verdict"), PLANTED, ids=lambda value: getattr(value, "id", value))
def test_what_was_planted_is_found(fault, verdict, outcomes):
    outcome = outcomes[fault.id]
    assert outcome.verdict is verdict, outcome
    assert verdict.survived or outcome.reason


def test_what_was_left_is_named_and_ended(outcomes):
    (process,) = outcomes[planted("process").id].observed.left
    assert re.fullmatch(r"process \d+ \(sleep 600\)", process)
    assert not alive([int(process.split()[1])])
    (folder,) = outcomes[planted("folder").id].observed.left
    assert folder.startswith("TMPDIR/pibench-")
    assert outcomes[planted("row").id].observed.lost == ("one",)


def test_a_hang_tells_where_it_was_and_others_go_on(outcomes):
    hung = outcomes[planted("hang", length=60, seconds=1.0).id]
    assert 1.0 <= hung.seconds < 5
    assert "in hang" in hung.observed.said


def test_faults_that_share_a_process_go_on_in_a_new_one_after_its_end():
    acts = [planted("answer", given=2), planted("crash"), planted("answer", given=3)]
    together = [replace(fault, together="one") for fault in acts]
    assert [len(batch) for batch in batches([*together, *acts])] == [3, 1, 1, 1]
    found = run(together, 5, lanes=1, modules=())
    assert [outcome.verdict for outcome in found] == [Verdict.RIGHT, Verdict.OBSCURE, Verdict.WRONG]


def test_nothing_is_begun_after_the_time_is_over():
    assert run([planted("answer", given=2)], 5, limit_s=0.0, modules=()) == []


def test_a_lane_that_is_ended_takes_everything_along(tmp_path):
    lane = Lane(tmp_path / "lane", 5, ())
    lane.popen.stdin.write(json.dumps([asdict(planted("hang", length=60))]) + "\n")
    lane.popen.stdin.flush()
    deadline = time.monotonic() + 5
    while not (acting := children(lane.popen.pid)) and time.monotonic() < deadline:
        time.sleep(0.01)
    assert acting
    lane.close()
    assert not alive(acting)


# The judge.


@pytest.mark.parametrize(
    ("observed", "verdict"),
    [
        (Observed(answered=True, right=True), Verdict.RIGHT),
        (Observed(answered=True, right=False, left=("x",)), Verdict.WRONG),
        (Observed(answered=True, right=True, left=("x",)), Verdict.LEFT),
        (Observed(answered=True, right=False, lost=("x",)), Verdict.LOST),
        (Observed(hung=True, lost=("x",)), Verdict.HANG),
        (Observed(broken="x", hung=True), Verdict.BROKEN),
        (Observed(died="signal 11"), Verdict.OBSCURE),
        (Observed(), Verdict.OBSCURE),
    ],
)
def test_the_worst_counts(observed, verdict):
    assert judge(observed, BENCH) is verdict


@pytest.mark.parametrize(
    ("message", "raised", "deliberate", "clear"),
    [
        ("bench.json cannot be read", "ResultsError", True, True),
        ("bench.json cannot be read", "ResultsError", False, False),
        ("it cannot be read", "ResultsError", True, False),
        ("a file failed:\nbench.json", "ResultsError", True, False),
        ("bench.json failed:\nTraceback (most recent call last)\n", "PartyFailed", True, False),
        (
            "bench.json died\nparty 0 failed:\nTraceback (most recent call last)",
            "PartyFailed",
            True,
            True,
        ),
        ("bench.json", "KeyError", True, False),
        ("pibench: bench.json is no results file", "", False, True),
        ("Traceback (most recent call last)\nResultsError: bench.json", "", False, False),
        ("bench.json " + "x" * 5000, "ResultsError", True, False),
        ("", "ResultsError", True, False),
    ],
)
def test_a_clear_error_is_raised_on_purpose_and_names_the_thing(message, raised, deliberate, clear):
    assert is_clear(Observed(message=message, raised=raised, deliberate=deliberate), BENCH) == clear


def test_an_error_of_the_suites_own_is_told_from_one_from_inside(tmp_path):
    path = tmp_path / "bench.json"
    path.write_text("[")

    def seen(work):
        try:
            work()
        except Exception as error:
            return observed_of(error)
        raise AssertionError("no error")

    assert is_clear(seen(lambda: read_rows(path)), BENCH)
    assert seen(lambda: parse_link("nothing")).deliberate
    assert seen(lambda: (path / "below").read_text()).deliberate
    assert not seen(lambda: int("bench.json")).deliberate


# Families see what they must see.


@pytest.fixture
def stage(tmp_path):
    return Stage(tmp_path, "5 a fault", {}, -1)


class Shifted(SimpleNamespace):
    """Parties that answer right, or nearly."""

    pids = (1,)

    def load(self, model, example):
        self.model = model

    def prepare(self, batch):
        return 0.0

    def infer(self, images):
        with torch.no_grad():
            return self.model(images) * (1 + self.shift)


@pytest.mark.parametrize(("shift", "verdict"), [(0.0, Verdict.RIGHT), (0.05, Verdict.WRONG)])
def test_a_wrong_answer_of_parties_is_seen(stage, shift, verdict):
    stage.shared["lean"] = Shifted(shift=shift)
    images = numbers.noise(2, 3, 8, 8)
    observed = numbers.inferred(stage, "lean", numbers.block(), images, images)
    assert judge(observed, numbers.NAMES) is verdict
    assert not numbers.is_right(torch.tensor([float("nan")]), torch.ones(1))


def test_a_lost_row_and_a_damaged_file_are_seen(tmp_path):
    writer, done = disk.WRITERS["rows"], Observed(answered=True, right=True)
    for turn in (1, 2):
        writer.write(tmp_path, turn)
    assert disk._whole(done, writer, tmp_path, {1}, {2}) == done
    (tmp_path / ".bench.json.9.tmp").write_text("")
    assert judge(disk._whole(done, writer, tmp_path, {1}, {2}), BENCH) is Verdict.LEFT
    (tmp_path / "bench.json").unlink()
    Store(tmp_path / "bench.json").add(make_row(case="case 2"))
    assert disk._whole(done, writer, tmp_path, {1}, {2}).lost == ("item 1",)
    (tmp_path / "bench.json").write_text("{")
    assert judge(disk._whole(done, writer, tmp_path, {1}, {2}), BENCH) is Verdict.LOST


def test_a_process_that_survives_is_named():
    with subprocess.Popen(["sleep", "60"]) as sleeper:
        assert survivors([sleeper.pid], 0.05) == (f"process {sleeper.pid} (sleep 60)",)
        sleeper.kill()
        assert survivors([sleeper.pid], 5.0) == ()


def test_damage_is_drawn_by_a_seed_and_is_damage():
    data = b'{"schema": 1, "rows": [{"case": "a", "width": 16, "times": [0.1, 0.2]}]}\n'
    names = [*garbles.BYTES, *garbles.TEXTS, *(f"{n}-0" for n in (*garbles.DRAWN, *garbles.SHAPES))]
    for name in names:
        one, other = (garbles.garble(name, data, random.Random(7)) for _ in range(2))
        assert one == other
        assert one != data, name


# The campaign as a whole.


def test_the_campaign_is_data_that_a_seed_repeats():
    faults = campaign.all_faults(3)
    assert faults == campaign.all_faults(3)
    assert len(faults) >= 500
    counts = Counter(fault.id for fault in faults)
    assert [name for name, count in counts.items() if count > 1] == []
    for fault in faults:
        assert ID.fullmatch(fault.id), fault.id
        assert fault.kind in campaign.KINDS
        module, _, act = fault.act.partition(".")
        assert callable(getattr(import_module(f"faults.{module}"), act)), fault.act
        for name in fault.names:
            re.compile(name)
    assert {fault.kind for fault in faults} == set(campaign.KINDS)
    assert {fault.engine for fault in faults} == {"stock", "lean", "none"}


def test_a_part_is_chosen_by_kinds_engines_and_ids():
    faults = campaign.all_faults(3)
    some = campaign.chosen(faults, ["kill"], ["lean"])
    assert {(fault.kind, fault.engine) for fault in some} == {("kill", "lean")}
    one = campaign.chosen(faults, only=[some[0].id])
    assert one == some[:1]
    assert campaign.chosen(faults, only=["stop"]) == campaign.chosen(faults, ["stop"])
    short = campaign.shortened(faults, 3)
    assert {fault.kind for fault in short} == set(campaign.KINDS)
    assert short == campaign.shortened(faults, 3) != campaign.shortened(faults, 4)


def test_the_page_counts_what_was_survived_and_names_what_was_not():
    made = [
        Outcome(planted("answer", given=2), Observed(answered=True, right=True), Verdict.RIGHT, 0.1),
        Outcome(
            Fault("disk", "a", "x.y", {}, (), "lean"), Observed(message="no | <room>"), Verdict.OBSCURE, 1.0
        ),
    ]
    text = table.page(made, [planted("row")], 7, 90.0)
    assert "**2 faults tried, 1 survived.** 1 were not begun in time." in text
    assert re.search(r"\| kill \| SIGKILL .* \| 1 \| 1 \| 0 \| 0 \|  \| 1 of 1 \|", text)
    assert re.search(r"\| all \|  \| 2 \| 1 \| 0 \| 1 \| 0 of 1 \| 1 of 1 \|", text)
    assert "- `disk/a/lean`: obscure error; no / &lt;room>" in text
    assert "| silently wrong | 0 |" in text
    assert re.search(r"Tried on .*; commit \w+.*; seed 7; 1\.5 minutes\.", text)


def test_the_command_lists_and_refuses(capsys):
    assert main(["--list", "--only", "stop"]) == 0
    listed = capsys.readouterr().out.split()
    assert listed
    assert all(name.startswith("stop/") for name in listed)
    assert main(["--only", "no/such/fault"]) == 2
    assert "--list shows them" in capsys.readouterr().out
