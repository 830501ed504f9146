"""`make reference`: the changes that a user's own run makes in the committed files."""

import json
import shutil

import pandas as pd
import pytest
from results_factory import VARIANTS, make_accuracy_row, make_row

from pibench import report
from pibench.models.manifest import read_manifest, replace_listed
from pibench.report.reference import SECTIONS, Project, main, take_over
from pibench.store.results import ResultsError, Store, read_rows

pytestmark = pytest.mark.usefixtures("remembered_intervals")

README = """# Title
before
<!-- headline:begin -->
<!-- headline:end -->
between
<!-- findings:begin -->
of an earlier run
<!-- findings:end -->
after
"""
TRAINED = ("baseline", *VARIANTS[1:], "joint-0.09")


def filled(folder):
    """Makes `folder` a checkout with a reference that has what the findings rest on, and no run."""
    reference = folder / "results" / "reference"
    rows = []
    for engine in ("stock", "lean"):
        for variant in ("baseline", "senet-0.36", "senet-0.09", "joint-0.208", "joint-0.052", "merged-exact"):
            rows.append(make_row(variant, engine, count=6))
            rows.append(make_row(variant, engine, link="wan", role="link", count=1))
        rows.append(make_row("joint-0.09", engine, count=6, role="sweep"))
        for variant in ("baseline", "senet-0.09", "joint-0.052"):
            rows.append(
                make_row(
                    variant,
                    engine,
                    count=6,
                    role="sweep",
                    width=16,
                    weights="trained",
                    case=f"{engine}/{variant}/w16",
                )
            )
    reference.mkdir(parents=True)
    (reference / "bench.json").write_text(json.dumps({"schema": 1, "rows": rows}))
    trained = [make_accuracy_row(variant, width=width) for width in (16, 64) for variant in TRAINED]
    (reference / "accuracy.json").write_text(json.dumps(trained))
    (folder / "README.md").write_text(README)
    return folder


@pytest.fixture
def project(tmp_path):
    return filled(tmp_path)


def run(project, *options):
    return main(["--top", str(project), *options])


@pytest.fixture(scope="module")
def made_once(tmp_path_factory, remembered_intervals):
    """A project whose tables, pages and README have been made."""
    folder = filled(tmp_path_factory.mktemp("project"))
    assert run(folder) == 0
    return folder


@pytest.fixture
def made(made_once, tmp_path):
    """A copy of it for one test."""
    shutil.copytree(made_once, tmp_path, dirs_exist_ok=True)
    return tmp_path


def test_tables_pages_and_readme_follow_from_the_reference(made):
    first = (made / "README.md").read_text()
    assert first.startswith("# Title\nbefore\n<!-- headline:begin -->\n\n**ResNet-18")
    assert "\nbetween\n" in first
    assert first.endswith("<!-- findings:end -->\nafter\n")
    assert "of an earlier run" not in first
    page = (made / "docs" / "results" / "latency.md").read_text()
    assert "](../../plots/reference/latency_vs_relus.svg)" in page
    models = (made / "docs" / "results" / "models.md").read_text()
    assert "`results/reference/modelled.csv`" in models
    assert "](../literature.md)" in models
    assert run(made) == 0
    assert (made / "README.md").read_text() == first
    assert run(made, "--check") == 0


@pytest.mark.parametrize(
    "file",
    ["README.md", "docs/results/links.md", "results/reference/summary.csv", "results/reference/pairs.csv"],
)
def test_check_finds_each_stale_file_and_writes_nothing(made, capsys, file):
    path = made / file
    changed = path.read_text().replace("senet-0.09", "senet-0.10", 1)
    path.write_text(changed)
    assert run(made, "--check") == 1
    assert capsys.readouterr().err == f"{path} is stale: run `make reference`.\n"
    assert path.read_text() == changed


def test_a_run_takes_the_places_of_its_cases_and_networks(project):
    own, reference = project / "results", project / "results" / "reference"
    before = read_rows(reference / "bench.json")
    Store(own / "bench.json").add(make_row("senet-0.09", "lean", seed=5, count=6))
    (own / "accuracy.json").write_text(json.dumps([make_accuracy_row("joint", width=64, accuracy_test=0.75)]))
    tried = make_accuracy_row("joint", width=16) | {"changes": {"masks.epochs": 80}}
    (own / "tries.json").write_text(json.dumps([tried]))
    (own / "operators.json").write_text(
        json.dumps({"schema": 1, "rows": [{"name": "relu", "engine": "lean"}]})
    )
    (own / "training" / "w16-s0-long").mkdir(parents=True)
    (own / "training" / "w16-s0-long" / "joint.jsonl").write_text("{}\n")
    replace_listed(own / "weights" / "joint-w16.safetensors", b"weights", 100, 32)
    said = take_over(Project(project))
    assert len(said) == 5
    after = read_rows(reference / "bench.json")
    assert [row["case"] for row in after] == [row["case"] for row in before]
    changed = [new for old, new in zip(before, after, strict=True) if old != new]
    assert [(row["engine"], row["variant"], row["width"]) for row in changed] == [("lean", "senet-0.09", 64)]
    trained = json.loads((reference / "accuracy.json").read_text())
    assert len(trained) == 2 * len(TRAINED) + 1
    assert [row["width"] for row in trained] == sorted(row["width"] for row in trained)
    assert json.loads((reference / "tries.json").read_text()) == [tried]
    assert json.loads((reference / "operators.json").read_text())["rows"][0]["name"] == "relu"
    assert (reference / "training" / "w16-s0-long" / "joint.jsonl").exists()
    weights = project / "models" / "trained"
    assert (weights / "joint-w16.safetensors").read_bytes() == b"weights"
    assert read_manifest(weights) == read_manifest(own / "weights")
    assert "joint-w16.safetensors" in read_manifest(weights)


def test_a_file_that_cannot_be_read_changes_nothing(project):
    before = (project / "results" / "reference" / "bench.json").read_bytes()
    Store(project / "results" / "bench.json").add(make_row("senet-0.09", "lean", seed=5, count=6))
    (project / "results" / "operators.json").write_text("{")
    with pytest.raises(ResultsError, match="nothing was renewed"):
        take_over(Project(project))
    assert (project / "results" / "reference" / "bench.json").read_bytes() == before


@pytest.mark.parametrize(
    ("spoil", "reason"),
    [
        (lambda own: (own / "weights" / "joint-w16.safetensors").write_bytes(b"others"), "is damaged"),
        (lambda own: (own / "weights" / "manifest.json").write_text("[]"), "is no manifest of weights"),
        (lambda own: (own / "operators.json").write_text("[]"), "is no file of operators"),
        (lambda own: (own / "operators.json").write_text('{"schema": 2, "rows": []}'), "has schema 2"),
        (
            lambda own: (own / "operators.json").write_text('{"schema": 1, "rows": [{"name": 1}]}'),
            r"Row 0 of .* is unusable, `name` is 1 where text belongs",
        ),
    ],
)
def test_a_run_that_is_damaged_changes_nothing(project, spoil, reason):
    own, reference = project / "results", project / "results" / "reference"
    Store(own / "bench.json").add(make_row("senet-0.09", "lean", seed=5, count=6))
    replace_listed(own / "weights" / "joint-w16.safetensors", b"weights", 100, 32)
    before = {path: path.read_bytes() for path in reference.iterdir()}
    spoil(own)
    with pytest.raises(ResultsError, match=f"{reason}.*nothing was renewed"):
        take_over(Project(project))
    assert {path: path.read_bytes() for path in reference.iterdir()} == before
    assert not (project / "models").exists()


def test_without_a_run_nothing_is_taken(project):
    before = (project / "results" / "reference" / "bench.json").read_bytes()
    assert take_over(Project(project)) == []
    assert (project / "results" / "reference" / "bench.json").read_bytes() == before


@pytest.mark.parametrize(
    ("spoil", "reason"),
    [
        (lambda p: (p / "README.md").unlink(), "README.md cannot be read"),
        (lambda p: (p / "README.md").write_bytes(b"\xff"), "README.md cannot be read"),
        (lambda p: (p / "README.md").write_text("none"), "needs the line <!-- headline:begin -->"),
        (lambda p: (p / "README.md").write_text(README + README), "once each"),
        (lambda p: (p / "results" / "tries.json").write_text("{"), "tries.json cannot be read"),
        (lambda p: (p / "results" / "operators.json").write_text("{"), "nothing was renewed"),
        (lambda p: (p / "results" / "reference" / "accuracy.json").unlink(), "not both trained at width 64"),
    ],
)
def test_what_is_missing_is_said_in_one_line_and_no_page_is_written(project, capsys, spoil, reason):
    spoil(project)
    assert run(project) == 1
    error = capsys.readouterr().err
    assert reason in error
    assert error.count("\n") == 1
    assert not (project / "docs").exists()


def test_a_page_that_cannot_be_written_is_one_line(project, capsys):
    (project / "docs").write_text("a file in the place of a folder")
    assert run(project) == 1
    error = capsys.readouterr().err
    assert "cannot be written (Not a directory): make room or allow writing there" in error
    assert error.count("\n") == 1


def test_a_case_that_a_finding_rests_on_is_named(project, capsys):
    path = project / "results" / "reference" / "bench.json"
    rows = [row for row in read_rows(path) if row["link"] != "wan"]
    path.write_text(json.dumps({"schema": 1, "rows": rows}))
    assert run(project) == 1
    assert "lacks baseline on stock over wan" in capsys.readouterr().err


def test_every_section_has_its_markers():
    assert all(f"<!-- {name}:begin -->" in README for name in SECTIONS)


def test_tables_can_be_read(made):
    for name in report.TABLES:
        pd.read_csv(made / "results" / "reference" / f"{name}.csv")
