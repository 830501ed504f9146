"""The claims of docs/threat_model.md: each names its tests, and those that no other file has are here."""

from __future__ import annotations

import ast
import inspect
import ipaddress
import itertools
import json
import os
import pickle
import re
import socket
import stat
import struct
import sys
import tempfile
import threading
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
from lean_harness import Trio, program, random_weights, settings
from networks import Apply, Block
from secret_bytes import Secrets, meanwhile
from tapped_link import LINK, Heard, Tapped
from torch import Tensor, nn
from two_hosts import TOKEN

from pibench.engines import ENGINES
from pibench.engines.base import Setting
from pibench.engines.lean.channel import connect
from pibench.engines.lean.node import encode
from pibench.engines.lean.ring import WIDE
from pibench.hosts import join
from pibench.hosts.agreement import checksum
from pibench.hosts.messages import Say
from pibench.hosts.remote import Remote
from pibench.hosts.stream import Stream
from pibench.links import shapers
from pibench.links.link import Link
from pibench.links.shapers import LOOPBACK_HOST, Place, UserSpace
from pibench.measure.foreign import ForeignError, read_network
from pibench.measure.verdict import truth_of
from pibench.models.graph.relu import MaskedReLU
from pibench.parties.driver import Parties
from pibench.parties.processes import Supervisor, start_worker
from pibench.program import ir
from pibench.program.lower import lower

ROOT = Path(__file__).parent.parent
PAGE = ROOT / "docs" / "threat_model.md"
MISSING = ENGINES["spu-semi2k"].missing()
SPU = [
    pytest.param(name, id=name, marks=pytest.mark.skipif(MISSING is not None, reason=str(MISSING)))
    for name in ("spu-semi2k", "spu-aby3", "spu-cheetah")
]
NEAR = Link("near", 1e-3, 1e8)
needs_proc = pytest.mark.skipif(not Path("/proc/self/mem").exists(), reason="needs /proc")


# The page.


def lines() -> Iterator[tuple[str, list[str]]]:
    """The lines of the page's tables: what is said, and the tests in the last column."""
    for line in PAGE.read_text().splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if line.startswith("|") and not set(line) <= set("|-: ") and cells[-1] != "tests":
            yield cells[0], cells[-1].split(", ")


def test_every_line_of_the_page_names_tests_that_are_there():
    there: dict[str, set[str]] = {}
    named = set()
    for said, tests in lines():
        for each in tests:
            found = re.fullmatch(r"`(test_\w+\.py)::(test_\w+)`", each)
            assert found, f"the line {said!r} names {each!r}, which is no test"
            file, name = found.groups()
            if file not in there:
                tree = ast.parse((ROOT / "tests" / file).read_text())
                there[file] = {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}
            assert name in there[file], f"the line {said!r} names {each}, which is not there"
            named.add((file, name))
    here = {name for name in globals() if name.startswith("test_")}
    unnamed = {name for name in here if (Path(__file__).name, name) not in named}
    assert unnamed == {"test_every_line_of_the_page_names_tests_that_are_there"}
    assert len(list(lines())) > 25


# Secrets: weights, images, and who sees them.


@cache
def inputs() -> tuple[nn.Module, Tensor, Secrets]:
    """A network, two images, and the search for the numbers of both."""
    model, images = Block(seed=7), torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(7))
    return model, images, Secrets(weights=list(model.parameters()), image=[images])


@needs_proc
@pytest.mark.parametrize(("engine", "provider"), [("stock", "TFP"), ("stock", "TTP"), ("lean", "dealer")])
def test_no_process_ever_holds_the_input_of_another(engine, provider):
    """Memory is searched while the processes work, and holds what was freed before, which nobody erases."""
    check_memory(Parties(engine=engine, provider=provider, timeout_s=60))


@needs_proc
@pytest.mark.parametrize("engine", SPU)
def test_no_process_of_spu_ever_holds_the_input_of_another(engine):
    check_memory(Parties(engine=engine, timeout_s=120))


def check_memory(parties: Parties) -> None:
    model, images, secrets = inputs()

    def infer() -> None:
        parties.prepare(2)
        parties.infer(images)

    with parties:
        names = [*(f"party {rank}" for rank in range(parties.count)), *parties.helpers]
        held: dict[str, set[str]] = {name: set() for name in names}
        for work in (lambda: parties.load(model, images), lambda: parties.prepare(2), infer):
            seen = meanwhile(work, lambda: [secrets.held(pid) for pid in parties.pids])
            for name, found in zip(names, seen, strict=True):
                held[name] |= found
    own = {"party 0": {"weights"}, "party 1": {"image"}}
    assert held == {name: own.get(name, set()) for name in names}


@dataclass(frozen=True)
class Run:
    """Two inferences of the same images: all that passed between the processes, and who saw the logits."""

    heard: tuple[Heard, ...]
    seen: tuple[bool, ...]


@contextmanager
def tapped(engine: str, check: bool = True) -> Iterator[tuple[Parties, Tapped]]:
    """Parties whose bytes pass through the test."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(shapers.SHAPERS, Tapped.name, Tapped)
        with Parties(engine=engine, link=LINK, timeout_s=120, check=check) as parties:
            yield parties, parties.group.shaper


@cache
def runs(engine: str) -> tuple[Run, Run]:
    """Two runs of the same network and images, each by processes of its own."""
    return run_of(engine), run_of(engine)


def run_of(engine: str) -> Run:
    model, images, _ = inputs()
    with tapped(engine) as (parties, link):
        for each in link.heard:
            each.data.clear()  # the check of the link
        parties.load(model, images)
        for _ in range(2):
            parties.prepare(2)
            replies = parties._online("infer", images)
        seen = tuple(reply["logits"] is not None for reply in replies)
        return Run(tuple(each for each in link.heard if each.data), seen)


@pytest.mark.parametrize("engine", ["stock", "lean", *SPU])
def test_the_wire_carries_neither_weights_nor_images(engine):
    _, _, secrets = inputs()
    for run in runs(engine):
        assert {(each.source, each.sink) for each in run.heard} >= {(0, 1), (1, 0)}
        for each in run.heard:
            assert secrets.found(bytes(each.data)) == set()


@pytest.mark.parametrize("engine", ["stock", "lean", *SPU])
def test_who_sees_the_logits(engine):
    parties = ENGINES[engine].parties[0]
    expected = (True,) * parties if engine == "stock" else tuple(rank == 1 for rank in range(parties))
    assert {run.seen for run in runs(engine)} == {expected}


def test_a_program_tells_nothing_of_the_weights():
    draw = torch.Generator().manual_seed(3)
    model = Apply(
        lambda m, x: m.fc(torch.flatten(m.sigmoid(m.masked(m.slope(m.norm(m.conv(x)))) * m.scale), 1)),
        conv=nn.Conv2d(3, 4, 3, padding=1),
        norm=nn.BatchNorm2d(4),
        slope=nn.PReLU(4),
        masked=MaskedReLU(torch.rand(4, 8, 8, generator=draw) < 0.5),
        sigmoid=nn.Sigmoid(),
        fc=nn.Linear(256, 5),
    ).eval()
    model.scale = nn.Parameter(torch.rand(4, 1, 1, generator=draw) + 0.5)
    _, images, _ = inputs()
    before = lower(model, images)
    secrets = Secrets(weights=list(before.weights.values()))
    with torch.no_grad():
        for each in [*model.parameters(), model.norm.running_mean, model.norm.running_var]:
            each.mul_(1 + torch.rand(each.shape, generator=draw))
    after = lower(model, images)
    assert checksum(before.program) == checksum(after.program)
    assert any(not torch.equal(before.weights[name], after.weights[name]) for name in before.weights)
    assert secrets.found(pickle.dumps(before.weights)) == {"weights"}
    assert secrets.found(pickle.dumps(before.program)) == set()


def test_a_stored_tensor_of_zeros_and_ones_is_public():
    model = Apply(lambda m, x: m.conv(x) * m.mask, conv=nn.Conv2d(3, 4, 3, padding=1))
    model.register_buffer("mask", (torch.arange(256).view(4, 8, 8) % 3 == 0).float())
    _, images, _ = inputs()
    (factors,) = (
        step.operator.factors
        for step in lower(model, images).program.steps
        if isinstance(step.operator, ir.Weigh)
    )
    assert (factors == model.mask.numpy()).all()


def test_a_dealer_and_a_party_together_know_the_weights():
    """What lean opens at load is W - B; the dealer knows B."""
    shape = (2, 1, 3, 3)
    made = program(
        (1, 4, 4), ("conv", ir.Convolution("w", None, shape, padding=(1, 1)), ["input"], (2, 4, 4))
    )
    weights = random_weights(made)
    with Trio() as trio:
        trio.load(made, weights)
        _, party, dealer = trio.nodes
        ((name, held),) = party._weights.items()
        plain = held.lowering.arrange(encode(weights["w"], WIDE.weights, WIDE).view(shape))
        assert torch.equal(held.delta + dealer._masks[name], plain)


@pytest.mark.parametrize("engine", ["stock", "lean"])
def test_shares_that_are_changed_on_the_way_give_a_wrong_answer_that_no_party_sees(engine):
    """The driver alone compares; `test_a_wrong_answer_is_found_and_told` shows what it says."""
    model, images, _ = inputs()
    truth = truth_of(model, images)
    changed = []

    def change(source: int, data: bytes) -> bytes:
        """Replaces eight bytes within the first large message of party 0."""
        if source or changed or len(data) < 1024:
            return data
        at = len(data) // 2
        changed.append(at)
        return data[:at] + bytes(byte ^ 0x55 for byte in data[at : at + 8]) + data[at + 8 :]

    with tapped(engine, check=False) as (parties, link):
        parties.load(model, images)
        parties.prepare(2)
        assert truth.right(parties.infer(images)).all()
        link.change = change
        for _ in range(10):  # one change may fall on low bits, or on a value that a ReLU drops
            changed.clear()
            parties.prepare(2)
            answer = parties.infer(images)
            assert changed
            assert answer.shape == truth.logits.shape
            if not truth.right(answer).all():
                break
    assert not truth.right(answer).all()


def test_messages_between_hosts_are_not_encrypted():
    _, images, secrets = inputs()
    here, there = socket.socketpair()
    with here, there:
        Stream(here, b"k" * 32, caller=True).send(Say(1, "infer", (images, 2), ""))
        assert secrets.found(there.recv(1 << 20)) == {"image"}


# Randomness.


def random_words(data: bytes) -> np.ndarray:
    """All eight bytes in a row, from every place, that have six different values: frames have fewer."""
    windows = np.lib.stride_tricks.sliding_window_view(np.frombuffer(data, np.uint8), 8)
    different = 1 + (np.diff(np.sort(windows, 1), axis=1) != 0).sum(1)
    return np.ascontiguousarray(windows[different >= 6]).view(np.uint64).reshape(-1)


def all_words(run: Run) -> np.ndarray:
    return np.concatenate([random_words(bytes(each.data)) for each in run.heard])


@pytest.mark.parametrize("engine", ["stock", "lean"])
def test_no_payload_is_sent_twice(engine):
    """The second inference of the same images has nothing in common with the first."""
    words = all_words(runs(engine)[0])
    assert len(words) > 10_000
    assert len(np.unique(words)) == len(words)


@pytest.mark.parametrize("engine", ["stock", "lean"])
def test_two_runs_have_no_payload_in_common(engine):
    """The tests fork their workers from one process: a state that forks inherit would show here."""
    one, other = map(all_words, runs(engine))
    assert len(np.intersect1d(one, other)) == 0


def test_the_lean_engine_has_no_other_source_of_randomness():
    """Keys come from `os.urandom`; a rehearsal in plaintext and a measurement of kernels draw elsewhere."""
    draws = {"default_rng", "Generator", "manual_seed", "rand", "randn", "randint", "random", "urandom"}
    found = {
        path.name
        for path in (ROOT / "bench" / "engines" / "lean").glob("*.py")
        if draws
        & {node.attr for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Attribute)}
    }
    assert found == {"keystream.py", "plaintext.py", "local.py"}


# Who listens, and what is parsed.


def listening(pids: Iterable[int]) -> set[str]:
    """The addresses at which processes listen for TCP connections."""
    owned = set()
    for pid in pids:
        for path in Path(f"/proc/{pid}/fd").iterdir():
            try:
                owned.add(os.readlink(path).removeprefix("socket:[").removesuffix("]"))
            except OSError:
                continue
    found = set()
    for table in ("tcp", "tcp6"):
        path = Path("/proc/net") / table
        for line in path.read_text().splitlines()[1:] if path.exists() else ():
            fields = line.split()
            if fields[3] == "0A" and fields[9] in owned:
                address = fields[1].split(":")[0]
                words = [int(address[at : at + 8], 16) for at in range(0, len(address), 8)]
                found.add(str(ipaddress.ip_address(struct.pack(f"<{len(words)}I", *words))))
    return found


@needs_proc
@pytest.mark.parametrize("engine", ["stock", *SPU])
def test_processes_and_their_relay_listen_at_the_loopback(engine):
    with Parties(engine=engine, link=NEAR, timeout_s=60) as parties:
        relay = parties.group.shaper.popen.pid
        assert listening([relay]) == {LOOPBACK_HOST}
        assert listening(parties.pids) == {LOOPBACK_HOST}


@needs_proc
def test_a_lean_process_listens_at_the_loopback_until_the_others_have_come(tmp_path):
    late = []

    def wait() -> None:
        with pytest.raises(TimeoutError, match="not every process of the group connected") as raised:
            connect(settings(str(tmp_path), timeout_s=1.0)[0], 3)
        late.append(raised)

    before = listening([os.getpid()])
    thread = threading.Thread(target=wait)
    thread.start()
    found: set[str] = set()
    while thread.is_alive():
        found |= listening([os.getpid()])
        time.sleep(0.05)
    assert late
    assert found - before <= {LOOPBACK_HOST}
    assert LOOPBACK_HOST in found
    with Parties(engine="lean", timeout_s=60) as parties:
        assert listening(parties.pids) == set()


def test_every_address_is_the_loopback_unless_another_is_told(monkeypatch):
    monkeypatch.delenv("PIBENCH_TOKEN", raising=False)
    assert Setting("lean", "party", 0, 2, "", "dealer", 1.0).host == LOOPBACK_HOST
    assert Place().host == Remote().host == LOOPBACK_HOST
    assert inspect.signature(join.join).parameters["listen"].default == LOOPBACK_HOST
    for name, value in {"MASTER_ADDR": "there", "MASTER_PORT": "1", "PIBENCH_TOKEN": TOKEN}.items():
        monkeypatch.setenv(name, value)
    called = []
    monkeypatch.setattr(join, "join", lambda *arguments: called.append(arguments) or 0)
    assert join.main([]) == 0
    assert called[0][:4] == ("there", 1, TOKEN, LOOPBACK_HOST)


@cache
def sources() -> tuple[tuple[str, ast.Module], ...]:
    """The modules of the suite by their paths."""
    paths = (path for room in ("bench", "models") for path in sorted((ROOT / room).rglob("*.py")))
    return tuple((path.relative_to(ROOT).as_posix(), ast.parse(path.read_text())) for path in paths)


def listed(heading: str) -> set[str]:
    """The files that the page names under a heading."""
    section = PAGE.read_text().split(f"## {heading}\n")[1].split("\n## ")[0]
    return set(re.findall(r"`((?:bench|models)/[\w/]+\.py)`", section))


def test_the_page_lists_everything_that_listens():
    found = {
        name
        for name, tree in sources()
        for node in ast.walk(tree)
        if isinstance(node, ast.Call) and getattr(node.func, "attr", "") in ("create_server", "listen")
    }
    found |= {"bench/engines/spu/link.py"}  # SPU's own server
    assert found == listed("Who listens, and who may connect")


def reads_pickles(node: ast.AST) -> bool:
    """True for what decodes a pickle: `pickle.load`, an Unpickler, `recv()` of a Connection."""
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
        return node.func.attr == "recv" and not node.args
    if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
        return node.value.id == "pickle" and node.attr in ("load", "loads", "Unpickler")
    return False


def test_the_page_lists_everything_that_reads_a_pickle():
    found = {name for name, tree in sources() if any(map(reads_pickles, ast.walk(tree)))}
    assert found == listed("What is parsed before it is trusted")


class Bomb:
    """A pickle that calls something."""

    def __reduce__(self):
        return os.system, ("true",)


def test_a_network_that_is_handed_over_names_parts_of_torch_alone(tmp_path):
    path = tmp_path / "network.pt"
    path.write_bytes(pickle.dumps({"network": Bomb(), "shape": None}))
    with pytest.raises(ForeignError, match=r"system is no part of torch"):
        read_network(path)


def test_no_file_is_read_as_an_unrestricted_pickle():
    """torch's own files hold tensors and plain values alone; arrays of objects are not read."""
    for name, tree in sources():
        for node in ast.walk(tree):
            if not (isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute)):
                continue
            options = {word.arg: ast.unparse(word.value) for word in node.keywords}
            if ast.unparse(node.func) == "torch.load":
                assert options.get("weights_only") == "True", f"{name}, line {node.lineno}"
            assert options.get("allow_pickle", "False") == "False", f"{name}, line {node.lineno}"


# Files, command lines, logs.


@pytest.mark.parametrize("engine", ["stock", "lean", *SPU])
def test_the_files_of_a_group_are_its_users_alone_and_hold_no_secret(
    engine, tmp_path, tmp_path_factory, monkeypatch
):
    model, images, secrets = inputs()
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path_factory.mktemp("torch")))
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    mask = os.umask(0)
    try:
        with Parties(engine=engine, link=NEAR, timeout_s=120) as parties:
            parties.load(model, images)
            parties.prepare(2)
            parties.infer(images)
            modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in tmp_path.iterdir()}
            files = {path.name: path for path in tmp_path.rglob("*") if path.is_file()}
            contents = {name: path.read_bytes() for name, path in files.items()}
            sockets = [path for path in tmp_path.rglob("*") if path.is_socket()]
    finally:
        os.umask(mask)
    assert modes
    assert not any(mode & 0o077 for mode in modes.values()), modes
    assert sockets
    assert sum(name.endswith(".log") for name in contents) >= parties.count
    values = torch.cat([each.detach().flatten() for each in (images, *model.parameters())])
    decimals = [f"{value:.6f}".encode() for value in values if abs(value) > 0.01]
    for name, content in contents.items():
        assert secrets.found(content) == set(), name
        assert not any(decimal in content for decimal in decimals), name


def command_line(pid: int) -> list[str]:
    """Returns the words of a started process, which are missing while its program is put in place."""
    path = Path(f"/proc/{pid}/cmdline")
    deadline = time.monotonic() + 30
    while not (line := path.read_text().split("\0")[:-1]):
        assert time.monotonic() < deadline
        time.sleep(0.01)
    return line


@needs_proc
def test_command_lines_hold_no_secret():
    """A process gets its setting, with the group's key, and all data through its connection."""
    relay = UserSpace(NEAR)
    with Supervisor() as supervisor:
        relay.start(supervisor.folder, supervisor.start)
        worker, connection = start_worker(supervisor, supervisor.folder / "log", "lo")
        with connection:
            for process, module in ((worker, "pibench.parties.worker"), (relay.popen, "pibench.links.relay")):
                line = command_line(process.pid)
                assert line[:4] == [sys.executable, "-P", "-m", module]
                assert all(re.fullmatch(r"\d+(\.\d+)?", word) for word in line[4:])
        owner = command_line(supervisor._popen.pid)
        assert owner[1:3] == ["-I", "-S"]
        assert owner[4:] == [str(os.getpid()), tempfile.gettempdir()]


def test_a_users_own_token_is_never_shown(monkeypatch):
    monkeypatch.delenv("PIBENCH_TOKEN", raising=False)
    assert TOKEN not in Remote(token=TOKEN).invitation
    made = Remote()
    assert made.token in made.invitation
    assert Remote().token != made.token
    monkeypatch.setenv("PIBENCH_TOKEN", TOKEN)
    assert TOKEN not in Remote().invitation


def test_rows_are_too_short_for_an_image():
    """The longest list of numbers of a row is that of its repetitions."""

    def lists(value: object) -> Iterator[list[object]]:
        for each in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
            yield from lists(each)
        if isinstance(value, list):
            yield value

    rows = json.loads((ROOT / "results" / "reference" / "bench.json").read_text())["rows"]
    longest = max(map(len, itertools.chain.from_iterable(map(lists, rows))))
    assert longest < 3 * 8 * 8
