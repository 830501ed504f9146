"""The rows of single operators: written in their places, by two writers at once, and named when damaged."""

import json
from concurrent.futures import ThreadPoolExecutor

import pytest
from hypothesis import given, settings
from json_faults import BROKEN, damaged

from pibench.models.rows import ResultsError
from pibench.store.operators import put_operators, read_operators

ROW = {"name": "relu", "engine": "lean", "online_s": [0.1], "rounds": 5}


def test_a_row_stands_in_the_place_of_its_like(tmp_path):
    path = tmp_path / "new" / "operators.json"
    assert read_operators(path) == []
    put_operators(path, [ROW, ROW | {"engine": "stock"}])
    put_operators(path, [ROW | {"rounds": 6}, ROW | {"name": "pool"}])
    assert read_operators(path) == [ROW | {"rounds": 6}, ROW | {"engine": "stock"}, ROW | {"name": "pool"}]


def test_writers_at_once_lose_nothing(tmp_path):
    path = tmp_path / "operators.json"
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda n: put_operators(path, [ROW | {"name": str(n)}]), range(32)))
    assert {row["name"] for row in read_operators(path)} == set(map(str, range(32)))


@settings(max_examples=60, deadline=None, derandomize=True)
@given(content=damaged({"schema": 1, "rows": [ROW]}))
def test_a_damaged_file_is_read_or_named_in_one_line(content, tmp_path_factory):
    check_named(tmp_path_factory.mktemp("results") / "operators.json", json.dumps(content).encode())


@pytest.mark.parametrize("text", BROKEN, ids=range(len(BROKEN)))
def test_a_file_that_is_no_json_is_named(tmp_path, text):
    check_named(tmp_path / "operators.json", text)


def check_named(path, text):
    path.write_bytes(text)
    said = None
    try:
        put_operators(path, [ROW])
    except ResultsError as error:
        said = str(error)
    if said is None:
        assert ROW in read_operators(path)
    else:
        assert str(path) in said
        assert said.endswith(": move it away and run `make operators` again.")
        assert "\n" not in said
        assert path.read_bytes() == text


def test_a_file_that_cannot_be_written_is_one_line(tmp_path):
    (tmp_path / "operators.json").mkdir()
    with pytest.raises(
        ResultsError, match=r"operators\.json cannot be written \(Is a directory\): make room"
    ):
        put_operators(tmp_path / "operators.json", [ROW])
