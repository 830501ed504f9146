"""Examples in docstrings and the notebook's cells: what they show is so."""

import doctest
import json
import re
from importlib import import_module
from pathlib import Path

import matplotlib.pyplot as plt
import pytest

ROOT = Path(__file__).parent.parent
MODULES = (
    "api",
    "models.graph.attention",
    "models.graph.polynomial",
    "models.transforms.bilinear_layers",
    "links.link",
    "links.model",
    "models.base",
    "paper.tables",
    "report.cells",
)
NOTEBOOK = ROOT / "docs" / "notebook.ipynb"


@pytest.mark.parametrize("name", MODULES)
def test_examples_of_functions(name):
    done = doctest.testmod(import_module(f"pibench.{name}"), optionflags=doctest.ELLIPSIS)
    assert done.attempted > 0
    assert done.failed == 0


def test_no_example_is_left_out():
    sources = [path for folder in ("bench", "models") for path in (ROOT / folder).rglob("*.py")]
    shown = {path for path in sources if re.search(r"^ +>>> ", path.read_text(), re.MULTILINE)}
    places = {f"pibench.{name}".replace(".", "/") for name in MODULES}
    listed = {
        ROOT / (place.removeprefix("pibench/") if "models/" in place else f"bench/{place[8:]}")
        for place in places
    }
    assert {path.with_suffix("") for path in shown} == listed


def test_the_notebook_runs(tmp_path, monkeypatch):
    """Its cells run one after the other in one process; the last frame and the figure are checked."""
    monkeypatch.chdir(tmp_path)
    notebook = json.loads(NOTEBOOK.read_text())
    assert notebook["nbformat"] == 4
    cells = [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]
    assert all(cell["outputs"] == [] for cell in cells)
    seen = {"__name__": "notebook"}
    try:
        for cell in cells:
            exec(compile("".join(cell["source"]), NOTEBOOK.name, "exec"), seen)
        frame = seen["frame"].set_index("variant")
        assert (frame["online_median_s"] > 0).all()
        assert frame["rounds"]["Smaller"] < frame["rounds"]["Original"]
        lean = seen["cost"].query("name == 'lean'")
        assert set(lean["bytes_sent"]) == {frame["bytes_sent"]["Original"]}
        assert len(seen["axes"].patches) == 4
    finally:
        plt.close("all")
