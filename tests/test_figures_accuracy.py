import dataclasses
import hashlib
import json

import matplotlib as mpl
import numpy as np
import pandas as pd
import pytest
from matplotlib.colors import to_rgb
from results_factory import (
    MACS,
    add_toy_family,
    make_accuracy,
    make_accuracy_row,
    make_masks,
    make_narrow_rows,
    make_row,
    make_sensitivity,
)
from safetensors.numpy import save, save_file
from test_figures import TRAINED, bars, check_texts, texts, through_csv

from pibench import figures, report
from pibench.figures.accuracy import PUBLISHED_MARKERS
from pibench.figures.data import read_masks
from pibench.figures.masks import SHALLOW, masked_variants, shown_layer
from pibench.figures.style import family_style
from pibench.models import catalogue
from pibench.models.allocation import least_sensitive_blocks
from pibench.models.manifest import replace_listed
from pibench.models.published import PUBLISHED
from pibench.models.zoo import layout_of
from pibench.store.results import ResultsError

pytestmark = pytest.mark.usefixtures("remembered_intervals")


def tables(content, rows=(), runs=(), masks=None, others=()):
    """Returns the input of figures: rows of accuracy.json and bench.json, and runs with their sensitivity."""
    rows = list(rows) or [make_row()]
    accuracy = report.tabulate_accuracy(pd.DataFrame(content) if content else None)
    made = {"summary": report.summarize(rows), "layers": report.tabulate_layers(rows)}
    made |= report.tabulate_models(rows)
    made["protocols"] = report.tabulate_protocols(made["summary"], made["layers"], rows)
    made |= {"accuracy": accuracy, "pairs": report.tabulate_pairs(accuracy, []), "sensitivity": runs}
    made["iso_accuracy"] = report.tabulate_iso_accuracy(accuracy, rows)
    machines = report.tabulate_machines(rows, others)
    made["systems"] = report.tabulate_systems(made["summary"], accuracy, machines)
    if not len(runs):
        made["sensitivity"] = pd.DataFrame(columns=["run", "width", "layer"])
    made = {name: through_csv(table) for name, table in made.items()}
    return figures.Tables(**made, masks=masks or {})


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("training")
    for seed, shift in ((0, 0.0), (1, 0.04)):
        run = folder / f"w16-s{seed}-standard"
        run.mkdir()
        (run / "sensitivity.json").write_text(json.dumps(make_sensitivity(shift)))
    return report.read_sensitivity(folder, report.tabulate_accuracy(None))


@pytest.fixture(scope="module")
def data(runs):
    return tables(make_accuracy(), make_narrow_rows(), runs, make_masks())


@pytest.fixture(autouse=True)
def style():
    with mpl.rc_context(figures.STYLE):
        yield


def points(axes, colour=None):
    """All points of lines with markers, of one colour."""
    return {
        (round(float(x), 6), round(float(y), 6))
        for line in axes.lines
        if line.get_marker() not in (None, "None", "|", "_", 2, 3)
        and (colour is None or line.get_color() == colour)
        for x, y in zip(line.get_xdata(), line.get_ydata(), strict=True)
    }


def test_these_are_the_figures_of_trained_networks():
    assert set(TRAINED) <= set(figures.FIGURES)


@pytest.mark.parametrize("name", TRAINED)
def test_every_figure_names_width_and_data_and_has_units(data, name):
    figure = figures.FIGURES[name](data)
    said = " ".join(texts(figure).split())
    assert "width 16" in said
    if name.startswith("accuracy"):
        assert "CIFAR-100, plan long, 1 to 3 seeds; 10,000 test images" in said
        assert figure.axes[0].get_ylabel() == "test accuracy, %"
        units = ("thousands", "%", "millions", "milliseconds")
        assert all(any(unit in axes.get_xlabel() for unit in units) for axes in figure.axes)


def test_full_width_stands_beside_what_was_published_there():
    wide = make_accuracy(width=64)
    data = tables([*make_accuracy(), *wide])
    figure = figures.accuracy_full_width(data)
    check_texts(figure)
    said = " ".join(texts(figure).split())
    assert "Trained networks: width 64, CIFAR-100, plan long" in said
    assert "Published by others, width 64" in said
    drawn = points(figure.axes[0])
    assert {(round(each.relus / 1e3, 6), round(100 * each.accuracy, 6)) for each in PUBLISHED} <= drawn
    baseline = next(row for row in wide if row["variant"] == "baseline")
    assert (round(baseline["relus"] / 1e3, 6), round(100 * baseline["accuracy_test"], 6)) in drawn
    with pytest.raises(figures.Missing, match="two variants trained at width 64"):
        figures.accuracy_full_width(tables([*make_accuracy(), wide[0]]))


def test_a_row_with_a_plan_of_its_own_is_named_beside_it():
    rows = [row | {"plan": "standard"} if row["variant"] == "joint" else row for row in make_accuracy()]
    figure = figures.accuracy_vs_macs(tables(rows))
    check_texts(figure)
    assert "CIFAR-100, plan long; joint by standard, 1 to 3 seeds" in " ".join(texts(figure).split())


@pytest.mark.parametrize("name", TRAINED)
def test_no_text_lies_over_another_or_beyond_the_edge(data, name):
    check_texts(figures.FIGURES[name](data))


def test_accuracy_is_drawn_where_it_is_with_the_range_of_seeds(data):
    left, right = figures.accuracy_vs_relus(data).axes
    for row in make_accuracy(accuracy_test=None):
        mean = data.accuracy[data.accuracy["variant"] == row["variant"]]["accuracy_test"].mean()
        assert (round(row["relus"] / 1e3, 6), round(100 * mean, 6)) in points(left)
        assert (round(100 * row["relus"] / 139_264, 6), round(100 * mean, 6)) in points(right)
    colour = catalogue.families()["senet"].colour
    ends = [
        tuple(round(float(y), 6) for _, y in segment)
        for bar in left.collections
        if tuple(bar.get_colors()[0][:3]) == to_rgb(colour)
        for segment in bar.get_segments()
    ]
    assert (60.7, 61.5) in ends


def test_published_points_are_hollow_and_grey_and_named_so(data):
    figure = figures.accuracy_vs_relus(data)
    wanted = {(each.relus / 1e3, round(100 * each.accuracy, 6)) for each in PUBLISHED}
    lines = [line for line in figure.axes[0].lines if line.get_markerfacecolor() == "white"]
    drawn = {
        (float(x), round(float(y), 6))
        for line in lines
        for x, y in zip(line.get_xdata(), line.get_ydata(), strict=True)
    }
    assert drawn == wanted
    assert {line.get_color() for line in lines} == {"0.45"}
    assert [legend.get_title().get_text() for legend in figure.legends] == [
        "Ours, width 16",
        "Published by others, width 64",
    ]
    assert {each.method for each in PUBLISHED if each.family is None} == set(PUBLISHED_MARKERS)


def test_accuracy_against_macs_stands_at_the_macs(data):
    (axes,) = figures.accuracy_vs_macs(data).axes
    own = {macs / 1e6 for macs in MACS.values()}
    assert {x for x, _ in points(axes)} == {15.0, 19.0, 23.0, 27.0, 31.0, 35.0, 39.0, 46.0} | own
    said = sorted(text.get_text() for text in axes.texts)
    names = {row["variant"] for row in make_accuracy()}
    shares = [name.rpartition("-")[2] for name in names if name[-1].isdigit()]
    assert said == sorted([*shares, "all"])  # joint, beside its family


def test_latency_is_that_of_the_same_networks(data):
    figure = figures.accuracy_vs_latency(data)
    for axes, engine in zip(figure.axes, ("stock", "lean"), strict=True):
        for row in make_narrow_rows():
            if row["engine"] == engine:
                seconds = np.median(row["times"]["online_s"])
                assert any(x == pytest.approx(1e3 * seconds, rel=1e-5) for x, _ in points(axes))
    wide = [make_row(variant) for variant in ("baseline", "senet-0.09")]
    with pytest.raises(figures.Missing, match="measured cases at width 16"):
        figures.accuracy_vs_latency(tables(make_accuracy(), wide))


def test_equal_accuracy_is_drawn_with_its_band_and_the_claim(data):
    (axes,) = figures.iso_accuracy(data).axes
    lines = data.iso_accuracy
    assert len(lines) > 3
    for column in ("relus_ratio", "macs_ratio", "stock_online_ratio", "lean_online_ratio"):
        known = lines.dropna(subset=[column])
        drawn = {
            (round(100 * level, 6), round(ratio, 6))
            for level, ratio in known[["accuracy", column]].itertuples(index=False)
        }
        assert drawn <= points(axes)
    claims = {line.get_ydata()[0] for line in axes.lines if line.get_linestyle() == ":"}
    assert claims == {1.73, 1.47}
    assert len(axes.collections) == 4
    wide = [*make_accuracy(), *make_accuracy(width=64)]
    figure = figures.iso_accuracy(tables(wide, make_narrow_rows()))
    check_texts(figure)
    assert [axes.get_title(loc="left") for axes in figure.axes] == ["width 16", "width 64"]


def test_labels_stay_within_the_axes_and_off_the_points(data):
    figure = figures.accuracy_vs_macs(data)
    figure.draw_without_rendering()
    (axes,) = figure.axes
    frame = axes.get_window_extent()
    marks = axes.transData.transform([(x, y) for x, y in points(axes)])
    assert len(axes.texts) > 8
    for text in axes.texts:
        box = text.get_window_extent()
        assert frame.x0 <= box.x0
        assert box.x1 <= frame.x1
        assert not any(box.contains(*mark) for mark in marks)


def test_sensitivity_is_measured_beside_published_with_the_layers_that_joint_drops(data, runs):
    axes = figures.sensitivity(data).axes[0]
    by_layer = runs.groupby("position")["measured_sensitivity"].mean()
    found = [bar.get_height() for bar in axes.patches if bar.get_width() == pytest.approx(0.6)]
    assert found == pytest.approx(list(by_layer))
    published = runs[runs["seed"] == 0]["published_sensitivity"]
    assert any(list(line.get_ydata()) == pytest.approx(list(published)) for line in axes.lines)
    grey = {round(bar.get_x() + 0.5) for bar in axes.patches if bar.get_width() == pytest.approx(1.0)}
    layers = runs[runs["seed"] == 0].set_index("layer")["position"]
    assert grey == {
        layers[f"{block}.relu1"] for block in least_sensitive_blocks(SHALLOW, layout_of("resnet18"))
    }
    assert bars(axes)  # drawn from zero


def test_a_family_of_the_catalogue_is_drawn_without_another_edit(monkeypatch):
    add_toy_family(monkeypatch)
    toy = make_accuracy_row("senet-0.09") | {"variant": "toy-0.09", "accuracy_test": 0.6}
    figure = figures.accuracy_vs_relus(tables([*make_accuracy(), toy]))
    assert {y for _, y in points(figure.axes[0], "#123456")} == {60.0}
    labels = [text.get_text() for text in figure.legends[0].get_texts()]
    assert labels[:6] == ["baseline", "SENet", "SNL", "AutoReP", "Toy", "joint"]
    drawn = make_masks()["snl-0.09", 16]
    assert "toy-0.09" in texts(figures.masks(tables([], masks=make_masks() | {("toy-0.09", 16): drawn})))
    assert family_style("unheard-0.1") == ("unheard", "0.4", "v")


def test_another_choice_of_blocks_is_said(runs):
    turned = runs.copy()
    turned["measured_sensitivity"] = 1 - turned["measured_sensitivity"]
    said = " ".join(texts(figures.sensitivity(tables([], runs=turned))).split())
    assert "by the measured ones they would be 4.1, 4.0, 3.1, 3.0, 2.1." in said
    assert "the same" in " ".join(texts(figures.sensitivity(tables([], runs=runs))).split())


def test_masks_show_the_channels_and_count_them(data):
    figure = figures.masks(data)
    layer = "layer2.0.relu2"  # the joint network lacks layer2.0.relu1, and layer1 keeps too few
    images = [axes for axes in figure.axes if axes.images]
    assert len(images) == len(masked_variants()) * 8
    channels = [int(axes.get_title().removeprefix("ch. ")) for axes in images[:8]]
    counts = make_masks()["senet-0.09", 16][layer].sum(axis=(1, 2))
    assert list(counts[channels]) == sorted(counts[channels], reverse=True)
    assert (counts[channels[0]], counts[channels[-1]]) == (counts.max(), counts.min())
    for row, name in enumerate(masked_variants()):
        mask = make_masks()[name, 16][layer]
        for axes, channel in zip(images[8 * row : 8 * row + 8], channels, strict=True):
            assert (axes.images[0].get_array() == mask[channel]).all()
            assert axes.get_xlabel() == str(mask[channel].sum())
        assert f"{name} {mask.sum():,} ({100 * mask.mean():.0f} %)" in " ".join(texts(figure).split())
    curves = next(axes for axes in figure.axes if axes.lines)
    assert list(curves.lines[0].get_ydata()) == sorted(counts, reverse=True)


def test_a_layer_between_bounds_is_shown_else_the_one_nearest_to_half():
    found = {name: by_layer for (name, _), by_layer in make_masks().items()}
    assert shown_layer(found) == "layer2.0.relu2"
    few = {name: {layer: masks[layer] for layer in ("layer1.0.relu2",)} for name, masks in found.items()}
    assert shown_layer(few) == "layer1.0.relu2"
    with pytest.raises(figures.Missing, match="masked in all"):
        shown_layer({"a": {"x": np.ones((1, 2, 2))}, "b": {"y": np.ones((1, 2, 2))}})


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("accuracy_vs_relus", []),
        ("accuracy_vs_relus", [make_accuracy_row()]),
        ("accuracy_vs_relus", [make_accuracy_row("senet-0.09"), make_accuracy_row("joint-0.052")]),
        ("accuracy_vs_relus", make_accuracy(width=64)),
        ("accuracy_vs_macs", [make_accuracy_row(), make_accuracy_row(seed=1)]),
        ("accuracy_vs_latency", make_accuracy()),
        ("iso_accuracy", [make_accuracy_row(), make_accuracy_row("joint-0.052")]),
        ("sensitivity", []),
        ("masks", []),
    ],
)
def test_missing_data_is_said_and_draws_nothing(name, content):
    with pytest.raises(figures.Missing, match="needs"):
        figures.FIGURES[name](tables(content))


def test_two_networks_are_enough(data):
    few = [make_accuracy_row(), make_accuracy_row("joint-0.052")]
    for name in ("accuracy_vs_relus", "accuracy_vs_macs", "accuracy_vs_latency"):
        check_texts(figures.FIGURES[name](dataclasses.replace(tables(few), summary=data.summary)))
    masks = {key: found for key, found in make_masks().items() if key[0] != "snl-0.09"}
    check_texts(figures.masks(dataclasses.replace(data, masks=masks)))


# Masks on disk


@pytest.fixture
def weights(tmp_path):
    manifest = {}
    for (variant, width), found in make_masks().items():
        path = tmp_path / f"{variant}-w{width}.safetensors"
        tensors = {f"{layer}.mask": mask for layer, mask in found.items()}
        save_file(tensors | {"conv1.weight": np.zeros((4, 3, 3, 3), np.float16)}, path)
        digest = hashlib.sha256(path.read_bytes()).hexdigest()
        manifest[path.name] = {"sha256": digest, "classes": 100, "image_size": 32}
    (tmp_path / "manifest.json").write_text(json.dumps(manifest))
    return tmp_path


def test_masks_are_read_without_torch_by_variant_and_width(weights):
    found = read_masks(weights)
    assert set(found) == set(make_masks())
    for key, by_layer in make_masks().items():
        assert set(found[key]) == set(by_layer)
        assert all((found[key][layer] == mask).all() for layer, mask in by_layer.items())
    assert read_masks(weights / "none") == {}
    replace_listed(weights / "single.safetensors", b"no variant's", 100, 32)
    map_ = np.ones((1, 2, 2))
    flat = {"relu.mask": np.ones(4, bool), "map.mask": map_ > 0, "real.mask": map_}
    replace_listed(weights / "flat-w16.safetensors", save(flat), 100, 32)
    assert read_masks(weights).keys() == found.keys() | {("flat", 16)}
    assert list(read_masks(weights)["flat", 16]) == ["map"]


@pytest.mark.parametrize(
    ("spoil", "reason"),
    [
        (lambda path: path.write_bytes(path.read_bytes()[:-1]), "is damaged"),
        (lambda path: path.unlink(), "cannot be read"),
        (lambda path: (path.parent / "manifest.json").write_text("{"), "cannot be read"),
    ],
)
def test_unusable_weights_are_named(weights, capsys, spoil, reason):
    spoil(weights / "senet-0.09-w16.safetensors")
    with pytest.raises(ResultsError, match=reason):
        read_masks(weights)
