import json
import math
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from results_factory import (
    ACCURACIES,
    add_toy_family,
    make_accuracy,
    make_accuracy_row,
    make_judged,
    make_narrow_rows,
    make_row,
    make_sensitivity,
    remember,
)

from pibench import report
from pibench.models.allocation import RESNET18_RELUS
from pibench.models.catalogue import variant_names
from pibench.models.pairs import EQUAL, PAIRS
from pibench.models.published import SENET_SENSITIVITY
from pibench.models.training.recipes import ROWS
from pibench.report import measured, statistics
from pibench.report.accuracy import Difference, difference
from pibench.report.full_width import published_near
from pibench.report.statistics import quotient_of_medians
from pibench.store.results import ResultsError


@pytest.fixture(autouse=True, scope="module")
def remembered_intervals():
    """The same values have the same interval: most of a summary's time goes there."""
    cached = remember_two(quotient_of_medians)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(statistics, "interval_of_median", remember(statistics.interval_of_median))
        patch.setattr(measured, "quotient_of_medians", cached)
        yield


def remember_two(statistic):
    """The same for a function of two lists."""
    known = {}

    def remembered(first, second):
        key = (tuple(first), tuple(second))
        if key not in known:
            known[key] = statistic(first, second)
        return known[key]

    return remembered


@pytest.fixture(scope="module")
def rows():
    variants = ("baseline", *(name for pair in PAIRS for name in pair))
    return [make_row(variant, engine) for engine in ("stock", "lean") for variant in variants]


def table(content):
    """The table of rows, after accuracy.json and CSV."""
    frame = pd.DataFrame(json.loads(json.dumps(content)))
    return report.tabulate_accuracy(frame)


def section(content, rows, tries=Path("none")):
    made = table(content) if content else report.tabulate_accuracy(None)
    pairs, equal = report.tabulate_pairs(made, rows), report.tabulate_equal_latency(made, rows)
    return report.accuracy_section(made, pairs, equal, report.tabulate_tries(tries, made), rows)


def tables_of(text):
    """Every table of a section, as lists of {head: cell}."""
    found, lines = [], text.splitlines()
    for place, line in enumerate(lines):
        if line.startswith("| ") and not lines[place - 1].startswith("|"):
            head = cells(line)
            end = next(i for i in range(place, len(lines) + 1) if i == len(lines) or lines[i][:1] != "|")
            found.append([dict(zip(head, cells(each), strict=True)) for each in lines[place + 2 : end]])
    return found


def cells(line):
    return [cell.strip() for cell in line.strip("|").split(" | ")]


def test_the_variants_of_the_catalogue_are_those_that_have_a_recipe():
    assert variant_names() == ROWS
    assert set(ACCURACIES) == set(ROWS)


def test_pairs_are_senets_budgets_and_those_over_1_73():
    for senet, joint in PAIRS:
        budgets = [float(name.partition("-")[2]) for name in (senet, joint)]
        assert budgets[0] / budgets[1] == pytest.approx(1.73, abs=0.005)


# Tables


def test_accuracy_has_one_line_a_row_in_the_order_of_reports():
    content = make_accuracy()
    made = table(content[::-1])
    assert list(made["variant"]) == [row["variant"] for row in content]
    assert list(made["seed"][made["variant"] == "joint-0.052"]) == [0, 1, 2]
    assert made["accuracy_fixed_point"].isna().all()
    assert made["private_lean_agreement"].isna().all()


def test_what_settled_the_relus_is_read_from_the_phases(rows):
    phases = {
        "baseline": {},
        "senet-0.09": {"sensitivity": 10},
        "snl-0.09": {"snl-0.09-lasso": 8},
        "joint-0.104": {"gated-5": 24, "sensitivity": 10},
        "joint-0.052": {"gated-5": 24, "joint-0.052-lasso": 8},
    }
    content = [make_accuracy_row(name, phases={"baseline": 40} | more) for name, more in phases.items()]
    expected = ["", "sensitivity", "lasso", "sensitivity", "lasso"]
    assert list(table(content).set_index("variant").loc[list(phases), "relus_by"]) == expected
    shown = {line["Variant"]: line["ReLUs by"] for line in tables_of(section(content, rows))[1]}
    assert [shown[f"`{name}`"] for name in phases] == ["–", *expected[1:]]
    assert shown["`senet-0.36`"] == "–"  # not trained


def test_what_the_protocol_did_stands_in_columns_of_its_own():
    line = table([make_accuracy_row() | make_judged(), make_accuracy_row("senet-0.09")]).iloc[0]
    assert line["accuracy_fixed_point"] == 0.6109
    assert (line["fixed_point_images"], line["fixed_point_agreement"]) == (10_000, 0.998)
    assert (line["private_stock_agreement"], line["private_lean_agreement"]) == (0.99, 1.0)
    assert line["private_stock_images"] == 100
    only = table([make_accuracy_row() | make_judged(private={"lean": {"images": 10, "agreement": 0.9}})])
    assert math.isnan(only["private_stock_agreement"][0])
    text = report.csv_text(table([make_accuracy_row(), make_accuracy_row("deepreduce") | make_judged()]))
    assert ",100,0.99," in text
    assert ",,,,,,,,,," in text.splitlines()[1]


def test_without_rows_the_table_has_its_columns():
    assert list(report.tabulate_accuracy(None)) == list(table(make_accuracy()))


def test_differences_are_taken_seed_by_seed():
    content = [
        make_accuracy_row("senet-0.09", seed=seed, accuracy_test=0.6 + 0.1 * seed) for seed in (0, 1, 2)
    ]
    content += [make_accuracy_row("joint-0.052", seed=0, accuracy_test=0.59)]
    content += [make_accuracy_row("joint-0.052", seed=2, accuracy_test=0.77)]
    content += [make_accuracy_row("joint-0.052", seed=5, accuracy_test=0.01)]
    content += [make_accuracy_row("joint-0.052", width=64, seed=1, accuracy_test=0.99)]
    found = difference(table(content), 16, "joint-0.052", "senet-0.09")
    assert (found.mean, found.low, found.high, found.seeds) == pytest.approx((-0.02, -0.03, -0.01, 2))
    none = difference(table(content), 64, "joint-0.052", "senet-0.09")
    assert none.seeds == 0
    assert math.isnan(none.mean)
    assert isinstance(none, Difference)


def test_pairs_are_of_one_plan():
    content = [make_accuracy_row("senet-0.09", seed=seed, accuracy_test=0.6) for seed in (0, 1)]
    content += [make_accuracy_row("joint-0.052", seed=0, accuracy_test=0.59)]
    content += [make_accuracy_row("joint-0.052", seed=1, accuracy_test=0.5, plan="extended", epochs=150)]
    made = report.tabulate_pairs(table(content), []).set_index(["joint", "width"]).loc[("joint-0.052", 16)]
    assert (made["seeds"], made["accuracy_difference"]) == (1, pytest.approx(-0.01))
    assert (made["epochs_senet"], made["epochs_joint"]) == (44, 44)


def test_pairs_have_the_ratios_of_measured_rows_at_their_own_width(rows):
    made = report.tabulate_pairs(table(make_accuracy()), [*rows, *make_narrow_rows()])
    assert [tuple(line) for line in made[["senet", "joint", "width"]].to_numpy()] == [
        (*pair, width) for pair in (*PAIRS, EQUAL) for width in (16, 64)
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


def test_sensitivity_stands_beside_the_published_one(tmp_path):
    for run, shift in (
        ("w16-s0-standard", 0.0),
        ("w16-s1-standard", 0.02),
        ("w16-s0-standard-masks.search=0", 9),
        ("w16-s0-extended", 0.04),
    ):
        (tmp_path / run).mkdir()
        (tmp_path / run / "sensitivity.json").write_text(json.dumps(make_sensitivity(shift)))
    untrained = report.tabulate_accuracy(None)
    made = report.read_sensitivity(tmp_path, untrained)
    assert list(made["seed"].unique()) == [0, 1]
    assert list(made["run"].unique()) == ["w16-s0-extended", "w16-s1-standard"]
    phases = {"plan": "standard", "phases": {"baseline": 1, "sensitivity": 1, "senet-0.09": 1}}
    rows = [make_accuracy_row("baseline", plan="extended"), make_accuracy_row("senet-0.09", **phases)]
    of_rows = report.read_sensitivity(tmp_path, table(rows))  # what the rows got their ReLUs by
    assert list(of_rows["run"].unique()) == ["w16-s0-standard", "w16-s1-standard"]
    assert set(made["width"]) == {16}
    first = made[made["seed"] == 0]
    assert tuple(first["layer"]) == RESNET18_RELUS
    assert tuple(first["published_sensitivity"]) == SENET_SENSITIVITY
    assert made["measured_sensitivity"].max() < 1.0
    assert report.read_sensitivity(tmp_path / "none", untrained).empty


@pytest.mark.parametrize("content", ["{", "{}", json.dumps({"sensitivity": {"relu": 0.1}})])
def test_unusable_sensitivity_is_named(tmp_path, content):
    (tmp_path / "w16-s0-quick").mkdir()
    (tmp_path / "w16-s0-quick" / "sensitivity.json").write_text(content)
    with pytest.raises(ResultsError, match=r"sensitivity\.json cannot be read"):
        report.read_sensitivity(tmp_path, report.tabulate_accuracy(None))


def test_published_values_stand_beside_near_budgets_of_the_same_method_alone():
    assert published_near("senet-0.09", 50_135).accuracy == 0.7528
    assert published_near("snl-0.09", 50_135).accuracy == 0.7375
    assert published_near("senet-0.18", 100_270) is None
    assert published_near("joint-0.09", 50_135) is None
    assert published_near("deepreduce", math.nan) is None


# The README's section


def test_without_rows_everything_reads_not_trained_yet(rows):
    text = section([], rows)
    pairs, variants, wide = tables_of(text)
    assert [line["Variant"] for line in variants] == [f"`{name}`" for name in variant_names()]
    assert {line["Test, %"] for line in variants} == {"not trained yet"}
    assert {line["Ours, test, %"] for line in wide} == {"not trained yet"}
    assert {line["Accuracy, width 16, %"] for line in pairs} == {"not trained yet"}
    assert "is open: no pair is trained yet" in text
    assert "![" not in text
    assert 'make train TRAIN="--width 64"' in text
    assert variants[0]["ReLUs, K"] == "139.3"  # a quarter of those measured at width 64
    assert variants[0]["MACs, M"] == "–"
    by_name = {line["Variant"]: line for line in wide}
    assert by_name["`snl-0.09`"]["ReLUs, K"] == "50.13"  # by its name, since it is not measured
    assert by_name["`snl-0.09`"]["Published, %"] == "73.75"
    assert by_name["`deepreduce`"]["ReLUs, K"] == "–"


def test_full_width_has_the_published_values_beside_it(rows):
    content = [make_accuracy_row("senet-0.09", 64, accuracy_test=0.7411)]
    wide = {line["Variant"]: line for line in tables_of(section(content, rows))[2]}
    assert wide["`senet-0.09`"]["Ours, test, %"] == "74.11"
    assert wide["`senet-0.09`"]["Published, %"] == "75.28"
    assert "arXiv 2301.09254" in wide["`senet-0.09`"]["Published by, at"]
    assert wide["`baseline`"]["Published, %"] == "77.8 to 79.8"
    assert wide["`joint-0.052`"]["Published, %"] == "–"
    assert "1 of 15 variants are trained" in section(content, rows)


def test_widths_never_share_a_column(rows):
    content = make_accuracy() + make_accuracy(width=64, accuracy_test=0.77)
    _, variants, wide = tables_of(section(content, rows))
    assert not any("77" in line["Test, %"] for line in variants)
    assert {line["Ours, test, %"].split(" ")[0] for line in wide} == {"77.00"}


def test_variants_have_means_over_seeds_and_what_the_protocol_did(rows):
    content = make_accuracy()
    content[0] |= make_judged()
    variants = {line["Variant"]: line for line in tables_of(section(content, rows))[1]}
    line = variants["`baseline`"]
    assert (line["Test, %"], line["Fixed point, %"], line["Seeds"]) == ("65.20", "61.09", "1")
    assert (line["Agreement, stock"], line["Agreement, lean"]) == ("99 of 100", "100 of 100")
    line = variants["`senet-0.09`"]
    assert (line["Test, %"], line["Seeds"]) == ("61.10 [60.70, 61.50]", "3")
    assert line["To the baseline, points"] == "-4.10"
    assert (line["Fixed point, %"], line["Agreement, lean"]) == ("–", "–")
    plain = tables_of(section(make_accuracy(), rows))[1][0]
    assert not {"Fixed point, %", "Agreement, lean"} & set(plain)


def test_pairs_name_seeds_and_the_latency_of_each_width(rows):
    line = tables_of(section(make_accuracy(), rows))[0][2]
    assert line["Accuracy, width 16, %"] == "61.10, 60.50"
    assert "Accuracy, width 64, %" not in line
    assert line["joint - SENet, points, width 16"] == "-0.60 [-0.60, -0.60] (n = 3)"
    assert line["Fewer ReLUs, width 64"] == "1.73×"
    assert line["Faster online, lean, width 64"].startswith("1.")
    assert "Faster online, lean, width 16" not in line
    line = tables_of(section(make_accuracy(), [*rows, *make_narrow_rows()]))[0][0]
    assert line["Faster online, lean, width 16"].startswith("1.")
    assert line["joint - SENet, points, width 16"] == "-0.30 (n = 1)"
    wide = [
        make_accuracy_row("senet-0.36", 64, accuracy_test=0.75),
        make_accuracy_row("joint-0.208", 64, accuracy_test=0.73),
    ]
    lines = tables_of(section(make_accuracy() + wide, rows))[0]
    assert lines[0]["Accuracy, width 64, %"] == "75.00, 73.00"
    assert lines[0]["joint - SENet, points, width 64"] == "-2.00 (n = 1)"
    assert lines[1]["Accuracy, width 64, %"] == "not trained yet"


def test_a_pair_of_one_budget_is_told_apart(rows):
    content = [make_accuracy_row("senet-0.09", accuracy_test=0.60)]
    content += [make_accuracy_row("joint-0.09", accuracy_test=0.605)]
    rows = [*rows, make_row("joint-0.09", "lean")]
    text = section(content, rows)
    line = tables_of(text)[0][-1]
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
    text = section([*content, joint | {"plan": "extended"}], rows)
    assert f"{said}; of another plan), with 1.67× fewer ReLUs" in text
    assert "Trained by plan `long` in bfloat16; `joint` by `extended` in bfloat16, seeds 0, 1" in text


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
    """Times of other weights, plans and slower networks do not count."""
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


def test_the_verdict_counts_pairs_within_a_point(rows):
    assert "in **2 of 4** pairs: `joint-0.208` (-0.30), `joint-0.052` (-0.60)" in section(
        make_accuracy(), rows
    )
    content = [row for row in make_accuracy() if row["variant"] not in ("joint-0.026", "senet-0.18")]
    for row in content:
        if row["variant"] == "joint-0.052":
            row["accuracy_test"] -= (0.001, 0.003, 0.011)[row["seed"]]
        row["accuracy_test"] += 0.02 * (row["variant"] == "joint-0.208")
    text = section(content, rows)
    assert "in **1 of 2** pairs: `joint-0.208` (+1.70)" in text
    assert "it falls further below in `joint-0.052` (-1.10; seeds differ, n = 3)" in text
    assert "not trained yet: `joint-0.104`, `joint-0.026`." in text


def test_figures_are_shown_when_there_is_something_to_draw(rows):
    assert "![" not in section([make_accuracy_row()], [*rows, *make_narrow_rows()])
    text = section(make_accuracy(), rows)
    assert "(plots/accuracy_vs_relus.svg)" in text
    assert "accuracy_vs_latency" not in text
    assert "(plots/accuracy_vs_latency.svg)" in section(make_accuracy(), [*rows, *make_narrow_rows()])


def test_a_family_of_the_catalogue_stands_in_every_table_without_another_edit(rows, monkeypatch):
    add_toy_family(monkeypatch)
    toy = make_accuracy_row("senet-0.09") | {"variant": "toy-0.09", "accuracy_test": 0.6}
    made = table([*make_accuracy(), toy])
    assert list(made["variant"].unique())[5:8] == ["snl-0.09", "toy-0.09", "joint"]
    _, variants, wide = tables_of(section([*make_accuracy(), toy], rows))
    by_name = {line["Variant"]: line for line in variants}
    assert by_name["`toy-0.09`"]["Test, %"] == "60.00"
    assert by_name["`toy-0.02`"]["Test, %"] == "not trained yet"
    assert [line["Variant"] for line in wide][6:8] == ["`toy-0.09`", "`toy-0.02`"]
    network = rows[1]["network"] | {"name": "toy-0.09"}
    timed = [rows[1] | {"variant": "toy-0.09", "case": "stock/toy-0.09", "network": network}]
    summary = report.summarize([*rows, *timed])
    order = list(dict.fromkeys(summary["variant"]))
    assert order.index("toy-0.09") == order.index("joint-0.208") - 1
    assert "`toy-0.09`" in report.headline_section([*rows, *timed], summary)
    assert "`toy-0.09`" in report.models_section(**report.tabulate_models([*rows, *timed]))
