import json

import pytest
from report_tables import table
from results_factory import (
    make_accuracy_row,
    make_sensitivity,
)

from pibench import report
from pibench.models.published import SENET_SENSITIVITY
from pibench.models.zoo import layout_of
from pibench.store.results import ResultsError


def test_sensitivity_stands_beside_the_published_one(tmp_path):
    for run, shift in (
        ("w16-s0-standard", 0.0),
        ("w16-s1-standard", 0.02),
        ("w16-s0-standard-masks.search=0", 9),
        ("w16-s0-long", 0.04),
    ):
        (tmp_path / run).mkdir()
        (tmp_path / run / "sensitivity.json").write_text(json.dumps(make_sensitivity(shift)))
    untrained = report.tabulate_accuracy(None)
    made = report.read_sensitivity(tmp_path, untrained)
    assert list(made["seed"].unique()) == [0, 1]
    assert list(made["run"].unique()) == ["w16-s0-long", "w16-s1-standard"]
    phases = {"plan": "standard", "phases": {"baseline": 1, "sensitivity": 1, "senet-0.09": 1}}
    rows = [make_accuracy_row("baseline", plan="long"), make_accuracy_row("senet-0.09", **phases)]
    of_rows = report.read_sensitivity(tmp_path, table(rows))  # what the rows got their ReLUs by
    assert list(of_rows["run"].unique()) == ["w16-s0-standard", "w16-s1-standard"]
    assert set(made["width"]) == {16}
    first = made[made["seed"] == 0]
    assert tuple(first["layer"]) == layout_of("resnet18").relus
    assert tuple(first["published_sensitivity"]) == SENET_SENSITIVITY
    assert made["measured_sensitivity"].max() < 1.0
    assert report.read_sensitivity(tmp_path / "none", untrained).empty


@pytest.mark.parametrize("content", ["{", "{}", json.dumps({"sensitivity": {"relu": 0.1}})])
def test_unusable_sensitivity_is_named(tmp_path, content):
    (tmp_path / "w16-s0-quick").mkdir()
    (tmp_path / "w16-s0-quick" / "sensitivity.json").write_text(content)
    with pytest.raises(ResultsError, match=r"sensitivity\.json cannot be read"):
        report.read_sensitivity(tmp_path, report.tabulate_accuracy(None))
