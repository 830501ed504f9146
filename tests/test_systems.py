"""Every reduction side by side: who is beaten by whom, the table, the verdict, the figure."""

import matplotlib as mpl
import pandas as pd
import pytest
from report_tables import table, tables_of
from results_factory import make_accuracy_row, make_row
from test_figures import check_texts, texts
from test_figures_accuracy import tables

from pibench import figures, report
from pibench.models import catalogue
from pibench.report.systems import systems_section, systems_verdict

SECONDS = {"baseline": 1.0, "senet-0.09": 0.8, "joint-0.052": 0.5, "deepreduce": 0.81, "eca": 1.5}
ALONE = report.tabulate_machines([], [])
"""No other machine has measured anything."""
ACCURACY = {"baseline": 0.68, "senet-0.09": 0.59, "joint-0.052": 0.63, "deepreduce": 0.55}


def row(variant, engine="lean", link="loopback", seconds=None, **changes):
    made = make_row(variant, engine, link=link, count=3, role="link" if link != "loopback" else "headline")
    factor = {"loopback": 1, "wan": 10}[link]
    made["times"]["online_s"] = [factor * (seconds or SECONDS[variant])] * 3
    return made | changes


@pytest.fixture(scope="module")
def content():
    rows = [
        make_accuracy_row(name, accuracy_test=accuracy, seed=seed)
        for name, accuracy in ACCURACY.items()
        for seed in (0, 1)
    ]
    return [*rows, make_accuracy_row("eca", width=64)]


@pytest.fixture(scope="module")
def rows():
    made = [row(name, link=link) for name in SECONDS for link in ("loopback", "wan")]
    return [*made, row("senet-0.09", width=16), row("senet-0.09", batch=4), row("baseline", parties=3)]


@pytest.fixture(scope="module")
def systems(content, rows):
    return report.tabulate_systems(report.summarize(rows), table(content), ALONE)


def test_each_network_is_compared_with_the_best_that_is_no_slower(systems):
    near = systems[systems["link"] == "loopback"].set_index("variant")
    assert near.loc["baseline", ["behind", "worth"]].tolist() == [0, True]
    assert near.loc["joint-0.052", "worth"]
    assert near.loc["senet-0.09", "behind"] == pytest.approx(0.04)
    assert near.loc["senet-0.09", "behind_of"] == near.loc["deepreduce", "behind_of"] == "joint-0.052"
    assert not near.loc["senet-0.09", "worth"]
    assert near.loc["baseline", "behind_of"] is None


def test_an_emulated_link_has_its_own_line_and_untrained_networks_have_no_verdict(systems):
    assert len(systems) == 2 * len(SECONDS), "one line a variant, engine and link, none of another setting"
    far = systems[systems["link"] == "wan"].set_index("variant")
    assert far.loc["senet-0.09", "online_median_s"] == pytest.approx(8)
    assert pd.isna(far.loc["eca", ["accuracy", "behind"]]).all()
    assert far.loc["eca", "worth"] is None
    assert far.loc["baseline", ["seeds", "epochs"]].tolist() == [2, 24]
    assert far.loc["senet-0.09", "epochs"] == 44
    assert pd.isna(far.loc["eca", "epochs"])


def test_level_networks_are_not_beaten(content, rows):
    """Within 5 % in time, and within half a point of accuracy."""
    level = [make_accuracy_row("joint-0.052", accuracy_test=0.676, seed=seed) for seed in (0, 1)]
    others = [each for each in content if each["variant"] != "joint-0.052"]
    slower = [each for each in rows if each["variant"] != "joint-0.052"]
    slower.append(row("joint-0.052", seconds=0.97))
    found = report.tabulate_systems(report.summarize(slower), table([*others, *level]), ALONE)
    near = found[found["link"] == "loopback"].set_index("variant")
    assert near.loc["joint-0.052", "behind_of"] == "baseline", "which is slower, but by less than 5 %"
    assert near.loc["joint-0.052", "worth"], "as 0.4 points are within the error"


def judged(accuracies, rows):
    """Judges networks of these test accuracies: the table, and its lines of loopback by variant."""
    trained = [make_accuracy_row(name, accuracy_test=value) for name, value in accuracies.items()]
    found = report.tabulate_systems(report.summarize(rows), table(trained), ALONE)
    return found, found[found["link"] == "loopback"].set_index("variant")


@pytest.mark.parametrize(("accuracy", "worth"), [(0.628, False), (0.634, False), (0.636, True)])
def test_a_network_with_which_a_faster_one_is_level_is_not_worth_its_time(rows, accuracy, worth):
    """`deepreduce` is slower than `joint-0.052`, which has 63 %: half a point more is none."""
    _, near = judged(ACCURACY | {"deepreduce": accuracy}, rows)
    assert near.loc["deepreduce", "behind"] == pytest.approx(max(0, 0.63 - accuracy))
    assert near.loc["deepreduce", "worth"] == worth
    assert near.loc["baseline", "worth"], "no chain of level ones leads up to it"


def test_a_chain_of_level_networks_does_not_hide_a_lead(rows):
    """Each is level with the one before it, but the last is not with the first, the only one that counts."""
    chain = {"joint-0.052": 0.672, "senet-0.09": 0.676, "baseline": 0.68}
    found, near = judged(chain, rows)
    assert near.loc[list(chain), "worth"].tolist() == [True, False, True]
    assert "Furthest behind" not in systems_verdict(found), "senet-0.09 is behind nobody"


def test_half_a_point_is_level_whatever_its_last_bit(rows):
    """0.68 - 0.675 is above 0.005 in binary."""
    level = {"joint-0.052": 0.675, "senet-0.09": 0.6, "baseline": 0.68}
    _, near = judged(level, rows)
    assert near.loc[list(level), "worth"].tolist() == [True, False, False]


def test_without_another_machine_columns_keep_their_types(systems):
    kinds = {name: systems[name].dtype.kind for name in ("online_median_s", "relus", "macs", "bytes_sent")}
    assert kinds == {"online_median_s": "f", "relus": "i", "macs": "i", "bytes_sent": "i"}
    assert {systems[f"{name}_elsewhere"].dtype.kind for name in ("speedup", "offline_speedup")} == {"f"}


def test_the_verdict_names_who_is_worth_it_where(systems):
    text = systems_verdict(systems)
    assert (
        "Wherever they were judged: `baseline` and `joint-0.052`. Nowhere: `senet-0.09` and `deepreduce`."
        in text
    )
    assert (
        "- **lean (ours), emulated WAN** (4 networks): `joint-0.052` (63.00 %, 5.00 s) and `baseline` "
        "(68.00 %, 10.0 s). Furthest behind: `deepreduce` (8.0 points to `joint-0.052`) and `senet-0.09` "
        "(4.0 points to `joint-0.052`)." in text
    )
    assert "eca" not in text


def test_the_table_has_every_measured_network_and_every_trained_one(systems, content):
    untimed = make_accuracy_row("cap-10", accuracy_test=0.6)
    (lines,) = tables_of(systems_section(systems, table([*content, untimed])))
    last = lines.pop()
    assert [last[name] for name in ("Variant", "Accuracy, %", "Seeds × epochs")] == [
        *("`cap-10`", "60.00", "1 × 44")
    ]
    assert {last[name] for name in last if name not in ("Variant", "Accuracy, %", "Seeds × epochs")} == {"–"}
    assert [line["Variant"] for line in lines] == [f"`{name}`" for name in sorted(SECONDS, key=ORDER.index)]
    eca = next(line for line in lines if line["Variant"] == "`eca`")
    assert eca["Accuracy, %"] == "not trained yet"
    assert eca["Seeds × epochs"] == "–"
    assert lines[0]["Seeds × epochs"] == "2 × 24"
    assert eca["Online, s, loopback"] == "1.50"
    assert eca["Online, s, wan"] == "15.0"


ORDER = ["baseline", "senet-0.09", "joint-0.052", "deepreduce", "eca"]


def test_without_rows_there_is_nothing():
    empty = report.tabulate_systems(report.summarize([]), report.tabulate_accuracy(None), ALONE)
    assert empty.empty
    assert systems_section(empty, report.tabulate_accuracy(None)) == ""
    untrained = report.tabulate_systems(report.summarize([row("eca")]), report.tabulate_accuracy(None), ALONE)
    assert len(untrained) == 1
    assert systems_verdict(untrained) == ""


def test_the_figure_has_a_point_for_each_trained_network_and_joins_the_unbeaten(content, rows):
    with mpl.rc_context(figures.STYLE):
        figure = figures.systems(tables(content, rows))
        check_texts(figure)
    near, far = figure.axes
    points = {(float(line.get_xdata()[0]), float(line.get_ydata()[0])) for line in near.lines[:-1]}
    assert {(1000.0, 68.0), (500.0, 63.0), (810.0, 55.0)} <= {(round(x), round(y, 6)) for x, y in points}
    front = far.lines[-1]
    assert list(front.get_xdata()) == pytest.approx([5000, 10_000])
    assert list(front.get_ydata()) == pytest.approx([63, 68])
    assert "trained at width 16" in " ".join(texts(figure).split())


def test_the_figure_is_missing_without_two_networks(content):
    with pytest.raises(figures.Missing, match="two trained variants on the engine lean"):
        figures.systems(tables(content, [row("baseline")]))


def test_the_legend_of_every_family_fits():
    """The catalogue grows, and the figure is as wide as a page."""
    names = {catalogue.family_name(name): name for name in catalogue.variant_names()}.values()
    shown = list(names)
    rows = [row(name, link=link, seconds=1.0) for name in shown for link in ("loopback", "wan")]
    trained = [make_accuracy_row(name, accuracy_test=0.3 + 0.01 * place) for place, name in enumerate(shown)]
    with mpl.rc_context(figures.STYLE):
        figure = figures.systems(tables(trained, rows))
        figure.draw_without_rendering()
        (legend,) = figure.legends
        box, page = legend.get_window_extent(), figure.bbox
    assert len(legend.get_texts()) == len(shown) + 1
    assert page.x0 <= box.x0
    assert box.x1 <= page.x1
