import xml.etree.ElementTree as ElementTree
from io import StringIO

import matplotlib as mpl
import pandas as pd
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from results_factory import make_row, make_rows

from bench import figures, report


def tables(rows):
    """What figures read: the tables after their way through CSV."""
    made = (report.summarize(rows), report.tabulate_layers(rows))
    return [pd.read_csv(StringIO(report._csv(table))) for table in made]


@pytest.fixture(scope="module")
def data():
    return tables(make_rows())


@pytest.fixture(scope="module")
def awkward():
    """Long names, noise, and a merged network slower than the baseline."""
    rows = make_rows()
    for row in rows:
        row["machine"]["cpu"] = "Intel(R) Xeon(R) Platinum 8581C CPU @ 2.10GHz"
        row["dirty"] = True
        slower = 1.25 if row["variant"] == "merged-exact" else 1.3 if row["engine"] == "lean" else 1.0
        for clock, seconds in row["times"].items():
            noisy = row["variant"] == "senet-0.18"
            row["times"][clock] = [
                slower * value * (1.3 if noisy and place % 3 == 0 else 1)
                for place, value in enumerate(seconds)
            ]
    return tables(rows)


@pytest.fixture(autouse=True)
def style():
    with mpl.rc_context(figures.STYLE):
        yield


def texts(figure):
    return " ".join(text.get_text() for text in figure.findobj(mpl.text.Text))


@pytest.mark.parametrize("name", figures.FIGURES)
def test_every_figure_names_machine_and_conditions_and_has_units(data, name):
    figure = figures.FIGURES[name](*data)
    said = " ".join(texts(figure).split())
    assert "AMD EPYC 9B14, 2 cores; commit 0123456789." in said
    assert "2 parties, loopback" in said
    assert "Width 64" in said
    for axes in figure.axes:
        label = axes.get_xlabel() + axes.get_ylabel()
        assert any(unit in label for unit in ("second", "%", "MB")), label


@pytest.mark.parametrize("name", figures.FIGURES)
def test_no_text_lies_over_another_or_beyond_the_edge(data, name):
    check_texts(figures.FIGURES[name](*data))


@pytest.mark.parametrize("name", ["latency_vs_relus", "relus_macs_latency", "offline_online"])
def test_nor_does_it_with_awkward_data(awkward, name):
    check_texts(figures.FIGURES[name](*awkward))


def check_texts(figure):
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    renderer = canvas.get_renderer()
    boxes = [(text.get_text(), text.get_window_extent(renderer)) for text in drawn(figure)]
    edge = figure.bbox
    for text, box in boxes:
        assert box.x0 >= edge.x0 - 1, text
        assert box.x1 <= edge.x1 + 1, text
        assert box.y0 >= edge.y0 - 1, text
        assert box.y1 <= edge.y1 + 1, text
    for place, (text, box) in enumerate(boxes):
        for other, second in boxes[:place]:
            assert not overlap(box, second), (text, other)


def drawn(figure):
    """Every text that can be seen: matplotlib keeps tick labels beyond the limits, too."""
    found = list(figure.texts)
    for legend in figure.legends:
        found += legend.get_texts()
    for axes in figure.axes:
        found += [*axes.texts, axes.xaxis.label, axes.yaxis.label, axes._left_title]
        for axis in (axes.xaxis, axes.yaxis):
            low, high = sorted(axis.get_view_interval())
            found += [tick.label1 for tick in axis.get_major_ticks() if low <= tick.get_loc() <= high]
    return [text for text in found if text.get_visible() and text.get_text().strip()]


def overlap(first, second):
    wide = min(first.x1, second.x1) - max(first.x0, second.x0)
    high = min(first.y1, second.y1) - max(first.y0, second.y0)
    return wide > -2 and high > 1.5


def test_latency_is_drawn_where_it_was_measured(data):
    figure = figures.latency_vs_relus(*data)
    summary = data[0]
    drawn = {
        (round(x), round(y, 9))
        for line in figure.axes[0].lines
        for x, y in zip(line.get_xdata(), line.get_ydata(), strict=True)
    }
    headline = summary[summary["role"] == "headline"]
    for _, case in headline.iterrows():
        assert (case["relus"], round(case["online_median_s"], 9)) in drawn
    bars = [tuple(segment) for bar in figure.axes[0].collections for segment in bar.get_segments()]
    case = headline.iloc[1]
    ends = [(bottom[1], top[1]) for bottom, top in bars if round(bottom[0]) == case["relus"]]
    assert any(end == pytest.approx((case["online_low_s"], case["online_high_s"])) for end in ends)


def test_stacks_add_up_to_the_profiled_seconds(data):
    figure = figures.linear_vs_relu(*data)
    layers = data[1]
    total = layers[layers["case"].str.startswith("stock/senet-0.09/")]["seconds"].sum()
    ends = [bar.get_x() + bar.get_width() for bar in figure.axes[0].patches]
    assert any(end == pytest.approx(total) for end in ends)


def test_shares_sum_to_100():
    assert figures._percents(pd.Series([1.0, 1.0, 1.0])) in ([34, 33, 33], [33, 34, 33], [33, 33, 34])
    assert sum(figures._percents(pd.Series([0.005, 0.335, 0.66]))) == 100


def test_relative_bars_keep_the_absolute_numbers(data):
    figure = figures.relus_macs_latency(*data)
    said = [text.get_text() for text in figure.axes[0].texts]
    assert "557" in said
    assert figure.axes[0].patches[0].get_width() == pytest.approx(100)
    assert figure.axes[0].patches[1].get_width() == pytest.approx(36, abs=0.1)


def test_saved_time_can_be_negative(data):
    summary, layers = data[0], data[1].copy()
    slow = layers["case"].str.startswith("lean/joint-0.052/") & (layers["class"] == "linear")
    layers.loc[slow, "seconds"] *= 10
    axes = figures.stock_vs_lean(summary, layers).axes[2]
    assert min(bar.get_width() for bar in axes.patches) < 0
    assert axes.get_xlim()[0] < 0


def test_merged_lists_keep_both_orders():
    assert figures._merged(["a", "b", "c"], ["a", "x", "c", "y"]) == ["a", "x", "b", "c", "y"]


def test_figures_do_not_depend_on_intervals_or_on_every_case():
    rows = [make_row("baseline", "stock", count=1), make_row("senet-0.09", "stock", count=1)]
    rows += [make_row("baseline", "lean"), make_row("joint-0.104", "lean")]
    data = tables(rows)
    for name in ("latency_vs_relus", "linear_vs_relu", "relus_macs_latency", "offline_online"):
        figures.FIGURES[name](*data).draw_without_rendering()


@pytest.mark.parametrize(
    ("name", "rows"),
    [
        ("latency_vs_relus", [make_row()]),
        ("linear_vs_relu", [make_row(layers=[])]),
        ("relus_macs_latency", [make_row("senet-0.09"), make_row("joint-0.104")]),
        ("layer_profile_lean", [make_row(), make_row("senet-0.09")]),
        ("layer_profile_stock", [make_row(), make_row("senet-0.09", layers=[])]),
        ("stock_vs_lean", [make_row(), make_row("senet-0.09")]),
        ("stock_vs_lean", [make_row(engine=engine) for engine in ("stock", "lean")]),
        ("offline_online", [make_row(role="extra")]),
        ("batch", [make_row()]),
        ("batch", [make_row(case="x", link="wan", timing="emulated")]),
    ],
)
def test_missing_data_is_said_and_draws_nothing(name, rows):
    with pytest.raises(figures.Missing, match=r"needs|has no|lacks"):
        figures.FIGURES[name](*tables(rows))


@pytest.fixture
def project(tmp_path):
    rows = [make_row(variant, "stock") for variant in ("baseline", "senet-0.09")]
    (tmp_path / "results").mkdir()
    for name, table in (("summary", report.summarize(rows)), ("layers", report.tabulate_layers(rows))):
        (tmp_path / "results" / f"{name}.csv").write_text(report._csv(table))
    return tmp_path


def run(project):
    return figures.main(["--results", str(project / "results"), "--plots", str(project / "plots")])


def test_files_are_the_same_every_time_skips_are_said_and_old_ones_go(project, capsys, monkeypatch):
    for name in ("layer_profile_stock", "linear_vs_relu", "relus_macs_latency"):  # for the sake of time
        monkeypatch.delitem(figures.FIGURES, name)
    (project / "plots").mkdir()
    (project / "plots" / "stock_vs_lean.svg").write_text("of an older run")
    assert run(project) == 0
    said = capsys.readouterr().out
    assert "stock_vs_lean: skipped, it needs both engines" in said
    made = {path.name: path.read_bytes() for path in (project / "plots").iterdir()}
    names = [f"{name}{end}" for name in ("latency_vs_relus", "offline_online") for end in (".pdf", ".svg")]
    assert sorted(made) == names
    assert run(project) == 0
    assert {path.name: path.read_bytes() for path in (project / "plots").iterdir()} == made


def test_text_stays_text_and_no_date_is_written(data, tmp_path):
    figure = figures.batch(*data)
    for suffix in (".svg", ".pdf"):
        figures.write(figure, tmp_path / f"batch{suffix}")
    tree = ElementTree.parse(tmp_path / "batch.svg")
    words = [element.text for element in tree.iter("{http://www.w3.org/2000/svg}text")]
    assert "online seconds per image" in words
    assert "dc:date" not in (tmp_path / "batch.svg").read_text()
    pdf = (tmp_path / "batch.pdf").read_bytes()
    assert b"CreationDate" not in pdf
    assert b"/Type3" not in pdf
    assert b"/FontFile2" in pdf


def test_missing_tables_are_said(tmp_path, capsys):
    assert run(tmp_path) == 1
    assert "summary.csv cannot be read" in capsys.readouterr().err
