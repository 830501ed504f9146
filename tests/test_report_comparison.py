import pytest
from results_factory import make_protocol_row, make_protocol_rows, make_row, make_rows

from pibench.report import summarize
from pibench.report.comparison import compare, short_tables

pytestmark = pytest.mark.usefixtures("remembered_intervals")


@pytest.fixture(scope="module")
def summary():
    return summarize(make_rows())


def test_the_short_table_has_a_line_a_variant_for_each_engine(summary):
    text = short_tables(summary)
    stock, lean = text.split("\n\n")[:2]
    assert stock.splitlines()[0] == "stock: width 64, batch 1, loopback, 2 parties, 15 repetitions"
    assert lean.startswith("lean: ")
    lines = {line.split()[0]: line.split() for line in stock.splitlines()[2:]}
    assert lines["baseline"][1:5] == ["557.1", "555.5", "175", "224"]
    assert lines["baseline"][-1] == "1"
    case = summary[(summary["variant"] == "senet-0.09") & (summary["engine"] == "stock")].iloc[0]
    assert lines["senet-0.09"][7] == f"{case['online_speedup']:.2f}×"
    assert all(len(line) <= 110 for line in text.splitlines())
    assert "lean over stock, baseline, online: " in text
    assert "Not shown: " in text


def test_noisy_seconds_are_marked_and_missing_speedups_are_dashes():
    row = make_row("senet-0.09", count=4)
    row["times"]["online_s"] = [1.0, 1.0, 1.5, 2.0]
    row["reference"] = None
    line = short_tables(summarize([row])).splitlines()[2]
    assert "~1.25" in line
    assert line.endswith("–")


def test_without_a_headline_links_are_shown_by_quotients_of_medians():
    rows = [make_row(variant, link="wan", role="link", count=1) for variant in ("baseline", "joint-0.052")]
    found = summarize(rows)
    text = short_tables(found)
    assert text.startswith("stock: width 64, batch 1, wan, emulated, 2 parties, 1 repetition")
    medians = found.set_index("variant")["emulated_online_median_s"]
    assert f"{medians['baseline'] / medians['joint-0.052']:.2f}×" in text


@pytest.mark.parametrize(
    ("partner", "link", "shown"), [("baseline", "lan", "3.00×"), ("eca", "loopback", "–")]
)
def test_over_links_a_pair_with_the_baseline_gives_the_speedup(partner, link, shown):
    row = make_row("eca", "lean", link="lan", role="link")
    slower = {name: [3 * value for value in values] for name, values in row["times"].items()}
    row["reference"] = {"case": f"lean/{partner}/w64/b1/2p/{link}"} | slower
    assert short_tables(summarize([row])).splitlines()[2].split()[7] == shown


def test_a_run_over_links_alone_is_compared(summary):
    links = summarize([make_row("baseline", link="wan", role="link", count=1)])
    for reference in (links, summary):
        text = compare(links, reference)
        assert "speed-ups" not in text


def test_nothing_measured_is_said():
    assert short_tables(summarize([])) == "No case has been measured."


def test_the_same_rows_agree_in_everything(summary):
    text = compare(summary, summary)
    assert "counts (ReLUs, MACs, rounds, bytes): equal, exactly" in text
    assert "machine, versions and images: as the reference's" in text
    agreed = next(line for line in text.splitlines() if line.startswith("- speed-ups"))
    judged = agreed.split()[2:5]
    assert judged[0] == judged[2]


def test_each_difference_is_named(summary):
    changed = summary.copy()
    place = changed.index[changed["variant"] == "senet-0.09"][0]
    changed.loc[place, "rounds"] = 7
    changed.loc[place, ["online_speedup", "online_speedup_low", "online_speedup_high"]] = [9.0, 8.0, 10.0]
    changed["cpu"] = "another"
    changed["version_torch"] = "3.0"
    text = compare(changed, summary)
    assert "- counts: 1 DIFFER" in text
    assert "rounds 7, not 175" in text
    assert "9.00× [8.00, 10.0], not " in text
    assert "cpu another, not AMD EPYC 9B14" in text
    assert "torch 3.0, not 2.13.0" in text


def test_cases_that_the_reference_lacks_are_not_compared(summary):
    small = summarize([make_row(case="stock/baseline/w8/b1/2p/loopback", width=8)])
    assert "has none of these cases" in compare(small, summary)
    assert "has none of these cases" in compare(small, summarize([]))
    both = summary[summary["variant"] == "baseline"]
    some = compare(summary, both)
    assert f"{len(both)} of {len(summary)} cases" in some


def test_protocols_of_one_clock_stand_beside_the_sum_of_both_phases():
    rows = [*map(make_row, ("baseline", "senet-0.09")), *make_protocol_rows()]
    summary = summarize(rows)
    text = short_tables(summary)
    tables = {table.split(":")[0]: table.splitlines() for table in text.split("\n\n")}
    assert tables["stock"][1].split("  ")[-4:] == ["offline, s", "online, s", "total, s", "speed-up, online"]
    for engine in ("spu-semi2k", "spu-aby3", "spu-cheetah"):
        _, trust, head, *lines = tables[engine]
        assert "semi-honest parties" in trust
        assert head.endswith("MB sent  all phases, s  speed-up, all phases")
        assert [line.split()[0] for line in lines] == ["baseline", "senet-0.09", "joint-0.052"]
        assert all("×" in line for line in lines[1:])
    case = summary[summary["case"] == rows[3]["case"]].iloc[0]
    low, high = case["all_phases_speedup_low"], case["all_phases_speedup_high"]
    assert f"{case['all_phases_speedup']:.2f}× [{low:.2f}, {high:.2f}]" in text


def test_a_phase_alone_needs_no_sum():
    assert "total, s" not in short_tables(summarize([make_row()]))


def test_rows_of_one_clock_are_compared_by_it_and_varying_traffic_is_no_difference():
    names = ("spu-semi2k", "spu-aby3")
    rows = [make_protocol_row(variant, engine) for engine in names for variant in ("baseline", "senet-0.09")]
    there = summarize(rows)
    assert "speed-ups: 2 of 2 agree" in compare(there, there)
    here = there.copy()
    here["rounds"] += 1
    text = compare(here, there)
    assert "- counts: 2 DIFFER" in text
    assert "spu-aby3/baseline/w64/b1/3p/loopback: rounds" not in text
    assert "- spu-semi2k baseline all phases: " in text
