"""Costs at equal accuracy, on curves whose answer is known."""

import math

import numpy as np
import pandas as pd
import pytest
import scipy
from report_tables import make_pair_rows, section, table, tables_of
from results_factory import make_accuracy, make_accuracy_row, make_narrow_rows

from pibench import report
from pibench.report.iso_accuracy import Curve, cost_at, curve, iso_accuracy, monotone, seed_deviation
from pibench.report.iso_accuracy_section import (
    claim_states,
    iso_accuracy_parts,
    iso_accuracy_sentences,
    iso_accuracy_title,
)

pytestmark = pytest.mark.usefixtures("remembered_intervals")

RELUS = np.array([1e4, 2e4, 4e4, 8e4, 1.6e5])
ACCURACY = np.array([0.40, 0.50, 0.60, 0.70, 0.75])


def made(factor, error=0.0, accuracy=ACCURACY):
    """A method that needs `factor` times fewer ReLUs than the other, and 1.5 times fewer operations."""
    costs = {"relus": RELUS / factor, "macs": np.full(5, 3e8 / (1.5 if factor > 1 else 1))}
    return Curve(costs, accuracy, np.full(5, error))


def test_a_method_that_needs_fewer_relus_everywhere_needs_them_at_every_accuracy():
    lines = iso_accuracy(made(1), made(1.73), np.linspace(0.41, 0.74, 34), draws=20)
    assert lines["relus_ratio"].to_numpy() == pytest.approx(1.73)
    assert lines["macs_ratio"].to_numpy() == pytest.approx(1.5)
    assert lines["relus_ratio_low"].to_numpy() == pytest.approx(1.73)
    assert lines["accuracy"].to_numpy() == pytest.approx(np.linspace(0.41, 0.74, 34))


def test_levels_that_one_method_does_not_reach_have_no_line():
    lines = iso_accuracy(made(1), made(2, accuracy=ACCURACY - 0.1), [0.30, 0.45, 0.70, 0.76], draws=5)
    assert lines["accuracy"].tolist() == [0.45]
    assert lines["relus_ratio"].iloc[0] == pytest.approx(2 / 2**1.0)


def test_the_interval_covers_the_noise_and_grows_with_it():
    widths = []
    for error in (0.002, 0.01):
        line = iso_accuracy(made(1, error), made(1.3, error), [0.55]).iloc[0]
        assert line["relus_ratio_low"] < 1.3 < line["relus_ratio_high"]
        widths.append(line["relus_ratio_high"] - line["relus_ratio_low"])
    assert widths[1] > 3 * widths[0]


def test_a_cost_is_read_between_the_points_in_its_logarithm():
    read = cost_at(ACCURACY, RELUS, np.array([0.40, 0.45, 0.5, 0.725, 0.75, 0.39, 0.76]))
    assert read[:5] == pytest.approx([1e4, 2e4 / 2**0.5, 2e4, 8e4 * 2**0.5, 1.6e5])
    assert np.isnan(read[5:]).all()


def test_a_curve_that_falls_is_made_flat_and_its_cheapest_point_counts():
    falling = np.array([0.40, 0.62, 0.58, 0.60, 0.75])
    assert cost_at(falling, RELUS, np.array([0.6])) == pytest.approx([2e4])


def test_points_are_means_over_seeds_with_the_error_of_test_images_and_seeds():
    table = pd.DataFrame(
        {
            "variant": ["a", "a", "b", "c", "d"],
            "plan": "long",
            "accuracy_test": [0.60, 0.62, 0.70, 0.9, None],
            "relus": [10, 10, 5, 7, 9],
        }
    )
    assert seed_deviation(table) == pytest.approx(np.std([0.60, 0.62], ddof=1))
    assert seed_deviation(table.iloc[2:]) == 0
    found = curve(table, ["a", "b", "d"], ["relus"], images=10_000)
    assert found.costs["relus"].tolist() == [5, 10]
    assert found.accuracy == pytest.approx([0.70, 0.61])
    deviation = seed_deviation(table)
    wanted = [(0.7 * 0.3 / 1e4 + deviation**2) ** 0.5, (0.61 * 0.39 / 1e4 + deviation**2 / 2) ** 0.5]
    assert found.error == pytest.approx(wanted)


def test_the_monotone_fit_of_many_curves_is_scipys_of_each():
    drawn = np.random.default_rng(1).normal(ACCURACY, 0.1, (50, 5))
    expected = [scipy.optimize.isotonic_regression(each).x for each in drawn]
    assert monotone(drawn) == pytest.approx(np.array(expected), abs=1e-12)
    levels = np.array([0.3, 0.5, 0.62])
    alone = [cost_at(each, RELUS, levels) for each in drawn]
    assert cost_at(drawn, RELUS, levels) == pytest.approx(np.array(alone), nan_ok=True)


def test_the_table_has_every_percent_that_both_methods_of_one_plan_reach():
    found = report.tabulate_iso_accuracy(table(make_accuracy()), make_narrow_rows())
    # SENet has 57.2 (senet-0.045) to 65.2 (baseline), joint 55.3 (joint-0.026) to 64.9 (joint).
    assert found["accuracy"].tolist() == pytest.approx([level / 100 for level in range(58, 65)])
    assert set(found["width"]) == {16}
    assert found["to_baseline"].tolist() == pytest.approx([level / 100 - 0.652 for level in range(58, 65)])
    assert found["macs_ratio"].tolist() == pytest.approx([35 / 23] * 7)
    line = found.set_index(found["accuracy"].round(2)).loc[0.62]
    senet = 25_068 ** (0.009 / 0.024) * 12_534 ** (0.015 / 0.024)  # between 61.1 and 63.5
    joint = 14_483 ** (0.002 / 0.004) * 12_534 ** (0.002 / 0.004)  # between 61.8 and 62.2
    assert line["relus_ratio"] == pytest.approx(senet / joint, rel=1e-3)
    assert line["relus_ratio_low"] < line["relus_ratio"] < line["relus_ratio_high"]
    text = report.csv_text(found)
    assert text.startswith(
        "width,plan,epochs_scale,precision,accuracy,to_baseline,relus_ratio,relus_ratio_low,"
    )


def test_seconds_are_shares_of_the_interleaved_baseline_where_both_methods_are_timed():
    content, rows = table(make_accuracy()), make_narrow_rows()
    found = report.tabulate_iso_accuracy(content, rows)
    assert found["lean_online_ratio"].notna().all()
    slow = [
        row
        | {
            "times": {clock: [3 * value for value in values] for clock, values in row["times"].items()},
            "reference": row["reference"]
            and {
                key: value if key == "case" else [3 * each for each in value]
                for key, value in row["reference"].items()
            },
        }
        if row["variant"].startswith("joint")
        else row
        for row in rows
    ]  # the machine was three times slower while joint's pairs ran
    again = report.tabulate_iso_accuracy(content, slow)
    assert again["lean_online_ratio"].tolist() == pytest.approx(found["lean_online_ratio"].tolist())
    few = [row for row in rows if row["engine"] == "stock" or not row["variant"].startswith("joint")]
    without = report.tabulate_iso_accuracy(content, few)
    assert without["lean_online_ratio"].isna().all()
    assert without["stock_online_ratio"].notna().all()


def test_plans_and_widths_form_curves_of_their_own():
    joint = [row | {"plan": "scored"} for row in make_accuracy() if row["variant"].startswith("joint")]
    senet = [row for row in make_accuracy() if not row["variant"].startswith("joint")]
    none = report.tabulate_iso_accuracy(table([*senet, *joint]), [])
    assert none.empty
    assert list(none) == list(report.tabulate_iso_accuracy(report.tabulate_accuracy(None), []))
    both = report.tabulate_iso_accuracy(table([*make_accuracy(), *make_accuracy(width=64)]), [])
    assert set(both["width"]) == {16, 64}


def lines(*intervals):
    """Lines of a table at 60, 61, ... %, whose ratios of ReLUs have these intervals."""
    made = [
        {
            "width": 16,
            "accuracy": 0.6 + 0.01 * place,
            "to_baseline": -0.06 + 0.01 * place,
            "relus_ratio": (low + high) / 2,
            "relus_ratio_low": low,
            "relus_ratio_high": high,
            "macs_ratio": 1.5,
            "macs_ratio_low": 1.5,
            "macs_ratio_high": 1.5,
            **{f"lean_online_ratio{end}": 1.4 for end in ("", "_low", "_high")},
        }
        for place, (low, high) in enumerate(intervals)
    ]
    return pd.DataFrame(made)


def test_the_claim_holds_where_the_whole_interval_reaches_it():
    found = lines((1.0, 1.2), (1.1, 1.3), (1.6, 1.8), (1.75, 2.0), (1.8, 2.2), (math.nan, math.nan))
    states = ["does not hold"] * 2 + ["open"] + ["holds"] * 2 + ["open"]
    assert claim_states(found).tolist() == states
    said = iso_accuracy_sentences(found)
    reach = "At the 6 accuracies (whole percents) that both methods reach, joint needs"
    assert said.startswith(f"{reach} 1.10 to 2.00× [1.00, 2.20] fewer ReLUs, ")
    assert "1.50× fewer MACs and 1.40× less time online on lean." in said
    where = "holds at 2 of 6 (63 to 64 % at width 16), is open at 2 of 6 (62 and 65 % at width 16) and"
    assert f"The claim {where} does not hold at 2 of 6 (60 to 61 % at width 16)." in said
    assert "Its 1.47 times fewer linear operations alone hold at 6 of 6." in said
    assert said.endswith("Within a point of the baseline: 1 of them.")
    assert iso_accuracy_title(found).endswith("in a part of the range.")
    assert "nearest to the baseline that both reach is -2.00 points" in iso_accuracy_sentences(found[:5])
    assert "does not hold at 0 of 2." in iso_accuracy_sentences(found[3:5])
    assert iso_accuracy_title(found[3:5]).endswith("what its authors claim.")
    assert "not 1.73 times" in iso_accuracy_title(found[:3])
    cheap = found.assign(macs_ratio_low=1.1, macs_ratio_high=1.2)
    assert set(claim_states(cheap)) == {"does not hold"}
    assert iso_accuracy_parts(found[:0]) == []


def test_the_section_has_a_verdict_for_each_width_and_all_lines():
    text = section(make_accuracy(), [*make_pair_rows(), *make_narrow_rows()])
    assert "**At equal accuracy, width 16.** At the 7 accuracies" in text
    assert "(plots/iso_accuracy.svg)" in text
    shown = next(each for each in tables_of(text) if "The claim" in each[0])
    assert [line["Accuracy, %"] for line in shown] == [str(level) for level in range(58, 65)]
    assert shown[0]["Fewer MACs"].startswith("1.52×")
    assert shown[0]["Faster online, lean"].endswith("]")
    few = [make_accuracy_row("baseline"), make_accuracy_row("joint-0.052")]
    assert "At equal accuracy" not in section(few, make_pair_rows())
