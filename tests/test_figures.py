import dataclasses
import xml.etree.ElementTree as ElementTree
from io import StringIO
from pathlib import Path

import matplotlib as mpl
import pandas as pd
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from protocol_rows import SIX, make_five_protocols
from results_factory import (
    LINKED,
    VARIANTS,
    case_id,
    make_protocol_row,
    make_protocol_rows,
    make_row,
    make_rows,
)

from pibench import figures, report
from pibench.figures import drawing
from pibench.figures.command import main
from pibench.figures.data import (
    NUMBERS,
    WORDS,
    Missing,
    headline_cases,
    measured_cases,
    read_table,
    whole_percents,
)
from pibench.figures.profiles import merged_names
from pibench.models.catalogue import shown_variants
from pibench.store.results import ResultsError

pytestmark = pytest.mark.usefixtures("remembered_intervals")


def tables(rows):
    """Returns the input of figures without trained networks: the tables after their way through CSV."""
    trained = report.tabulate_accuracy(None)
    made = {"summary": report.summarize(rows), "layers": report.tabulate_layers(rows)}
    made |= report.tabulate_models(rows)
    made |= {"accuracy": trained, "pairs": report.tabulate_pairs(trained, rows)}
    made["iso_accuracy"] = report.tabulate_iso_accuracy(trained, rows)
    made["protocols"] = report.tabulate_protocols(made["summary"], made["layers"], rows)
    made["sensitivity"] = report.read_sensitivity(Path("nowhere"), trained)
    made["systems"] = report.tabulate_systems(made["summary"], trained, report.tabulate_machines(rows, []))
    return figures.Tables(**{name: through_csv(table) for name, table in made.items()})


def through_csv(table):
    return pd.read_csv(StringIO(report.csv_text(table)))


@pytest.fixture(scope="module")
def data():
    return tables(make_rows())


@pytest.fixture(scope="module")
def awkward():
    """Long names, noise, flagged links, and a merged network slower than the baseline."""
    rows = make_rows()
    for row in rows:
        row["machine"]["cpu"] = "Intel(R) Xeon(R) Platinum 8581C CPU @ 2.10GHz"
        row["dirty"] = True
        if row["link"] == "wan":
            row["link_check"] |= {"ok": False, "complaint": "RTT 60 ms, asked for 40 ms"}
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


MODELLED = ("literature", "break_even")
TRAINED = (
    *("accuracy_vs_relus", "accuracy_vs_macs", "accuracy_vs_latency"),
    *("iso_accuracy", "sensitivity", "masks"),
)
APART = ("links_all", "accuracy_full_width", "protocols", "systems")  # which want other rows than these
MEASURED = [name for name in figures.FIGURES if name not in (*TRAINED, *APART)]
"""test_figures_accuracy.py has the others."""


@pytest.mark.parametrize("name", MEASURED)
def test_every_figure_names_its_origin_and_conditions_and_has_units(data, name):
    figure = figures.FIGURES[name](data)
    said = " ".join(texts(figure).split())
    if name in MODELLED:
        assert "Modelled by published costs, nothing measured here" in said
        assert "WAN: RTT 40 ms, 400 Mbit/s" in said
        assert "AMD EPYC 9B14" not in said
    else:
        assert "AMD EPYC 9B14, 2 cores; commit 0123456789." in said
        assert "2 parties, LAN, WAN" if name == "link_model_error" else "2 parties, loopback" in said
    if "link" in name:
        assert "WAN: RTT 40 ms, 400 Mbit/s each way; shaped by user-space" in said
    assert "Width 64" in said
    for axes in figure.axes:
        label = axes.get_xlabel()
        below = [other for other in figure.axes if same_column(axes, other) and other.get_xlabel()]
        if axes.get_visible():
            label = (label or (below[-1].get_xlabel() if below else "")) + axes.get_ylabel()
            assert any(unit in label for unit in ("second", "%", "MB", "ReLUs worth one layer, thousands")), (
                label
            )


def same_column(first, second):
    return first.get_subplotspec().colspan == second.get_subplotspec().colspan


@pytest.mark.parametrize("name", MEASURED)
def test_no_text_lies_over_another_or_beyond_the_edge(data, name):
    check_texts(figures.FIGURES[name](data))


@pytest.mark.parametrize(
    "name",
    ["latency_vs_relus", "relus_macs_latency", "offline_online", "links", "link_model_error"],
)
def test_nor_does_it_with_awkward_data(awkward, name):
    check_texts(figures.FIGURES[name](awkward))


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
        found += [*legend.get_texts(), legend.get_title()]
    for axes in figure.axes:
        if not axes.get_visible():
            continue
        found += [*axes.texts, axes.xaxis.label, axes.yaxis.label, axes._left_title, axes.title]
        for axis in (axes.xaxis, axes.yaxis):
            low, high = sorted(axis.get_view_interval())
            found += [tick.label1 for tick in axis.get_major_ticks() if low <= tick.get_loc() <= high]
    return [text for text in found if text.get_visible() and text.get_text().strip()]


def overlap(first, second):
    wide = min(first.x1, second.x1) - max(first.x0, second.x0)
    high = min(first.y1, second.y1) - max(first.y0, second.y0)
    return wide > -2 and high > 1.5


def test_latency_is_drawn_where_it_was_measured(data):
    figure = figures.latency_vs_relus(data)
    summary = data.summary
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


def test_families_and_engines_are_named_once(data):
    (legend,) = figures.latency_vs_relus(data).legends
    said = [text.get_text() for text in legend.get_texts()]
    assert said == ["baseline", "SENet", "joint", "merged-exact", "stock (CrypTen)", "lean (ours)"]


def test_many_noisy_cases_are_counted_and_few_are_named():
    rows = [make_row(variant, engine) for engine in ("stock", "lean") for variant in VARIANTS]
    for row in rows:
        row["times"]["online_s"] = [
            second * (1 + 0.5 * (n % 2)) for n, second in enumerate(row["times"]["online_s"])
        ]
    assert "Noisy (IQR over 10 % of the median): 20 of 20 cases." in noise_of(rows)
    assert "Noisy (IQR over 10 % of the median): stock baseline, stock senet-0.36." in noise_of(rows[:2])


def noise_of(rows):
    return " ".join(texts(figures.latency_vs_relus(tables(rows))).split())


def bars(axes):
    """The bars as {place: [(start, end)]}, in the order in which they are stacked."""
    found = {}
    for bar in axes.patches:
        place = round(bar.get_y() + bar.get_height() / 2)
        found.setdefault(place, []).append((bar.get_x(), bar.get_x() + bar.get_width()))
    return found


def test_link_bars_end_at_the_model_and_markers_stand_at_what_was_found(data):
    figure = figures.links(data)
    cases = data.summary.set_index("case")
    assert len(figure.axes) == 6
    for axes, (engine, link) in zip(
        figure.axes, [(e, k) for e in ("stock", "lean") for k in ("loopback", "lan", "wan")], strict=True
    ):
        (marker,) = axes.lines
        for place, variant in enumerate(LINKED):
            case = cases.loc[case_id(variant, engine, link=link)]
            stack = bars(axes)[place]
            parts = [case[f"modelled_{part}_s"] for part in ("compute", "hops", "bytes")]
            assert [end - start for start, end in stack] == pytest.approx(parts)
            emulated = link != "loopback"
            total = case["modelled_online_s"] if emulated else case["online_median_s"]
            assert stack[-1][1] == pytest.approx(total)
            found = case["emulated_online_median_s"] if emulated else case["online_median_s"]
            assert marker.get_xdata()[place] == pytest.approx(found)


def test_all_variants_on_links_have_a_figure_of_their_own(data):
    rows = make_rows()
    rows += [
        make_row("joint-0.104", engine, link=link, role="link")
        for engine in ("stock", "lean")
        for link in ("lan", "wan")
    ]
    swept = tables(rows)
    few, whole = figures.links(swept), figures.links_all(swept)
    assert {len(bars(axes)) for axes in few.axes} == {len(LINKED)}
    assert {len(bars(axes)) for axes in whole.axes} == {len(LINKED) + 1}
    check_texts(whole)
    assert "shaped by user-space" in " ".join(texts(whole).split())
    with pytest.raises(figures.Missing, match="make sweep"):
        figures.links_all(data)


def test_protocols_are_drawn_beside_their_own_baseline():
    data = tables(make_five_protocols())
    figure = figures.FIGURES["protocols"](data)
    check_texts(figure)
    seconds = figure.axes[: len(figure.axes) // 2]
    assert [seconds[0].get_ylabel(), figure.axes[-5].get_ylabel()] == ["seconds", "MB"]
    assert [axes.get_title(loc="left").split("\n")[0] for axes in seconds] == [
        *("stock", "lean", "SEMI2K", "ABY3", "Cheetah")
    ]
    faster = data.protocols.set_index(["engine", "variant"])["whole_speedup"].dropna()
    for axes, engine in zip(seconds, ("stock", "lean", "spu-semi2k", "spu-aby3", "spu-cheetah"), strict=True):
        assert [bar.get_width() for bar in axes.patches] == pytest.approx(
            [100 / faster[engine, variant] for variant in SIX]
        )
    said = texts(figure)
    assert "three semi-honest parties, of whom no two collude; no dealer" in " ".join(said.split())
    assert "2 or 3 parties" in said
    few = [make_protocol_row(variant, count=2) for variant in ("baseline", "senet-0.09")]
    check_texts(figures.FIGURES["protocols"](tables(few)))


def test_flagged_links_are_marked(data, awkward):
    said = texts(figures.links(awkward))
    assert said.count("%)!") == 6
    assert "%)!" not in texts(figures.links(data))
    for figure in (figures.links(awkward), figures.link_model_error(awkward)):
        assert "asked for (!): stock baseline over wan" in " ".join(texts(figure).split())


def test_engines_need_not_have_the_same_links():
    rows = [make_row(engine=engine) for engine in ("stock", "lean")]
    rows += [make_row(link="wan", role="link"), make_row(engine="lean", link="lan", role="link")]
    for name in ("links", "link_model_error"):
        check_texts(figures.FIGURES[name](tables(rows)))


def test_links_without_a_case_on_loopback_show_what_was_emulated():
    rows = [make_row(), make_row(link="wan", role="link"), make_row("senet-0.09", link="wan", role="link")]
    figure = figures.links(tables(rows))
    assert list(bars(figure.axes[1])[1]) == [(0, 0)] * 3
    assert figure.axes[1].lines[0].get_xdata()[1] > 0
    check_texts(figure)


def test_the_models_error_is_drawn_where_it_is_with_the_band(data):
    left, right = figures.link_model_error(data).axes
    cases = data.summary.dropna(subset=["model_error"])
    points = {
        (round(x, 9), round(y, 9))
        for line in left.lines
        for x, y in zip(line.get_xdata(), line.get_ydata(), strict=True)
    }
    assert len(cases) == 12
    for case in cases.itertuples():
        assert (round(case.emulated_online_median_s, 9), round(case.modelled_online_s, 9)) in points
    errors = sorted(round(float(x), 6) for line in right.lines[1:] for x in line.get_xdata())
    assert errors == sorted(round(100 * error, 6) for error in cases["model_error"])
    assert right.patches[0].get_x() == -10
    assert right.patches[0].get_width() == 20
    corner = left.collections[0].get_paths()[0].vertices
    assert {round(y / x, 3) for x, y in corner} == {0.9, 1.1}


def test_an_error_beyond_the_band_is_still_in_view():
    rows = make_rows()
    slow = next(row for row in rows if row["case"] == case_id("baseline", "lean", link="lan"))
    slow["times"]["online_s"] = [seconds / 2 for seconds in slow["times"]["online_s"]]
    figure = figures.link_model_error(tables(rows))
    assert figure.axes[1].get_xlim()[1] > 100
    check_texts(figure)


def test_modelled_bars_are_offline_and_online_with_ranks_and_hatches(data):
    figure = figures.literature(data)
    by_title = {axes.get_title(loc="left"): axes for axes in figure.axes if axes.get_visible()}
    axes = by_title["DELPHI,\nserver garbles"]
    costs = data.modelled.set_index(["model", "channel", "network"])
    for place, network in enumerate(shown_variants(), 1):
        cost = costs.loc[("delphi-server-garbler", "lan", network)]
        ends = [cost["modelled_offline_s"], cost["modelled_total_s"]]
        assert [end for _, end in bars(axes)[place]] == pytest.approx(ends)
    said = [text.get_text() for text in axes.texts]
    assert [text.split()[0] for text in said[:4]] == ["#3", "#2", "#1", "#4"]
    assert not any(bar.get_hatch() for bar in axes.patches)
    for title in ("Cheetah", figures.MODELS["21us-column"]):
        assert all(bar.get_hatch() for bar in by_title[title].patches)
    visible = sum(axes.get_visible() for axes in figure.axes)
    assert visible == 8 * 2 + 2  # the columns know no link


def test_break_even_is_drawn_where_it_is_in_the_channels_looks(data):
    for axes, phase in zip(figures.break_even(data).axes, ("total_s", "online_s"), strict=True):
        names = list(figures.MODELS)
        places = {
            (names[round(line.get_ydata()[0])], line.get_marker()): line
            for line in axes.lines
            if line.get_marker() not in (None, "None")
        }
        assert len(places) == 8 * 4
        worth = data.break_even[data.break_even["network"] == "baseline"]
        worth = worth[worth["phase"] == phase].set_index(["model", "channel"])
        for (model, marker), line in places.items():
            channel = next(name for name, look in figures.LINKS.items() if look[2] == marker)
            case = worth.loc[(model, channel)]
            assert line.get_xdata()[0] == pytest.approx(case["relus_per_layer"])
            assert (line.get_markerfacecolor() == "white") == (model == "cheetah")
        dashed = {line.get_xdata()[0] for line in axes.lines if line.get_linestyle() == "--"}
        relus = data.modelled.drop_duplicates("network").set_index("network")["relus"]
        assert dashed == set(relus[list(shown_variants())])
        assert sum("prices no layer" in text.get_text() for text in axes.texts) == 2


def test_stacks_add_up_to_the_profiled_seconds(data):
    figure = figures.linear_vs_relu(data)
    layers = data.layers
    total = layers[layers["case"].str.startswith("stock/senet-0.09/")]["seconds"].sum()
    ends = [bar.get_x() + bar.get_width() for bar in figure.axes[0].patches]
    assert any(end == pytest.approx(total) for end in ends)


def test_plaintext_stands_beside_the_parties_in_every_figure_of_latency():
    """The network itself, measured right before each repetition: a band, a bar, a mark, a line."""
    rows = [make_row(variant, engine) for engine in ("stock", "lean") for variant in SIX]
    rows += [make_row(engine="lean", batch=size, role="batch") for size in (4, 16)]
    for row in rows:
        seconds = {"joint-0.052": 0.011, "merged-exact": 0.015}.get(row["variant"], 0.013)
        row["plaintext_s"] = [seconds * row["batch"]] * 5
    data = tables(rows)
    band = next(patch for patch in figures.latency_vs_relus(data).axes[0].patches)
    assert [band.get_y(), band.get_y() + band.get_height()] == pytest.approx([0.011, 0.015])
    bar = figures.relus_macs_latency(data).axes[-1]
    assert bar.get_title(loc="left") == "plaintext,\nms"
    assert [text.get_text() for text in bar.texts] == ["13.0", "13.0", "13.0", "13.0", "11.0", "15.0"]
    for axes in figures.offline_online(data).axes:
        (marks,) = axes.lines
        assert dict(zip(marks.get_ydata(), marks.get_xdata(), strict=True))[5] == pytest.approx(0.015)
    line = figures.batch(data).axes[0].lines[-1]
    assert list(line.get_xdata()) == [1, 4, 16]
    assert list(line.get_ydata()) == pytest.approx([0.013] * 3)
    for name in ("latency_vs_relus", "relus_macs_latency", "offline_online", "batch"):
        check_texts(figures.FIGURES[name](data))
        assert "plaintext" in texts(figures.FIGURES[name](data))


def test_shares_sum_to_100():
    assert whole_percents(pd.Series([1.0, 1.0, 1.0])) in ([34, 33, 33], [33, 34, 33], [33, 33, 34])
    assert sum(whole_percents(pd.Series([0.005, 0.335, 0.66]))) == 100


def test_relative_bars_keep_the_absolute_numbers(data):
    figure = figures.relus_macs_latency(data)
    said = [text.get_text() for text in figure.axes[0].texts]
    assert "557" in said
    assert figure.axes[0].patches[0].get_width() == pytest.approx(100)
    assert figure.axes[0].patches[1].get_width() == pytest.approx(36, abs=0.1)


def test_saved_time_can_be_negative(data):
    layers = data.layers.copy()
    slow = layers["case"].str.startswith("lean/joint-0.052/") & (layers["class"] == "linear")
    layers.loc[slow, "seconds"] *= 10
    axes = figures.stock_vs_lean(dataclasses.replace(data, layers=layers)).axes[2]
    assert min(bar.get_width() for bar in axes.patches) < 0
    assert axes.get_xlim()[0] < 0


def test_merged_lists_keep_both_orders():
    assert merged_names(["a", "b", "c"], ["a", "x", "c", "y"]) == ["a", "x", "b", "c", "y"]


def test_figures_do_not_depend_on_intervals_or_on_every_case():
    rows = [make_row("baseline", "stock", count=1), make_row("senet-0.09", "stock", count=1)]
    rows += [make_row("baseline", "lean"), make_row("joint-0.104", "lean")]
    data = tables(rows)
    for name in ("latency_vs_relus", "linear_vs_relu", "relus_macs_latency", "offline_online"):
        figures.FIGURES[name](data).draw_without_rendering()


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
        ("batch", [make_row(case="x", link="wan")]),
        ("protocols", [make_row(), make_row(engine="lean")]),
        ("protocols", [make_protocol_row("senet-0.09")]),
        ("links", [make_row()]),
        ("links", [make_row(), make_row(link="wan")]),
        ("link_model_error", [make_row()]),
        ("link_model_error", [make_row(), make_row("senet-0.09", link="wan", role="link")]),
        ("literature", [make_row(), make_row("senet-0.09", network=None)]),
        ("literature", [make_row("senet-0.09"), make_row("senet-0.18")]),
        ("literature", [make_row(network=None)]),
        ("break_even", [make_row("senet-0.09")]),
        ("break_even", [make_row(network=None)]),
    ],
)
def test_missing_data_is_said_and_draws_nothing(name, rows):
    with pytest.raises(figures.Missing, match=r"needs|has no|lacks|has fewer"):
        figures.FIGURES[name](tables(rows))


@pytest.fixture
def project(tmp_path):
    rows = [make_row(variant, "stock") for variant in ("baseline", "senet-0.09")]
    (tmp_path / "results").mkdir()
    (tmp_path / "models").mkdir()
    for field in dataclasses.fields(made := tables(rows)):
        if field.name != "masks":
            path = tmp_path / "results" / f"{field.name}.csv"
            path.write_text(report.csv_text(getattr(made, field.name)))
    return tmp_path


def run(project, *options):
    folders = {"--results": "results", "--plots": "plots", "--weights": "models"}
    return main([*(part for name, path in folders.items() for part in (name, str(project / path))), *options])


def test_files_are_the_same_every_time_skips_are_said_and_old_ones_go(project, capsys, monkeypatch):
    few = {"latency_vs_relus", "offline_online", "stock_vs_lean"}  # for the sake of time
    for name in set(figures.FIGURES) - few:
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
    figure = figures.batch(data)
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


NOT_DRAWN = ("tries", "equal_latency", "protocol_models", "machines")


def test_missing_tables_are_said(tmp_path, capsys):
    assert run(tmp_path) == 1
    assert "summary.csv cannot be read" in capsys.readouterr().err


@pytest.mark.parametrize("name", [name for name in report.TABLES if name not in NOT_DRAWN])
def test_each_table_is_needed(project, capsys, name):
    (project / "results" / f"{name}.csv").unlink()
    assert run(project) == 1
    assert f"{name}.csv cannot be read" in capsys.readouterr().err
    assert not (project / "plots").exists()


@pytest.mark.parametrize(
    ("name", "column"),
    [(name, column) for asked in (WORDS, NUMBERS) for name in asked for column in asked[name]],
)
def test_a_table_that_lacks_a_column_or_its_kind_is_named(data, tmp_path, name, column):
    path = tmp_path / f"{name}.csv"
    frame = getattr(data, name)
    if frame.empty:
        frame = pd.DataFrame([{**dict.fromkeys(NUMBERS[name], 1), **dict.fromkeys(WORDS[name], "a")}])
    path.write_text(report.csv_text(frame))
    assert list(read_table(path).columns) == list(frame.columns)
    path.write_text(report.csv_text(frame.drop(columns=column)))
    with pytest.raises(ResultsError, match=rf"{name}\.csv lacks the column '{column}': run `make report`"):
        read_table(path)
    wrong, reason = (
        ("x", "holds something else than numbers") if column in NUMBERS[name] else (3, "lacks words")
    )
    path.write_text(report.csv_text(frame.assign(**{column: wrong})))
    with pytest.raises(
        ResultsError, match=rf"{name}\.csv {reason} in the column '{column}': run `make report`"
    ):
        read_table(path)


@pytest.mark.parametrize(
    "text", [b"", b"\xff\xfe", b"\x00" * 64, b"a,b\n1,2,3\n1,2,3,4\n", b'"a\nb', b"case\n"]
)
def test_a_table_that_is_none_is_one_line(project, capsys, text):
    path = project / "results" / "summary.csv"
    path.write_bytes(text)
    assert run(project) == 1
    said = capsys.readouterr().err
    assert said.startswith(str(path))
    assert said.endswith("run `make report`, which writes it anew.\n")
    assert said.count("\n") == 1
    assert path.read_bytes() == text


@pytest.mark.parametrize("place", ["plots", "plots/latency_vs_relus.svg"])
@pytest.mark.parametrize("paper", [[], ["--paper"]])
def test_a_place_that_takes_no_figure_is_one_line(project, capsys, monkeypatch, place, paper):
    for name in set(figures.FIGURES) - {"latency_vs_relus"}:
        monkeypatch.delitem(figures.FIGURES, name)
    monkeypatch.setattr(drawing, "on_all_cores", lambda function, names: [function(name) for name in names])
    path = project / place
    path.parent.mkdir(exist_ok=True)
    if place == "plots":
        path.write_text("a file in the place of a folder")
    elif paper:
        (project / "plots" / "paper" / "latency_vs_relus.pdf").mkdir(parents=True)
    else:
        path.mkdir()
    assert run(project, *paper) == 1
    said = capsys.readouterr().err
    assert "latency_vs_relus" in said
    assert said.endswith(": make room or allow writing there, or choose another folder with --plots\n")
    assert said.count("\n") == 1


def test_rows_of_one_clock_are_in_no_figure_of_online_seconds(data):
    both = tables([*make_rows(), *make_protocol_rows()])
    for choose in (measured_cases, headline_cases):
        assert list(choose(both.summary)["case"]) == list(choose(data.summary)["case"])
    alone = tables(make_protocol_rows())
    with pytest.raises(Missing):
        headline_cases(alone.summary)
