"""Rows of SPU's protocols: one clock, the traffic of each round, a profile whose names are the network's."""

from __future__ import annotations

from dataclasses import replace

import pytest
from test_spu import SPU, needs_spu

from pibench import measure, report
from pibench.api import Settings, case_of
from pibench.engines import ENGINES
from pibench.measure.network import network
from pibench.measure.session import Session
from pibench.measure.suites import protocol_cases, protocol_link_cases, small
from pibench.report.comparison import short_tables
from pibench.show import run_tables
from pibench.store.results import Store
from pibench.store.schema import whole_clock

CASES = {case.engine: case for case in protocol_cases() if case.variant == "senet-0.09"}


@needs_spu
@pytest.mark.parametrize("engine", SPU)
def test_a_row_of_a_protocol(engine, tmp_path):
    case = replace(small(CASES[engine]), rounds=2)
    cases = [case] if case.reference is None else [case.reference, case]
    with Session(cases, tmp_path, "test") as session:
        assert [session.obstacle(each) for each in cases] == [None] * len(cases)
        row = [session.measure(each) for each in cases][-1]
    known = ENGINES[engine]
    assert row["role"] == "protocol"
    assert set(row["times"]) == {whole_clock(row)} == {"all_phases_s"}
    assert all(seconds > 0 for seconds in row["times"]["all_phases_s"])
    assert row["rounds"] == {"attempted": 2, "succeeded": 2}
    assert row["trust"] == known.trust
    assert row["options"]["protocol"] == engine.removeprefix("spu-").upper()
    assert row["options"]["fraction_bits"] == 16
    assert row["options"]["relu"] == "exact"
    assert row["options"]["trunc_allow_msb_error"] is False
    assert row["truncation"] == {"expected_per_inference": 0.0, "expected": 0.0, "observed": 0}
    assert 0 < row["answer"]["relative_error"] < 0.02
    assert row["setup"]["seconds"] > 0
    assert row["setup"]["bytes_sent_by_party"][0] > row["setup"]["bytes_sent_by_party"][1] > 0
    assert len(row["traffic"]["bytes_sent_by_party"]) == row["parties"] == known.parties[0]
    if known.steady_traffic:
        assert "traffic_of_rounds" not in row
    else:
        sent = [sum(each["bytes_sent_by_party"]) for each in row["traffic_of_rounds"]]
        assert row["traffic"]["bytes_total"] == min(sent), "the lower one of two is their median"
    assert sum(layer["relus"] for layer in row["layers"]) == row["cost"]["relus"]
    assert [layer["kind"] for layer in row["layers"]][-2:] == ["linear", "open"]
    if case.reference is not None:
        assert row["reference"]["case"] == case.reference.id
        assert len(row["reference"]["all_phases_s"]) == 2
    stored = Store(tmp_path / "bench.json").rows()
    assert stored[-1] == row
    text = short_tables(report.summarize(stored))
    assert text.startswith(f"{engine}: width 8, batch 1, loopback, {known.parties[0]} parties")
    assert known.trust in text
    assert report.headline_section(stored, report.summarize(stored)).startswith("No headline case")


def test_memory_is_asked_for_by_parameters_too(monkeypatch, tmp_path):
    """A party of CHEETAH was seen to hold 2.5 GB of this network at full width, of SEMI2K 0.9 GB."""
    monkeypatch.setattr("pibench.measure.session.available_memory", lambda: 4.4e9)
    monkeypatch.setattr("pibench.engines.base.Engine.missing", lambda engine: None)
    cases = [replace(CASES[engine], reference=None) for engine in SPU]
    said = [Session(cases, tmp_path, "test").obstacle(case) for case in cases]
    assert said[:2] == [None, None]
    assert "needs about 5 GB of memory beside 0 loaded networks, 4 GB are free" in said[2]


@pytest.mark.parametrize(("link", "batch"), [("loopback", 1), ("wan", 1), ("loopback", 2)])
def test_a_run_of_a_users_choice_is_no_row_of_the_headline(link, batch, monkeypatch):
    monkeypatch.setattr("pibench.engines.base.Engine.missing", lambda engine: None)
    found = network("baseline", width=64)
    for engine, role in (("spu-aby3", "protocol"), ("lean", None)):
        case = case_of(found, Settings(engine=engine, link=link, batch=batch))
        assert case.parties == ENGINES[engine].parties[0]
        assert (case.role == "protocol") == (role == "protocol")


@needs_spu
def test_a_run_by_the_function_measure(tmp_path):
    line = measure("joint-0.052", engine="spu-semi2k", width=8, rounds=1, results=tmp_path).iloc[0]
    assert line["all_phases_median_s"] > 0
    assert line["online_median_s"] != line["online_median_s"]
    (title,) = run_tables(report.summarize(Store(tmp_path / "bench.json").rows()))
    assert ENGINES["spu-semi2k"].trust in title


@needs_spu
def test_a_row_over_a_shaped_link(tmp_path):
    case = next(case for case in protocol_link_cases() if case.variant == "joint-0.052")
    assert (case.engine, case.link) == ("spu-semi2k", "lan")
    case = replace(small(case), link="200Mbit/10ms")
    with Session([case], tmp_path, "test") as session:
        row = session.measure(case)
    assert row["timing"] == "emulated"
    assert row["link_check"]["ok"], row["link_check"]["complaint"]
    line = report.summarize([row]).iloc[0]
    assert line["emulated_all_phases_median_s"] == row["times"]["all_phases_s"][0]
    assert "emulated, 2 parties" in short_tables(report.summarize([row]))
