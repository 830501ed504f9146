import json
import os
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from json_faults import BROKEN, damaged
from results_factory import make_check, make_protocol_rows, make_row, make_rows

from pibench.costs.literature import LinearLayer, Network, network_from_dict
from pibench.links import LinkCheck
from pibench.models import files
from pibench.models.files import replace_file
from pibench.store import results, schema
from pibench.store.results import ResultsError, Store, validate
from pibench.store.schema import clocks_of, whole_clock


@pytest.fixture
def path(tmp_path):
    return tmp_path / "results" / "bench.json"


def test_missing_file_has_no_rows_and_is_not_made_by_reading(path):
    assert Store(path).rows() == []
    assert not path.exists()


def test_rows_survive_the_round_trip_in_order(path):
    rows = make_rows()[::3]
    for row in rows:
        Store(path).add(row)
    assert Store(path).rows() == rows
    assert json.loads(path.read_text())["schema"] == results.SCHEMA


def test_a_row_replaces_the_row_of_its_case_only(path):
    store = Store(path)
    store.add(make_row("baseline"))
    store.add(make_row("senet-0.09"))
    store.add(make_row("baseline", seed=7))
    assert [row["variant"] for row in store.rows()] == ["baseline", "senet-0.09"]
    assert store.rows()[0]["times"] == make_row("baseline", seed=7)["times"]


def test_rows_that_another_store_wrote_meanwhile_are_kept(path):
    first, second = Store(path), Store(path)
    first.add(make_row("baseline"))
    second.add(make_row("senet-0.09"))
    first.add(make_row("joint-0.104"))
    assert len(Store(path).rows()) == 3


def another_machine(row, cpu="Another CPU"):
    return row | {"machine": row["machine"] | {"cpu": cpu}}


def test_rows_of_two_machines_stand_beside_each_other(path):
    store, mine = Store(path), make_row("baseline")
    theirs = another_machine(make_row("baseline", seed=7))
    store.add(mine)
    store.add(theirs)
    assert store.rows() == [mine, theirs]
    store.add(another_machine(make_row("baseline", seed=8)))
    assert [row["machine"]["cpu"] for row in store.rows()] == [mine["machine"]["cpu"], "Another CPU"]
    assert store.rows()[0] == mine
    store.renew([make_row("baseline", seed=9)])
    assert store.rows() == [make_row("baseline", seed=9)]


def test_of_two_rows_of_one_case_and_machine_the_later_one_is_merged(path):
    store = Store(path)
    early = make_row("baseline", started="2026-01-01T00:00:00+00:00")
    late = make_row("baseline", seed=7, started="2026-02-01T00:00:00+00:00")
    other = make_row("senet-0.09", started="2026-01-15T00:00:00+00:00")
    store.add(late)
    store.merge([early, another_machine(early), other])
    assert sorted(store.rows(), key=str) == sorted([late, another_machine(early), other], key=str)
    before = path.read_bytes()
    store.merge(store.rows())
    assert path.read_bytes() == before


def test_one_machine_is_chosen_by_its_name_or_by_the_newest_row():
    old = make_row(started="2026-01-01T00:00:00+00:00")
    new = another_machine(make_row(started="2026-02-01T00:00:00+00:00"), "Xeon")
    own = results.machine_name(old)
    assert results.one_machine([old]) == ([old], None)
    assert results.one_machine([]) == results.one_machine([], "any") == ([], None)
    assert results.one_machine([new, old])[0] == [new]
    rows, said = results.one_machine([new, old], own[:5].lower())
    assert rows == [old]
    assert said == f"shown is {own}; --machine shows {results.machine_name(new)}"
    for unclear in ("e", "none"):
        with pytest.raises(ResultsError, match=f"machines are called {unclear!r}: choose one of Xeon"):
            results.one_machine([new, old], unclear)


def test_two_runs_that_write_at_once_lose_no_row(path):
    """Two processes add twenty rows each to one file."""
    code = (
        "import sys; from results_factory import make_row; from pibench.store.results import Store\n"
        "store = Store(sys.argv[1])\n"
        "for number in range(20): store.add(make_row(case=f'{sys.argv[2]}/{number}', layers=[]))\n"
    )
    environment = os.environ | {"PYTHONPATH": os.path.dirname(__file__)}
    writers = [
        subprocess.Popen([sys.executable, "-c", code, str(path), name], env=environment) for name in "ab"
    ]
    assert [writer.wait(120) for writer in writers] == [0, 0]
    assert {row["case"] for row in Store(path).rows()} == {f"{a}/{n}" for a in "ab" for n in range(20)}


def test_a_results_file_that_is_a_link_is_written_through(path, tmp_path):
    there = tmp_path / "elsewhere.json"
    path.parent.mkdir()
    path.symlink_to(there)
    Store(path).add(make_row())
    assert path.is_symlink()
    assert Store(there).rows() == Store(path).rows() == [make_row()]


def test_a_results_file_that_is_no_file_is_refused(path):
    path.parent.mkdir()
    os.mkfifo(path)
    for use in (lambda: Store(path), lambda: results.read_rows(path)):
        with pytest.raises(ResultsError, match=r"cannot be read .*a pipe or a device"):
            use()
    path.unlink()
    store = Store(path)
    os.mkfifo(path)
    with pytest.raises(ResultsError, match="a pipe or a device"):
        store.demand_room()


def test_a_folder_that_takes_no_rows_is_found_before_anything_is_measured(tmp_path):
    (tmp_path / "file").write_text("no folder")
    with pytest.raises(ResultsError, match=r"cannot be (read|written).*Not a directory"):
        Store(tmp_path / "file" / "bench.json").demand_room()
    path = tmp_path / "bench.json"
    store = Store(path)
    path.mkdir()
    for use in (store.demand_room, lambda: store.add(make_row())):
        with pytest.raises(ResultsError, match=r"Is a directory.*(--results|move it away)"):
            use()


def test_missing_measures_are_null_and_nan_is_never_written(path):
    row = make_row(peak_memory_bytes_by_party=[float("nan"), np.int64(3)])
    row["answer"]["spread"] = np.float64("nan")
    Store(path).add(row)
    assert "NaN" not in path.read_text()
    (read,) = Store(path).rows()
    assert read["peak_memory_bytes_by_party"] == [None, 3]
    assert read["answer"]["spread"] is None


def test_nan_is_no_time(path):
    row = make_row()
    row["times"]["online_s"][3] = float("nan")
    with pytest.raises(ResultsError, match=r"times\.online_s\[3\]"):
        Store(path).add(row)
    assert not path.exists()


def test_infinity_is_refused(path):
    row = make_row()
    row["setup"]["seconds"] = float("inf")
    with pytest.raises(ResultsError, match=r"setup\.seconds.*infinite"):
        Store(path).add(row)


@pytest.mark.parametrize("step", ["write", "fsync", "replace"])
def test_a_crash_while_writing_keeps_the_old_file(path, monkeypatch, step):
    store = Store(path)
    store.add(make_row("baseline"))
    before = path.read_bytes()

    def crash(*_):
        raise KeyboardInterrupt

    if step == "write":
        monkeypatch.setattr(files, "open", lambda *args: HalfFile(args[0]), raising=False)
    else:
        monkeypatch.setattr(os, step, crash)
    with pytest.raises(KeyboardInterrupt):
        store.add(make_row("senet-0.09"))
    monkeypatch.undo()
    assert path.read_bytes() == before
    assert sorted(file.name for file in path.parent.iterdir()) == [".bench.json.lock", "bench.json"]


class HalfFile:
    """A file on which the process is interrupted after half of the bytes."""

    def __init__(self, path):
        self.file = open(path, "wb")  # noqa: SIM115 (closed by __exit__)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.file.close()

    def write(self, data):
        self.file.write(data[: len(data) // 2])
        raise KeyboardInterrupt


def test_the_file_is_replaced_in_one_step(path, monkeypatch):
    replace_file(path, b"old")
    seen = []
    move = os.replace

    def watch(source, target):
        seen.append((os.path.dirname(source) == os.path.dirname(target), path.read_bytes()))
        move(source, target)

    monkeypatch.setattr(os, "replace", watch)
    replace_file(path, b"new")
    assert seen == [(True, b"old")]
    assert path.read_bytes() == b"new"


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ('{"schema": 0, "rows": []}', "an older"),
        ('{"schema": 99, "rows": []}', "a newer"),
        ('{"schema": 1, "rows": [', "not valid JSON"),
        ("", "not valid JSON"),
        ("[]", "no results file"),
        ('{"schema": 1}', "no results file"),
        ('{"schema": 1, "rows": [{"case": "x"}]}', "Row 0 .* lacks `variant`"),
        ('{"schema": 1, "rows": [NaN]}', r"not valid JSON \(expected value at line 1 column 24\)"),
        (b"\xff\xfe\x00", "cannot be read"),
    ],
)
def test_a_file_that_cannot_be_used_is_named_and_never_overwritten(path, content, reason):
    store = Store(path)
    data = content if isinstance(content, bytes) else content.encode()
    replace_file(path, data)
    for use in (lambda: Store(path), store.rows, lambda: store.add(make_row())):
        with pytest.raises(ResultsError, match=reason) as caught:
            use()
        assert str(path) in str(caught.value)
        assert "move it away" in str(caught.value)
        assert "\n" not in str(caught.value)
    assert path.read_bytes() == data


@pytest.mark.parametrize("text", BROKEN, ids=range(len(BROKEN)))
def test_a_file_that_is_no_json_is_named(path, text):
    check_named(path, text)


WHOLE = {"schema": 1, "rows": [make_row(link="wan", role="link", count=2), *make_protocol_rows()[:1]]}


@settings(max_examples=100, deadline=None, derandomize=True)
@given(content=damaged(WHOLE))
def test_a_damaged_file_is_read_or_named_in_one_line(content, tmp_path_factory):
    check_named(tmp_path_factory.mktemp("results") / "bench.json", json.dumps(content).encode())


def check_named(path, text):
    """A file is read, and then rows can be added; or it is named with a remedy, and left as it is."""
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(text)
    said = None
    try:
        Store(path).add(make_row("joint", case="another"))
    except ResultsError as error:
        said = str(error)
    if said is None:
        assert Store(path).rows()[-1]["case"] == "another"
    else:
        assert str(path) in said
        assert said.endswith(": move it away and run `make bench` again (nothing was overwritten).")
        assert "\n" not in said
        assert path.read_bytes() == text


def test_a_case_held_twice_is_an_error(path):
    Store(path).add(make_row())
    content = json.loads(path.read_text())
    path.write_text(json.dumps(content | {"rows": content["rows"] * 2}))
    with pytest.raises(ResultsError, match="twice"):
        Store(path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda row: row.pop("commit"), "lacks `commit`"),
        (lambda row: row["cost"].pop("macs"), r"lacks `cost\.macs`"),
        (lambda row: row["layers"][2].pop("seconds"), r"lacks `layers\[2\]\.seconds`"),
        (lambda row: row.pop("reference"), "lacks `reference`; write null"),
        (lambda row: row.update(batch="1"), "`batch` is '1' where a whole number"),
        (lambda row: row.update(batch=0), "`batch` is 0 where a number from 1 on belongs"),
        (lambda row: row.update(width=-1), "`width` is -1 where a number from 0 on belongs"),
        (lambda row: row["cost"].update(relus=-1), r"`cost\.relus` is -1 where a number from 0 on"),
        (
            lambda row: row["cost"].update(macs=2**63),
            r"`cost\.macs` is 9223372036854775808 where",
        ),
        (lambda row: row["times"]["online_s"].__setitem__(0, -1.0), r"`times\.online_s\[0\]` is -1\.0 where"),
        (lambda row: row.update(batch=True), "`batch` is True where a whole number"),
        (lambda row: row.update(dirty="no"), "`dirty` is 'no' where true or false"),
        (lambda row: row.update(role="main"), "`role` is 'main': use one of"),
        (lambda row: row.pop("timing"), "lacks `timing`"),
        (lambda row: row.update(timing="modelled"), "`timing` is 'modelled': use one of measured, emulated"),
        (
            lambda row: row.update(timing="emulated"),
            "'emulated' though no RTT and no bandwidth was asked for",
        ),
        (
            lambda row: row.update(link_check=make_check(link="wan")),
            "'measured' though an RTT or a bandwidth",
        ),
        (
            lambda row: row.update(link_check=None, timing="emulated"),
            "`link_check` is null: an emulated link",
        ),
        (lambda row: row["link_check"].update(complaint="RTT 9 ms"), "`link_check.ok` is True and"),
        (lambda row: row["link_check"].update(ok=False), "`link_check.ok` is False and"),
        (lambda row: row["link_check"].pop("shaper"), r"lacks `link_check\.shaper`"),
        (lambda row: row["link_check"].update(asked_rtt_s=None), r"`link_check\.asked_rtt_s` is None"),
        (lambda row: row["traffic"].pop("hops"), r"lacks `traffic\.hops`"),
        (lambda row: row["traffic"].update(hops=1.5), r"`traffic\.hops` is 1\.5 where a whole number"),
        (lambda row: row.pop("network"), "lacks `network`"),
        (lambda row: row["network"]["linear"][1].pop("kernel"), r"lacks `network\.linear\[1\]\.kernel`"),
        (lambda row: row["times"]["total_s"].pop(), r"`times\.total_s` has 14 rounds"),
        (lambda row: row["reference"]["online_s"].pop(), r"`reference\.online_s` does not pair"),
        (lambda row: row["times"].pop("online_s"), r"`times` has not the clocks of one engine \(online_s\)"),
        (lambda row: row["times"].update(all_phases_s=[1.0] * 15), "keep offline_s, online_s, total_s, or"),
        (lambda row: row["reference"].pop("total_s"), "`reference` has not the clocks"),
        (lambda row: row.update(options={"fraction_bits": None}), r"`options\.fraction_bits"),
        (lambda row: row.update(traffic_of_rounds=[]), "`traffic_of_rounds` has not one traffic"),
        (lambda row: row.update(images=object()), "`row.images` is a object"),
    ],
)
def test_a_wrong_row_is_refused_by_the_name_of_its_key(path, change, message):
    row = make_row("senet-0.09")
    change(row)
    with pytest.raises(ResultsError, match=message):
        Store(path).add(row)
    assert not path.exists()


def test_rows_over_shaped_links_unknown_measures_and_further_keys_are_welcome():
    validate(make_row(link="wan", role="link", anything=[1, {"more": None}]))
    validate(make_row(layers=[], network=None, link_check=None))
    for row in make_protocol_rows():
        validate(row)
        assert clocks_of(row) == ("all_phases_s",)
        assert whole_clock(row) == "all_phases_s"
    assert whole_clock(make_row()) == "total_s"
    row = make_row()
    row["traffic"]["hops"] = None
    validate(row)


def test_the_shape_is_that_of_the_check_and_of_the_network_that_are_stored():
    check = LinkCheck("user-space", 40e-3, 41e-3, 400e6, 398e6, 0.021, 1).as_dict()
    assert set(check) == set(schema.LinkCheckRow.__annotations__)
    linear = LinearLayer("conv1", "convolution", 3, 64, (3, 3), (32, 32), (32, 32))
    network = Network("tiny", 65_536, 1, (linear,)).as_dict()
    assert set(network) == set(schema.NetworkRow.__annotations__)
    assert set(network["linear"][0]) == set(schema.LinearRow.__annotations__)
    row = results._plain(make_row(link="wan", link_check=check, network=network), "row")
    validate(row)
    assert network_from_dict(row["network"]) == Network("tiny", 65_536, 1, (linear,))


def test_results_report_and_figures_import_neither_torch_nor_crypten():
    code = (
        "import sys, pibench.store.results, pibench.report, pibench.figures\n"
        "assert not {'torch', 'crypten', 'matplotlib.pyplot'} & set(sys.modules)\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
