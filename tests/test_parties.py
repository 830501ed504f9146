"""Real parties in real processes: answers, exact traffic, and what happens when something goes wrong."""

from __future__ import annotations

import os
import pickle
import signal
import subprocess
import sys
import tempfile
import threading
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from accidents import alive, check_hanging_party_is_ended, check_killed_party_is_reported, gone
from networks import Apply
from torch import nn

from pibench.engines import NotPrepared
from pibench.models.graph.relu import MaskedReLU
from pibench.parties import driver, group
from pibench.parties.driver import Parties, PartyFailed
from pibench.program.lower import ExportError

OPENING = 8  # bytes a logit


def run(parties: Parties, model: nn.Module, images: torch.Tensor) -> torch.Tensor:
    parties.load(model, images)
    parties.prepare(len(images))
    return parties.infer(images)


OPERATORS = {
    "conv stride padding": Apply(lambda m, x: m.c(x), c=nn.Conv2d(3, 4, 3, stride=2, padding=1)),
    "conv dilation groups": Apply(
        lambda m, x: m.c(x), c=nn.Conv2d(3, 6, 3, dilation=2, groups=3, bias=False)
    ),
    "conv uneven": Apply(lambda m, x: m.c(x), c=nn.Conv2d(3, 4, (1, 3), padding=(0, 1))),
    "linear": Apply(lambda m, x: m.f(torch.flatten(x, 1)), f=nn.Linear(192, 7)),
    "linear on the last dimension": Apply(lambda m, x: m.f(x), f=nn.Linear(8, 5, bias=False)),
    "relu": Apply(lambda m, x: x.relu()),
    "average pool": Apply(lambda m, x: F.avg_pool2d(x, 3, 2, 1)),
    "adaptive average": Apply(lambda m, x: F.adaptive_avg_pool2d(x, (2, 4))),
    "max pool": Apply(lambda m, x: F.max_pool2d(x, 2)),
    "max pool padded": Apply(lambda m, x: F.max_pool2d(x, 3, 2, 1)),
    "max pool uneven": Apply(lambda m, x: F.max_pool2d(x, (3, 2), (2, 1), (1, 0))),
    "adaptive max": Apply(lambda m, x: F.adaptive_max_pool2d(x, 2)),
    "x + x": Apply(lambda m, x: x + x),
    "add": Apply(lambda m, x: x + x.relu()),
    "scale": Apply(lambda m, x: x * -0.75),
    "multiply": Apply(lambda m, x: x * x.relu()),
    "square": Apply(lambda m, x: torch.square(x)),
    "x * x": Apply(lambda m, x: x * x),
    "cat": Apply(lambda m, x: torch.cat([x, x.relu()], 1)),
    "flatten": Apply(lambda m, x: x.flatten(2)),
    "mean": Apply(lambda m, x: x.mean((2, 3))),
    "mean keepdim": Apply(lambda m, x: x.mean(-1, keepdim=True)),
}


@pytest.mark.parametrize("name", OPERATORS)
def test_operator_equals_plaintext(name, stock, images):
    model = OPERATORS[name]
    with torch.no_grad():
        expected = model(images[:2])
    torch.testing.assert_close(run(stock, model, images[:2]), expected, atol=2e-3, rtol=1e-3)


def test_max_pool_of_very_negative_values(stock):
    """CrypTen's own padding of -2^8 a party would win here."""
    images = torch.full((1, 3, 8, 8), -50000.0)
    logits = run(stock, Apply(lambda m, x: F.max_pool2d(x, 3, 2, 1)), images)
    torch.testing.assert_close(logits, torch.full((1, 3, 4, 4), -50000.0), atol=2, rtol=0)


@pytest.mark.parametrize(
    ("model", "rounds", "sent"),
    [
        (Apply(lambda m, x: x.relu()), 9, 232 * 192),
        (Apply(lambda m, x: m.c(x), c=nn.Conv2d(3, 3, 3, padding=1)), 1, 8 * (192 + 81)),
        (Apply(lambda m, x: x + x), 0, 0),
        (Apply(lambda m, x: x * 2.0), 0, 0),
        (Apply(lambda m, x: x * x), 1, 8 * 192),
        (Apply(lambda m, x: x * (x + x)), 1, 16 * 192),
        (Apply(lambda m, x: m.r(x), r=MaskedReLU(torch.arange(192).view(3, 8, 8) % 3 == 0)), 9, 232 * 64),
    ],
)
def test_traffic_is_exact(model, rounds, sent, stock, images):
    stock.load(model, images)
    traffic = stock.traffic(images[:1])
    assert traffic.rounds == rounds + 1
    assert traffic.bytes_sent == sent + OPENING * 192
    assert traffic.bytes_total == 2 * traffic.bytes_sent


def test_max_pool_traffic(stock, images):
    """2x2 max pooling: 46 rounds and 2,960 bytes an output (facts, measured on CrypTen's counters)."""
    stock.load(Apply(lambda m, x: F.max_pool2d(x, 2)), images)
    traffic = stock.traffic(images[:1])
    assert (traffic.rounds, traffic.bytes_sent) == (46 + 1, (2960 + OPENING) * 48)


def test_profile_adds_up_to_the_traffic(stock, block, images):
    stock.load(block, images)
    traffic = stock.traffic(images[:1])
    profile = stock.profile(images[:1])
    assert [cost.kind for cost in profile] == [
        "convolution",
        "relu",
        "averagepool",
        "flatten",
        "linear",
        "open",
    ]
    assert sum(cost.rounds for cost in profile) == traffic.rounds
    assert sum(cost.bytes_sent for cost in profile) == traffic.bytes_sent
    assert all(cost.seconds > 0 for cost in profile)


def test_prepare_is_consumed_by_one_inference(stock, block, images):
    stock.load(block, images)
    with pytest.raises(NotPrepared, match=r"prepare\(1\)"):
        stock.infer(images[:1])
    stock.prepare(batch=2)
    with pytest.raises(NotPrepared, match="batch of 1"):
        stock.infer(images[:1])
    expected = block(images[:2]).detach()
    torch.testing.assert_close(stock.infer(images[:2]), expected, atol=2e-3, rtol=0)
    with pytest.raises(NotPrepared):
        stock.infer(images[:2])
    assert stock.pids, "a refusal ends nobody"


def test_loading_again_forgets_what_was_prepared(stock, block, images):
    stock.load(block, images)
    stock.prepare()
    stock.load(block, images)
    with pytest.raises(NotPrepared):
        stock.infer(images[:1])


def test_tuples_are_made_offline_only(stock, block, images):
    """A second inference of one shape costs an offline phase of its own, and no tuple is left over."""
    stock.load(block, images)
    first, second = stock.prepare(), None
    held = stock.offline.correlated_bytes
    stock.infer(images[:1])
    second = stock.prepare()
    assert first > 0
    assert second > 0
    assert stock.offline.correlated_bytes == held
    # conv: a, b, c; relu: 44 words; linear: a, b, c.
    words = (192 + 108 + 256) + 44 * 256 + (64 + 320 + 5)
    assert held == (8 * words, 8 * words)


def test_wrong_images_are_refused_and_nothing_is_lost(stock, block, images):
    stock.load(block, images)
    stock.prepare()
    with pytest.raises(ValueError, match=r"shape \[N, 3, 8, 8\], not \[1, 3, 9, 9\]"):
        stock.infer(torch.zeros(1, 3, 9, 9))
    with pytest.raises(ValueError, match="NaN"):
        stock.infer(torch.full((1, 3, 8, 8), float("nan")))
    with pytest.raises(ValueError, match="2\\^30"):
        stock.infer(torch.full((1, 3, 8, 8), 2.0**31))
    with pytest.raises(TypeError, match=r"torch\.int64"):
        stock.infer(torch.zeros(1, 3, 8, 8, dtype=torch.int64))
    with pytest.raises(TypeError, match="list"):
        stock.infer([1.0])
    with pytest.raises(ValueError, match=r"not 1\.5"):
        stock.prepare(1.5)
    stock.prepare()
    stock.infer(images[:1])


def test_half_precision_images(stock, block, images):
    stock.load(block, images)
    stock.prepare()
    expected = block(images[:1].half().float()).detach()
    torch.testing.assert_close(stock.infer(images[:1].half()), expected, atol=2e-3, rtol=0)


def test_running_parties_cannot_be_entered_again(stock):
    with pytest.raises(RuntimeError, match="running already"):
        stock.__enter__()
    assert stock.pids


def test_the_party_itself_refuses_another_batch(block, images):
    """Without the driver's own check: CrypTen would silently make what its cache lacks online."""
    with Parties(timeout_s=60) as parties:
        parties.load(block, images)
        parties.prepare(2)
        parties._prepared = 1
        with pytest.raises(NotPrepared, match="batch of 1"):
            parties.infer(images[:1])


def test_model_that_does_not_fit_is_refused_before_the_parties_are_asked(stock, block, images):
    stock.load(block, images)
    with pytest.raises(ExportError, match="does not fit"):
        stock.load(block, torch.zeros(1, 3, 12, 12))
    stock.prepare()
    stock.infer(images[:1])


def test_value_beyond_the_lean_engines_bound_is_refused():
    """A 3x3 convolution there holds |v| < 2^28: four times the product at double scale."""
    conv = nn.Conv2d(16, 16, 3, padding=1, bias=False)
    conv.weight.data.fill_(2.0**21)
    images = torch.ones(1, 16, 8, 8)
    with Parties(engine="lean", timeout_s=60) as parties:
        with pytest.raises(ExportError, match=r"'c' reaches 3.02e\+08, beyond the 2\^28"):
            parties.load(Apply(lambda m, x: m.c(x), c=conv), images)
        conv.weight.data.fill_(2.0**10)
        logits = run(parties, Apply(lambda m, x: m.c(x), c=conv), images)
        torch.testing.assert_close(logits, conv(images).detach())


def test_nothing_loaded():
    with pytest.raises(RuntimeError, match="load"):
        Parties().prepare()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"engine": "fast"}, "unknown engine 'fast'"),
        ({"count": 5}, "2 or 3 parties, not 5"),
        ({"provider": "HE"}, "no provider 'HE'"),
        ({"timeout_s": 0}, "positive"),
        ({"timeout_s": float("inf")}, "positive"),
        ({"timeout_s": 1e7}, "a positive number of seconds, at most 1,000,000, not 10000000.0"),
        ({"timeout_s": "9"}, "positive number of seconds, .* not '9'"),
        ({"count": 2.0}, "not 2.0"),
        ({"engine": "lean", "provider": "TFP"}, "no provider 'TFP'"),
        ({"engine": "lean", "count": 3}, "2 parties, not 3"),
    ],
)
def test_impossible_settings(arguments, message):
    with pytest.raises(ValueError, match=message):
        Parties(**arguments)


@pytest.mark.parametrize("remote", ["10.0.0.1", Parties, 5])
def test_a_remote_of_another_type_is_refused(remote):
    with pytest.raises(TypeError, match=r"must be a pibench\.hosts\.remote\.Remote, .* not (str|type|int)"):
        Parties(remote=remote)


def test_a_batch_beyond_the_machine_is_refused_before_anything_is_sent(stock, block, images, monkeypatch):
    stock.load(block, images)
    monkeypatch.setattr(stock.group, "ask", lambda *_: pytest.fail("something was sent"))
    with pytest.raises(ValueError, match="at most 2,147,483,647, not 2147483648"):
        stock.prepare(1 << 31)
    with pytest.raises(MemoryError, match=r"^a batch of 100,000,000 needs about 18,\d{3} GB of memory for 2"):
        stock.prepare(100_000_000)
    monkeypatch.setattr(driver, "available_memory", lambda: 2e9)
    with pytest.raises(MemoryError, match=r"100,000 needs about 19 GB .*: prepare a smaller batch"):
        stock.prepare(100_000)
    monkeypatch.undo()
    stock.prepare()
    stock.infer(images[:1])


def test_a_view_travels_without_the_rest_of_its_storage(stock, block, images, monkeypatch):
    sizes = []
    original = group._send
    monkeypatch.setattr(group, "_send", lambda p, message: (sizes.append(len(message)), original(p, message)))
    stock.load(block, images)
    sizes.clear()
    for view in (images.repeat(500, 1, 1, 1)[4:5], images[:1].transpose(2, 3).transpose(2, 3)):
        stock.prepare()
        torch.testing.assert_close(stock.infer(view), block(images[:1]).detach(), atol=2e-3, rtol=0)
    assert max(sizes) < 2000  # 768 of them are the image


@pytest.mark.parametrize("engine", ["stock", "lean"])
def test_a_temporary_folder_of_any_name_holds_everything(
    engine, block, images, tmp_path, tmp_path_factory, monkeypatch
):
    """In a URL the name would end at its first sign."""
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path_factory.mktemp("torch")))
    place = tmp_path / "a#b?c %41;ü"
    place.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(place))
    with Parties(engine=engine, timeout_s=60) as parties:
        (folder,) = place.iterdir()
        assert folder == parties.group.folder
        assert (folder / "rendezvous").exists()
        assert folder.stat().st_mode & 0o777 == 0o700
        torch.testing.assert_close(run(parties, block, images), block(images).detach(), atol=2e-3, rtol=0)
    assert [path.name for path in tmp_path.rglob("*")] == [place.name]


def test_a_second_thread_is_refused_and_may_close(block, images, monkeypatch):
    with Parties(timeout_s=60) as parties:
        parties.load(block, images)
        os.kill(parties.pids[0], signal.SIGSTOP)
        said = []
        inside = threading.Event()
        original = parties.group.ask
        monkeypatch.setattr(parties.group, "ask", lambda *told: (inside.set(), original(*told))[1])

        def wait():
            try:
                parties.prepare()
            except PartyFailed as error:
                said.append(str(error))

        thread = threading.Thread(target=wait)
        thread.start()
        assert inside.wait(10)
        for ask in (parties.idle, parties.prepare, lambda: parties.infer(images[:1]), parties.peak_memory):
            with pytest.raises(RuntimeError, match="another thread uses these parties just now: give each"):
                ask()
        parties.__exit__(None, None, None)
        thread.join(10)
    assert said == ["the parties were closed by another thread while 'plan' ran"]
    assert not parties.pids


def test_three_parties_and_the_ring(images, block):
    """Three parties: a ring all-reduce sends 4/3 of its payload from each, truncation gathers at party 0."""
    with Parties(count=3, timeout_s=60) as parties:
        logits = run(parties, block, images[:1])
        torch.testing.assert_close(logits, block(images[:1]).detach(), atol=2e-3, rtol=0)
        parties.load(Apply(lambda m, x: x.relu()), images)
        traffic = parties.traffic(images[:1])
        assert traffic.rounds == 16 + 1
        parties.load(Apply(lambda m, x: F.avg_pool2d(x, 2)), images)
        traffic = parties.traffic(images[:1])
        opening = 48 * 8 * 4 // 3
        assert traffic.rounds == 1 + 1  # the gather of the truncation, the opening
        assert traffic.by_party == (opening, opening + 48 * 8, opening + 48 * 8)


def test_trusted_third_party(images, block):
    with Parties(provider="TTP", timeout_s=60) as parties:
        assert len(parties.pids) == 3
        logits = run(parties, block, images[:1])
        torch.testing.assert_close(logits, block(images[:1]).detach(), atol=2e-3, rtol=0)
        assert parties.traffic(images[:1]).rounds == 1 + 9 + 1 + 1


@pytest.mark.usefixtures("started")
def test_killed_party_is_reported_within_five_seconds(block, images):
    with Parties(timeout_s=60) as parties:
        check_killed_party_is_reported(parties, block, images)


def test_failing_party_gives_its_traceback(block, images):
    with Parties(timeout_s=60) as parties:
        parties.load(block, images)
        with pytest.raises(PartyFailed, match=r"(?s)Traceback.*Session.*has no attribute 'explode'"):
            parties._call("explode", lambda _: ())
        assert not parties.pids


@pytest.mark.usefixtures("started")
def test_hanging_party_is_ended_after_the_timeout(block, images):
    with Parties(timeout_s=20) as parties:
        check_hanging_party_is_ended(parties, block, images, "party 0, party 1 ")


SCRIPT = """
import os, sys, time, torch
from pibench.links import Link
from pibench.parties.driver import Parties
with Parties(timeout_s=60, link=Link("near", 1e-3, 1e9)) as parties:
    forked = os.fork()
    if forked:
        group = parties.group
        others = group._supervisor._popen.pid, group.shaper.popen.pid
        print(group.folder, forked, *others, *parties.pids, flush=True)
    time.sleep(60)
"""


def heed_interrupts() -> None:
    """Undoes what a shell does to a test run in its background, which children would inherit."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGINT])
def test_no_process_outlives_the_driver(how):
    """Neither a stopped relay nor a child of the driver that lives on delays the end (`test_supervisor`)."""
    driver = subprocess.Popen(
        [sys.executable, "-c", SCRIPT],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        preexec_fn=heed_interrupts,
    )
    with driver:
        folder, forked, *pids = driver.stdout.readline().split()
        pids = tuple(map(int, pids))
        assert len(alive(pids)) == 4
        os.kill(pids[1], signal.SIGSTOP)
        driver.send_signal(how)
        try:
            driver.wait(timeout=10)
            assert gone(pids)
            assert not Path(folder).exists()
        finally:
            assert alive([int(forked)])
            os.kill(int(forked), signal.SIGKILL)


def test_party_one_never_receives_the_weights(block, images, monkeypatch):
    """Looks at every message: weights go to party 0 alone, images to party 1 alone."""
    sent: list[tuple[str, object]] = []
    original = group._send

    def tap(process, message):
        sent.append((process.title, pickle.loads(message)))
        original(process, message)

    monkeypatch.setattr(group, "_send", tap)
    with Parties(timeout_s=60) as parties:
        parties.load(block, images)
        parties.prepare()
        parties.infer(images[:1])
    loads = {title: message[1][1] for title, message in sent if message[0] == "load"}
    assert loads["party 0"] is not None
    assert loads["party 1"] is None
    infers = {title: message[1][0] for title, message in sent if message[0] == "infer"}
    assert infers["party 0"] is None
    assert torch.equal(infers["party 1"], images[:1])


def test_idle_and_memory(stock, block, images):
    stock.load(block, images)
    assert 0 < stock.idle() < 1
    assert all(100e6 < size < 2e9 for size in stock.peak_memory())
