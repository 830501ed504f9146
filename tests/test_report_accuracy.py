import math

import pytest
from report_tables import make_pair_rows, section, table, usual_tables
from results_factory import (
    ACCURACIES,
    add_toy_family,
    make_accuracy,
    make_accuracy_row,
    make_judged,
    make_narrow_rows,
)

from pibench import report
from pibench.models.catalogue import variant_names
from pibench.models.variants import VARIANTS
from pibench.report.accuracy import Difference, difference
from pibench.report.full_width import published_near

pytestmark = pytest.mark.usefixtures("remembered_intervals")


@pytest.fixture(scope="module")
def rows():
    return make_pair_rows()


def test_the_variants_of_the_catalogue_are_those_that_have_a_recipe():
    assert variant_names() == tuple(VARIANTS)
    assert set(ACCURACIES) == set(VARIANTS)


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
    shown = {line["Variant"]: line["ReLUs by"] for line in usual_tables(section(content, rows))[1]}
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


def test_published_values_stand_beside_near_budgets_of_the_same_method_alone():
    assert published_near("senet-0.09", 50_135).accuracy == 0.7528
    assert published_near("snl-0.09", 50_135).accuracy == 0.7375
    assert published_near("senet-0.18", 100_270) is None
    assert published_near("joint-0.09", 50_135) is None
    assert published_near("deepreduce", math.nan) is None


def test_without_rows_everything_reads_not_trained_yet(rows):
    text = section([], rows)
    pairs, variants, wide = usual_tables(text)
    assert [line["Variant"] for line in variants] == [f"`{name}`" for name in variant_names()]
    assert {line["Test, %"] for line in variants} == {"not trained yet"}
    assert {line["Ours, test, %"] for line in wide} == {"not trained yet"}
    assert {line["Accuracy, width 16, %"] for line in pairs} == {"not trained yet"}
    assert "is open: no pair is trained yet" in text
    assert "![" not in text
    assert 'make train TRAIN="--width 64"' in text
    assert variants[0]["ReLUs, K"] == "139.3"  # a quarter of those measured at width 64
    assert variants[0]["MACs, M"] == "–"
    relus = {line["Variant"]: line["ReLUs, K"] for line in variants}
    assert relus["`snl-0.09`"] == "12.53"  # the share that it declares
    assert relus["`bilinear-2`"] == "–"  # the number in its name is no share
    by_name = {line["Variant"]: line for line in wide}
    assert by_name["`snl-0.09`"]["ReLUs, K"] == "50.13"  # by its name, since it is not measured
    assert by_name["`snl-0.09`"]["Published, %"] == "73.75"
    assert by_name["`deepreduce`"]["ReLUs, K"] == "–"


def test_full_width_has_the_published_values_beside_it(rows):
    content = [make_accuracy_row("senet-0.09", 64, accuracy_test=0.7411)]
    wide = {line["Variant"]: line for line in usual_tables(section(content, rows))[2]}
    assert wide["`senet-0.09`"]["Ours, test, %"] == "74.11"
    assert wide["`senet-0.09`"]["Published, %"] == "75.28"
    assert "arXiv 2301.09254" in wide["`senet-0.09`"]["Published by, at"]
    assert wide["`baseline`"]["Published, %"] == "77.8 to 79.8"
    assert wide["`joint-0.052`"]["Published, %"] == "–"
    assert f"1 of {len(variant_names())} variants are trained" in section(content, rows)


def test_widths_never_share_a_column(rows):
    content = make_accuracy() + make_accuracy(width=64, accuracy_test=0.77)
    _, variants, wide = usual_tables(section(content, rows))
    assert not any("77" in line["Test, %"] for line in variants)
    assert {line["Ours, test, %"].split(" ")[0] for line in wide} == {"77.00"}


def test_variants_have_means_over_seeds_and_what_the_protocol_did(rows):
    content = make_accuracy()
    content[0] |= make_judged()
    variants = {line["Variant"]: line for line in usual_tables(section(content, rows))[1]}
    line = variants["`baseline`"]
    assert (line["Test, %"], line["Fixed point, %"], line["Seeds"]) == ("65.20", "61.09", "1")
    assert (line["Agreement, stock"], line["Agreement, lean"]) == ("99 of 100", "100 of 100")
    line = variants["`senet-0.09`"]
    assert (line["Test, %"], line["Seeds"]) == ("61.10 [60.70, 61.50]", "3")
    assert line["To the baseline, points"] == "-4.10"
    assert (line["Fixed point, %"], line["Agreement, lean"]) == ("–", "–")
    plain = usual_tables(section(make_accuracy(), rows))[1][0]
    assert not {"Fixed point, %", "Agreement, lean"} & set(plain)


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
    names = list(made["variant"].unique())
    assert names[names.index("toy-0.09") - 1 :][:3] == ["poly-0.045", "toy-0.09", "joint"]
    _, variants, wide = usual_tables(section([*make_accuracy(), toy], rows))
    by_name = {line["Variant"]: line for line in variants}
    assert by_name["`toy-0.09`"]["Test, %"] == "60.00"
    assert by_name["`toy-0.02`"]["Test, %"] == "not trained yet"
    names = [line["Variant"] for line in wide]
    assert names[names.index("`toy-0.09`") - 1 :][:3] == ["`poly-0.045`", "`toy-0.09`", "`toy-0.02`"]
    network = rows[1]["network"] | {"name": "toy-0.09"}
    timed = [rows[1] | {"variant": "toy-0.09", "case": "stock/toy-0.09", "network": network}]
    summary = report.summarize([*rows, *timed])
    order = list(dict.fromkeys(summary["variant"]))
    assert order.index("toy-0.09") == order.index("joint-0.416") - 1
    assert "`toy-0.09`" in report.headline_section([*rows, *timed], summary)
    assert "`toy-0.09`" in report.models_section(**report.tabulate_models([*rows, *timed]))
