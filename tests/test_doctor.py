"""What `pibench doctor` says of a machine: each check where all is well and where it is not."""

import json

import pandas as pd
import pytest
import torch
from typer.testing import CliRunner

from pibench import doctor
from pibench.cli import app
from pibench.engines import ENGINES
from pibench.parties.driver import Parties

MACHINE = {"cpu": "A fast one", "cores": 4, "memory_bytes": 8e9, "system": "Linux 6", "python": "3.11.7"}


def found(what):
    """Returns state and words of one check of the machine."""
    lines = {name: (state, said) for name, state, said in doctor._machine()}
    return lines[what]


@pytest.fixture(autouse=True)
def well(monkeypatch, tmp_path):
    """A machine on which all is well."""
    governor = tmp_path / "governor"
    governor.write_text("performance\n")
    monkeypatch.setattr(doctor, "GOVERNOR", governor)
    monkeypatch.setattr(doctor, "machine", lambda: dict(MACHINE))
    monkeypatch.setattr(doctor, "commit", lambda: ("0123456789abcdef", False))
    monkeypatch.setattr(doctor, "versions", lambda: {"torch": "2.13.0", "crypten": None})
    monkeypatch.setattr(doctor.os, "getloadavg", lambda: (0.2, 0.2, 0.2))
    monkeypatch.setattr(doctor, "available_memory", lambda: 8e9)
    return governor


def test_a_machine_on_which_all_is_well():
    assert {state for _, state, _ in doctor._machine()} == {"ok"}
    assert found("machine")[1] == "A fast one, Linux 6, Python 3.11.7"
    assert found("commit")[1] == "0123456789"
    assert found("versions")[1] == "torch 2.13.0, crypten missing"
    assert found("cores")[1].startswith("4;")
    assert found("threads")[1].startswith(f"{torch.get_num_threads()} here")
    assert found("governor")[1] == "performance"
    assert found("memory")[1].startswith("8.0 GB free")


def test_what_is_not_well_is_said(monkeypatch, well):
    well.write_text("powersave\n")
    monkeypatch.setattr(doctor, "machine", lambda: MACHINE | {"cores": 1})
    monkeypatch.setattr(doctor, "commit", lambda: ("0123456789abcdef", True))
    monkeypatch.setattr(doctor.os, "getloadavg", lambda: (3.9, 0.2, 0.2))
    monkeypatch.setattr(doctor, "available_memory", lambda: 1e9)
    assert found("commit")[1] == "0123456789 with changes"
    assert found("cores") == ("look", "1; two parties of one thread each need two")
    assert found("load") == ("look", "3.9 over the last minute; measure on an idle machine")
    assert found("governor") == ("look", "powersave; set it to performance before measuring")
    assert found("memory") == ("look", "1.0 GB free; width 64 on stock needs 4")


def test_what_a_system_does_not_tell_is_no_failure(monkeypatch, well):
    well.unlink()
    monkeypatch.setattr(doctor, "commit", lambda: (None, None))
    monkeypatch.setattr(doctor, "available_memory", lambda: None)
    assert found("commit") == ("ok", "not in a checkout")
    assert found("governor") == ("ok", "not told by this system")
    assert "memory" not in {name for name, _, _ in doctor._machine()}


@pytest.mark.parametrize("engine", [name for name, known in ENGINES.items() if known.offered])
def test_the_self_test_of_an_installed_engine_passes(engine):
    if ENGINES[engine].missing() is not None:
        pytest.skip(f"{engine} is not installed")
    name, state, said = doctor._engine(engine)
    assert (name, state) == (engine, "ok" if float(said.split()[2]) <= doctor.SLOW_S else "look")
    assert said.startswith("right answer, ")
    assert said.endswith(" Gbit/s")


def test_an_engine_that_is_not_installed_says_what_installs_it(monkeypatch):
    monkeypatch.setattr(type(ENGINES["lean"]), "missing", lambda engine: "pip install it")
    assert doctor._engine("lean") == ("lean", "missing", "pip install it")


def test_a_wrong_answer_and_whatever_an_engine_raises_are_failures(monkeypatch):
    infer = Parties.infer
    monkeypatch.setattr(Parties, "infer", lambda parties, images: infer(parties, images) + 1)
    _, state, said = doctor._engine("lean")
    assert (state, said[:20]) == ("FAILS", "the answer is off by")

    def broken(parties, images):
        raise ZeroDivisionError("a fault\nof a package")

    monkeypatch.setattr(Parties, "infer", broken)
    assert doctor._engine("lean") == ("lean", "FAILS", "a fault")


@pytest.mark.parametrize(("state", "status"), [("ok", 0), ("look", 0), ("missing", 0), ("FAILS", 1)])
def test_only_a_failing_engine_is_an_exit_status(monkeypatch, state, status):
    frame = pd.DataFrame([("lean", state, "something")], columns=["what", "state", "said"])
    monkeypatch.setattr(doctor, "examine", lambda: frame)
    result = CliRunner().invoke(app, ["doctor", "--json"])
    assert result.exit_code == status
    assert json.loads(result.stdout) == [{"what": "lean", "state": state, "said": "something"}]
