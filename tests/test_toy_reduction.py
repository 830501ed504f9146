"""The promise of the house: a reduction is one file. This one is in a folder of the test."""

import sys
from dataclasses import replace

import pytest
import torch
from matplotlib.text import Text
from training_setup import CLASSES, tiny_images, tiny_run

from pibench.figures.data import CSVS, Tables
from pibench.figures.variants import latency_vs_relus
from pibench.measure.case import Case
from pibench.measure.session import Session
from pibench.models import catalogue, reductions
from pibench.models.training.phases import plan_named, planned
from pibench.models.training.rows import finish_row
from pibench.models.variants import VARIANTS, variant
from pibench.models.weights import file_name, load, read_weights
from pibench.report import accuracy_section, headline_section, read_report

TOY = '''
"""toy: keeps the ReLU layers whose activations are largest."""
from pibench.models.base import Family, Variant
from pibench.models.decisions import Step
from pibench.models.reductions import baseline
from pibench.models.training.phases import Phase
from pibench.models.training.schedules import Schedule

FAMILIES = (Family("toy", "toy", "this test", "Whole layers go, by size.", "#777777", "x", 90),)
SCHEDULES = {"toy": {"long": Schedule(1, 0.01, batch=40)}}


def removed(names):
    return (Step("linearize_relus", {"keep": dict.fromkeys(names, False)}),)


def structure(layout):
    return removed(layout.relus[1::2])


def trained(variant, plan):
    def task(run, start):
        from pibench.models.training.relus import cut_relus
        from pibench.models.training.tasks.supervised import Supervised

        return Supervised(cut_relus(start.model, run.layout.relus[::3]), plan["toy"])

    def chosen(run, task):
        return removed(run.layout.relus[::3])

    return Phase(variant.name, plan["toy"], task, (baseline.trained(variant, plan),), chosen=chosen)


VARIANTS = (Variant("toy", trained, structure), Variant("toy-0.5", structure=structure))
'''


@pytest.fixture
def toy(tmp_path, monkeypatch):
    """Adds the reduction to the catalogue."""
    (tmp_path / "toy.py").write_text(TOY)
    monkeypatch.setattr(reductions, "__path__", [*reductions.__path__, str(tmp_path)])
    catalogue.clear()
    yield
    sys.modules.pop("pibench.models.reductions.toy", None)
    vars(reductions).pop("toy", None)
    catalogue.clear()


def test_it_is_in_the_catalogue_built_and_not_trained_yet(toy):
    assert catalogue.families()["toy"].label == "toy"
    assert catalogue.variant_names()[-2:] == ("toy", "toy-0.5")
    model = variant("toy").build(2, None, classes=CLASSES)
    assert model.meta["trained"] is False
    assert "toy" in VARIANTS
    with pytest.raises(ValueError, match=r"toy-0\.5 is not trained: its reduction declares no phase"):
        planned(variant("toy-0.5"), plan_named("long"))


def test_it_is_trained_and_what_it_chose_is_saved_and_loaded(toy, tmp_path):
    plan = plan_named("long").changed({"baseline.epochs": 1, "baseline.batch": 40})
    run = tiny_run(tmp_path, plan=plan)
    assert run.setting.images.steps(40) == 2  # two steps of training
    trained = run.trained("toy")
    assert planned(variant("toy"), plan) == {"baseline": 1, "toy": 1}
    row = finish_row(run, "toy", trained, None, {}, tmp_path / "weights")
    path = tmp_path / "weights" / file_name("toy", 2)
    (removed, _) = read_weights(path).decisions.steps
    assert removed.transform == "linearize_relus"
    assert list(removed.arguments["keep"]) == list(run.layout.relus[::3])  # chosen, not the variant's own
    x = torch.cat(list(tiny_images().sample(20)))
    expected, answer = trained.model(x), load(path)(x)
    assert (answer - expected).abs().max() < 0.03 * expected.std()
    assert row["phases"] == {"baseline": 1, "toy": 1}


def test_it_is_measured_reported_and_drawn(toy, tmp_path):
    baseline = Case("baseline", engine="lean", width=8, rounds=2, warm_up=False, profiles=1)
    measured = replace(baseline, variant="toy", reference=baseline)
    with Session([baseline, measured], tmp_path / "results", run="toy") as session:
        rows = [session.measure(case) for case in (baseline, measured)]
    assert rows[1]["answer"]["max_error"] < rows[1]["answer"]["tolerance"] * rows[1]["answer"]["spread"]
    assert rows[1]["cost"]["relu_layers"] == 9  # every second of the 17 is gone
    assert rows[1]["traffic"]["rounds"] < rows[0]["traffic"]["rounds"]
    report = read_report(tmp_path / "results")
    line = report.summary.set_index("variant").loc["toy"]
    assert line["online_speedup"] > 0
    assert "`toy`" in headline_section(report.rows, report.summary)
    parts = (report.accuracy, report.pairs, report.equal_latency, report.iso_accuracy, report.tries)
    (said,) = [
        line for line in accuracy_section(*parts, report.rows).splitlines() if line.startswith("| `toy` |")
    ][:1]
    assert "not trained yet" in said
    figure = latency_vs_relus(Tables(*(getattr(report, name) for name in CSVS)))
    assert "toy" in [text.get_text() for text in figure.findobj(Text)]


def test_it_is_gone_after_the_test():
    assert "toy" not in catalogue.variant_names()
    assert "toy" not in VARIANTS
