import math

import numpy as np
import pytest
from report_tables import make_pair_rows, section, table, tables_of
from results_factory import (
    make_accuracy,
    make_accuracy_row,
    make_narrow_rows,
    make_row,
)

from pibench import report
from pibench.models.pairs import EQUAL, MERGED, PAIRS
from pibench.report.statistics import quotient_of_medians

pytestmark = pytest.mark.usefixtures("remembered_intervals")


@pytest.fixture(scope="module")
def rows():
    return make_pair_rows()


def test_pairs_are_senets_budgets_and_those_over_1_73():
    for senet, joint in PAIRS:
        budgets = [float(name.partition("-")[2]) for name in (senet, joint)]
        assert budgets[0] / budgets[1] == pytest.approx(1.73, abs=0.005)


def test_pairs_are_of_one_plan():
    content = [make_accuracy_row("senet-0.09", seed=seed, accuracy_test=0.6) for seed in (0, 1)]
    content += [make_accuracy_row("joint-0.052", seed=0, accuracy_test=0.59)]
    content += [make_accuracy_row("joint-0.052", seed=1, accuracy_test=0.5, plan="scored", epochs=150)]
    made = report.tabulate_pairs(table(content), []).set_index(["joint", "width"]).loc[("joint-0.052", 16)]
    assert (made["seeds"], made["accuracy_difference"]) == (1, pytest.approx(-0.01))
    assert (made["epochs_senet"], made["epochs_joint"]) == (44, 44)


def test_pairs_have_the_ratios_of_measured_rows_at_their_own_width(rows):
    made = report.tabulate_pairs(table(make_accuracy()), [*rows, *make_narrow_rows()])
    assert [tuple(line) for line in made[["senet", "joint", "width"]].to_numpy()] == [
        (*pair, width) for pair in (*PAIRS, EQUAL, *MERGED) for width in (16, 64)
    ]
    by_width = made.set_index(["joint", "width"])
    wide, narrow = by_width.loc[("joint-0.052", 64)], by_width.loc[("joint-0.052", 16)]
    assert math.isnan(wide["accuracy_joint"])
    assert narrow["accuracy_joint"] == pytest.approx(0.605)
    assert narrow["accuracy_difference"] == pytest.approx(0.605 - 0.611)
    costs = [
        next(row["cost"] for row in rows if row["variant"] == name) for name in ("senet-0.09", "joint-0.052")
    ]
    assert wide["macs_ratio"] == costs[0]["macs"] / costs[1]["macs"]
    assert wide["relus_ratio"] == pytest.approx(0.09 / 0.052, rel=1e-3)
    for engine in ("stock", "lean"):
        ratios = {}
        for name in ("senet-0.09", "joint-0.052"):
            row = next(r for r in rows if (r["variant"], r["engine"]) == (name, engine))
            ratios[name] = np.median(np.divide(row["reference"]["online_s"], row["times"]["online_s"]))
        expected = ratios["joint-0.052"] / ratios["senet-0.09"]
        assert wide[f"{engine}_online_ratio"] == pytest.approx(expected)
        assert wide[f"{engine}_online_ratio_low"] < expected < wide[f"{engine}_online_ratio_high"]


def test_pairs_without_a_common_baseline_divide_medians(rows):
    bare = [row | {"reference": None} for row in rows]
    made = report.tabulate_pairs(report.tabulate_accuracy(None), bare)
    medians = {(row["variant"], row["engine"]): np.median(row["times"]["online_s"]) for row in rows}
    expected = medians["senet-0.18", "lean"] / medians["joint-0.104", "lean"]
    assert made.set_index("senet").loc["senet-0.18", "lean_online_ratio"] == pytest.approx(expected)


def test_other_settings_are_no_latency_of_a_pair(rows):
    other = [row | {"case": "x" + row["case"], "batch": 4} for row in rows]
    other += [row | {"case": "y" + row["case"], "parties": 3} for row in rows]
    assert report.tabulate_pairs(report.tabulate_accuracy(None), other).empty


def test_quotient_of_medians_covers_the_true_one_and_needs_values():
    rng = np.random.default_rng(0)
    covered = 0
    for _ in range(60):
        value, low, high = quotient_of_medians(rng.normal(3.0, 0.3, 15), rng.normal(2.0, 0.2, 15))
        covered += low <= 1.5 <= high
        assert low <= value <= high
    assert 50 <= covered <= 60
    value, *interval = quotient_of_medians([4.0, 6.0], [2.0])
    assert value == 2.5
    assert all(map(math.isnan, interval))
    assert all(map(math.isnan, quotient_of_medians([], [1.0])))


def test_pairs_name_seeds_and_the_latency_of_each_width(rows):
    line = tables_of(section(make_accuracy(), rows))[0][4]
    assert line["Accuracy, width 16, %"] == "61.10, 60.50"
    assert "Accuracy, width 64, %" not in line
    assert line["joint - SENet, points, width 16"] == "-0.60 [-0.60, -0.60] (n = 3)"
    assert line["Fewer ReLUs, width 64"] == "1.73×"
    assert line["Faster online, lean, width 64"].startswith("1.")
    assert "Faster online, lean, width 16" not in line
    line = tables_of(section(make_accuracy(), [*rows, *make_narrow_rows()]))[0][2]
    assert line["Faster online, lean, width 16"].startswith("1.")
    assert line["joint - SENet, points, width 16"] == "-0.30 (n = 1)"
    wide = [
        make_accuracy_row("senet-0.36", 64, accuracy_test=0.75),
        make_accuracy_row("joint-0.208", 64, accuracy_test=0.73),
    ]
    lines = tables_of(section(make_accuracy() + wide, rows))[0]
    assert lines[2]["Accuracy, width 64, %"] == "75.00, 73.00"
    assert lines[2]["joint - SENet, points, width 64"] == "-2.00 (n = 1)"
    assert lines[3]["Accuracy, width 64, %"] == "not trained yet"


def test_a_pair_of_one_budget_is_told_apart(rows):
    content = [make_accuracy_row("senet-0.09", accuracy_test=0.60)]
    content += [make_accuracy_row("joint-0.09", accuracy_test=0.605)]
    rows = [*rows, make_row("joint-0.09", "lean")]
    text = section(content, rows)
    line = tables_of(text)[0][len(PAIRS)]
    assert line["SENet, joint"] == "`senet-0.09`, `joint-0.09`"
    assert line["joint - SENet, points, width 16"] == "+0.50 (n = 1)"
    assert "no pair is trained yet" in text
    content += [make_accuracy_row("joint-0.052", accuracy_test=0.58)]
    text = section(content, rows)
    said = "`joint-0.09` is at **+0.50** points (n = 1; 44 epochs against 44), with "
    assert f"With as many ReLUs as `senet-0.09`, {said}" in text
    assert "in **0 of 1** pairs" in text


def test_merging_alone_is_held_against_the_baseline_seed_by_seed(rows):
    content = [make_accuracy_row("baseline", seed=seed) for seed in (0, 1)]
    assert "Merging alone" not in section(content, rows)
    joint = make_accuracy_row("joint", seed=1)
    said = (
        "Merging alone, all other ReLUs kept (`joint`): **-0.30** points to the baseline at width 16 (n = 1"
    )
    assert f"{said}), with 1.67× fewer ReLUs and 1.52× fewer MACs." in section([*content, joint], rows)
    text = section([*content, joint | {"plan": "scored"}], rows)
    assert f"{said}; of another plan), with 1.67× fewer ReLUs" in text
    assert "Trained by plan `long` in bfloat16; `joint` by `scored` in bfloat16, seeds 0, 1" in text


def test_at_equal_latency_stands_the_best_that_is_no_slower(rows):
    content, narrow = make_accuracy(), make_narrow_rows()
    found = report.tabulate_equal_latency(table(content), [*rows, *narrow])
    assert len(found) == 8  # SENet's variants and two engines, at the width that is trained
    line = found[(found["senet"] == "senet-0.09") & (found["engine"] == "stock")].iloc[0]
    assert line["joint"] == "joint-0.208"
    means = table(content).groupby("variant")["accuracy_test"].mean()
    assert line["accuracy_joint"] == means["joint-0.208"]
    assert line["accuracy_difference"] == pytest.approx(line["accuracy_joint"] - 0.611)
    assert line["online_ratio_low"] >= 1
    better = [row | {"accuracy_heldout": 0.99} if row["variant"] == "joint-0.104" else row for row in content]
    chosen = report.tabulate_equal_latency(table(better), narrow)  # by held-out images, not by the test set
    assert set(chosen["joint"]) == {"joint-0.104"}
    text = section(content, [*rows, *narrow])
    ahead = int((found["accuracy_difference"] > 0).sum())
    assert f"joint reduction is ahead of SENet in **{ahead} of 8** cases, by up to **+" in text
    assert {"Best joint, stock", "Points, lean"} <= tables_of(text)[1][0].keys()


def test_no_network_is_compared_at_equal_latency_that_is_slower_or_another(rows):
    """Times of other weights, other plans and slower networks do not count."""
    content, narrow = make_accuracy(), make_narrow_rows()
    seeded = [row | {"weights": "seeded"} for row in narrow]
    assert report.tabulate_equal_latency(table(content), seeded).empty
    slow = [
        row | {"times": {clock: [9 * t for t in times] for clock, times in row["times"].items()}}
        if row["variant"].startswith("joint")
        else row
        for row in narrow
    ]
    found = report.tabulate_equal_latency(table(content), slow)
    assert len(found) == 8
    assert found["joint"].isna().all()
    assert "At equal measured latency" not in section(content, slow)
    one = [row for row in slow if row["engine"] == "stock" or row["variant"].startswith("senet")]
    one += [row for row in narrow if row["variant"] == "joint-0.052" and row["engine"] == "lean"]
    (_, lines, *_) = tables_of(section(content, one))
    assert {line["Best joint, stock"] for line in lines} == {"none is no slower"}
    assert lines[0]["Best joint, lean"] == "`joint-0.052`"
    other = [row | {"plan": "standard"} if row["variant"].startswith("joint") else row for row in content]
    assert report.tabulate_equal_latency(table(other), narrow)["joint"].isna().all()


def test_the_verdict_counts_pairs_within_a_point(rows):
    text = section(make_accuracy(), rows)
    flat = "`joint-0.416` (-0.25), `joint-0.312` (-0.30)"
    assert f"in **4 of 6** pairs: {flat}, `joint-0.208` (-0.30), `joint-0.052` (-0.60)" in text
    absent = ("joint-0.026", "senet-0.18", "senet-0.72", "joint-0.312")
    content = [row for row in make_accuracy() if row["variant"] not in absent]
    for row in content:
        if row["variant"] == "joint-0.052":
            row["accuracy_test"] -= (0.001, 0.003, 0.011)[row["seed"]]
        row["accuracy_test"] += 0.02 * (row["variant"] == "joint-0.208")
    text = section(content, rows)
    assert "in **1 of 2** pairs: `joint-0.208` (+1.70)" in text
    assert "it falls further below in `joint-0.052` (-1.10; seeds differ, n = 3)" in text
    assert "not trained yet: `joint-0.416`, `joint-0.312`, `joint-0.104`, `joint-0.026`." in text
