import json

import pytest
from hypothesis import given, settings
from json_faults import BROKEN, damaged
from results_factory import make_accuracy, make_accuracy_row, make_judged

from pibench.models.rows import ResultsError, check_row, read_rows, read_tries
from pibench.report.accuracy import read_accuracy, tabulate_accuracy


@pytest.fixture
def path(tmp_path):
    return tmp_path / "accuracy.json"


def test_rows_are_read_as_they_are_written(path):
    content = [row | make_judged(more={"anything": [1, None]}) for row in make_accuracy(epochs_scale=1)]
    path.write_text(json.dumps(content))
    found = read_rows(path)
    assert found == content
    assert list(found[0]) == list(content[0])
    assert type(found[0]["epochs_scale"]) is int  # checked, not changed


def test_a_file_that_is_not_there_has_no_rows(path):
    assert read_rows(path) == []
    assert read_tries(path) == []


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"width": "16"}, "`width` is '16' where a whole number belongs"),
        ({"seed": 0.5}, r"`seed` is 0\.5 where a whole number belongs"),
        (
            {"accuracy_test": 65.2},
            r"`accuracy_test` is 65\.2 where a share from 0 to 1, not in percent, belongs",
        ),
        ({"accuracy_heldout": float("nan")}, "`accuracy_heldout` is nan where a finite number belongs"),
        ({"phases": {"baseline": 1.5}}, r"`phases\.baseline` is 1\.5 where a whole number belongs"),
        ({"fixed_point": {"images": 10}}, r"the row lacks `fixed_point\.agreement`"),
        ({"private": {"lean": 3}}, r"`private\.lean` is 3 where an object belongs"),
        ({"plan": None}, "`plan` is None where text belongs"),
        ({"width": 0}, "`width` is 0 where a number from 1 on belongs"),
        ({"relus": -1}, "`relus` is -1 where a number from 0 on belongs"),
        ({"macs": 2**63}, r"`macs` is 9223372036854775808 where a number below 9\.22337e\+18 belongs"),
        ({"seed": -(2**64)}, "`seed` is -18446744073709551616 where a number from"),
        ({"wall_s": -0.5}, r"`wall_s` is -0\.5 where a number from 0 on belongs"),
    ],
)
def test_a_wrong_row_is_refused_by_the_name_of_its_key(path, change, reason):
    row = make_accuracy_row() | change
    with pytest.raises(ResultsError, match=reason):
        check_row(row)
    path.write_text(json.dumps([make_accuracy_row(seed=9), row]))
    with pytest.raises(ResultsError, match=f"Row 1 of .*accuracy\\.json is unusable, {reason}") as caught:
        read_rows(path)
    assert str(caught.value).endswith(": move it away, and training makes its rows again.")


def test_a_largest_error_that_no_image_has_is_null(path):
    row = make_accuracy_row() | make_judged()
    row["private"]["lean"]["max_logit_error"] = None
    check_row(row)
    path.write_text(json.dumps([row]))
    table = tabulate_accuracy(read_accuracy(path))
    assert table["private_lean_max_logit_error"].isna().all()


@settings(max_examples=80, deadline=None, derandomize=True)
@given(content=damaged([make_accuracy_row() | make_judged(), make_accuracy_row(seed=1)]))
def test_a_damaged_file_is_tabulated_or_named_in_one_line(content, tmp_path_factory):
    path = tmp_path_factory.mktemp("results") / "accuracy.json"
    check_named(path, json.dumps(content).encode())


@pytest.mark.parametrize("text", BROKEN, ids=range(len(BROKEN)))
def test_a_file_that_is_no_json_is_named(path, text):
    check_named(path, text)


def check_named(path, text):
    path.write_bytes(text)
    for read in (lambda: tabulate_accuracy(read_accuracy(path)), lambda: read_tries(path)):
        said = None
        try:
            read()
        except ResultsError as error:
            said = str(error)
        if said is not None:
            assert str(path) in said
            assert "\n" not in said
    assert path.read_bytes() == text


def test_a_row_held_twice_is_an_error_but_not_two_tries(path):
    row = make_accuracy_row()
    path.write_text(json.dumps([row, row]))
    with pytest.raises(ResultsError, match=r"holds baseline twice \(width 16, seed 0\): remove one"):
        read_rows(path)
    tries = [row | {"changes": {"masks.epochs": epochs}} for epochs in (1, 2)]
    path.write_text(json.dumps(tries))
    assert read_tries(path) == tries
    del tries[1]["changes"]
    path.write_text(json.dumps(tries))
    with pytest.raises(ResultsError, match=r"Row 1 of .* lacks `changes`"):
        read_tries(path)
