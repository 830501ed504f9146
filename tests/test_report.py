import copy
import json
import math
from io import StringIO

import numpy as np
import pandas as pd
import pytest
from results_factory import (
    LINKED,
    VARIANTS,
    case_id,
    describe,
    make_accuracy_row,
    make_check,
    make_protocol_rows,
    make_row,
    make_rows,
)

from pibench import report
from pibench.costs import literature
from pibench.costs.literature import network_from_dict
from pibench.report import interval_of_median, speedup, spread
from pibench.report.cells import format_number
from pibench.store.results import ResultsError, validate

pytestmark = pytest.mark.usefixtures("remembered_intervals")


@pytest.fixture(scope="module")
def rows():
    return make_rows()


@pytest.fixture(scope="module")
def summary(rows):
    return report.summarize(rows)


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
    assert interval_of_median([2.0] * 6) == (2.0, 2.0)
    assert all(map(math.isnan, interval_of_median([1.0, 2.0, 3.0, 4.0, 5.0])))
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
    table = pd.read_csv(StringIO(report.csv_text(report.summarize([row, make_row("senet-0.09")]))))
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
    text = report.csv_text(report.summarize([make_row(), row]))
    assert ",224258336," in text
    assert "224258336.0" not in text


def test_emulated_times_stand_in_columns_of_their_own():
    table = report.summarize([make_row(), make_row(case="x", link="wan", role="extra")])
    table = table.set_index("case")
    assert pd.isna(table.loc["x", "online_median_s"])
    assert pd.isna(table.loc["x", "setup_s"])
    assert table.loc["x", "emulated_online_median_s"] > 0
    assert pd.isna(table.loc[case_id("baseline", "stock"), "emulated_online_median_s"])
    layers = report.tabulate_layers([make_row(case="x", link="wan")])
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
    assert "ccuracy" not in report.headline_section(rows, report.summarize(rows, accuracy))


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ("{", "cannot be read"),
        (json.dumps([make_accuracy_row(), make_accuracy_row()]), "holds baseline twice"),
        ("{}", "is no list of rows"),
        ('[{"variant": "baseline"}]', "Row 0 of .* lacks `width`"),
        (
            '[{"variant": "b", "width": 16, "seed": 0, "accuracy_test": 66.0}]',
            "`accuracy_test` is 66.0 where a share from 0 to 1, not in percent, belongs",
        ),
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


# Links


def test_summary_says_what_a_link_was_asked_to_be_and_what_it_was():
    slow = make_row(
        link="wan",
        role="link",
        link_check=make_check(link="wan", ok=False, complaint="RTT 50 ms, asked for 40"),
    )
    table = report.summarize([make_row(), slow, make_row("senet-0.09", link_check=None)]).set_index("case")
    line = table.loc[slow["case"]]
    assert line["shaper"] == "user-space"
    assert (line["asked_rtt_s"], line["asked_bandwidth_bits_s"]) == (0.04, 400e6)
    assert (line["measured_rtt_s"], line["measured_bandwidth_bits_s"]) == (pytest.approx(0.040205), 394e6)
    assert line["link_flagged"]
    assert line["link_complaint"] == "RTT 50 ms, asked for 40"
    assert line["hops"] == 700
    line = table.loc[case_id("baseline", "stock")]
    assert line["shaper"] == "none"
    assert not line["link_flagged"]
    assert pd.isna(line["asked_bandwidth_bits_s"])
    assert pd.isna(table.loc[case_id("senet-0.09", "stock"), "link_flagged"])


@pytest.mark.parametrize("link", ["lan", "wan"])
def test_the_model_of_a_link_starts_from_loopback_alone(link):
    loopback, row = make_row("joint-0.052", "lean"), make_row("joint-0.052", "lean", link=link, role="link")
    loopback["times"]["online_s"] = [0.05] * 15
    row["times"]["online_s"] = [2.0] * 15
    line = report.summarize([row, loopback]).set_index("case").loc[row["case"]]
    sent, hops = loopback["traffic"]["bytes_sent"], loopback["traffic"]["hops"]
    compute = 0.05 - hops * 40e-6 - 8 * sent / 2.4e10  # H0 and LOOPBACK_BITS_S of the factory
    trips = hops * ({"lan": 0.15e-3, "wan": 20e-3}[link] + 40e-6)
    wire = 8 * sent / {"lan": 3e9, "wan": 400e6}[link]
    assert line["loopback_case"] == loopback["case"]
    assert line["modelled_compute_s"] == pytest.approx(compute)
    assert line["modelled_hops_s"] == pytest.approx(trips)
    assert line["modelled_bytes_s"] == pytest.approx(wire)
    assert line["modelled_online_s"] == pytest.approx(compute + trips + wire)
    assert line["model_error"] == pytest.approx((compute + trips + wire) / 2.0 - 1)


def test_on_loopback_the_models_parts_are_the_measured_median(summary):
    loopback = summary[(summary["link"] == "loopback") & (summary["batch"] == 1)]
    parts = loopback[["modelled_compute_s", "modelled_hops_s", "modelled_bytes_s"]]
    assert (parts > 0).all(axis=None)
    assert parts.sum(axis=1).to_list() == pytest.approx(loopback["online_median_s"].to_list())
    assert loopback[["modelled_online_s", "model_error"]].isna().all(axis=None)


@pytest.mark.parametrize(
    "change",
    [
        {"variant": "senet-0.09"},
        {"engine": "lean"},
        {"width": 32},
        {"batch": 2},
        {"parties": 3},
        {"provider": "TTP"},
        {"link_check": None},
        {"link_check": make_check(hop_overhead_s=None)},
    ],
)
def test_nothing_is_predicted_from_another_setting(change):
    row = make_row(link="wan", role="link")
    table = report.summarize([make_row(**{"case": "other"} | change), row]).set_index("case")
    line = table.loc[row["case"]]
    assert line["emulated_online_median_s"] > 0
    for name in ("modelled_online_s", "modelled_compute_s", "model_error", "loopback_case"):
        assert pd.isna(line[name]), name
    section = report.links_section(table.reset_index())
    assert "The model predicts none of these" in section


def test_a_link_without_rounds_or_hops_has_no_prediction():
    row, other = make_row(link="wan", role="link"), make_row(link="lan", role="link")
    row["times"] = {f"{clock}_s": [] for clock in report.CLOCKS}
    row["rounds"]["succeeded"] = 0
    other["traffic"]["hops"] = None
    table = report.summarize([make_row(), row, other]).set_index("case")
    assert table.loc[[row["case"], other["case"]], "modelled_online_s"].isna().all()
    assert "| – | – |" in report.links_section(table.reset_index())


def test_links_table_has_measured_emulated_modelled_and_error(summary):
    section = report.links_section(summary)
    assert section.startswith("**width 64, batch 1, 2 parties**")
    lines = {line[0]: line[1:] for line in table_of(section)}
    assert lines["Case"] == [
        *("Hops", "MB sent", "loopback, measured, s"),
        *("lan, emulated, s", "lan, modelled, s", "lan, error"),
        *("wan, emulated, s", "wan, modelled, s", "wan, error"),
    ]
    cases = summary.set_index("case")
    loopback = cases.loc[case_id("joint-0.052", "lean")]
    wan = cases.loc[case_id("joint-0.052", "lean", link="wan")]
    cells = lines["lean `joint-0.052`"]
    assert cells[:3] == ["75", "8.86", format_number(loopback["online_median_s"])]
    assert cells[6:8] == [
        format_number(wan[f"{name}_s"]) for name in ("emulated_online_median", "modelled_online")
    ]
    error = wan["modelled_online_s"] / wan["emulated_online_median_s"] - 1
    assert cells[8] == f"{100 * error:+.1f} %"
    assert [name for name in lines if "`" in name and name[0] != "`"] == [
        *(f"stock `{variant}`" for variant in LINKED),
        *(f"lean `{variant}`" for variant in LINKED),
    ]
    assert "shaped by user-space" in section
    assert "RTT 40.0 ms (measured 40.2), 400 Mbit/s each way (measured 394)" in section


def test_speedups_over_a_link_are_over_the_engines_own_baseline_there(summary):
    table = table_of(report.links_section(summary))
    head = next(line for line in table if line[0] == "Speed-up")
    cells = dict(zip(head, next(line for line in table if line[0] == "`joint-0.052`"), strict=True))
    cases = summary.set_index("case")
    for engine in ("stock", "lean"):
        seconds = [
            cases.loc[case_id(variant, engine, link="wan"), "emulated_online_median_s"]
            for variant in ("baseline", "joint-0.052")
        ]
        assert cells[f"{engine}, wan"] == f"{format_number(seconds[0] / seconds[1])}×"
        paired = cases.loc[case_id("joint-0.052", engine), "online_speedup"]
        assert cells[f"{engine}, loopback"] == f"{format_number(paired)}×"


def test_a_speedup_over_a_link_is_of_paired_repetitions_where_there_are_some(rows):
    rows = copy.deepcopy(rows)
    for row in rows:
        if row["case"] == case_id("joint-0.052", "lean", link="lan"):
            slower = {name: [7 * value for value in values] for name, values in row["times"].items()}
            row["reference"] = {"case": case_id("baseline", "lean", link="lan")} | slower
    table = table_of(report.links_section(report.summarize(rows)))
    head = next(line for line in table if line[0] == "Speed-up")
    cells = dict(zip(head, next(line for line in table if line[0] == "`joint-0.052`"), strict=True))
    assert cells["lean, lan"] == "7.00×"
    cases = report.summarize(rows).set_index("case")["emulated_online_median_s"]
    seconds = [cases[case_id(name, "stock", link="lan")] for name in ("baseline", "joint-0.052")]
    assert cells["stock, lan"] == f"{format_number(seconds[0] / seconds[1])}×"


def test_the_largest_error_is_held_against_the_goal(rows, summary):
    worst = summary.loc[summary["model_error"].abs().idxmax()]
    said = (
        f"{100 * worst['model_error']:+.1f} % ({worst['engine']} `{worst['variant']}` over {worst['link']})"
    )
    section = report.links_section(summary)
    assert f"Largest error of the model: {said}; the goal of 10 % is met by all 12 cases." in section
    rows = copy.deepcopy(rows)
    slow = next(row for row in rows if row["case"] == case_id("senet-0.09", "lean", link="lan"))
    slow["times"]["online_s"] = [2 * seconds for seconds in slow["times"]["online_s"]]
    section = report.links_section(report.summarize(rows))
    assert "(lean `senet-0.09` over lan); the goal of 10 % is missed by 1 of 12 cases." in section


def test_flagged_links_are_marked_and_their_complaints_said(rows):
    rows = copy.deepcopy(rows)
    quiet = report.links_section(report.summarize(rows))
    assert "flagged" not in quiet
    for row in rows:
        if row["case"] in (case_id("baseline", "lean", link="wan"), case_id("baseline", "lean")):
            row["link_check"] |= {"ok": False, "complaint": "RTT 46 ms, asked for 40 ms"}
    summary = report.summarize(rows)
    section = report.links_section(summary)
    assert section.count("*flagged* |") == 1
    assert "`lean/baseline/w64/b1/2p/wan`: RTT 46 ms, asked for 40 ms." in section
    note = (
        "the link was slower than it should be, the machine perhaps busy: `lean/baseline/w64/b1/2p/loopback`"
    )
    assert note in section
    assert note in report.headline_section(rows, summary)


def test_two_link_cases_of_one_place_are_an_error(rows):
    twice = make_row(link="wan", role="link", case="twice")
    with pytest.raises(ResultsError, match="give one the role `extra`"):
        report.links_section(report.summarize([*rows, twice]))
    twice["role"] = "extra"
    report.links_section(report.summarize([*rows, twice]))


# Literature


def test_modelled_tables_are_those_of_the_headline_networks(rows):
    tables = report.tabulate_models([*rows, make_row("baseline", case="wide", width=128, network=tiny())])
    modelled, even = tables["modelled"], tables["break_even"]
    assert set(modelled["label"]) == set(even["label"]) == {"modelled"}
    assert set(modelled["width"]) == {64}
    assert list(modelled["network"].unique()) == list(VARIANTS)
    network = network_from_dict(describe("senet-0.09"))
    cost = literature.modelled("orca", network, literature.CHANNELS["wan"])
    line = modelled.set_index(["model", "channel", "network"]).loc[("orca", "wan", "senet-0.09")]
    assert line["modelled_online_s"] == cost.online_s
    assert line["modelled_total_s"] == cost.total_s
    for phase in ("total_s", "online_s"):
        found = literature.where_layers_beat_relus("orca", network, literature.CHANNELS["wan"], phase)
        key = ("orca", "wan", "senet-0.09", phase)
        line = even.set_index(["model", "channel", "network", "phase"]).loc[key]
        assert line["relus_per_layer"] == found.relus_per_layer
        assert line["modelled_layer_s"] == found.layer_s
        assert line["layers_win"] == found.layers_win
    assert not set(even.loc[even["model"] == "cheetah", "verified"]) - {False}


def test_a_link_is_predicted_from_the_loopback_rounds_measured_in_turn_with_it():
    apart, row = make_row(engine="lean"), make_row(engine="lean", link="lan", role="link")
    count = len(row["times"]["online_s"])
    in_turn = {"case": apart["case"], "link_check": make_check("lean")}
    in_turn |= {f"{clock}_s": [None] + [0.5] * (count - 1) for clock in report.CLOCKS}
    both = row | {"reference": in_turn}
    validate(both)
    slower = apart | {"times": {**apart["times"], "online_s": [0.5] * count}}
    expected = report.summarize([slower, row]).set_index("case").loc[row["case"]]
    for rows in ([apart, both], [both]):
        found = report.summarize(rows).set_index("case").loc[row["case"]]
        assert found["modelled_online_s"] == expected["modelled_online_s"]
        assert found["loopback_case"] == apart["case"]
    other = both | {"reference": in_turn | {"link_check": None}}
    without = report.summarize([apart, row]).set_index("case").loc[row["case"], "modelled_online_s"]
    assert report.summarize([apart, other]).set_index("case").loc[row["case"], "modelled_online_s"] == without
    assert without != expected["modelled_online_s"]
    with pytest.raises(ResultsError, match=r"reference\.link_check\.round_s"):
        validate(row | {"reference": in_turn | {"link_check": make_check(round_s="x")}})


def test_modelled_seconds_never_share_a_column_with_others(rows):
    for table in report.tabulate_models(rows).values():
        seconds = [name for name in table if name.endswith("_s") and not name.startswith("channel_")]
        assert seconds
        assert all(column.startswith("modelled_") for column in seconds)


def test_emulated_lines_fill_no_column_of_measured_seconds(summary):
    lines = summary[summary["timing"] == "emulated"].dropna(axis=1, how="all")
    seconds = [column for column in lines if column.endswith("_s")]
    of_the_link = ("asked_rtt_s", "measured_rtt_s", "hop_overhead_s")
    of_bandwidth = ("asked_bandwidth_bits_s", "measured_bandwidth_bits_s")
    rest = set(seconds) - {*of_the_link, *of_bandwidth}
    assert "emulated_online_median_s" in rest
    assert [name for name in rest if not name.startswith(("emulated_", "modelled_"))] == []


def tiny(**changes):
    linear = [dict(layer) for layer in describe("baseline")["linear"] if layer["name"] in ("conv1", "fc")]
    return {"name": "baseline", "relus": 65_536, "relu_layers": 1, "linear": linear} | changes


def test_the_newest_network_of_a_variant_counts():
    old, new = make_row(engine="lean"), make_row(network=tiny(), started="2026-01-03T00:00:00+00:00")
    assert set(report.tabulate_models([new, old])["modelled"]["relus"]) == {65_536}


@pytest.mark.parametrize("network", [tiny(relus=0, relu_layers=0), tiny(linear=tiny()["linear"][1:])])
def test_a_network_without_prices_has_no_break_even_but_a_cost(network):
    tables = report.tabulate_models([make_row(network=network)])
    assert not tables["modelled"].empty
    assert tables["break_even"].empty
    assert "| – / – |" in report.models_section(**tables)
    assert pd.read_csv(StringIO(report.csv_text(tables["break_even"]))).empty


def test_models_section_ranks_and_marks(rows):
    tables = report.tabulate_models(rows)
    section = report.models_section(**tables)
    head, _, *lines = table_of(section)
    cells = {(line[0], line[1]): dict(zip(head, line, strict=True)) for line in lines}
    delphi = cells["`delphi-server-garbler`", "lan"]
    assert delphi["`baseline`"] == "387 / 52.4 (**3**)"
    assert delphi["`joint-0.052`"].endswith("(**1**)")
    assert delphi["`merged-exact`"].endswith("(**4**)")
    assert delphi["A layer is worth, ReLUs"] == "103,000 / 321"
    assert ("`21us-column` *unverified*", "–") in cells
    assert cells["`21us-column` *unverified*", "–"]["A layer is worth, ReLUs"] == "0 / 0"
    assert ("`cheetah` *unverified*", "wan") in cells
    assert ("`orca`", "wan") in cells
    assert "Nothing here is measured by us" in section
    assert "wan: 400 Mbit/s, RTT 40.0 ms" in section


# The sections


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
    assert "repetitions failed and are in no median: `stock/baseline" in section
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
        assert table[label][2] == f"{format_number(gain)}×"


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
    assert format_number(value) == text


def test_rows_of_one_clock_have_no_phase_and_change_no_table_of_online_seconds(rows):
    both = [*rows, *make_protocol_rows()]
    for row in both[len(rows) :]:
        row["conventions"] = row["conventions"] | {"rounds": "messages"}
    summary = report.summarize(both)
    one = summary[summary["role"] == "protocol"]
    assert len(one) == 9
    for clock in ("offline", "online", "total"):
        assert one[f"{clock}_median_s"].isna().all()
        assert one[f"{clock}_speedup"].isna().all()
    line = one.set_index("case").loc["spu-aby3/senet-0.09/w64/b1/3p/loopback"]
    row = next(row for row in both if row["case"] == line.name)
    seconds, partners = row["times"]["all_phases_s"], row["reference"]["all_phases_s"]
    assert line["all_phases_median_s"] == np.median(seconds)
    assert line["all_phases_speedup"] == np.median(np.divide(partners, seconds))
    assert line["all_phases_images_per_s"] == 1 / np.median(seconds)
    assert line["modelled_online_s"] != line["modelled_online_s"]
    assert (line["option_protocol"], line["option_fraction_bits"]) == ("ABY3", 16)
    alone = report.summarize(rows)
    assert not [name for name in alone if name.startswith("all_phases")]
    assert report.headline_section(both, summary) == report.headline_section(rows, alone)
    assert report.engines_section(summary) == report.engines_section(alone)
    assert report.links_section(summary) == report.links_section(alone)


def test_a_report_of_rows_of_one_clock_alone():
    rows = make_protocol_rows()
    summary = report.summarize(rows)
    assert "No headline case" in report.headline_section(rows, summary)
    assert "not been measured side by side" in report.engines_section(summary)
    assert "No case has been measured over a shaped link" in report.links_section(summary)
    assert report.tabulate_models(rows)["modelled"].empty
    assert report.tabulate_pairs(report.tabulate_accuracy(None), rows) is not None
