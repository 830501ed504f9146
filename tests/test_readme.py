"""README and docs: their numbers are the reference's, their links lead somewhere, their Python runs."""

import re
from pathlib import Path

import pandas as pd
import pytest

from pibench.models.pairs import PAIRS
from pibench.report.reference import main

ROOT = Path(__file__).parent.parent
REFERENCE = ROOT / "results" / "reference"
PAGES = sorted(
    path.relative_to(ROOT).as_posix() for path in (*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"))
)
LINK = re.compile(r"\]\(([^)\s]+)\)")
RUNNABLE = re.compile(r"^```python\n(.*?)^```", re.DOTALL | re.MULTILINE)
BLOCKS = [
    pytest.param(path, block, id=f"{path}-{place}")
    for path in PAGES
    for place, block in enumerate(RUNNABLE.findall((ROOT / path).read_text()))
]


def test_readme_pages_and_tables_are_those_of_the_committed_rows(monkeypatch):
    monkeypatch.chdir(ROOT)
    assert main(["--check"]) == 0


def test_the_readme_is_short():
    assert len((ROOT / "README.md").read_text().splitlines()) <= 165


@pytest.mark.parametrize("page", PAGES)
def test_every_link_leads_to_a_file_or_a_heading(page):
    path = ROOT / page
    text = path.read_text()
    for target in LINK.findall(text):
        if target.startswith("https://"):
            continue
        file, _, heading = target.partition("#")
        found = path if not file else path.parent / file
        assert found.exists(), f"{page} links to {target}, which is not there"
        where = found.resolve().relative_to(ROOT).parts
        assert where[0] not in ("results", "plots") or where[1] == "reference", f"{target} is not committed"
        if heading:
            headings = re.findall(r"^#+ (.+)$", found.read_text(), re.MULTILINE)
            anchors = [re.sub(r"[^\w\- ]", "", each).lower().replace(" ", "-") for each in headings]
            assert heading in anchors, f"{page} links to {target}, a heading that is not there"


@pytest.mark.parametrize("page", PAGES)
def test_every_module_and_file_that_is_named_is_there(page):
    text = (ROOT / page).read_text()
    for module in set(re.findall(r"python -m (pibench[\w.]*)", text)):
        path = ROOT / {"models": "models"}.get(module.split(".")[1], "bench")
        path = path.joinpath(*module.split(".")[2 if module.startswith("pibench.models") else 1 :])
        assert path.with_suffix(".py").exists() or (path / "__main__.py").exists(), module
    for file in set(re.findall(r"`((?:bench|models|tests|docs)/[\w/.]+\.\w+)`", text)):
        assert (ROOT / file).exists(), f"{page} names {file}, which is not there"
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    for target in set(re.findall(r"`make ([a-z]+)", text)):
        assert target in targets, f"{page} names `make {target}`, which is not there"


@pytest.mark.parametrize(("page", "block"), BLOCKS)
def test_python_in_the_docs_runs(page, block, tmp_path, monkeypatch):
    """Every block stands alone; one of two hosts only has to be Python."""
    code = compile(block, page, "exec")
    if "Remote(" in block:
        return
    monkeypatch.chdir(tmp_path)
    exec(code, {"__name__": page})


def test_the_words_of_the_findings_hold_for_their_numbers():
    """The numbers are computed; these are what the sentences around them say."""
    summary, pairs, equal, curves = (
        pd.read_csv(REFERENCE / f"{name}.csv", low_memory=False)
        for name in ("summary", "pairs", "equal_latency", "iso_accuracy")
    )
    usual = (summary["width"] == 64) & (summary["batch"] == 1) & (summary["timing"] == "measured")
    cases = summary[usual & (summary["role"] != "extra")].set_index(["variant", "engine"])
    faster = cases["online_speedup"]
    for engine in ("stock", "lean"):
        assert faster["senet-0.09", engine] < 1.5  # little time
        assert faster["joint-0.09", engine] > faster["senet-0.09", engine]
    for engine in ("stock", "lean"):
        assert faster["merged-exact", engine] < faster["joint-0.052", engine]
    assert cases["macs"]["merged-exact", "lean"] > cases["macs"]["baseline", "lean"]
    equal_budget = pairs["joint"] == "joint-0.09"
    assert pairs[equal_budget].set_index("width").loc[64, "seeds"] == 1
    budgets = pd.MultiIndex.from_frame(pairs[["senet", "joint"]]).isin(PAIRS)
    others = pairs[budgets & pairs["width"].isin([16, 64])].dropna(subset=["accuracy_difference"])
    assert len(others) == 10
    assert (others["accuracy_difference"] < 0).all()
    assert set(curves["width"]) == {16, 64}
    for name in ("macs", "stock_online", "lean_online"):  # saves layers and time
        assert (curves[f"{name}_ratio"].dropna() > 1).all()
    assert set(equal["width"]) == {16}
    assert (equal["accuracy_difference"] > 0).sum() > len(equal) / 2
