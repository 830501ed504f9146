"""Links, the arithmetic model, the verdict on a check: all parts that need no process."""

from __future__ import annotations

import math
import struct

import pytest

from pibench.engines.crypten.gloo import address_at
from pibench.links import (
    LINKS,
    Calibration,
    Link,
    LinkCheck,
    ShaperUnavailable,
    make_shaper,
    obstacle,
    parse_link,
    predict_from_loopback,
    predict_online,
    predict_row,
    ring_hops,
)
from pibench.links.relay import Direction
from pibench.links.shapers import netem_arguments
from pibench.parties.driver import Parties

WAN = LINKS["wan"]


def test_the_links_of_the_field():
    assert {name: (link.rtt_s, link.bandwidth_bits_s) for name, link in LINKS.items()} == {
        "loopback": (0, math.inf),
        "lan": (0.3e-3, 3e9),
        "wan": (40e-3, 400e6),
        "wan-slow": (100e-3, 100e6),
    }
    assert [link.name for link in LINKS.values() if not link.shaped] == ["loopback"]


@pytest.mark.parametrize(
    ("text", "rtt_s", "bandwidth"),
    [
        ("200Mbit/40ms", 0.04, 200e6),
        ("1.5Gbit/s/0.25ms", 0.25e-3, 1.5e9),
        ("64kbit / 600 ms", 0.6, 64e3),
        ("10Gbit/0ms", 0, 10e9),
    ],
)
def test_a_custom_link(text, rtt_s, bandwidth):
    link = parse_link(text)
    assert (link.rtt_s, link.bandwidth_bits_s) == (pytest.approx(rtt_s), bandwidth)
    assert parse_link(link.name) == link


def test_named_links_and_links_pass():
    assert parse_link("wan") is WAN
    assert parse_link(WAN) is WAN


@pytest.mark.parametrize(
    "text",
    ["", "Wan", "200/40", "200Mbit", "40ms/200Mbit", "-1Mbit/1ms", "nanMbit/1ms", "200MB/40ms", None, 3],
)
def test_an_unknown_link_is_refused(text):
    with pytest.raises(
        ValueError, match=r"a link is a name|unknown link .* choose one of loopback, lan, wan"
    ):
        parse_link(text)


@pytest.mark.parametrize(
    ("rtt_s", "bandwidth", "says"),
    [
        (-1e-3, 1e6, "RTT of -0.001 s"),
        (math.nan, 1e6, "RTT of nan"),
        (math.inf, 1e6, "RTT of inf"),
        (11, 1e6, "between 0 and 10 s"),
        (0.1, 0, "0 bit/s"),
        (0.1, -5, "-5 bit/s"),
        (0.1, math.nan, "nan bit/s"),
        (0.1, math.inf, "inf bit/s"),
        (0.1, 1e15, "bit/s"),
        ("1", 1e6, "needs numbers"),
        (0.1, True, "needs numbers"),
    ],
)
def test_impossible_values_are_refused(rtt_s, bandwidth, says):
    with pytest.raises(ValueError, match=says):
        Link("x", rtt_s, bandwidth)


def test_a_link_without_a_name_is_refused():
    with pytest.raises(ValueError, match="needs a name"):
        Link(" ", 0.1, 1e6)


def test_impossible_parties_are_refused_before_anything_starts():
    with pytest.raises(ValueError, match="unknown link 'moon'"):
        Parties(link="moon")
    with pytest.raises(ValueError, match="unknown shaper 'magic'"):
        Parties(link="wan", shaper="magic")
    with pytest.raises(ValueError, match="needs a shaper"):
        Parties(link="wan", shaper="none")
    with pytest.raises(ValueError, match="nothing to shape"):
        Parties(shaper="user-space")


def test_netem_is_refused_with_its_reason():
    reason = obstacle(netem=True)
    if reason is None:
        assert make_shaper(WAN, "netem").name == "netem"
    else:
        with pytest.raises(ShaperUnavailable, match="use shaper='user-space'") as refused:
            make_shaper(WAN, "netem")
        assert reason in str(refused.value)


def test_a_missing_tool_is_the_reason(monkeypatch):
    monkeypatch.setattr("pibench.links.shapers.shutil.which", lambda tool: None if tool == "tc" else tool)
    assert obstacle.__wrapped__() == "the command tc is missing (package iproute2)"


def test_netem_gets_half_the_rtt_and_the_whole_rate_at_each_end():
    arguments = " ".join(netem_arguments(WAN, "eth0"))
    assert "dev eth0 root netem" in arguments
    assert "delay 20000us rate 400000000bit" in arguments  # bits: tc's mbps would be bytes


def test_a_direction_carries_one_byte_after_the_other():
    direction = Direction(0.04, 8e6)  # a microsecond a byte
    late = 0.02 - direction.delay
    assert 0 <= late < 1e-4
    assert direction.due(10.0, 1000) + late == pytest.approx(10.021)
    assert direction.due(10.0005, 1000) + late == pytest.approx(10.022)  # waits for the one before
    assert direction.due(11.0, 1000) + late == pytest.approx(11.021)  # the link was idle: nothing is saved up


@pytest.mark.parametrize(
    ("payload", "parties", "hops"),
    [
        (128, 2, 4),
        (4 << 20, 2, 4),
        ((4 << 20) + 1, 2, 8),
        (8_000_000, 2, 8),
        (18 << 20, 2, 20),
        (128, 3, 8),
    ],
)
def test_hops_of_a_ring(payload, parties, hops):
    assert ring_hops(payload, parties) == hops


def test_the_model_by_hand():
    predicted = predict_online(1.5, 100, 5_000_000, WAN, 1e-4)
    assert (predicted.compute_s, predicted.hops_s, predicted.bytes_s) == pytest.approx((1.5, 2.01, 0.1))
    assert predicted.online_s == pytest.approx(3.61)
    assert predicted.error(3.8) == pytest.approx(-0.05)


def test_compute_is_loopback_less_its_communication():
    loopback = Calibration(1e-4, 1e10)
    predicted = predict_from_loopback(1.0, 1000, 125_000_000, WAN, loopback)
    assert predicted.compute_s == pytest.approx(1.0 - 0.1 - 0.1)
    assert predicted.hops_s == pytest.approx(1000 * 0.0201)
    assert predicted.bytes_s == pytest.approx(2.5)


def test_h0_is_the_links_own_where_it_is_known():
    predicted = predict_from_loopback(1.0, 1000, 0, WAN, Calibration(1e-4, 1e10), 3e-4)
    assert predicted.compute_s == pytest.approx(0.9)
    assert predicted.hops_s == pytest.approx(1000 * 0.0203)
    predicted = predict_from_loopback(1.0, 1000, 0, WAN, Calibration(1e-4, 1e10), 4e-5)
    assert (predicted.compute_s, predicted.hops_s) == pytest.approx((0.96, 1000 * 0.02004))


def test_h0_does_not_exceed_what_loopback_took():
    predicted = predict_from_loopback(0.01, 1000, 0, WAN, Calibration(1e-3, 1e10))
    assert predicted.compute_s == pytest.approx(0)
    assert predicted.hops_s == pytest.approx(20.01)


def check(**changes):
    values = {
        "shaper": "user-space",
        "asked_rtt_s": 0.04,
        "measured_rtt_s": 0.04,
        "asked_bandwidth_bits_s": 4e8,
        "measured_bandwidth_bits_s": 4e8,
        "round_s": 0.0804,
        "round_hops": 4,
    }
    return LinkCheck(**(values | changes))


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({}, None),
        ({"measured_rtt_s": 0.0439}, None),
        ({"measured_rtt_s": 0.0441}, "RTT 44.1 ms, asked for 40 ms"),
        ({"measured_rtt_s": 0.0359}, "RTT 35.9 ms"),
        ({"asked_rtt_s": 3e-4, "measured_rtt_s": 3.9e-4}, None),  # 0.1 ms are always allowed
        ({"asked_rtt_s": 3e-4, "measured_rtt_s": 4.1e-4}, "RTT 0.41 ms"),
        ({"measured_bandwidth_bits_s": 3.59e8}, "bandwidth 359 Mbit/s, asked for 400 Mbit/s"),
        ({"measured_bandwidth_bits_s": 4.41e8}, "bandwidth 441 Mbit/s"),
        ({"asked_rtt_s": 0, "measured_rtt_s": 2e-5, "asked_bandwidth_bits_s": math.inf}, None),
    ],
)
def test_a_link_that_is_off_is_flagged(changes, complaint):
    verdict = check(**changes)
    assert verdict.ok == (complaint is None)
    assert complaint is None or complaint in verdict.complaint
    assert verdict.as_dict()["ok"] == verdict.ok


def test_what_software_adds_to_a_hop():
    assert check().hop_overhead_s == pytest.approx(1e-4)


def test_rows_are_predicted():
    loopback = check(
        asked_rtt_s=0, round_s=4e-4, asked_bandwidth_bits_s=math.inf, measured_bandwidth_bits_s=1e10
    )
    traffic = {"hops": 100, "bytes_sent": 5_000_000}
    wan = check(round_s=4 * (0.02 + 3e-4))
    rows = [
        {
            "link": "loopback",
            "traffic": traffic,
            "link_check": loopback.as_dict(),
            "times": {"online_s": [0.5]},
        },
        {
            "link": "wan",
            "traffic": traffic,
            "link_check": wan.as_dict(),
            "times": {"online_s": [3, 2, 2.5]},
        },
    ]
    predicted, error = predict_row(*rows)
    assert predicted.online_s == pytest.approx((0.5 - 0.01 - 0.004) + 100 * (0.02 + 3e-4) + 0.1)
    assert error == pytest.approx(predicted.online_s / 2.5 - 1)


def record(host=b"host", family=2, length=136):
    address = struct.pack("=H", family) + struct.pack("!H", 4711) + bytes([127, 0, 0, 1]) + bytes(length - 8)
    return struct.pack("<Q", len(host)) + host + struct.pack("<Q", length) + address + bytes(16)


def test_gloo_addresses_are_found():
    assert record()[address_at(record()) + 2 :][:6] == struct.pack("!H", 4711) + bytes([127, 0, 0, 1])


@pytest.mark.parametrize(
    "value", [b"", b"1", b"0" * 200, record(family=10), record(length=120), record()[:-1], record()[:100]]
)
def test_other_values_are_no_addresses(value):
    assert address_at(value) is None
