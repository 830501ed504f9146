"""Costs at equal accuracy, on curves whose answer is known."""

import numpy as np
import pandas as pd
import pytest

from pibench.report.iso_accuracy import Curve, cost_at, curve, iso_accuracy, seed_deviation

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
    read = cost_at(RELUS, ACCURACY, RELUS, np.array([0.40, 0.45, 0.5, 0.725, 0.75, 0.39, 0.76]))
    assert read[:5] == pytest.approx([1e4, 2e4 / 2**0.5, 2e4, 8e4 * 2**0.5, 1.6e5])
    assert np.isnan(read[5:]).all()


def test_a_curve_that_falls_is_made_flat_and_its_cheapest_point_counts():
    falling = np.array([0.40, 0.62, 0.58, 0.60, 0.75])
    assert cost_at(RELUS, falling, RELUS, np.array([0.6])) == pytest.approx([2e4])


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
