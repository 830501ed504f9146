"""SPU's protocols as engines: answers, exact traffic, secrets, and what happens when something goes wrong."""

from __future__ import annotations

import math
import os
import pickle
import platform
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import get_args

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from accidents import alive, check_hanging_party_is_ended, check_killed_party_is_reported
from networks import Apply, logits_of
from test_front_door import CASES, IMAGES, model_of
from test_parties import OPERATORS
from torch import nn

from pibench.api import listed
from pibench.engines import ENGINES, NotPrepared, Setting
from pibench.engines.base import EngineMissing
from pibench.engines.spu import OPERATORS as SPU_OPERATORS
from pibench.engines.spu import value_limits
from pibench.engines.spu.link import UNCLAIMED, connect, free_port, packed, unpacked
from pibench.hosts.remote import Remote
from pibench.measure.subject import Subject
from pibench.models.graph.relu import MaskedReLU
from pibench.models.variants import variant
from pibench.parties import group
from pibench.parties.driver import Parties, PartyFailed
from pibench.program import ir
from pibench.program.guard import WrongAnswer
from pibench.program.lower import ExportError, lower

TESTS = Path(__file__).parent
SPU = [name for name, engine in ENGINES.items() if name.startswith("spu-") and engine.offered]
MISSING = ENGINES["spu-semi2k"].missing()
needs_spu = pytest.mark.skipif(MISSING is not None, reason=str(MISSING))
LINK_DETAILS = re.compile(r"Link details: total send bytes (\d+), .*?send actions (\d+)")


# Without SPU.


def test_three_protocols_say_whom_they_trust():
    assert SPU == ["spu-semi2k", "spu-aby3", "spu-cheetah"]
    assert [ENGINES[name].parties for name in SPU] == [(2,), (3,), (2,)]
    assert "party 0 deals" in ENGINES["spu-semi2k"].trust
    assert "no two collude" in ENGINES["spu-aby3"].trust
    assert "no dealer" in ENGINES["spu-cheetah"].trust


def test_where_spu_is_missing_the_engine_is_listed_and_says_what_installs_it(monkeypatch):
    monkeypatch.setattr("pibench.engines.base.find_spec", lambda name: None)
    monkeypatch.setattr("pibench.engines.spu.WHEEL", here())
    with pytest.raises(EngineMissing, match=r"needs spu, .*pip install -e '\.\[spu\]'"):
        Parties(engine="spu-semi2k")
    states = listed()["engines"].set_index("engine")["state"]
    for name in SPU:
        assert states[name] == (
            f"the {name} engine needs spu, not installed here; install it with: pip install -e '.[spu]'"
        )


def here() -> str:
    return f"Python 3.{sys.version_info.minor} on {platform.system()} {platform.machine()}"


@pytest.mark.parametrize(
    ("change", "found"),
    [
        (("sys.version_info", (3, 12, 1)), "Python 3.12 on"),
        (("platform.machine", lambda: "arm64"), "arm64"),
        (("platform.system", lambda: "Darwin"), "Darwin"),
    ],
)
def test_another_python_or_system_is_named(change, found, monkeypatch):
    """No command can install SPU there: the extra installs nothing."""
    monkeypatch.setattr("pibench.engines.base.find_spec", lambda name: None)
    monkeypatch.setattr(f"pibench.engines.spu.{change[0]}", change[1])
    said = ENGINES["spu-aby3"].missing()
    assert said.startswith(
        "the spu-aby3 engine needs spu, which has a wheel for Python 3.11 on Linux x86_64 alone, and this is "
    )
    assert found in said
    assert "pip" not in said


def test_two_hosts_are_refused_in_one_sentence():
    remote = Remote("127.0.0.1", 0)
    for name in SPU:
        engine = ENGINES[name]
        said = f"^the {name} engine does not run on two hosts; leave remote out$"
        with pytest.raises(ValueError, match=said):
            remote.shaper(engine, engine.parties[0], engine.provider, "loopback", None)


@needs_spu
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"engine": "spu-aby3", "count": 2}, "3 parties, not 2"),
        ({"engine": "spu-cheetah", "count": 3}, "2 parties, not 3"),
        ({"engine": "spu-semi2k", "provider": "TFP"}, "no provider 'TFP'"),
    ],
)
def test_impossible_settings(arguments, message):
    with pytest.raises(ValueError, match=message):
        Parties(**arguments)


@dataclass(frozen=True)
class Sorted:
    """An operator that no engine has."""


def test_an_operator_that_spu_lacks_is_refused_by_name(block, images):
    program = lower(block, images).program
    assert value_limits(program) == {}
    program = replace(program, steps=(*program.steps[:-1], replace(program.steps[-1], operator=Sorted())))
    with pytest.raises(NotImplementedError, match=r"the SPU engines have no operator Sorted \(step 'fc'\)"):
        value_limits(program)


def test_a_port_in_use_is_named():
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(ConnectionError, match=f"{port}: Address already in use"):
            free_port("127.0.0.1", (port,))
        assert free_port("127.0.0.1", (port, 0)) in UNCLAIMED, "where no connection takes it meanwhile"


# Parties, started once for each engine.


@pytest.fixture(scope="module")
def running() -> Iterator[dict[str, Parties]]:
    running: dict[str, Parties] = {}
    yield running
    for parties in running.values():
        parties.__exit__(None, None, None)


@pytest.fixture(params=SPU)
def parties(request, running) -> Parties:
    return started(running, request.param)


@pytest.fixture
def semi2k(running) -> Parties:
    return started(running, "spu-semi2k")


def started(running: dict[str, Parties], engine: str) -> Parties:
    """Running parties of the engine (new ones if a test ended the last)."""
    if engine not in running or not running[engine].pids:
        running[engine] = Parties(engine=engine, timeout_s=120).__enter__()
    return running[engine]


def plain(model: nn.Module, images: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        return model(images)


@needs_spu
def test_every_operator_equals_plaintext(parties, images):
    """All operators in one network, for every network is compiled in a new process."""
    everything = Apply(
        lambda m, x: torch.cat([torch.flatten(getattr(m, name)(x), 1) for name in m.order], 1),
        **{f"op{i}": model for i, model in enumerate(OPERATORS.values())},
    )
    everything.order = [f"op{i}" for i in range(len(OPERATORS))]
    parties.load(everything, images)
    parties.prepare(2)
    answers = parties.infer(images[:2])
    at = 0
    for name, model in OPERATORS.items():
        expected = plain(model, images[:2]).flatten(1)
        answer = answers[:, at : at + expected.shape[1]]
        torch.testing.assert_close(
            answer, expected, atol=2e-3, rtol=1e-3, msg=lambda m, name=name: f"{name}: {m}"
        )
        at += expected.shape[1]
    assert at == answers.shape[1]


SOME = ("option A", "stored tensor", "relu6", "sigmoid", "padding left out", "prelu", "masked relu")
"""Cases of the front door in which every operator of the IR occurs that `OPERATORS` lacks."""


@needs_spu
def test_what_users_write_equals_plaintext(parties):
    """All cases of the front door in one network, on the slower protocols `SOME` of them."""
    names = tuple(CASES) if parties.engine == "spu-semi2k" else SOME
    everything = Apply(
        lambda m, x: torch.cat([getattr(m, f"case{i}")(x).flatten(1) for i in range(len(names))], 1),
        **{f"case{i}": model_of(name) for i, name in enumerate(names)},
    )
    parties.load(everything, IMAGES)
    parties.prepare(2)
    answers, expected = parties.infer(IMAGES).double(), logits_of(parties.lowered, IMAGES)
    at = 0
    for name in names:
        end = at + model_of(name).float()(IMAGES).flatten(1).shape[1]
        torch.testing.assert_close(
            answers[:, at:end], expected[:, at:end], atol=5e-3, rtol=2e-3, msg=lambda m, n=name: f"{n}: {m}"
        )
        at = end
    assert at == answers.shape[1]


def test_every_operator_of_the_ir_is_run_on_spu():
    """By the test above and the one before it, and none is left out of what the engines say they have."""
    assert set(SPU_OPERATORS) == set(get_args(ir.Operator))
    networks = [lower(model_of(name), IMAGES).program for name in SOME]
    networks += [
        lower(model, torch.zeros(2, 3, 8, 8, dtype=torch.float64)).program for model in OPERATORS.values()
    ]
    assert {type(step.operator) for program in networks for step in program.steps} == set(SPU_OPERATORS)


@needs_spu
def test_public_factors_of_one_are_free(semi2k, images):
    """Any other factor costs one truncation of the whole sum, a knot a comparison."""
    model = Apply(lambda m, x: F.leaky_relu(F.relu6(x) - x.square(), 0.25))
    semi2k.load(model, images)
    costs = {cost.kind: (cost.rounds, cost.bytes_sent) for cost in semi2k.profile(images[:1])}
    assert costs["combine"] == (0, 0)
    clamp, leaky = [cost for cost in semi2k.profile(images[:1]) if cost.kind == "piecewiselinear"]
    assert (clamp.rounds, clamp.bytes_sent) == (8, 2 * 72 * 192)
    assert (leaky.rounds, leaky.bytes_sent) == (9, (72 + 4) * 192)


@needs_spu
def test_max_pool_of_very_negative_values(semi2k):
    images = torch.full((1, 3, 8, 8), -50000.0)
    semi2k.load(Apply(lambda m, x: F.max_pool2d(x, 3, 2, 1)), images)
    semi2k.prepare()
    torch.testing.assert_close(semi2k.infer(images), torch.full((1, 3, 4, 4), -50000.0), atol=1, rtol=0)


@needs_spu
def test_no_truncation_is_off_by_more_than_a_unit(parties):
    """Local truncation, as the stock engine's, would fail for every eighth of these products."""
    images = (2.0**29) * torch.linspace(0.5, 0.9, 3072).view(1, 3, 32, 32)
    parties.load(Apply(lambda m, x: x * 0.75), images)
    parties.prepare()
    answer = parties.infer(images).double()
    assert (answer - 0.75 * images.double()).abs().max() <= 32, "a float32 has steps of 32 there"


NETWORKS = {
    "spu-semi2k": {"baseline": 2, "senet-0.09": 2, "joint-0.052": 1, "merged-exact": 1},
    "spu-aby3": {"baseline": 1, "senet-0.09": 2, "joint-0.052": 2, "merged-exact": 1},
    "spu-cheetah": {"senet-0.09": 1, "joint-0.052": 2},
}


@needs_spu
@pytest.mark.parametrize(
    ("engine", "name", "batch"),
    [(engine, name, batch) for engine, batches in NETWORKS.items() for name, batch in batches.items()],
)
def test_networks_of_the_suite(engine, name, batch, running):
    parties = started(running, engine)
    model = variant(name).build(width=8, weights=None)
    images = torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(3))
    expected = plain(model, images)
    parties.load(model, images[:1])
    parties.prepare(batch)
    logits = parties.infer(images[:batch])
    spread = (expected.max(0).values - expected.min(0).values).max()
    assert (logits - expected[:batch]).abs().max() < 0.02 * spread
    assert parties.offline.correlated_bytes == (0,) * parties.count, "one clock: nothing is prepared"


@needs_spu
def test_traffic_is_exact(semi2k, block, images):
    """SEMI2K, in bytes: 56 (7 messages) a comparison, 16 its product, 4 a truncation, 8 a masked operand.

    A convolution masks the matrix of its windows: with a kernel of 3 x 3 every input up to nine times.
    """
    semi2k.load(block, images)
    traffic = semi2k.traffic(images[:1])
    semi2k.prepare()
    semi2k.infer(images[:1])
    assert semi2k.sent == traffic
    costs = {cost.name: (cost.rounds, cost.bytes_sent) for cost in semi2k.profile(images[:1])}
    assert costs["conv"] == (2, 8 * (9 * 3 * 64 + 108) + 4 * 256)
    assert costs["relu"] == (8, 72 * 256)
    assert costs["pool"] == (1, 4 * 64)
    assert costs["flatten"] == (0, 0)
    assert costs["fc"] == (2, 8 * (64 + 5 * 64) + 4 * 5)


@needs_spu
def test_a_masked_relu_costs_what_it_keeps(semi2k, images):
    mask = torch.arange(192).view(3, 8, 8) % 3 == 0
    masked = Apply(lambda m, x: m.r(x), r=MaskedReLU(mask))
    semi2k.load(masked, images)
    semi2k.prepare(2)
    torch.testing.assert_close(semi2k.infer(images[:2]), plain(masked, images[:2]), atol=1e-3, rtol=0)
    relu, opening = semi2k.profile(images[:2])
    assert (relu.rounds, relu.bytes_sent) == (8, 72 * 2 * 64)
    assert semi2k.sent.bytes_sent == relu.bytes_sent + opening.bytes_sent


@needs_spu
def test_profile_adds_up_to_the_traffic(semi2k, images):
    model = variant("senet-0.09").build(width=4, weights=None)
    pictures = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(4))
    semi2k.load(model, pictures)
    traffic = semi2k.traffic(pictures[:1])
    profile = semi2k.profile(pictures[:1])
    assert [cost.name for cost in profile[:-1]] == [step.name for step in semi2k.lowered.program.steps]
    assert profile[-1].kind == "open"
    assert sum(cost.rounds for cost in profile) == traffic.rounds
    assert sum(cost.bytes_sent for cost in profile) == traffic.bytes_sent
    assert all(cost.seconds > 0 for cost in profile)


@needs_spu
@pytest.mark.parametrize("engine", ["spu-aby3", "spu-cheetah"])
def test_a_profile_names_the_steps_where_traffic_varies(engine, running, block, images):
    parties = started(running, engine)
    parties.load(block, images)
    profile = parties.profile(images[:1])
    assert [(cost.name, cost.kind) for cost in profile] == [
        *((step.name, step.kind) for step in parties.lowered.program.steps),
        ("open", "open"),
    ]
    sending = {cost.name for cost in profile if cost.rounds and cost.bytes_sent}
    assert sending == {"conv", "relu", "pool", "fc", "open"}
    assert all(cost.seconds > 0 for cost in profile)


@needs_spu
def test_all_parties_of_aby3_send_the_same_together(running, block, images):
    """SPU draws anew in each truncation which party does what, so only the sum is the same."""
    parties = started(running, "spu-aby3")
    parties.load(block, images)
    sums = {parties.traffic(images[:1]).bytes_total for _ in range(4)}
    assert len(sums) == 1


@needs_spu
def test_prepare_is_consumed_by_one_inference(semi2k, block, images):
    semi2k.load(block, images)
    with pytest.raises(NotPrepared, match=r"prepare\(1\)"):
        semi2k.infer(images[:1])
    assert semi2k.pids, "a refusal ends nobody"
    semi2k.prepare(batch=2)
    semi2k._prepared = 1  # without the driver's own check
    with pytest.raises(NotPrepared, match="batch of 1"):
        semi2k.infer(images[:1])


@needs_spu
def test_idle_and_memory(parties, block, images):
    parties.load(block, images)
    assert 0 < parties.idle() < 1
    assert all(100e6 < size < 4e9 for size in parties.peak_memory())


@needs_spu
def test_shares_as_bytes():
    from spu import libspu

    share = libspu.Share()
    share.meta, share.share_chunks = b"what it is", [b"words", b"", b"more words"]
    read = unpacked(packed(share))
    assert (read.meta, list(read.share_chunks)) == (b"what it is", [b"words", b"", b"more words"])
    for broken in (b"", b"x", packed(share)[:-1], b"\xff" * 64):
        with pytest.raises(ConnectionError, match="no share"):
            unpacked(broken)


@needs_spu
def test_no_party_sees_what_is_not_its_own(block, images, monkeypatch):
    """Looks at every message of the driver; the rest travels as shares, of which no one is the value."""
    sent: list[tuple[str, object]] = []
    original = group._send

    def tap(process, message):
        sent.append((process.title, pickle.loads(message)))
        original(process, message)

    monkeypatch.setattr(group, "_send", tap)
    with Parties(engine="spu-aby3", timeout_s=120) as parties:
        parties.load(block, images)
        parties.prepare()
        parties.infer(images[:1])
    loads = {title: message[1][1] for title, message in sent if message[0] == "load"}
    assert {title for title, weights in loads.items() if weights is not None} == {"party 0"}
    infers = {title: message[1][0] for title, message in sent if message[0] == "infer"}
    assert {title for title, given in infers.items() if given is not None} == {"party 1"}


# What the kernel and SPU alone say.


@needs_spu
@pytest.mark.parametrize("engine", SPU)
def test_counted_bytes_are_those_on_the_wire(engine, tmp_path, block, images):
    """The wire carries the payload and brpc's frame around each message and each answer to one."""
    lowered = lower(block, images)
    stored = tmp_path / "network"
    stored.write_bytes(pickle.dumps((lowered.program, lowered.weights, images[:1])))
    parties = ENGINES[engine].parties[0]
    processes = []
    for rank in range(parties):
        arguments = [
            engine,
            str(rank),
            f"file://{tmp_path}/rendezvous",
            str(stored),
            f"{tmp_path}/{rank}.counts",
        ]
        with (tmp_path / f"{rank}.log").open("wb") as log:
            processes.append(
                subprocess.Popen(
                    [sys.executable, str(TESTS / "spu_party.py"), *arguments], stdout=log, stderr=log
                )
            )
    counts = []
    for rank, process in enumerate(processes):
        assert process.wait(timeout=120) == 0, (tmp_path / f"{rank}.log").read_text()[-2000:]
        counts.append(tuple(map(int, (tmp_path / f"{rank}.counts").read_text().split())))
    everyone = sum(messages for messages, _, _ in counts)
    for _, payload, wire in counts:
        assert payload < wire < 1.01 * payload + 300 * everyone


@needs_spu
@pytest.mark.parametrize("engine", ["spu-semi2k", "spu-aby3"])
def test_a_network_by_hand_sends_the_same(engine, tmp_path, running):
    model = variant("baseline").build(width=8, weights=None)
    images = torch.randn(1, 3, 32, 32, generator=torch.Generator().manual_seed(5))
    parties = started(running, engine)
    parties.load(model, images)
    parties.prepare()
    logits = parties.infer(images)
    suite = parties.sent
    weights = {name: value.float().numpy() for name, value in parties.lowered.weights.items()}
    stored = tmp_path / "network"
    stored.write_bytes(pickle.dumps((weights, images.numpy())))
    protocol = engine.removeprefix("spu-").upper()
    answer = tmp_path / "logits.npy"
    done = subprocess.run(
        [sys.executable, str(TESTS / "spu_byhand.py"), protocol, str(stored), str(answer)],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    torch.testing.assert_close(logits, torch.from_numpy(np.load(answer)), atol=0.02, rtol=0)
    said = LINK_DETAILS.findall(done.stdout)
    assert len(said) == parties.count
    opening = parties.profile(images)[-1].bytes_sent * (parties.count - 1)  # all but the images' owner send
    assert sum(int(size) for size, _ in said) == suite.bytes_total - opening
    if engine == "spu-semi2k":
        assert int(said[0][1]) == suite.rounds - 1


@needs_spu
def test_the_yardstick_of_the_benchmark_is_the_network_by_hand(running):
    """The engine that `bench_operators` holds the suite against has the same answer and opening."""
    model = variant("baseline").build(width=8, weights=None)
    images = torch.randn(1, 3, 32, 32, generator=torch.Generator().manual_seed(5))
    suite, answers = started(running, "spu-semi2k"), []
    for parties in (suite, started(running, "spu-byhand")):
        parties.load(model, images)
        parties.prepare()
        answers.append(parties.infer(images))
    torch.testing.assert_close(*answers, atol=0.02, rtol=0)
    opening = suite.profile(images)[-1]
    assert parties.sent.rounds == opening.rounds
    assert max(parties.sent.by_party) == opening.bytes_sent


# Links and accidents.


@needs_spu
@pytest.mark.parametrize("engine", ["spu-semi2k", "spu-aby3"])
def test_a_slow_link_takes_the_seconds_that_its_messages_and_bytes_ask_for(engine, running):
    """brpc's connections lead through the relay: each message waits for half a round trip, all bytes pass it.

    The same bytes are sent as on loopback.
    """
    model, images = Apply(lambda m, x: x.relu()), torch.randn(2, 3, 32, 32)
    near = started(running, engine)
    near.load(model, images)
    sent = near.traffic(images[:1])
    with Parties(engine=engine, timeout_s=120, link="5Mbit/60ms") as far:
        assert far.shaper == "user-space"
        assert far.link_check.ok, far.link_check.complaint
        assert far.link_check.round_s > 0.0299
        far.load(model, images)
        far.prepare()
        logits = far.infer(images[:1])
        torch.testing.assert_close(logits, plain(model, images[:1]), atol=2e-3, rtol=0)
        assert (far.sent.rounds, far.sent.bytes_total) == (sent.rounds, sent.bytes_total)
        expected = far.hops * 0.03 + 8 * far.sent.bytes_sent / 5e6
        assert 0.9 * expected < far.online_s < 1.5 * expected + 0.5


@needs_spu
@pytest.mark.parametrize("engine", SPU)
def test_killed_party_is_reported_within_five_seconds(engine, block, images):
    with Parties(engine=engine, timeout_s=120) as parties:
        check_killed_party_is_reported(parties, block, images)


@needs_spu
def test_hanging_party_is_ended_after_the_timeout(block, images):
    with Parties(engine="spu-semi2k", timeout_s=120) as parties:
        check_hanging_party_is_ended(parties, block, images, "")


@needs_spu
@pytest.mark.parametrize("announced", [False, True])
def test_a_party_that_never_comes(announced, tmp_path):
    """The party never tells its address, or it tells one and does not listen there."""
    setting = Setting("spu-semi2k", "party", 0, 2, f"file://{tmp_path}/store", "first party", timeout_s=2)
    if announced:
        store = torch.distributed.PrefixStore("spu", torch.distributed.FileStore(f"{tmp_path}/store", 2))
        store.set("address1", f"127.0.0.1:{free_port('127.0.0.1', (0,))}")
    started_at = time.monotonic()
    with pytest.raises(ConnectionError, match=r"party 1|a party"):
        connect(setting)
    assert time.monotonic() - started_at < 30


@needs_spu
def test_code_that_the_compiler_refuses():
    from pibench.engines.spu.compiler import Request, compiled

    step = ir.Step("x", "sort", ("x0",), ((1,),), (1,))
    with pytest.raises(RuntimeError, match="no operator str"):
        compiled(Request(ir.Program("x0", (1,), (step,), "x"), 1))


@needs_spu
def test_a_port_that_another_takes_meanwhile_is_named(tmp_path, monkeypatch):
    """SPU opens its port itself, a moment after it was seen to be free."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        monkeypatch.setattr("pibench.engines.spu.link.free_port", lambda host, ports: port)
        setting = Setting("spu-semi2k", "party", 0, 2, f"file://{tmp_path}/store", "first party", timeout_s=2)
        store = torch.distributed.PrefixStore("spu", torch.distributed.FileStore(f"{tmp_path}/store", 2))
        store.set("address1", f"127.0.0.1:{port}")
        with pytest.raises(ConnectionError, match=f"{port} could not join SPU's link .*is the port in use"):
            connect(setting)


@needs_spu
def test_no_process_is_left_when_a_party_dies_while_the_compiler_runs(block, images):
    """Party 0's compiler is a child of a child of the driver."""
    with Parties(engine="spu-semi2k", timeout_s=60) as parties:
        pids = parties.pids
        failed: list[Exception] = []

        def load() -> None:
            try:
                parties.load(block, images)
            except PartyFailed as error:
                failed.append(error)

        loading = threading.Thread(target=load)
        loading.start()
        compilers = wait_for(lambda: children(pids[0]))
        os.kill(pids[1], signal.SIGKILL)
        loading.join(10)
        assert not loading.is_alive()
        assert "party 1 died by signal 9" in str(failed[0])
        assert not alive(pids)
        wait_for(lambda: not alive(tuple(compilers)))


def children(pid: int) -> list[int]:
    """The processes that `pid` has started and that run Python of their own by now."""
    found = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return [int(each) for each in found if b"spu.compiler" in Path(f"/proc/{each}/cmdline").read_bytes()]


def wait_for(condition, timeout_s: float = 30.0):
    """Returns the result of `condition` as soon as it is true."""
    deadline = time.monotonic() + timeout_s
    while not (found := condition()):
        assert time.monotonic() < deadline
        time.sleep(0.01)
    return found


@needs_spu
def test_values_beyond_fixed_point_are_refused_before_the_parties_are_asked(semi2k, images):
    with pytest.raises(ExportError, match=r"2\^30"):
        semi2k.load(Apply(lambda m, x: 2.0**20 * (2.0**12 * x)), images)
    model = Apply(lambda m, x: x.relu())
    semi2k.load(model, images)
    semi2k.prepare()
    with pytest.raises(ValueError, match=r"2\^30"):
        semi2k.infer(2.0**32 * images[:1])
    semi2k.infer(images[:1])


@needs_spu
def test_values_that_overflow_inside_are_refused_thrice(semi2k, images, monkeypatch):
    """The example of `load` was small; these images are below the limit, and their squares leave the ring."""
    subject = Subject(Apply(lambda m, x: x.square().flatten(1)), images, 1, semi2k)
    subject.prepare()
    assert subject.right(subject.infer())
    large = 2.0**20 * images[:1]
    semi2k.prepare()
    with pytest.raises(ValueError, match=r"the images reach .*, where up to"):
        semi2k.infer(large)
    monkeypatch.setattr(semi2k, "_reach", math.inf)  # without the driver's check of the images
    with pytest.raises(WrongAnswer, match=r"image 0 is off by .*'square' reaches .*, beyond the 2\^30"):
        semi2k.infer(large)
    monkeypatch.setattr(semi2k, "_check", False)  # a benchmark judges by itself
    semi2k.prepare()
    squares = semi2k.infer(large)
    assert (squares.double() - large.double().square().flatten(1)).abs().max() > 2.0**30
    assert not subject.right(squares)
