"""The directions of imports, read from the sources: bench/ is `pibench`, models/ is `pibench.models`."""

import ast
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGE = "pibench"

NETWORKS = ("models", "models.facts", "models.reductions", "models.transforms", "models.graph", "models.zoo")

# Each room and the rooms that it may import. A room is a package, or a part of one that ROOM_OF names.
MAY_IMPORT = {
    "entry points": (
        *("measure", "models.training", "costs", "costs.literature", "report", "figures"),
        *("page", "paper", "hosts", "parties", "engines", "links", "program", "store", *NETWORKS),
    ),
    "measure": (
        *("costs", "costs.literature", "hosts", "parties", "engines", "links"),
        *("program", "program.ir", "store", *NETWORKS),
    ),
    "hosts": ("parties", "engines", "links", "program.ir", "store"),  # the program is part of a message
    "parties": ("engines", "links", "program", "program.ir"),
    "costs": ("costs.literature", "engines", "links", "program", "program.ir", "models.facts"),
    "costs.literature": ("links", "program.ir"),
    "engines": ("links", "program.ir", "program.plaintext"),
    "links": (),
    "program": ("program.ir", "program.plaintext", "models.graph"),
    "program.ir": (),
    "program.plaintext": ("program.ir",),
    "report": ("store", "models.facts", "costs.literature", "links"),
    "figures": ("store", "models.facts"),
    "page": ("report", "figures", "store", "models.facts"),
    "paper": ("report", "page", "figures", "store", "models.facts"),
    "store": ("models.facts", "engines", "links"),  # descriptions of engines and links: data alone
    "models.training": NETWORKS,
    "models": ("models.facts", "models.reductions", "models.transforms", "models.graph", "models.zoo"),
    "models.reductions": (
        *("models", "models.facts", "models.training"),  # the training code; it imports torch when it trains
        *("models.transforms", "models.graph", "models.zoo"),
    ),
    "models.transforms": ("models.graph",),
    "models.zoo": ("models.graph", "models.facts"),  # the layout of a network
    "models.graph": (),
    "models.files": (),
    "models.facts": ("models.reductions",),  # the catalogue reads the reductions' files
}

# Files that are written whole, and signals: every room may import this one, which imports none.
EVERYWHERE = ("models.files",)

# Modules with their own room, or one shared with others; any other source is in the room of its package.
ROOM_OF = {
    "": "entry points",
    **dict.fromkeys(
        ("api", "cli", "cluster", "conftest", "doctor", "live", "show", "bench_latency", "bench_operators"),
        "entry points",
    ),
    **dict.fromkeys(
        ("hosts.join", "report.command", "report.__main__", "figures.command", "figures.__main__"),
        "entry points",
    ),
    "program.ir": "program.ir",
    **dict.fromkeys(("program.plaintext", "program.fixed_point"), "program.plaintext"),
    "costs.literature": "costs.literature",
    **dict.fromkeys(("models.files", "models.interrupt"), "models.files"),
    **dict.fromkeys(
        (
            "models.base",
            "models.catalogue",
            "models.commands",
            "models.decisions",
            "models.layout",
            "models.machine",
            "models.manifest",
            "models.pairs",
            "models.published",
            "models.rows",
        ),
        "models.facts",
    ),
}

# Imports that still break the table; a line that is no longer needed fails.
ALLOWED = {
    ("hosts.agreement", "models"),
    ("hosts.agreement", ""),
    ("costs.predict", "models.data"),
    ("costs.predict", "models.variants"),
    ("measure.accuracy", "models.training.files"),
    ("measure.accuracy", "models.training.rows"),
}


def module_of(path):
    """Returns the name of a source below the package: bench/a/b.py -> `a.b`, models/c.py -> `models.c`."""
    parts = list(path.relative_to(ROOT).with_suffix("").parts)
    if parts[0] == "bench":
        del parts[0]
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


SOURCES = {
    module_of(path): path for folder in ("bench", "models") for path in sorted((ROOT / folder).rglob("*.py"))
}


@cache
def imports(path, package=None, called=True):
    """Returns the full names of all modules that a source imports when run, inside functions too if `called`.

    `package` is the start of relative imports. Imports that only a type checker runs are left out.
    """
    tree = ast.parse(path.read_text())
    guarded = {
        inner
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING"
        for branch in node.body
        for inner in ast.walk(branch)
    }
    if not called:
        functions = [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)]
        guarded |= {inner for function in functions for inner in ast.walk(function)}
    found = set()
    for node in ast.walk(tree):
        if node in guarded:
            continue
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = package.split(".") if node.level else []
            base = base[: len(base) - node.level + 1]
            module = ".".join([*base, *filter(None, [node.module])])
            found |= {f"{module}.{alias.name}" for alias in node.names}
    return frozenset(found)


def imports_of(module, called=True):
    name = f"{PACKAGE}.{module}".rstrip(".")
    is_package = SOURCES[module].name == "__init__.py"
    return imports(SOURCES[module], name if is_package else name.rpartition(".")[0], called)


def outside(module, *packages, called=True):
    """Returns what a source imports of these packages, which are not ours."""
    return sorted(name for name in imports_of(module, called) if name.split(".")[0] in packages)


def ours(module, called=True):
    """Returns the modules of the package that a source imports, a name in a module being that module."""
    found = set()
    for name in imports_of(module, called):
        if name.split(".")[0] != PACKAGE:
            continue
        inner = name.removeprefix(PACKAGE).lstrip(".")
        while inner not in SOURCES:
            inner = inner.rpartition(".")[0]
        found.add(inner)
    return found


# Engines and reductions describe themselves; they import their work only when it is called.
DESCRIBED = ("engines", "models.reductions")


def reachable(module):
    """Returns the modules that this one runs, including itself and the packages around it.

    Functions of modules that only describe themselves are not called.
    """
    found, waiting = set(), [module]
    while waiting:
        name = waiting.pop()
        if name in found:
            continue
        found.add(name)
        waiting += ours(name, called=room_of(name) not in DESCRIBED)
        if name:
            waiting.append(name.rpartition(".")[0])
    return found


def room_of(module):
    """Returns the room of a module: the longest beginning of its name that is a room."""
    inner = module
    while inner not in ROOM_OF and inner not in MAY_IMPORT:
        inner = inner.rpartition(".")[0]
        assert inner, f"{module} is in no room: name its room in MAY_IMPORT or ROOM_OF"
    return ROOM_OF.get(inner, inner)


def in_room(*rooms):
    return [module for module in SOURCES if room_of(module) in rooms]


@pytest.mark.parametrize("module", SOURCES)
def test_a_room_imports_the_rooms_below_it(module):
    room = room_of(module)
    for other in ours(module):
        if room_of(other) in (room, *MAY_IMPORT[room], *EVERYWHERE) or (module, other) in ALLOWED:
            continue
        pytest.fail(f"{module} ({room}) imports {other} ({room_of(other)}), which is no room below it")


def test_the_table_is_what_the_sources_need():
    assert {room for rooms in MAY_IMPORT.values() for room in rooms} <= set(MAY_IMPORT)
    assert {room_of(module) for module in SOURCES} == set(MAY_IMPORT)
    needed = {
        (module, other)
        for module in SOURCES
        for other in ours(module)
        if room_of(other) not in (room_of(module), *MAY_IMPORT[room_of(module)], *EVERYWHERE)
    }
    assert needed == ALLOWED


def test_the_reader_sees_imports(tmp_path):
    path = tmp_path / "a.py"
    path.write_text(
        "import crypten.mpc as c\ndef f():\n    from ..b import d\n    from . import e\nimport bench\n"
        "if TYPE_CHECKING:\n    import torch\n"
    )
    assert imports(path, "pibench.models.zoo") == {
        *("crypten.mpc", "pibench.models.b.d", "pibench.models.zoo.e", "bench"),
    }
    assert ours("measure.accuracy") >= {"program.lower", "models.data"}
    assert outside("engines.crypten.compat", "crypten") == ["crypten"]
    assert outside("engines.crypten.compat", "cryp") == []
    assert reachable("engines.base") >= {"", "engines", "links.link", "program.ir"}
    assert (room_of("models.zoo.vgg"), room_of("models.data"), room_of("")) == (
        *("models.zoo", "models", "entry points"),
    )
    with pytest.raises(AssertionError, match="in no room"):
        room_of("attic.old")


def test_no_source_meets_the_folders_by_their_names_on_disk():
    """A user's own `models`, `bench` or tests must never be imported instead."""
    for module in SOURCES:
        assert outside(module, "models", "bench", "tests", "conftest") == [], module
        assert "conftest" not in ours(module), module


@pytest.mark.parametrize("module", in_room(*(room for room in MAY_IMPORT if room.startswith("models"))))
def test_networks_know_nothing_of_the_suite(module):
    assert {other.split(".")[0] for other in ours(module)} <= {"models"}
    assert outside(module, "crypten", "torchvision") == []


@pytest.mark.parametrize("module", [m for m in in_room("models.transforms") if m != "models.transforms"])
def test_transforms_do_not_import_each_other(module):
    assert [other for other in ours(module) if room_of(other) == "models.transforms"] == []


def test_there_are_transforms():
    assert len(in_room("models.transforms")) >= 8


@pytest.mark.parametrize("room", ["report", "figures"])
def test_reports_and_figures_need_neither_torch_nor_crypten(room):
    sources = {source for module in (*in_room(room), f"{room}.command") for source in reachable(module)}
    assert {f"{room}.command", "page.build", "paper.write"} & sources
    for source in sources:
        called = room_of(source) not in DESCRIBED
        assert outside(source, "torch", "crypten", called=called) == [], source


LIGHT = [
    *("report", "figures", "store", "costs.literature", "measure.suites", "links"),
    *("models.catalogue", "models.base", "models.published"),
]


@pytest.mark.parametrize("module", LIGHT)
def test_what_must_be_light_is_imported_without_torch_and_crypten(module):
    script = f"import sys, pibench.{module}; sys.exit(bool(set(sys.modules) & {{'torch', 'crypten'}}))"
    subprocess.run([sys.executable, "-c", script], check=True, capture_output=True, timeout=60)


@pytest.mark.parametrize("module", in_room("links"))
def test_links_need_neither_torch_nor_crypten(module):
    assert outside(module, "torch", "crypten") == []


def test_a_program_needs_numpy_alone():
    outer = {name.split(".")[0] for name in imports_of("program.ir")} - {PACKAGE}
    assert outer - set(sys.stdlib_module_names) == {"numpy"}
    test_what_must_be_light_is_imported_without_torch_and_crypten("program.ir")


@pytest.mark.parametrize("path", sorted((ROOT / "models" / "reductions").glob("*.py")), ids=lambda p: p.stem)
def test_a_reduction_is_imported_without_torch(path):
    test_what_must_be_light_is_imported_without_torch_and_crypten(module_of(path))


@pytest.mark.parametrize("module", SOURCES)
def test_crypten_is_imported_through_compat_alone(module):
    found = outside(module, "crypten")
    if module == "engines.crypten.compat" or not found:
        return
    assert module.startswith("engines.crypten."), f"{module} imports {found}"
    assert "engines.crypten.compat" in ours(module), f"{module} imports {found} without compat before it"
