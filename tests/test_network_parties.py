"""Real parties over shaped links: right answers, the time that the model says, failures with a cause."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
from pathlib import Path

import pytest
import torch
from networks import logits_of

from pibench.links import Calibration, Link, obstacle, predict_from_loopback
from pibench.parties.driver import Parties, PartyFailed

LINK = Link("test", 0.02, 1e8)
ROUNDS = 2


def inferences(parties: Parties, model, images) -> tuple[torch.Tensor, float]:
    """The logits of one image and the least of the online seconds."""
    parties.load(model, images)
    times = []
    for _ in range(ROUNDS):
        parties.prepare(1)
        logits = parties.infer(images[:1])
        times.append(parties.online_s)
    return logits, min(times)


@pytest.mark.parametrize(("engine", "hops_a_round"), [("stock", 4), ("lean", 1)])
def test_an_inference_over_a_link(engine, hops_a_round, block, images, request):
    with contextlib.ExitStack() as stack:
        if engine == "stock":
            parties = request.getfixturevalue("stock")
        else:
            parties = stack.enter_context(Parties(engine=engine, timeout_s=60))
        assert parties.shaper == "none"
        loopback = parties.check_link()
        assert loopback.shaper == "none"
        assert loopback.measured_rtt_s < LINK.rtt_s / 4
        assert loopback.round_hops == hops_a_round
        _, online_s = inferences(parties, block, images)
    with Parties(engine=engine, link=LINK, timeout_s=60) as parties:
        check = parties.link_check
        assert parties.shaper == check.shaper == "user-space"
        assert (check.asked_rtt_s, check.asked_bandwidth_bits_s) == (LINK.rtt_s, LINK.bandwidth_bits_s)
        assert LINK.rtt_s - 1e-4 < check.measured_rtt_s < 1.3 * LINK.rtt_s
        assert 0.7 * LINK.bandwidth_bits_s < check.measured_bandwidth_bits_s < 1.1 * LINK.bandwidth_bits_s
        # The declared hops are those of the engine's own round.
        assert 0.95 < check.round_s / (hops_a_round * LINK.rtt_s / 2) < 1.3
        logits, shaped_s = inferences(parties, block, images)
        assert torch.allclose(logits, logits_of(parties.lowered, images[:1]).float(), atol=2e-3)
        assert parties.hops == hops_a_round * parties.sent.rounds
        communication = parties.hops * LINK.rtt_s / 2 + 8 * parties.sent.bytes_sent / LINK.bandwidth_bits_s
        assert shaped_s > 0.95 * communication
        calibration = Calibration(loopback.hop_overhead_s, loopback.measured_bandwidth_bits_s)
        predicted = predict_from_loopback(online_s, parties.hops, parties.sent.bytes_sent, LINK, calibration)
        assert abs(predicted.error(shaped_s)) < 0.3


def test_three_parties_and_a_helper_over_a_link(block, images):
    with Parties(count=3, provider="TTP", link=Link("near", 2e-3, 1e9), timeout_s=60) as parties:
        assert parties.link_check.round_hops == 8
        parties.load(block, images)
        parties.prepare(1)
        logits = parties.infer(images[:1])
        assert torch.allclose(logits, logits_of(parties.lowered, images[:1]).float(), atol=2e-3)


def connections(pids: tuple[int, ...]) -> set[tuple[int, int]]:
    """The pairs of processes that a TCP connection joins."""
    owner: dict[str, int] = {}
    for pid in pids:
        for path in Path(f"/proc/{pid}/fd").iterdir():
            try:
                target = os.readlink(path)
            except OSError:
                continue
            if target.startswith("socket:["):
                owner[target[8:-1]] = pid
    ends: dict[tuple[str, str], int] = {}
    for line in Path("/proc/net/tcp").read_text().splitlines()[1:]:
        fields = line.split()
        if fields[9] in owner and fields[3] == "01":
            ends[fields[1], fields[2]] = owner[fields[9]]
    return {
        tuple(sorted((pid, ends[there, here])))
        for (here, there), pid in ends.items()
        if (there, here) in ends
    }


@pytest.mark.parametrize("engine", ["stock", "lean"])
def test_no_connection_of_two_processes_avoids_the_relay(engine):
    with Parties(engine=engine, link=Link("near", 1e-3, 1e9), timeout_s=60) as parties:
        process, folder = parties.group.shaper.popen, parties.group.folder
        relay = process.pid
        joined = connections((*parties.pids, relay))
        assert joined
        assert all(relay in pair for pair in joined)
        assert {pid for pair in joined for pid in pair} == {*parties.pids, relay}
    assert process.poll() is not None
    assert not folder.exists()


def test_a_relay_that_dies_ends_the_parties_and_is_named(block, images):
    with Parties(engine="stock", link=Link("near", 1e-3, 1e9), timeout_s=30) as parties:
        parties.load(block, images)
        os.kill(parties.group.shaper.popen.pid, signal.SIGKILL)
        with pytest.raises(PartyFailed, match="the link's relay ended with code -9"):
            parties.prepare(1)
        assert parties.pids == ()


@pytest.mark.skipif(obstacle(netem=False) is not None, reason=str(obstacle(netem=False)))
@pytest.mark.parametrize("engine", ["stock", "lean"])
def test_parties_in_network_namespaces(engine, block, images):
    with Parties(engine=engine, shaper="netem", timeout_s=30) as parties:
        own = {os.readlink(f"/proc/{pid}/ns/net") for pid in parties.pids}
        assert len(own) == len(parties.pids)
        assert os.readlink("/proc/self/ns/net") not in own
        assert parties.check_link().measured_rtt_s < 5e-3
        parties.load(block, images)
        parties.prepare(1)
        assert torch.allclose(
            parties.infer(images[:1]), logits_of(parties.lowered, images[:1]).float(), atol=2e-3
        )
        hub = parties.group.shaper.popen
    assert hub.poll() is not None
    names = [name for _, name in socket.if_nameindex()]
    assert not any(name.startswith(("port", "eth0@")) for name in names)


@pytest.mark.skipif(obstacle() is not None, reason=str(obstacle()))
def test_netem_is_the_reference(block, images):
    with Parties(engine="lean", link=LINK, shaper="netem", timeout_s=60) as parties:
        assert parties.link_check.shaper == "netem"
        assert LINK.rtt_s - 1e-4 < parties.link_check.measured_rtt_s < 1.3 * LINK.rtt_s
        parties.load(block, images)
        parties.prepare(1)
        logits = parties.infer(images[:1])
        assert torch.allclose(logits, logits_of(parties.lowered, images[:1]).float(), atol=2e-3)
        assert parties.online_s > 0.95 * parties.hops * LINK.rtt_s / 2
