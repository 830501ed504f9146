"""The descriptions of engines, and the imports of a process of one."""

from __future__ import annotations

import ast
import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from pibench.engines import ENGINES, engine_named
from pibench.engines.base import EngineMissing
from pibench.models.variants import variant
from pibench.models.zoo.resnet import resnet18, resnet20
from pibench.parties.driver import Parties
from pibench.program.lower import lower


@pytest.mark.parametrize("engine", ENGINES.values(), ids=ENGINES)
def test_an_engine_describes_itself(engine):
    assert engine.label
    assert engine.trust
    assert "\n" not in engine.trust
    assert engine.clocks in (("offline", "online"), ("all_phases",))
    assert engine.helpers(engine.provider) == engine.providers[engine.provider]
    assert set(engine.serving) <= {role for roles in engine.providers.values() for role in roles}
    with pytest.raises(ValueError, match=f"the {engine.name} engine has no provider 'x'; choose one of"):
        engine.helpers("x")
    with pytest.raises(ValueError, match=f"the {engine.name} engine runs with .* parties, not 9"):
        engine.demand_parties(9)


def test_the_yardstick_is_not_offered():
    assert [name for name, engine in ENGINES.items() if not engine.offered] == ["byhand", "spu-byhand"]


def branches_on_an_engines_name(source):
    """Lists the lines of tests such as `engine == "lean"` or `"lean" in engines`."""
    return [
        node.lineno
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.Compare)
        for side in (node.left, *node.comparators)
        for constant in ast.walk(side)
        if isinstance(constant, ast.Constant) and constant.value in ENGINES
    ]


def test_nothing_outside_an_engines_folder_branches_on_its_name():
    assert branches_on_an_engines_name('if engine in ("x", "lean"):\n    pass') == [1]
    bench = Path(__file__).parent.parent / "bench"
    sources = [path for path in bench.rglob("*.py") if bench / "engines" not in path.parents]
    assert len(sources) > 50
    assert {
        path.name: found for path in sources if (found := branches_on_an_engines_name(path.read_text()))
    } == {}


def test_unknown_engines_are_refused_with_the_known_ones():
    with pytest.raises(ValueError, match="unknown engine 'x'; choose one of stock, lean"):
        engine_named("x")


def test_a_network_by_hand_refuses_every_other():
    def program(model):
        return lower(model.eval(), torch.zeros(1, 3, 32, 32)).program

    for engine in ("byhand", "spu-byhand"):
        assert ENGINES[engine].value_limits(program(variant("baseline").build(width=8))) == {}
    for other in (
        variant("senet-0.36").build(width=8),
        resnet18(width=8, stem="imagenet"),
        resnet20(width=4),
    ):
        with pytest.raises(NotImplementedError, match=r"runs only the CIFAR ResNet-18 .* use engine='stock'"):
            ENGINES["byhand"].value_limits(program(other))


def test_an_engine_whose_package_is_missing_is_listed_and_says_how_to_install_it(monkeypatch):
    lacking = replace(
        ENGINES["lean"], name="other", modules=("numpy", "no_such_package"), install="pip install x"
    )
    monkeypatch.setitem(ENGINES, "other", lacking)
    assert ENGINES["lean"].missing() is None
    said = r"the other engine needs no_such_package, .* with: pip install x"
    with pytest.raises(EngineMissing, match=said):
        Parties(engine="other")


def imported(code: str) -> set[str]:
    """Returns the top-level modules that a fresh process has imported after `code`."""
    tell = "import sys, json; print(json.dumps(sorted({name.split('.')[0] for name in sys.modules})))"
    done = subprocess.run(
        [sys.executable, "-c", f"{code}; {tell}"], capture_output=True, text=True, check=True
    )
    return set(json.loads(done.stdout))


def test_a_setting_with_which_numba_does_not_start_is_named():
    code = "from pibench.engines import ENGINES; ENGINES['lean'].compile_all()"
    environment = os.environ | {"NUMBA_NUM_THREADS": "0"}
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=False
    )
    assert "numba cannot be imported (Number of threads" in done.stderr
    assert done.stderr.splitlines()[-1].endswith("unset NUMBA_NUM_THREADS, or set it to 1 or more")


def test_reading_what_engines_say_needs_no_framework():
    found = imported("from pibench.engines import ENGINES; import pibench.links")
    assert found.isdisjoint({"torch", "crypten", "numba", "pandas", "matplotlib"})


def test_a_worker_imports_no_engine_before_it_knows_its_own():
    found = imported("import pibench.parties.worker")
    assert found.isdisjoint({"crypten", "numba", "pandas", "matplotlib", "scipy"})


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="needs /proc")
@pytest.mark.usefixtures("started")
def test_a_lean_party_never_loads_crypten_and_a_worker_draws_nothing(block, images):
    with Parties(engine="lean", timeout_s=60) as parties:
        parties.load(block, images)
        parties.prepare()
        assert torch.isfinite(parties.infer(images[:1])).all()
        for pid in parties.pids:
            maps = Path(f"/proc/{pid}/maps").read_text()
            assert "torch" in maps
            assert "pandas" not in maps
            assert "matplotlib" not in maps
    found = imported("import pibench.engines.lean.node, pibench.engines.lean.dealer, pibench.parties.worker")
    assert found.isdisjoint({"crypten", "pandas", "matplotlib"})
