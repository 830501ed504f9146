"""Figures and tables of a paper: widths, fonts, what stands where, and LaTeX that prints what rows say."""

import dataclasses
import re

import matplotlib as mpl
import pandas as pd
import pytest
import test_figures
import test_figures_accuracy
from results_factory import make_accuracy, make_narrow_rows, make_row, make_rows, remember

from pibench import figures, report
from pibench.figures import drawing
from pibench.figures.command import main
from pibench.figures.style import drawn_on
from pibench.paper import write
from pibench.paper.tables import escape, latex_table, latex_tables
from pibench.report import statistics


@pytest.fixture(autouse=True, scope="module")
def remembered_intervals():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(statistics, "interval_of_median", remember(report.interval_of_median))
        yield


@pytest.fixture(scope="module")
def measured():
    return test_figures.tables(make_rows())


@pytest.fixture(scope="module")
def trained():
    wide = make_accuracy(width=64)
    return test_figures_accuracy.tables(make_accuracy() + wide, make_narrow_rows())


@pytest.mark.parametrize("name", write.IN_A_COLUMN)
def test_one_column_can_be_read(name, measured, trained):
    """No text lies over another, none is small, and the conditions are left to the caption."""
    tables = trained if "accuracy" in name else measured
    with mpl.rc_context(figures.STYLE), drawn_on(write.SHEETS["-column"]):
        figure = figures.FIGURES[name](tables)
        test_figures.check_texts(figure)
    assert figure.get_figwidth() == 3.3
    assert min(text.get_fontsize() for text in test_figures.drawn(figure)) >= 6
    assert "idth 16" in figure.get_label() or "idth 64" in figure.get_label()
    assert figure.get_supxlabel() == ""


def test_two_columns_are_the_pages_figures_without_small_print(measured):
    with mpl.rc_context(figures.STYLE):
        page = figures.linear_vs_relu(measured)
        with drawn_on(write.SHEETS[""]):
            paper = figures.linear_vs_relu(measured)
        assert figures.linear_vs_relu(measured).get_supxlabel() == page.get_supxlabel()
    assert paper.get_figwidth() == page.get_figwidth() == 7
    assert " ".join(page.get_supxlabel().split()) == paper.get_label()
    assert paper.get_supxlabel() == ""


def test_pdfs_have_the_paper_widths_and_embed_their_fonts(measured, tmp_path):
    for name in ("offline_online", "links"):
        assert "2 parties" in write.draw(name, measured, tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {
        "offline_online.pdf",
        "offline_online-column.pdf",
        "links.pdf",
    }
    for path in tmp_path.iterdir():
        pdf = path.read_bytes()
        assert b"/FontFile2" in pdf
        assert b"/Type3" not in pdf
        (width,) = re.findall(rb"/MediaBox \[ 0 0 ([\d.]+) ", pdf)
        assert float(width) == pytest.approx(72 * (3.3 if "column" in path.name else 7))


EVIL = r"a_b & 100% {x} #1 $2 ~ ^ \input{/etc/passwd} <y>"


def test_latex_prints_what_rows_say():
    said = escape(EVIL)
    assert said == (
        r"a\_b \& 100\% \{x\} \#1 \$2 \textasciitilde{} \textasciicircum{} "
        r"\textbackslash{}input\{/etc/passwd\} \textless{}y\textgreater{}"
    )
    assert escape("[1, 2]") == "{[}1, 2]"
    made = latex_table(pd.DataFrame({"a_%": [EVIL], "b": [1]}), "x", EVIL)
    assert made.count(said) == 2
    assert r"a\_\% & b \\" in made
    assert r"\input" not in made


def test_tables_are_booktabs_with_captions_labels_and_the_numbers(measured, trained):
    made = latex_tables(dataclasses.replace(measured, accuracy=trained.accuracy, pairs=trained.pairs))
    assert set(made) == {"headline", "links", "accuracy", "pairs"}
    for name, text in made.items():
        for part in (r"\toprule", r"\midrule", r"\bottomrule", r"\caption{", f"{{tab:pibench-{name}}}"):
            assert part in text
        lines = [line for line in text.splitlines() if line.endswith(r"\\")]
        assert len({line.count(" & ") for line in lines}) == 1
    summary = measured.summary.set_index("case")
    case = summary.loc[test_figures.case_id("joint-0.052", "lean")]
    (line,) = [line for line in made["headline"].splitlines() if line.startswith("joint-0.052 & lean")]
    assert f"{case['online_median_s']:.3g}" in line
    assert f"{case['online_speedup']:.2f}" in line
    assert r"\begin{table*}" in made["headline"]
    assert r"\begin{table}" in made["accuracy"]


def test_the_command_writes_figures_with_captions_beside_their_tables(tmp_path, capsys, monkeypatch):
    results = tmp_path / "results"
    results.mkdir()
    rows = [make_row(variant, "lean") for variant in ("baseline", "senet-0.09")]
    made = test_figures.tables(rows)
    for field in dataclasses.fields(made):
        if field.name != "masks":
            (results / f"{field.name}.csv").write_text(report.csv_text(getattr(made, field.name)))
    for name in set(figures.FIGURES) - {"latency_vs_relus", "stock_vs_lean"}:
        monkeypatch.delitem(figures.FIGURES, name)
    monkeypatch.setattr(drawing, "on_all_cores", lambda function, names: [function(name) for name in names])
    folders = ["--results", str(results), "--plots", str(tmp_path / "plots"), "--weights", str(tmp_path)]
    assert main([*folders, "--paper"]) == 0
    assert "plots/paper: 1 figures" in capsys.readouterr().out
    names = {path.name for path in (tmp_path / "plots" / "paper").iterdir()}
    drawn = {"latency_vs_relus.pdf", "latency_vs_relus-column.pdf", "figures.tex"}
    assert names == drawn | {"headline.tex", "pairs.tex"}
    floats = (tmp_path / "plots" / "paper" / "figures.tex").read_text()
    assert r"\includegraphics[width=\columnwidth]{latency_vs_relus-column.pdf}" in floats
    assert r"% \includegraphics[width=\textwidth]{latency_vs_relus.pdf}" in floats
    assert r"Bars: 95 \% intervals" in floats
    assert r"\label{fig:pibench-latency-vs-relus}" in floats
