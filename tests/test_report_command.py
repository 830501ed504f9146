import json
import subprocess
import sys

import pandas as pd
import pytest
from hypothesis import HealthCheck, given, settings
from json_faults import damaged
from results_factory import make_accuracy_row, make_row

from pibench import report
from pibench.report.command import main
from pibench.report.pages import PAGES
from pibench.store.results import Store

pytestmark = pytest.mark.usefixtures("remembered_intervals")


def fill(folder, variants=("baseline", "senet-0.09"), links=True, **changes):
    store = Store(folder / "bench.json")
    for engine in ("stock", "lean"):
        for variant in variants:
            store.add(make_row(variant, engine, **changes))
            if links:
                store.add(make_row(variant, engine, link="wan", role="link", count=2, **changes))


@pytest.fixture
def project(tmp_path):
    fill(tmp_path / "results")
    return tmp_path


def run(project, *options):
    folders = [part for name in ("results", "plots", "docs") for part in (f"--{name}", str(project / name))]
    return main([*folders, *options])


def page(project, name):
    return (project / "results" / "report" / f"{name}.md").read_text()


def test_a_run_gives_tables_pages_and_the_short_table(project, capsys):
    assert run(project) == 0
    said = capsys.readouterr().out
    assert said.startswith("stock: width 64, batch 1, loopback, 2 parties, 15 repetitions\n")
    assert "senet-0.09" in said
    names = {path.name for path in (project / "results").iterdir()}
    assert names == {"bench.json", ".bench.json.lock", "report", *(f"{name}.csv" for name in report.TABLES)}
    assert {path.stem for path in (project / "results" / "report").iterdir()} == set(PAGES)
    assert page(project, "latency").startswith("# Latency\n\n")
    assert "](../../plots/latency_vs_relus.svg)" in page(project, "latency")
    assert "](../../docs/literature.md)" in page(project, "models")
    assert run(project, "--quiet") == 0
    assert capsys.readouterr().out.count("\n") == 1


def test_rows_without_links_or_networks_say_so_in_one_line(tmp_path):
    fill(tmp_path / "results", links=False, network=None)
    assert run(tmp_path) == 0
    for name, words in (("links", "over a shaped link yet"), ("models", "could price yet")):
        assert words in page(tmp_path, name)
        assert "run `make bench`" in page(tmp_path, name)
    for name in ("modelled", "break_even"):
        assert pd.read_csv(tmp_path / "results" / f"{name}.csv").empty


def test_without_a_run_the_reference_is_shown_and_not_touched(tmp_path, capsys):
    reference = tmp_path / "results" / "reference"
    fill(reference)
    before = {path.name: path.read_bytes() for path in reference.iterdir()}
    assert run(tmp_path) == 0
    said = capsys.readouterr().out
    assert "These are the reference's own rows" in said
    assert "(the reference: there is no run of your own yet)" in said
    assert (tmp_path / "results" / "summary.csv").exists()
    assert {path.name: path.read_bytes() for path in reference.iterdir()} == before


def test_measured_rows_are_of_one_folder_trained_networks_of_both(tmp_path, capsys):
    results = tmp_path / "results"
    fill(results / "reference")
    fill(results, variants=("baseline",), links=False, seed=5)
    known = [make_accuracy_row(variant, accuracy_test=0.7) for variant in ("baseline", "joint")]
    (results / "reference" / "accuracy.json").write_text(json.dumps(known))
    (results / "accuracy.json").write_text(json.dumps([make_accuracy_row("baseline", accuracy_test=0.8)]))
    assert run(tmp_path) == 0
    assert "2 of 2 cases" in capsys.readouterr().out
    assert set(pd.read_csv(results / "summary.csv")["variant"]) == {"baseline"}
    found = pd.read_csv(results / "accuracy.csv").set_index("variant")["accuracy_test"]
    assert found.to_dict() == {"baseline": 0.8, "joint": 0.7}


@pytest.mark.parametrize(
    ("spoil", "reason"),
    [
        (lambda p: (p / "results" / "bench.json").unlink(), "has no rows: run `make bench` first"),
        (lambda p: (p / "results" / "bench.json").write_text("{"), "not valid JSON"),
        (lambda p: (p / "results" / "accuracy.json").write_text("{"), "accuracy.json cannot be read"),
    ],
)
def test_what_is_missing_is_said_in_one_line_and_nothing_is_written(project, capsys, spoil, reason):
    spoil(project)
    assert run(project) == 1
    error = capsys.readouterr().err
    assert reason in error
    assert error.count("\n") == 1
    assert not (project / "results" / "summary.csv").exists()
    assert not (project / "results" / "report").exists()


@pytest.mark.parametrize("name", ["summary.csv", "report", "report/latency.md"])
def test_what_is_no_file_in_the_place_of_one_is_named(project, capsys, name):
    path = project / "results" / name
    path.parent.mkdir(exist_ok=True)
    if name == "report":
        path.write_text("a file in the place of a folder")
    else:
        path.mkdir()
    assert run(project) == 1
    error = capsys.readouterr().err
    assert name in error
    assert ": make room or allow writing there" in error
    assert error.count("\n") == 1


def test_a_full_disk_is_one_line_and_leaves_no_half_file(project):
    """The kernel writes no file beyond a limit, as if the disk were full."""
    code = (
        "import resource, sys; from pibench.report.command import main\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (2000, 2000))\n"
        "sys.exit(main(sys.argv[1:]))"
    )
    folders = [part for name in ("results", "plots", "docs") for part in (f"--{name}", str(project / name))]
    done = subprocess.run(
        [sys.executable, "-c", code, *folders, "--quiet"], capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 1
    assert done.stderr.count("\n") == 1
    assert ".csv cannot be written (File too large): make room or allow writing there" in done.stderr
    held = [path for path in (project / "results").iterdir() if path.suffix in (".csv", ".tmp")]
    assert all(path.stat().st_size < 2000 and path.suffix == ".csv" for path in held)


ROWS = [make_row(variant, "lean", count=6) for variant in ("baseline", "senet-0.09")]
ROWS.append(make_row("baseline", "lean", link="wan", role="link", count=2))


@settings(
    max_examples=40,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)
@given(content=damaged({"schema": 1, "rows": ROWS}))
def test_any_rows_give_a_report_or_one_line(content, capsys, tmp_path_factory):
    project = tmp_path_factory.mktemp("project")
    (project / "results").mkdir()
    (project / "results" / "bench.json").write_text(json.dumps(content))
    status = run(project)
    said = capsys.readouterr()
    assert said.err.count("\n") == status
