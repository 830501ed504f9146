import json
import os
import re
import signal
import subprocess
import sys
import textwrap
import time

import pandas as pd
import pytest
import torch
from results_factory import make_protocol_row, make_row
from typer.testing import CliRunner
from warm_workers import forked_networks

import pibench
from pibench import cli
from pibench.cli import app
from pibench.engines import ENGINES
from pibench.models.catalogue import variant_names
from pibench.show import cost_tables
from pibench.store.results import Store, read_rows


def call(*arguments, status=0):
    """Runs the command in this process; returns what it printed, or its complaint where it must fail."""
    result = CliRunner().invoke(app, list(arguments))
    assert result.exit_code == status, result.output + repr(result.exception)
    return result.stdout if status == 0 else " ".join(result.output.split())


OWN = {
    "data.py": "CLASSES = 7\n",
    "models/__init__.py": "",
    "models/net.py": """
        import torch
        from torch import nn
        from data import CLASSES

        class Net(nn.Module):
            def __init__(self):
                super().__init__()
                self.conv = nn.Conv2d(3, 4, 3, padding=1, bias=False)
                self.norm = nn.BatchNorm2d(4)
                self.head = nn.Linear(4 * 8 * 8, CLASSES)

            def forward(self, x):
                x = nn.functional.avg_pool2d(torch.relu(self.norm(self.conv(x))), 2)
                return self.head(torch.flatten(x, 1))
        """,
    "net.py": """
        import torch
        from models.net import Net

        def make():
            return Net()

        def sized(width): ...
        def text(): return "no network"
        def failing(): raise KeyError("a fault of mine")

        class Random(Net):
            def forward(self, x):
                return super().forward(x * torch.rand(1))
        """,
}


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A folder with a user's own `models`, in which the command is called."""
    for name, text in OWN.items():
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(textwrap.dedent(text))
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def own(folder):
    """The same, with forked processes that make the user's networks."""
    with forked_networks():
        yield folder


def test_importing_the_package_is_light_and_gives_its_functions():
    script = (
        "import sys, pibench\n"
        "assert not {'torch', 'pandas', 'typer'} & set(sys.modules)\n"
        "from pibench.measure.case import Case\n"
        "assert callable(pibench.measure) and callable(pibench.cost) and callable(pibench.compare)\n"
    )
    subprocess.run([sys.executable, "-c", script], check=True, timeout=120)
    with pytest.raises(AttributeError, match="costt"):
        _ = pibench.costt


def test_list_shows_what_there_is():
    said = call("list")
    assert all(name in said for name in (*variant_names(), "resnet18", "lean", "wan-slow", "installed"))
    tables = json.loads(call("list", "--json"))
    assert {row["link"] for row in tables["links"]} >= {"loopback", "lan", "wan"}
    assert all(row["trust"] for row in tables["engines"])


def test_cost_counts_without_running():
    lines = pd.DataFrame(json.loads(call("cost", "senet-0.09", "--width", "8", "--json")))
    assert set(lines["relus"]) == {6267}
    engines = lines[lines["kind"] == "engine"].drop_duplicates("name").set_index("name")
    assert engines["rounds"].loc[["stock", "lean"]].tolist() == [175, 108]
    assert engines["hops"].loc["lean"] == 108
    wan = lines[(lines["kind"] == "engine") & (lines["link"] == "wan")]
    alone = wan["hops"] * 40e-3 / 2 + 8 * wan["bytes_sent"] / 400e6
    assert wan["modelled_link_s"].tolist() == pytest.approx(alone.tolist())
    assert wan["name"].tolist() == [name for name, engine in ENGINES.items() if engine.offered]
    linked = wan[wan["modelled_compute_s"].isna()]  # engines that the reference has no rows of
    assert (linked["name"].tolist(), set(linked["note"])) == (
        ["lean-k"],
        {"no profiled layers: the link alone"},
    )
    wan = wan.drop(linked.index)
    assert (wan["modelled_compute_s"] > 0).all()
    whole = wan["modelled_online_s"].fillna(wan["modelled_total_s"])
    assert whole.tolist() == pytest.approx((wan["modelled_compute_s"] + wan["modelled_link_s"]).tolist())
    one_clock = [ENGINES[name].one_clock for name in wan["name"]]
    assert wan["modelled_total_s"].notna().tolist() == wan["modelled_online_s"].isna().tolist() == one_clock
    assert {"cheetah", "21us-column"} <= set(lines[lines["kind"] == "literature"]["name"])
    frame = pibench.cost("senet-0.09", width=8)
    assert frame["bytes_sent"].dropna().tolist() == lines["bytes_sent"].dropna().tolist()


def test_cost_without_a_reference_is_that_of_the_link_alone(tmp_path, monkeypatch):
    monkeypatch.setattr("pibench.api.REFERENCE", tmp_path / "bench.json")
    frame = pibench.cost("baseline", width=2)
    engines = frame[frame["kind"] == "engine"]
    assert engines[["modelled_compute_s", "modelled_online_s", "modelled_total_s"]].isna().all(axis=None)
    assert set(engines["note"]) == {"no profiled layers: the link alone"}
    (title,) = [title for title in cost_tables(frame) if title.startswith("Engines")]
    assert title.endswith("(no profiled layers: the link alone)")
    shown = cost_tables(frame)[title].set_index("engine")
    alone = engines[engines["link"] == "wan"].set_index("name")["modelled_link_s"]
    assert shown["wan, s"].tolist() == pytest.approx(alone.loc[shown.index].tolist())


def test_cost_in_the_forms_that_papers_and_scripts_take():
    zoo = ("cost", "resnet18:width=4,classes=10", "--image", "16")
    assert call(*zoo, "--csv").startswith("network,relus,")
    assert "| engine | rounds | hops |" in call(*zoo, "--markdown")
    assert r"\begin{tabular}" in call(*zoo, "--latex")
    assert "ReLU layers" in call(*zoo)


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (("cost", "senet-0.9"), "did you mean 'senet-0.09'"),
        (("cost", "resnet18:widht=8"), "did you mean 'width'"),
        (("cost", "resnet18:width=a"), "width of resnet18 is a whole number, not 'a'"),
        (("cost", "baseline", "--json", "--csv"), "choose one form"),
        (("cost", "baseline", "--shape", "3,x"), "a shape is written like 3,32,32"),
        (("run", "baseline", "--width", "8", "--engine", "leen"), "did you mean 'lean'"),
        (("run", "baseline", "--width", "8", "--link", "wann"), "did you mean 'wan'"),
        (("run", "baseline", "--width", "8", "--batch", "17"), "at most 16 images"),
        (("cots", "baseline"), "Did you mean 'cost'"),
        (("compare", "a.json", "b.json"), "there is none at a.json"),
    ],
)
def test_bad_input_is_one_sentence(own, arguments, complaint):
    assert complaint in call(*arguments, status=2)


def test_debug_shows_where():
    result = CliRunner().invoke(app, ["--debug", "cost", "senet-0.9"])
    assert isinstance(result.exception, ValueError)


@pytest.mark.parametrize(
    ("name", "complaint"),
    [
        ("net.py:mke", "did you mean 'make'"),
        ("nett.py:make", "did you mean 'net.py'"),
        ("net.py:sized", "sized needs width"),
        ("net.py:text", "it must give a torch.nn.Module"),
        ("net.py:failing", "a fault of mine' (line 10 of net.py)"),
        ("models.nett:Net", "No module named 'models.nett'"),
    ],
)
def test_a_faulty_network_of_ones_own_is_named(own, name, complaint):
    assert complaint in call("cost", name, "--shape", "3,16,16", status=2)


def test_a_random_factor_is_refused_and_not_frozen(folder):
    complaint = call("cost", "net.py:Random", "--shape", "3,16,16", status=2)
    assert "draws random numbers, which would be frozen; draw only if self.training" in complaint


def test_the_shape_is_found_or_asked_for(own):
    assert json.loads(call("cost", "models.net:Net", "--json"))[0]["relus"] == 4 * 16 * 16
    assert "3,8,8" in call("cost", "models.net:Net", "--shape", "3,8,8", status=2)
    pooled = "net = nn.Sequential(nn.Conv2d(1, 2, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten())\n"
    (own / "pooled.py").write_text(f"from torch import nn\n{pooled}")
    assert "--shape 3,32,32" in call("cost", "pooled.py:net", status=2)
    assert json.loads(call("cost", "pooled.py:net", "--shape", "1,9,9", "--json"))[0]["macs"] == 2 * 9 * 49


def test_own_networks_are_measured_in_a_folder_with_its_own_models(folder):
    command = ("run", "models.net:Net", "--against", "net.py:make", "--rounds", "2", "--json")
    run = CliRunner().invoke(app, command)
    assert run.exit_code == 0, run.output
    lines = {line["variant"]: line for line in json.loads(run.stdout)}
    assert lines["models.net:Net"]["reference_case"] == "lean/net.py:make/w4/b1/2p/loopback"
    rows = read_rows(folder / "results" / "bench.json")
    assert [row["rounds"]["succeeded"] for row in rows] == [2, 2]
    assert {row["weights"] for row in rows} == {"own"}
    assert "lean/net.py:make/w4/b1/2p/loopback: online" in run.stderr


SHAPED = """
    import torch
    from torch import nn

    class Shaped(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(1, 2, 3)
            self.norm = nn.BatchNorm2d(2)
            self.head = nn.Linear(2 * 36, 3)

        def forward(self, x):
            if x.shape[2] != 8:
                raise ValueError("8 pixels, please")
            x = torch.relu(self.norm(self.conv(x)))
            return self.head(x.view(x.size(0), -1))
    """


def test_what_no_tracer_follows_and_exported_files_are_read_too(own):
    (own / "shaped.py").write_text(textwrap.dedent(SHAPED))
    name = "shaped.py:Shaped"
    wanted = {"relus": 2 * 36, "macs": 2 * 36 * 9 + 3 * 2 * 36, "parameters": 18 + 2 + 3 * 72 + 3}
    line = json.loads(call("cost", name, "--shape", "1,8,8", "--json"))[0]
    assert {key: line[key] for key in wanted} == wanted
    assert "(line 14 of shaped.py)" in call("cost", name, "--shape", "1,9,9", status=2)
    exec(compile(textwrap.dedent(SHAPED), "shaped.py", "exec"), made := {"__name__": "shaped"})
    example, batch = torch.zeros(2, 1, 8, 8), torch.export.Dim.AUTO
    exported = torch.export.export(made["Shaped"]().eval(), (example,), dynamic_shapes=({0: batch},))
    torch.export.save(exported, own / "net.pt2")
    (own / "shaped.py").unlink()
    line = json.loads(call("cost", "net.pt2", "--json"))[0]
    assert {key: line[key] for key in wanted} == wanted
    frame = pibench.measure("net.pt2", rounds=1)
    assert frame["repetitions_succeeded"].tolist() == [1]


HEADS = """
    import torch
    from torch import nn

    class Heads(nn.Module):
        def __init__(self, by_size=False):
            super().__init__()
            self.conv, self.fc, self.by_size = nn.Conv2d(3, 4, 3), nn.Linear(4 * 36, 5), by_size

        def forward(self, x):
            x = self.conv(x).relu()
            if self.by_size and x.shape[2] != 6:  # no tracer follows this
                raise ValueError("8 pixels, please")
            return {"logits": self.fc(x.flatten(1)), "maps": [x, x.mean((2, 3))]}

    def exported():
        return Heads(True)
    """


@pytest.mark.parametrize("name", ["heads.py:Heads", "heads.py:exported"])
def test_an_output_is_chosen_by_name(own, name):
    (own / "heads.py").write_text(textwrap.dedent(HEADS))
    complaint = call("cost", name, "--shape", "3,8,8", status=2)
    assert "returns 3 tensors (logits, maps.0, maps.1); choose one, such as output='logits'" in complaint
    assert "none of them is 'log'" in call("cost", name, "--shape", "3,8,8", "--output", "log", status=2)
    for output, layers in (("logits", 2), ("maps.1", 1)):
        line = json.loads(call("cost", name, "--shape", "3,8,8", "--output", output, "--json"))[0]
        assert (line["network"], line["linear_layers"]) == (f"{name}[{output}]", layers)


def fill(path, factor=1.0, variants=("baseline", "senet-0.09"), **changes):
    for variant in variants:
        row = make_row(variant, "lean") | changes
        for clock in ("offline_s", "online_s", "total_s"):
            row["times"][clock] = [factor * seconds for seconds in row["times"][clock]]
        Store(path / "bench.json").add(row)


def test_compare_says_what_became_slower(tmp_path):
    fill(tmp_path / "a")
    fill(tmp_path / "b", 1.5)
    one, other = str(tmp_path / "a"), str(tmp_path / "b" / "bench.json")
    frame = pibench.compare(one, other, fail_above=0.05)
    assert frame["online_ratio"].tolist() == pytest.approx([1.5, 1.5])
    assert frame["slower"].all()
    assert frame["counts_equal"].all()
    assert "SLOWER" in call("compare", one, other, "--fail-above", "5%", status=1)
    assert "1.50" in call("compare", one, other)
    assert "SLOWER" not in call("compare", one, other, "--fail-above", "60%")
    assert "SLOWER" not in call("compare", other, one, "--fail-above", "0.05")
    assert "a share like 5%" in call("compare", one, other, "--fail-above", "some", status=2)


def test_compare_takes_the_clock_that_a_protocol_has(tmp_path):
    for folder, factor, engine in (("a", 1.0, "spu-aby3"), ("b", 1.5, "spu-aby3"), ("c", 1.5, "spu-semi2k")):
        row = make_protocol_row(engine=engine)
        row["case"] = "same"
        row["times"]["all_phases_s"] = [factor * seconds for seconds in row["times"]["all_phases_s"]]
        row["traffic"]["bytes_sent"] += factor > 1
        Store(tmp_path / folder / "bench.json").add(row)
    frame = pibench.compare(tmp_path / "a", tmp_path / "b", fail_above=0.05)
    assert frame["all_phases_ratio"].tolist() == pytest.approx([1.5])
    assert frame["online_ratio"].isna().all()
    assert frame["slower"].all()
    assert frame["counts_equal"].all(), "the bytes of ABY3 vary"
    assert not pibench.compare(tmp_path / "a", tmp_path / "c")["counts_equal"].any()
    assert "all phases, after / before" in call("compare", str(tmp_path / "a"), str(tmp_path / "b"))


def test_compare_refuses_to_mix_machines_and_what_has_nothing_in_common(tmp_path):
    fill(tmp_path / "a")
    another = make_row("baseline", "lean")["machine"] | {"cpu": "Another CPU"}
    fill(tmp_path / "b", machine=another)
    both = ("compare", str(tmp_path / "a"), str(tmp_path / "b"))
    assert "--across-machines" in call(*both, status=2)
    assert "baseline" in call(*both, "--across-machines")
    fill(tmp_path / "c", variants=("joint-0.052",))
    assert "no case in common" in call("compare", str(tmp_path / "a"), str(tmp_path / "c"), status=2)


def test_results_of_two_machines_merge_and_are_never_mixed(tmp_path):
    here, there, both = (str(tmp_path / name) for name in ("here", "there", "both"))
    fill(tmp_path / "here", started="2026-01-01T00:00:00+00:00")
    another = make_row("baseline", "lean")["machine"] | {"cpu": "Another CPU"}
    fill(tmp_path / "there", 2.0, machine=another, host="node7", started="2026-02-01T00:00:00+00:00")
    said = call("merge", here, there, "-o", both)
    assert "Another CPU" in said
    assert "node7" in said
    assert len(read_rows(tmp_path / "both" / "bench.json")) == 4
    assert pibench.merge([here], both)["cases"].tolist() == [2, 2]
    again = pibench.compare(both, both)
    assert again["online_ratio"].tolist() == [1.0] * 4
    assert pibench.compare(both, here)["machine"].nunique() == 1
    assert "of two machines" in call("compare", here, both, "--across-machines", status=2)
    assert "shown is Another CPU" in call("report", "--results", both, "--quiet")
    newest = pd.read_csv(tmp_path / "both" / "summary.csv")
    assert set(newest["cpu"]) == {"Another CPU"}
    assert len(newest) == 2
    call("report", "--results", both, "--quiet", "--machine", "epyc")
    assert set(pd.read_csv(tmp_path / "both" / "summary.csv")["cpu"]).isdisjoint({"Another CPU"})
    assert "choose one of" in call("report", "--results", both, "--machine", "none", status=1)
    assert "there is none at" in call("merge", here, str(tmp_path / "nowhere"), "-o", both, status=2)


def test_report_figures_train_and_accuracy_are_those_of_make(tmp_path):
    missing = ("--results", str(tmp_path))
    assert "has no rows" in call("report", *missing, status=1)
    assert "--plots" in call("figures", "--help")
    assert "--plan" in call("train", "--help")
    assert "--test-images" in call("accuracy", "--help")


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_before_the_subcommand_is_one_sentence(how, monkeypatch, capsys):
    monkeypatch.setattr(cli, "app", lambda prog_name: os.kill(os.getpid(), how))
    usual = signal.default_int_handler if how == signal.SIGINT else signal.SIG_DFL
    before = signal.signal(how, usual)  # a command that ignores it, such as nohup, may have started the tests
    try:
        with pytest.raises(SystemExit) as ended:
            cli.main()
    finally:
        signal.signal(how, before)
    assert ended.value.code == 128 + how
    assert capsys.readouterr().err.strip() == "stopped: the rows of finished cases are kept"


def test_a_terminated_run_ends_at_once_and_keeps_rows_alone(folder):
    fill(folder / "results")
    rows = (folder / "results" / "bench.json").read_bytes()
    (folder / "tmp").mkdir()
    command = [sys.executable, "-m", "pibench.cli", "run", "models.net:Net", "--rounds", "100000"]
    environment = os.environ | {"TMPDIR": str(folder / "tmp")}
    with subprocess.Popen(command, env=environment, text=True, stderr=subprocess.PIPE) as run:
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline and len(list(folder.glob("tmp/pibench-group-*/*.log"))) < 3:
            time.sleep(0.1)
        time.sleep(1)
        run.terminate()
        _, said = run.communicate(timeout=20)  # about a second on an idle machine; the run lasts minutes
    assert run.returncode == 143, said
    assert "stopped: the rows of finished cases are kept" in said
    assert "Traceback" not in said
    assert (folder / "results" / "bench.json").read_bytes() == rows
    assert list((folder / "tmp").glob("pibench-*")) == []


def test_the_command_is_a_module_too():
    command = [sys.executable, "-m", "pibench.cli", "--help"]
    run = subprocess.run(command, capture_output=True, text=True, check=True, timeout=120)
    assert "pibench COMMAND --help" in " ".join(run.stdout.split())


def test_help_teaches_by_examples():
    assert "pibench run net.py:make" in " ".join(call("--help").split())
    for command in (
        "list",
        "cost",
        "run",
        "compare",
        "merge",
        "report",
        "figures",
        "train",
        "accuracy",
        "doctor",
    ):
        assert command in call("--help")
    assert "Examples" in call("run", "--help")


@pytest.mark.parametrize("closed", [0, 1, 2])
def test_a_closed_stream_is_no_traceback_and_mixes_nothing(closed):
    """A complaint stays on standard error; where that is closed it is nowhere."""
    command = [sys.executable, "-m", "pibench.cli", "compare", "nowhere", "neither"]
    streams = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    done = subprocess.run(
        ["/bin/sh", "-c", f'exec "$@" {closed}{"<" if closed == 0 else ">"}&-', "sh", *command],
        text=True,
        timeout=240,
        check=False,
        **streams,
    )
    assert done.returncode == 2
    assert done.stdout == ""
    assert ("there is none at nowhere" in done.stderr) == (closed != 2)
    assert "Traceback" not in done.stderr


def test_an_output_that_cannot_be_written_is_one_sentence():
    script = f"{sys.executable} -m pibench.cli list >/dev/full"
    done = subprocess.run(script, shell=True, text=True, capture_output=True, timeout=240, check=False)
    assert done.returncode == 2
    assert "No space left on device" in done.stderr
    assert "Traceback" not in done.stderr
    assert "Exception ignored" not in done.stderr


def test_a_reader_that_stops_is_no_traceback():
    script = f"{sys.executable} -m pibench.cli list --csv | head -n 1"
    done = subprocess.run(script, shell=True, text=True, capture_output=True, timeout=240, check=False)
    assert done.stdout == "# networks\n"
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (("list", "--jsn"), "No such option: --jsn"),
        (("doctor", "--jsn"), "No such option: --jsn"),
        (("merge", "nowhere", "-o", "both"), "there is none at nowhere"),
        (("merge", "nowhere"), "Missing option '-o'"),
        (("report", "--machinery", "x"), "unrecognized arguments: --machinery x"),
        (("figures", "--plot", "x", "--result", "y", "more"), "unrecognized arguments: more"),
        (("train", "--rows", "baselin"), "invalid choice: 'baselin'"),
        (("train", "--plan", "lnog"), "invalid choice: 'lnog'"),
        (("accuracy", "--rows", "baselin"), "invalid choice: 'baselin'"),
    ],
)
def test_every_command_refuses_bad_input_in_words(own, arguments, complaint, capfd):
    result = CliRunner().invoke(app, list(arguments))
    said = " ".join((result.output + capfd.readouterr().err).split())
    assert result.exit_code == 2, said
    assert re.search(complaint, said), said
