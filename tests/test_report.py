import copy
import json
import math
from io import StringIO

import numpy as np
import pandas as pd
import pytest
from results_factory import case_id, make_row, make_rows

from bench import report
from bench.report import interval_of_median, speedup, spread
from bench.results import ResultsError, Store

README = """# Title
before
<!-- headline:begin -->
<!-- headline:end -->
between
<!-- engines:begin -->
old
<!-- engines:end -->
after
"""


@pytest.fixture(scope="module")
def rows():
    return make_rows()


@pytest.fixture(scope="module")
def summary(rows):
    return report.summarize(rows)


@pytest.fixture
def project(tmp_path):
    store = Store(tmp_path / "results" / "bench.json")
    for engine in ("stock", "lean"):
        for variant in ("baseline", "senet-0.09"):
            store.add(make_row(variant, engine))
    (tmp_path / "README.md").write_text(README)
    return tmp_path


def run(project, *options):
    return report.main(
        ["--results", str(project / "results"), "--readme", str(project / "README.md"), *options]
    )


# Statistics


def test_interval_of_median_is_near_the_exact_one_of_order_statistics():
    values = np.random.default_rng(3).normal(10.0, 1.0, 101)
    low, high = interval_of_median(values)
    ordered = np.sort(values)
    # P(40 <= Binomial(101, 1/2) <= 61) = 0.963: the 41st and the 61st value bound the median.
    assert ordered[36] <= low <= ordered[44]
    assert ordered[56] <= high <= ordered[64]


def test_interval_of_median_covers_the_true_median_about_95_times_in_100():
    rng = np.random.default_rng(0)
    covered = 0
    for _ in range(150):
        low, high = interval_of_median(rng.exponential(1.0, 31))
        covered += low <= math.log(2) <= high
    assert 132 <= covered <= 149


def test_interval_of_median_is_seeded_narrows_with_more_rounds_and_is_missing_for_one():
    values = list(np.random.default_rng(1).normal(1.0, 0.1, 400))
    assert interval_of_median(values) == interval_of_median(values)
    few, many = interval_of_median(values[:20]), interval_of_median(values)
    assert many[1] - many[0] < few[1] - few[0]
    assert interval_of_median([2.0, 2.0, 2.0]) == (2.0, 2.0)
    assert all(math.isnan(bound) for bound in interval_of_median([1.0]))


def test_spread_is_median_and_quartiles():
    found = spread([5.0, 1.0, 3.0, 2.0, 4.0])
    assert (found["median_s"], found["iqr_s"], found["noisy"]) == (3.0, 2.0, True)
    assert spread([1.0, 1.01, 1.02])["noisy"] is False
    assert math.isnan(spread([])["median_s"])
    assert spread([])["noisy"] is None


def test_noisy_begins_above_a_tenth_of_the_median():
    assert spread([0.95, 1.0, 1.04])["noisy"] is False  # IQR 0.045
    assert spread([0.7, 1.0, 1.1])["noisy"] is True  # IQR 0.2


def test_speedup_pairs_the_rounds_of_a_drifting_machine():
    drift = np.linspace(1.0, 3.0, 21)
    case, reference = list(drift), list(2.0 * drift)
    found = speedup(reference, case)
    assert found["speedup"] == pytest.approx(2.0)
    assert found["speedup_high"] - found["speedup_low"] < 1e-9  # unpaired, the drift would spread it
    # Paired in another order the same rounds spread with the drift.
    ordered = speedup(sorted(reference, reverse=True), case)
    assert ordered["speedup_high"] - ordered["speedup_low"] > 0.5


def test_summary_pairs_too_where_the_quotient_of_medians_is_wrong():
    # The machine became nine times slower during the pairs, after the baseline's own rounds.
    times = [1.0] * 3 + [9.0] * 4
    reference = [2.0] * 3 + [18.0] * 4
    row = make_row("senet-0.09", count=7)
    row["times"] = {f"{clock}_s": times for clock in report.CLOCKS}
    row["reference"] |= {f"{clock}_s": reference for clock in report.CLOCKS}
    baseline = make_row(count=7)
    baseline["times"] = {f"{clock}_s": [2.0] * 7 for clock in report.CLOCKS}
    table = report.summarize([baseline, row]).set_index("variant")
    assert table.loc["senet-0.09", "online_speedup"] == pytest.approx(2.0)
    quotient = table.loc["baseline", "online_median_s"] / table.loc["senet-0.09", "online_median_s"]
    assert quotient < 0.3


def test_pairs_that_lost_a_partner_do_not_count():
    assert speedup([2.0, None, 4.0], [1.0, 1.0, 2.0])["speedup"] == 2.0
    assert math.isnan(speedup([None], [1.0])["speedup"])
    with pytest.raises(ValueError, match="zip"):
        speedup([1.0], [1.0, 2.0])


# Tables


def test_summary_has_one_line_a_case_with_counts_and_units(rows, summary):
    assert sorted(summary["case"]) == sorted(row["case"] for row in rows)
    line = summary.set_index("case").loc[case_id("baseline", "stock")]
    assert line["relus"] == 557_056
    assert line["macs"] == 555_468_800
    assert line["parameters"] == 11_215_332
    assert line["bytes_sent"] == 224_258_336
    assert line["rounds"] == 175
    times = rows[0]["times"]["online_s"]
    assert line["online_median_s"] == pytest.approx(np.median(times))
    assert line["online_low_s"] < line["online_median_s"] < line["online_high_s"]
    assert line["online_images_per_s"] == pytest.approx(1 / np.median(times))


def test_images_per_second_count_the_batch(summary):
    line = summary.set_index("case").loc[case_id("baseline", "lean", 16)]
    assert line["online_images_per_s"] == pytest.approx(16 / line["online_median_s"])


def test_summary_stands_in_the_order_of_reports(rows, summary):
    shuffled = report.summarize(rows[::-1])
    assert list(shuffled["case"]) == list(summary["case"])
    headline = summary[(summary["role"] == "headline") & (summary["engine"] == "stock")]
    assert list(headline["variant"][:4]) == ["baseline", "senet-0.36", "senet-0.18", "senet-0.09"]


def test_missing_is_empty_in_the_csv_and_never_zero():
    row = make_row(peak_memory_bytes_by_party=[None, None])
    row["offline"]["dealt_bytes"] = None
    row["times"]["offline_s"] = []
    row["times"]["online_s"] = []
    row["times"]["total_s"] = []
    row["rounds"]["succeeded"] = 0
    table = pd.read_csv(StringIO(report._csv(report.summarize([row, make_row("senet-0.09")]))))
    line = table.iloc[0]
    for name in (
        "peak_memory_bytes",
        "offline_dealt_bytes",
        "offline_median_s",
        "online_median_s",
        "online_noisy",
        "online_speedup",
        "online_images_per_s",
        "reference_case",
    ):
        assert pd.isna(line[name]), name
    assert line["bytes_sent"] == 224_258_336


def test_whole_numbers_stay_whole_beside_missing_ones():
    row = make_row("senet-0.09")
    row["traffic"]["bytes_sent"] = None
    text = report._csv(report.summarize([make_row(), row]))
    assert ",224258336," in text
    assert "224258336.0" not in text


def test_emulated_times_stand_in_columns_of_their_own():
    table = report.summarize([make_row(), make_row(case="x", link="wan", timing="emulated", role="extra")])
    table = table.set_index("case")
    assert pd.isna(table.loc["x", "online_median_s"])
    assert pd.isna(table.loc["x", "setup_s"])
    assert table.loc["x", "emulated_online_median_s"] > 0
    assert pd.isna(table.loc[case_id("baseline", "stock"), "emulated_online_median_s"])
    layers = report.tabulate_layers([make_row(case="x", link="wan", timing="emulated")])
    assert "seconds" not in layers
    assert "emulated_seconds" in layers


def test_accuracy_is_joined_by_variant_and_width():
    rows = [make_row("baseline"), make_row("senet-0.09"), make_row("baseline", case="w16", width=16)]
    accuracy = pd.DataFrame(
        [
            {"variant": "baseline", "width": 16, "seed": 0, "accuracy_test": 0.60},
            {"variant": "baseline", "width": 16, "seed": 1, "accuracy_test": 0.62},
            {"variant": "senet-0.09", "width": 64, "seed": 0, "accuracy_test": 0.70},
        ]
    )
    table = report.summarize(rows, accuracy).set_index("case")
    assert pd.isna(table.loc[case_id("baseline", "stock"), "accuracy_test"])
    assert table.loc["w16", "accuracy_test"] == pytest.approx(0.61)
    assert table.loc["w16", "accuracy_seeds"] == 2
    assert table.loc[case_id("senet-0.09", "stock"), "accuracy_test"] == 0.70
    section = report.headline_section(rows[:2], report.summarize(rows[:2], accuracy), accuracy)
    head, _, *lines = [line for line in section.splitlines() if line.startswith("|")][:4]
    assert "Accuracy at width 16, % | Accuracy at width 64, %" in head
    assert lines[0].endswith("| 61.0 | – |")
    assert lines[1].endswith("| – | 70.0 |")


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ("{", "cannot be read"),
        ('[{"variant": "baseline"}]', "no list of objects"),
        ('[{"variant": "b", "width": 16, "accuracy_test": 66.0}]', "fractions, not percent"),
    ],
)
def test_unusable_accuracy_is_named(tmp_path, content, reason):
    (tmp_path / "accuracy.json").write_text(content)
    with pytest.raises(ResultsError, match=reason):
        report.read_accuracy(tmp_path / "accuracy.json")


def test_layers_keep_their_order_and_fall_into_classes(rows):
    table = report.tabulate_layers(rows)
    one = table[table["case"] == case_id("joint-0.104", "lean")]
    assert list(one["position"]) == list(range(len(one)))
    kinds = one.groupby("kind")["class"].unique().map(list).to_dict()
    assert kinds["convolution"] == kinds["linear"] == ["linear"]
    assert kinds["relu"] == ["relu"]
    assert kinds["add"] == kinds["open"] == ["other"]
    stock = table[table["case"] == case_id("baseline", "stock")]
    assert stock["bytes_sent"].sum() == 224_258_336


# The README


def table_of(section):
    lines = [line for line in section.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in line.strip("|").split(" | ")] for line in lines]


def test_headline_sets_stock_and_lean_side_by_side(rows, summary):
    table = table_of(report.headline_section(rows, summary))
    head, line = table[0], table[2]
    cells = dict(zip(head, line, strict=True))
    assert cells["Variant"] == "`baseline`"
    assert cells["ReLUs, K"] == "557.1"
    assert cells["Rounds, stock / lean"] == "175 / 107"
    assert cells["MB sent, stock / lean"] == "224 / 24.4"
    medians = summary.set_index("case")["online_median_s"]
    both = [f"{medians[case_id('baseline', engine)]:#.3g}" for engine in ("stock", "lean")]
    assert cells["Online, s, stock / lean"] == " / ".join(both)
    assert cells["Speed-up, stock"] == cells["Speed-up, lean"] == "1"


def test_headline_speedup_carries_its_interval(rows, summary):
    table = table_of(report.headline_section(rows, summary))
    cells = dict(zip(table[0], table[5], strict=True))
    line = summary.set_index("case").loc[case_id("senet-0.09", "stock")]
    assert cells["Variant"] == "`senet-0.09`"
    low, high = line["online_speedup_low"], line["online_speedup_high"]
    assert cells["Speed-up, stock"] == f"{line['online_speedup']:.2f}× [{low:.2f}, {high:.2f}]"


def test_headline_with_one_engine_and_with_a_missing_case():
    stock = [make_row(), make_row("senet-0.09")]
    head = table_of(report.headline_section(stock, report.summarize(stock)))[0]
    assert "Rounds, stock" in head
    gap = [*stock, make_row("baseline", "lean")]
    section = report.headline_section(gap, report.summarize(gap))
    assert "| 175 / – |" in section


def test_noisy_lost_rounds_and_ruined_rounds_are_said():
    row = make_row("baseline", count=4)
    row["times"]["online_s"] = [1.0, 1.0, 1.5, 2.0]
    row["rounds"]["attempted"] = 6
    row["truncation"] |= {"expected": 0.25, "observed": 2}
    section = report.headline_section([row], report.summarize([row]))
    assert "1.25 *noisy*" in section
    assert "4 of 6" in section
    assert "rounds failed and are in no median: `stock/baseline" in section
    assert "(2 observed, 0.250 expected)" in section
    quiet = report.headline_section([make_row()], report.summarize([make_row()]))
    assert "*noisy* |" not in quiet
    assert "**Note:**" not in quiet


def test_provenance_names_machine_versions_commit_and_warns_of_mixtures():
    rows = [make_row(), make_row("senet-0.09", dirty=True, run="later")]
    section = report.headline_section(rows, report.summarize(rows))
    assert "AMD EPYC 9B14, 2 cores, 8 GiB" in section
    assert "torch 2.13.0, crypten 0.4.1" in section
    assert "0123456789 (1 case), 0123456789 with uncommitted changes (1 case)" in section
    assert "come from 2 runs, 2 commits; compare" in section


def test_two_headline_cases_of_one_place_are_an_error():
    rows = [make_row(), make_row(case="stock/baseline/ttp", provider="TTP")]
    with pytest.raises(ResultsError, match="give one the role `extra`"):
        report.headline_section(rows, report.summarize(rows))


def test_engines_compares_by_pairs_where_rounds_are_paired(rows, summary):
    table = {line[0]: line[1:] for line in table_of(report.engines_section(summary))}
    cases = summary.set_index("case")
    stock, lean = cases.loc[case_id("baseline", "stock")], cases.loc[case_id("baseline", "lean")]
    gain = table["Online, s"][2]
    assert gain.startswith(f"{lean['online_speedup']:.2f}× [")
    assert table["Sent by one party online, MB"] == [
        "224",
        "24.4",
        f"{stock['bytes_sent'] / lean['bytes_sent']:.2f}×",
    ]
    assert table["Rounds online"][:2] == ["175", "107"]
    assert table["Set-up, once a model, s"][2] == "0.375×"
    batch = cases.loc[case_id("baseline", "lean", 16)]
    assert table["Images per second online, batch 16"][1] == f"{batch['online_images_per_s']:.2f}"


def test_engines_without_pairs_divide_medians_and_rates_the_other_way(rows):
    rows = copy.deepcopy(rows)
    for row in rows:
        row["reference"] = None
    summary = report.summarize(rows)
    table = {line[0]: line[1:] for line in table_of(report.engines_section(summary))}
    medians = summary.set_index("case")["online_median_s"]
    for label, batch in (("Online, s", 1), ("Images per second online, batch 16", 16)):
        gain = medians[case_id("baseline", "stock", batch)] / medians[case_id("baseline", "lean", batch)]
        assert table[label][2] == f"{report._number(gain)}×"


def test_sections_without_data_say_what_to_do():
    stock = report.summarize([make_row()])
    assert "run `make bench`" in report.engines_section(stock)
    assert "run `make bench`" in report.headline_section([], report.summarize([]))
    assert "run `make bench`" in report.headline_section([], report.summarize([make_row(role="extra")]))


@pytest.mark.parametrize(
    ("value", "text"),
    [(0.0123456, "0.0123"), (0.9996, "1.00"), (99.96, "100"), (1234.5, "1,234"), (0, "0"), (None, "–")],
)
def test_numbers_have_three_digits_and_no_exponent(value, text):
    assert report._number(value) == text


def test_the_report_is_idempotent_and_leaves_the_rest_of_the_readme(project):
    assert run(project) == 0
    first = (project / "README.md").read_text()
    assert run(project) == 0
    assert (project / "README.md").read_text() == first
    assert first.startswith("# Title\nbefore\n<!-- headline:begin -->\n")
    assert "\nbetween\n" in first
    assert first.endswith("<!-- engines:end -->\nafter\n")
    assert "old" not in first
    assert run(project, "--check") == 0


@pytest.mark.parametrize("file", ["README.md", "results/summary.csv", "results/layers.csv"])
def test_check_finds_each_stale_file_and_writes_nothing(project, capsys, file):
    run(project)
    path = project / file
    changed = path.read_text().replace("senet-0.09", "senet-0.10", 1)
    path.write_text(changed)
    assert run(project, "--check") == 1
    assert capsys.readouterr().err == f"{path} is stale: run `make report`.\n"
    assert path.read_text() == changed


def test_new_rows_make_the_readme_stale(project):
    run(project)
    Store(project / "results" / "bench.json").add(make_row("senet-0.09", "lean", seed=5))
    assert run(project, "--check") == 1


def test_accuracy_that_is_there_is_used(project):
    run(project)
    content = [{"variant": "baseline", "width": 64, "seed": 0, "accuracy_test": 0.75}]
    (project / "results" / "accuracy.json").write_text(json.dumps(content))
    assert run(project, "--check") == 1
    assert run(project) == 0
    assert "Accuracy at width 64, %" in (project / "README.md").read_text()


@pytest.mark.parametrize(
    ("spoil", "reason"),
    [
        (lambda p: (p / "README.md").unlink(), "README.md cannot be read"),
        (lambda p: (p / "README.md").write_text("none"), "needs the line <!-- headline:begin -->"),
        (lambda p: (p / "README.md").write_text(README + README), "once each"),
        (lambda p: (p / "results" / "bench.json").unlink(), "has no rows: run `make bench` first"),
        (lambda p: (p / "results" / "bench.json").write_text("{"), "not valid JSON"),
    ],
)
def test_what_is_missing_is_said_in_one_line_and_nothing_is_written(project, capsys, spoil, reason):
    spoil(project)
    assert run(project) == 1
    error = capsys.readouterr().err
    assert reason in error
    assert error.count("\n") == 1
    assert not (project / "results" / "summary.csv").exists()
