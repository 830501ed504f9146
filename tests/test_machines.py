"""The same cases on several machines: speed-ups beside each other, and where the rows go."""

import json

import matplotlib as mpl
import numpy as np
import pandas as pd
import pytest
from report_tables import table, tables_of
from results_factory import make_accuracy_row, make_row
from test_figures import check_texts
from test_figures_accuracy import tables
from test_report_reference import filled, run
from test_results import another_machine

from pibench import figures, report
from pibench.report.machines import ELSEWHERE, machines_section
from pibench.report.reference import Project, take_over
from pibench.report.systems import systems_section
from pibench.store.results import Store, machine_name, read_rows


def timed(variant, seconds, engine="lean", link="loopback", reference=None, **changes):
    """A row whose online seconds, and those of its paired reference, are known."""
    made = make_row(variant, engine, link=link, count=6, role="link" if link != "loopback" else "headline")
    made["times"]["online_s"] = [seconds] * 6
    if made["reference"] is not None:
        made["reference"]["online_s"] = [reference or 1.0] * 6
    return made | changes


def elsewhere(row):
    return another_machine(row, "Xeon")


OWN = [
    timed("baseline", 10.0, "stock"),
    timed("baseline", 1.0, reference=10.0),
    timed("senet-0.09", 0.5),
    timed("baseline", 8.0, link="wan"),
]
OTHERS = [
    elsewhere(timed("baseline", 2.0, reference=40.0)),
    elsewhere(timed("senet-0.09", 1.6, reference=2.4)),
    elsewhere(timed("joint-0.052", 0.5, reference=2.0)),
    elsewhere(timed("baseline", 9.0, link="wan")),
    elsewhere(timed("joint-0.052", 4.5, link="wan")),
]
MACHINES = (OWN[0]["machine"]["cpu"], "Xeon")
TRAINED = [
    make_accuracy_row(name, accuracy_test=accuracy)
    for name, accuracy in {"baseline": 0.68, "senet-0.09": 0.59, "joint-0.052": 0.63}.items()
]


@pytest.fixture(scope="module")
def machines():
    return report.tabulate_machines(OWN, OTHERS)


def test_a_case_has_a_line_for_each_machine_and_cases_of_one_alone_are_left_out(machines):
    assert machines.groupby("case")["own"].apply(list).to_dict() == {
        **{OWN[at]["case"]: [True, False] for at in (1, 2, 3)},
        **{OTHERS[at]["case"]: [False] for at in (2, 4)},
    }
    assert set(machines["machine"]) == {machine_name(OWN[0]), machine_name(OTHERS[0])}


def test_a_speed_up_is_paired_on_one_machine_or_the_quotient_of_its_medians(machines):
    there = machines[~machines["own"].astype(bool)].set_index(["variant", "link"])
    speedups = there[["speedup", "speedup_low", "speedup_high"]]
    assert speedups.loc["senet-0.09", "loopback"].tolist() == pytest.approx([1.5] * 3)
    assert speedups.loc["joint-0.052", "loopback"].tolist() == pytest.approx([4.0] * 3)
    assert speedups.loc["joint-0.052", "wan"].iloc[0] == pytest.approx(2)
    assert speedups.loc["joint-0.052", "wan"].iloc[1:].isna().all(), "no rounds were paired"
    assert speedups.loc["baseline"].isna().all(axis=None)
    assert there.loc[("baseline", "loopback"), ["gain", "gain_over"]].tolist() == [20, "stock"]
    here = machines[machines["own"].astype(bool)].set_index(["variant", "link"])
    assert here.loc[("senet-0.09", "loopback"), "speedup"] == pytest.approx(2)
    assert here.loc[("baseline", "loopback"), "gain"] == pytest.approx(10)


def test_one_other_machine_stands_in_for_a_case_that_this_one_has_not_measured(machines):
    third = [another_machine(row, "Third") for row in OTHERS[:4]]
    both = report.tabulate_machines(OWN, [*OTHERS, *third])
    for found in (machines, both):
        standing = found[found["stands_in"].astype(bool)]
        assert standing[["machine", "variant", "link"]].to_numpy().tolist() == [
            [machine_name(OTHERS[0]), "joint-0.052", "loopback"],
            [machine_name(OTHERS[0]), "joint-0.052", "wan"],
        ]


def test_a_pair_on_another_link_is_no_speed_up_and_an_extra_case_stands_for_none():
    """The reference of the LAN case is the baseline on loopback: the medians on the LAN are compared."""
    lan = [elsewhere(timed(name, seconds, link="lan")) for name, seconds in (("baseline", 3.0), ("eca", 6.0))]
    lan[1]["reference"] = elsewhere(timed("baseline", 2.0, reference=40.0))["reference"] | {
        "case": "lean/baseline/w64/b1/2p/loopback",
        "online_s": [2.0] * 6,
    }
    lan[1]["times"]["online_s"] = [6.0] * 6
    found = report.tabulate_machines(OWN, lan).set_index("variant")
    assert found.loc["eca", "speedup"] == pytest.approx(0.5)
    assert found.loc["eca", "stands_in"]
    lan[1]["role"] = "extra"
    assert not report.tabulate_machines(OWN, lan).set_index("variant").loc["eca", "stands_in"]


def test_the_section_shows_machines_beside_each_other(machines):
    text = machines_section(machines)
    assert text.startswith("5 cases were measured on Xeon, ")
    assert "ReLUs, MACs, parameters, rounds and bytes are equal in all of these." in text
    assert "0.750 times this one's in the median of 1 cases (0.750 to 0.750 times)" in text
    gains, speedups = tables_of(text)
    own, other = machine_name(OWN[0]), machine_name(OTHERS[0])
    assert gains[0][own] == "10.0× [10.0, 10.0]"
    assert gains[0][other] == "20.0× [20.0, 20.0]"
    assert [(line["Variant"], line[own], line[other]) for line in speedups] == [
        ("`senet-0.09`", "2.00× [2.00, 2.00]", "1.50× [1.50, 1.50]"),
        ("`joint-0.052`", "–", "4.00× [4.00, 4.00]"),
        ("`joint-0.052`", "–", "2.00×"),
    ]


def test_counts_that_differ_are_named():
    changed = elsewhere(timed("senet-0.09", 1.6))
    changed["cost"] = changed["cost"] | {"relus": 7}
    text = machines_section(report.tabulate_machines(OWN, [changed]))
    assert f"Counts differ: {changed['case']} (relus 7, not " in text


def test_without_another_machine_there_is_nothing():
    empty = report.tabulate_machines(OWN, [])
    assert empty.empty
    assert machines_section(empty) == "No other machine has measured these cases yet."


def test_the_table_of_reductions_shows_a_speed_up_elsewhere_in_brackets(machines):
    """Counts are those of that machine."""
    accuracy = table(TRAINED)
    systems = report.tabulate_systems(report.summarize(OWN), accuracy, machines)
    text = systems_section(systems, accuracy)
    (lines,) = tables_of(text)
    joint = next(line for line in lines if line["Variant"] == "`joint-0.052`")
    assert joint["Online, s, loopback"] == "– / (4.00×)"
    assert joint["Online, s, wan"] == "– / (2.00×)"
    first, own = (np.array(found["offline_s"]) for found in (OTHERS[2]["reference"], OTHERS[2]["times"]))
    assert joint["Offline, s"] == f"– / ({np.median(first / own):.2f}×)"
    assert joint["Accuracy, %"] == "63.00"
    assert joint["ReLUs, K"] == f"{OTHERS[2]['cost']['relus'] / 1e3:.4g}"
    senet = next(line for line in lines if line["Variant"] == "`senet-0.09`")
    assert senet["Online, s, loopback"] == "– / 0.500", "what was measured here goes first"


def test_it_is_judged_at_the_seconds_that_follow_and_no_other_verdict_rests_on_it(machines):
    """`senet-0.09` is slower and less accurate, but was measured here: the baseline alone is its rival."""
    systems = report.tabulate_systems(report.summarize(OWN), table(TRAINED), machines)
    near = systems[(systems["engine"] == "lean") & (systems["link"] == "loopback")].set_index("variant")
    assert near.loc["joint-0.052", ["online_median_s", "speedup_elsewhere"]].tolist() == [0.25, 4]
    assert near["worth"].tolist() == [True] * 3
    slower = elsewhere(timed("joint-0.052", 1.9, reference=2.0))
    beaten = report.tabulate_machines(OWN, [OTHERS[0], slower])
    slow = [*TRAINED[:1], make_accuracy_row("senet-0.09", accuracy_test=0.64), *TRAINED[2:]]
    there = report.tabulate_systems(report.summarize(OWN), table(slow), beaten).set_index(["variant", "link"])
    assert not there.loc[("joint-0.052", "loopback"), "worth"]
    assert there.loc[("joint-0.052", "loopback"), "behind_of"] == "senet-0.09"
    text = systems_section(systems, table(TRAINED))
    assert "**lean (ours), loopback** (3 networks): `joint-0.052` (63.00 %, ≈0.250 s), `senet-0.09`" in text
    assert "≈: placed by its speed-up" in text
    alone = report.tabulate_systems(report.summarize(OWN), table(TRAINED), report.tabulate_machines(OWN, []))
    assert "≈" not in systems_section(alone, table(TRAINED))


def test_without_the_baseline_here_there_is_no_place_for_it(machines):
    own = [row for row in OWN if row["variant"] != "baseline"]
    systems = report.tabulate_systems(report.summarize(own), table(TRAINED), machines)
    assert systems["variant"].tolist() == ["senet-0.09"]


def test_the_figure_places_it_hollow_by_its_speed_up():
    with mpl.rc_context(figures.STYLE):
        figure = figures.systems(tables(TRAINED, [*OWN, timed("senet-0.09", 4.0, link="wan")], others=OTHERS))
        check_texts(figure)
    near, far = figure.axes
    for axes, at, others in ((near, 250.0, {1000.0, 500.0}), (far, 4000.0, {8000.0, 4000.0})):
        found = {
            (round(float(line.get_xdata()[0]), 6), line.get_markerfacecolor() == "white")
            for line in axes.lines[:-1]
            if line.get_marker() not in ("None", "|", None)
        }
        assert (at, True) in found
        assert {place for place, hollow in found if not hollow} >= others
        assert at not in list(axes.lines[-1].get_xdata()) or at in others, "no part of the line"
    (legend,) = figure.legends
    assert [text.get_text() for text in legend.get_texts()] == [
        "baseline",
        "SENet",
        "joint",
        "beaten by none",
    ]
    assert "Hollow: placed by its speed-up" in " ".join(
        text.get_text().replace("\n", " ") for text in figure.texts
    )


def test_a_report_compares_the_machines_of_its_folder(tmp_path):
    for each in (*OTHERS, *OWN):
        Store(tmp_path / "bench.json").add(each)
    read = report.read_report(tmp_path, machine="Xeon")
    assert read.rows == OTHERS
    assert set(read.machines["case"]) == {each["case"] for each in OWN}
    (tmp_path / "bench.json").unlink()
    for each in OWN:
        Store(tmp_path / "bench.json").add(each)
    assert report.read_report(tmp_path).machines.empty
    Store(tmp_path / ELSEWHERE).merge(OTHERS)
    read = report.read_report(tmp_path)
    assert len(read.machines[~read.machines["own"].astype(bool)]) == len(OTHERS)
    assert "joint-0.052" not in set(read.summary["variant"])


def test_a_run_of_ones_own_is_compared_with_the_reference_of_another_machine(tmp_path):
    """Of the reference only the cases of the run are shown; on the reference's machine there is nothing."""
    reference = tmp_path / "reference"
    Store(reference / "bench.json").merge(OWN)
    Store(reference / ELSEWHERE).merge(OTHERS)
    Store(tmp_path / "bench.json").add(another_machine(timed("senet-0.09", 0.7), "Mine"))
    found = report.read_report(tmp_path, reference).machines
    assert set(found["variant"]) == {"senet-0.09"}
    assert found["machine"].str.partition(",")[0].tolist() == ["Mine", *MACHINES]
    assert found["own"].tolist() == [True, False, False]
    (tmp_path / "bench.json").unlink()
    Store(tmp_path / "bench.json").add(timed("senet-0.09", 0.7))
    found = report.read_report(tmp_path, reference).machines
    assert found["own"].tolist() == [True, False], "the Xeon alone is another machine"


def test_a_run_of_another_machine_stands_beside_the_reference(tmp_path, capsys):
    project = filled(tmp_path)
    own, reference = project / "results", project / "results" / "reference"
    before = (reference / "bench.json").read_bytes()
    theirs = elsewhere(make_row("senet-0.09", "lean", seed=5, count=6))
    Store(own / "bench.json").add(theirs)
    (said,) = take_over(Project(project))
    cases = len(json.loads(before)["rows"])
    assert said == (
        f"1 cases of {machine_name(theirs)}, which stand beside the reference's "
        f"({machine_name(OWN[0])}): together with earlier ones 1 of its {cases}"
    )
    assert (reference / "bench.json").read_bytes() == before
    assert [row["case"] for row in read_rows(reference / ELSEWHERE)] == [theirs["case"]]
    assert run(project) == 0
    assert "senet-0.09" in (project / "docs" / "results" / "machines.md").read_text()
    assert run(project, "--check") == 0
    found = pd.read_csv(reference / "machines.csv")
    assert found["own"].tolist() == [True, False]


def test_a_run_of_another_machine_that_has_every_case_becomes_the_reference(tmp_path):
    project = filled(tmp_path)
    own, reference = project / "results", project / "results" / "reference"
    for row in read_rows(reference / "bench.json"):
        Store(own / "bench.json").add(elsewhere(row))
    take_over(Project(project))
    assert {row["machine"]["cpu"] for row in read_rows(reference / "bench.json")} == {"Xeon"}
    assert not (reference / ELSEWHERE).exists()


def test_a_machine_may_cover_the_reference_in_several_runs(tmp_path):
    project = filled(tmp_path)
    own, reference = project / "results", project / "results" / "reference"
    former = read_rows(reference / "bench.json")
    third = another_machine(timed("senet-0.09", 3.0), "Third")
    Store(reference / ELSEWHERE).add(third)
    more = timed("pixels-0.5", 1.6)
    for run_of in ((more, *former[:3]), former[2:]):
        (own / "bench.json").unlink(missing_ok=True)
        for row in run_of:
            Store(own / "bench.json").add(elsewhere(row))
        assert {row["machine"]["cpu"] for row in read_rows(reference / "bench.json")} == {MACHINES[0]}
        take_over(Project(project))
    found = read_rows(reference / "bench.json")
    assert {row["machine"]["cpu"] for row in found} == {"Xeon"}
    assert {row["case"] for row in found} == {row["case"] for row in (*former, more)}
    assert read_rows(reference / ELSEWHERE) == [third]


def test_cases_of_another_machine_leave_when_their_network_has_other_counts_now(tmp_path):
    project = filled(tmp_path)
    own, reference = project / "results", project / "results" / "reference"
    same, old = elsewhere(timed("joint-0.052", 0.5)), elsewhere(timed("senet-0.09", 1.6))
    Store(reference / ELSEWHERE).merge([same, old])
    for row in read_rows(reference / "bench.json"):
        if row["case"] in (same["case"], old["case"]):
            changed = row["cost"] | {"relu_layers": row["cost"]["relu_layers"] - 5}
            Store(own / "bench.json").add(row | ({"cost": changed} if row["case"] == old["case"] else {}))
    measured = read_rows(own / "bench.json")
    assert take_over(Project(project)) == [
        f"{len(measured)} cases of {machine_name(measured[0])}",
        "1 cases of other machines leave: their networks had other counts",
    ]
    assert read_rows(reference / ELSEWHERE) == [same]
    assert {row["case"] for row in measured} == {same["case"], old["case"]}


def test_an_unreadable_file_of_other_machines_changes_nothing(tmp_path, capsys):
    project = filled(tmp_path)
    reference = project / "results" / "reference"
    Store(project / "results" / "bench.json").add(make_row("senet-0.09", "lean", seed=5, count=6))
    before = (reference / "bench.json").read_bytes()
    (reference / ELSEWHERE).write_text("{")
    assert run(project) == 1
    error = capsys.readouterr().err
    assert f"{ELSEWHERE} is not valid JSON" in error
    assert "nothing was renewed" in error
    assert (reference / "bench.json").read_bytes() == before
