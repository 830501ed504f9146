import json
import math

import pytest
from report_tables import make_pair_rows, section, table, tables_of
from results_factory import (
    make_accuracy_row,
)

from pibench import report
from pibench.store.results import ResultsError

pytestmark = pytest.mark.usefixtures("remembered_intervals")


@pytest.fixture(scope="module")
def rows():
    return make_pair_rows()


def write_tries(path, plan, *tries):
    """Writes tries of senet-0.09: pairs of what is changed and the accuracy on held-out images."""
    content = [
        make_accuracy_row("senet-0.09", accuracy_heldout=value) | {"plan": plan, "changes": changes}
        for changes, value in tries
    ]
    path.write_text(json.dumps(content))
    return path


def compared(tries):
    """Returns the difference of each line by its change and what stands beside it."""
    return {(line["changes"], line["beside"]): line["difference"] for _, line in tries.iterrows()}


def test_tries_stand_beside_the_row_that_they_changed(rows, tmp_path):
    path = tmp_path / "tries.json"
    content = [make_accuracy_row("senet-0.09", accuracy_heldout=0.60)]
    for changes, value in (({"masks.search": 0.3, "sensitivity": None}, 0.61), ({"masks.epochs": 80}, 0.58)):
        trial = make_accuracy_row("senet-0.09", accuracy_heldout=value) | {"changes": changes}
        del trial["accuracy_test"]
        content.append(trial)
    lost = make_accuracy_row("joint-0.09", accuracy_heldout=0.5) | {"changes": {"masks.epochs": 80}}
    path.write_text(json.dumps([*content[1:], lost]))
    made = table(content[:1])
    tries = report.tabulate_tries(path, made)
    assert list(tries["changes"]) == ["masks.epochs=80"] * 2 + ["masks.search=0.3 sensitivity=null"]
    assert tries["difference"].tolist() == pytest.approx([math.nan, -0.02, 0.01], nan_ok=True)
    text = section(content[:1], rows, path)
    lines = tables_of(text)[2]
    assert lines[1]["To the same without it, points"] == "-2.00"
    assert lines[0]["To the same without it, points"] == "–"
    assert text.count("What else was tried") == 1
    path.write_text(json.dumps([*content[1:], lost | {"width": 64}]))
    text = section(content[:1], rows, path)
    narrow, wide = text.split("What else was tried, width 64")
    assert "What else was tried, width 16" in narrow
    assert "`joint-0.09`" in wide
    assert "What else was tried" not in section(content[:1], rows)
    for nonsense, reason in (
        ("{", r"tries\.json cannot be read .*: move it away"),
        ("{}", r"tries\.json is no list of rows: move it away"),
        ("[1]", r"Row 0 of .*tries\.json is unusable, `the row` is 1 where an object belongs: move it away"),
        ('[{"variant": "baseline"}]', r"Row 0 of .*tries\.json is unusable, the row lacks `width`"),
        (json.dumps([lost | {"changes": None}]), r"`changes` is None where an object belongs"),
    ):
        path.write_text(nonsense)
        with pytest.raises(ResultsError, match=reason):
            report.tabulate_tries(path, made)


def test_a_try_under_another_plan_stands_beside_that_plan(tmp_path):
    path = write_tries(
        tmp_path / "tries.json",
        "quick",
        ({"gated.start": "random", "plan": "quick"}, 0.57),
        ({"plan": "quick"}, 0.55),
    )
    own = report.tabulate_tries(path, table([make_accuracy_row("senet-0.09", accuracy_heldout=0.60)]))
    expected = {("plan=quick", ""): -0.05, ("gated.start=random", "plan=quick"): 0.02}
    assert compared(own) == pytest.approx(expected)
    rows = table([make_accuracy_row("senet-0.09", accuracy_heldout=0.60) | {"plan": "standard"}])
    lone = write_tries(path, "standard", ({"masks.epochs": 80, "plan": "standard"}, 0.5))
    assert compared(report.tabulate_tries(lone, rows)) == pytest.approx(  # rows of another plan are its own
        {("masks.epochs=80", "plan=standard"): -0.1}
    )
    rows = table([make_accuracy_row("senet-0.09", accuracy_heldout=0.60)])
    assert math.isnan(report.tabulate_tries(lone, rows)["difference"].item())


def test_a_try_of_several_changes_stands_beside_each_that_was_left_out(tmp_path):
    path = write_tries(
        tmp_path / "tries.json",
        "long",
        ({"a.x": 1}, 0.62),
        ({"b.y": True}, 0.55),
        ({"b.y": True, "a.x": 1}, 0.58),
        ({"c.z": 2, "a.x": 1, "d.w": 3}, 0.59),
        ({"c.z": 4, "d.w": 3}, 0.56),
    )
    tries = report.tabulate_tries(path, table([make_accuracy_row("senet-0.09", accuracy_heldout=0.60)]))
    assert compared(tries) == pytest.approx(
        {
            ("a.x=1", ""): 0.02,
            ("b.y=true", ""): -0.05,
            ("a.x=1", "b.y=true"): 0.03,
            ("b.y=true", "a.x=1"): -0.04,
            ("a.x=1 c.z=2 d.w=3", ""): -0.01,
            ("c.z=4 d.w=3", ""): -0.04,
        }
    )
