"""The directions of imports, read from the sources."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
SOURCES = sorted(path for folder in ("models", "bench") for path in (ROOT / folder).rglob("*.py"))


def imports(path):
    """Returns the full names of all modules that a source imports when run, inside functions too."""
    package = path.relative_to(ROOT).parts[:-1]
    found = set()
    tree = ast.parse(path.read_text())
    guarded = {
        inner
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING"
        for branch in node.body
        for inner in ast.walk(branch)
    }
    for node in ast.walk(tree):
        if node in guarded:
            continue
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = list(package[: len(package) - node.level + 1]) if node.level else []
            module = ".".join([*base, *filter(None, [node.module])])
            found |= {module} | {f"{module}.{alias.name}" for alias in node.names}
    return found


def reaches(path, *packages):
    """Returns what a source imports of these packages."""
    return sorted(
        name
        for name in imports(path)
        if any(name == package or name.startswith(f"{package}.") for package in packages)
    )


def local_file(name):
    path = ROOT.joinpath(*name.split("."))
    for candidate in (path.with_suffix(".py"), path / "__init__.py"):
        if candidate.exists() and name.split(".")[0] in ("bench", "models"):
            return candidate
    return None


def reachable(path):
    """Returns the sources that importing this one runs, itself and the packages around it included."""
    found, waiting = set(), [path]
    while waiting:
        source = waiting.pop()
        if source in found:
            continue
        found.add(source)
        for name in imports(source) | {".".join(source.relative_to(ROOT).parts[:-1])}:
            parts = name.split(".")
            waiting += [
                file for end in range(1, len(parts) + 1) if (file := local_file(".".join(parts[:end])))
            ]
    return found


def named(path):
    return str(path.relative_to(ROOT))


@pytest.mark.parametrize("name", ["report", "figures"])
def test_importing_reports_and_figures_loads_neither_torch_nor_crypten(name):
    script = f"import sys, bench.{name}; sys.exit(bool(set(sys.modules) & {{'torch', 'crypten'}}))"
    subprocess.run([sys.executable, "-c", script], cwd=ROOT, check=True, capture_output=True)


def test_the_reader_sees_imports(tmp_path, monkeypatch):
    monkeypatch.setitem(globals(), "ROOT", tmp_path)
    path = tmp_path / "models" / "zoo" / "a.py"
    path.parent.mkdir(parents=True)
    path.write_text(
        "import crypten.mpc as c\ndef f():\n    from ..b import d\n    from . import e\nimport bench\n"
        "if TYPE_CHECKING:\n    import torch\n"
    )
    assert imports(path) == {
        *(
            "crypten.mpc",
            "pibench.models.b",
            "pibench.models.b.d",
            "pibench.models.zoo",
            "pibench.models.zoo.e",
            "bench",
        ),
    }
    assert reaches(path, "crypten", "bench") == ["bench", "crypten.mpc"]
    assert reaches(path, "cryp") == []
    (tmp_path / "bench").mkdir()
    (tmp_path / "bench" / "__init__.py").write_text("import torch")
    assert reachable(path) == {path, tmp_path / "bench" / "__init__.py"}


@pytest.mark.parametrize("path", [p for p in SOURCES if named(p).startswith("models")], ids=named)
def test_models_import_neither_bench_nor_crypten(path):
    assert reaches(path, "bench", "crypten", "torchvision") == []


TRANSFORMS = [path for path in SOURCES if path.parent.name == "transforms" and path.name != "__init__.py"]


@pytest.mark.parametrize("path", TRANSFORMS, ids=named)
def test_transforms_do_not_import_each_other(path):
    assert reaches(path, "pibench.models.transforms") == []
    allowed = ("pibench.models.graph.moves", "pibench.models.graph.relu", "pibench.models.graph.convolution")
    assert [name for name in reaches(path, "models") if not name.startswith(allowed)] == []


def test_there_are_transforms():
    assert len(TRANSFORMS) >= 7


@pytest.mark.parametrize("name", ["report", "figures"])
def test_reports_and_figures_need_neither_torch_nor_crypten(name):
    package = ROOT / "bench" / name
    sources = {source for path in package.glob("*.py") for source in reachable(path)}
    assert package / "command.py" in sources
    for source in sources:
        assert reaches(source, "torch", "crypten") == [], named(source)


@pytest.mark.parametrize("path", [p for p in SOURCES if named(p).startswith("bench")], ids=named)
def test_crypten_is_imported_through_compat_alone(path):
    found = reaches(path, "crypten")
    if named(path) == "bench/compat.py" or not found:
        return
    assert (ROOT / "bench" / "engines") in path.parents, f"{named(path)} imports {found}"
    assert reaches(path, "pibench.engines.crypten.compat"), (
        f"{named(path)} imports {found} without pibench.engines.crypten.compat before it"
    )


ROWS = ("pibench.models.training.rows", "pibench.models.training.files.TrainingError")


@pytest.mark.parametrize("path", [p for p in SOURCES if named(p).startswith("bench")], ids=named)
def test_nothing_in_bench_reaches_past_the_variants_into_training(path):
    """Only the command that adds to the rows of accuracy.json knows them, and how they fail."""
    found = reaches(path, "pibench.models.training", "torchvision")
    if named(path) == "bench/accuracy.py":
        assert [name for name in found if not name.startswith(ROWS)] == ["pibench.models.training.files"]
    else:
        assert found == []


@pytest.mark.parametrize("path", [p for p in SOURCES if "engines" in p.parts], ids=named)
def test_engines_know_programs_and_not_networks(path):
    assert (
        reaches(path, "models", "pibench.program.lower", "pibench.parties.driver", "pibench.measure.cases")
        == []
    )
