import math

import numpy as np
import pandas as pd
import pytest
from protocol_rows import SIX, make_five_protocols
from results_factory import LINKED, make_protocol_row, make_row

from pibench import report
from pibench.costs.literature import CHANNELS, modelled, network_from_dict
from pibench.report.protocols_findings import findings
from pibench.report.protocols_section import models_verdict
from pibench.store.results import validate

pytestmark = pytest.mark.usefixtures("remembered_intervals")

ORDER = ["stock", "lean", "spu-semi2k", "spu-aby3", "spu-cheetah"]


def tables(rows):
    summary = report.summarize(rows)
    protocols = report.tabulate_protocols(summary, report.tabulate_layers(rows), rows)
    return protocols, report.tabulate_protocol_models(rows, protocols), summary


@pytest.fixture(scope="module")
def rows():
    rows = make_five_protocols()
    for row in rows:
        validate(row)
    return rows


@pytest.fixture(scope="module")
def made(rows):
    return tables(rows)


@pytest.fixture(scope="module")
def near(made):
    return made[0][made[0]["timing"] == "measured"]


def changed(near, engine, variant, **values):
    """The table with other values in the line of an engine and variant."""
    near = near.copy()
    place = (near["engine"] == engine) & (near["variant"] == variant)
    near.loc[place, list(values)] = list(values.values())
    return near


def test_one_line_a_case_of_the_networks_that_spu_ran(made, near):
    assert list(dict.fromkeys(near["engine"])) == ORDER
    assert len(near) == len(ORDER) * len(SIX)
    assert set(near["variant"]) == set(SIX)
    assert set(near["batch"]) == {1}
    far = made[0][made[0]["timing"] == "emulated"]
    assert len(far) == 2 * len(ORDER) * len(LINKED)
    assert far["whole_median_s"].isna().all()
    assert near["emulated_whole_median_s"].isna().all()


def test_all_phases_stand_beside_the_sum_of_offline_and_online(rows, near):
    by_case = {row["case"]: row for row in rows}
    for _, line in near.iterrows():
        times = by_case[line["case"]]["times"]
        clock = "all_phases_s" if line["engine"].startswith("spu-") else "total_s"
        assert line["whole_median_s"] == pytest.approx(np.median(times[clock]))


def test_speedups_are_paired_with_the_same_protocols_baseline(rows, near):
    by_case = {row["case"]: row for row in rows}
    for engine in ("lean", "spu-aby3"):
        clock = "total_s" if engine == "lean" else "all_phases_s"
        line = near[(near["engine"] == engine) & (near["variant"] == "joint-0.052")].iloc[0]
        row = by_case[line["case"]]
        ratios = np.array(row["reference"][clock]) / np.array(row["times"][clock])
        assert line["whole_speedup"] == pytest.approx(np.median(ratios))
        assert line["whole_speedup_low"] < line["whole_speedup"] < line["whole_speedup_high"]
    # Lean's baseline is measured in turn with stock's, over which it has no place here.
    assert (near.loc[near["variant"] == "baseline", "whole_speedup"] == 1).all()


def test_an_unpaired_speedup_is_a_quotient_of_medians_with_an_interval():
    rows = [make_protocol_row(name, "spu-cheetah", paired=False) for name in ("baseline", "joint-0.052")]
    line = tables(rows)[0].set_index("variant").loc["joint-0.052"]
    seconds = [np.median(row["times"]["all_phases_s"]) for row in rows]
    assert line["whole_speedup"] == pytest.approx(seconds[0] / seconds[1])
    assert line["whole_speedup_low"] < line["whole_speedup"] < line["whole_speedup_high"]


def test_over_a_link_the_speedup_is_a_quotient_without_an_interval(made):
    far = made[0][(made[0]["engine"] == "spu-cheetah") & (made[0]["link"] == "wan")].set_index("variant")
    seconds = far["emulated_whole_median_s"]
    expected = seconds["baseline"] / seconds["senet-0.09"]
    assert far.loc["senet-0.09", "emulated_whole_speedup"] == pytest.approx(expected)
    assert math.isnan(far.loc["senet-0.09", "emulated_whole_speedup_low"])


def test_bytes_are_those_of_all_processes(rows, near):
    by_case = {row["case"]: row for row in rows}
    for engine in ("stock", "lean", "spu-aby3"):
        line = near[(near["engine"] == engine) & (near["variant"] == "baseline")].iloc[0]
        row = by_case[line["case"]]
        dealt = row["offline"]["dealt_bytes"] or 0
        assert line["bytes_all"] == sum(row["traffic"]["bytes_sent_by_party"]) + dealt


def test_prices_are_of_the_profile(rows, near):
    line = near[(near["engine"] == "spu-semi2k") & (near["variant"] == "baseline")].iloc[0]
    (row,) = (row for row in rows if row["case"] == line["case"])
    seconds = {
        kind: [layer["seconds"] for layer in row["layers"] if layer["kind"] == kind]
        for kind in ("relu", "convolution")
    }
    relu_s = sum(seconds["relu"]) / row["cost"]["relus"]
    assert line["relu_s"] == pytest.approx(relu_s)
    assert line["relus_per_convolution"] == pytest.approx(np.median(seconds["convolution"]) / relu_s)
    assert line["profiled"] == "all_phases"
    assert near.loc[near["engine"] == "lean", "profiled"].unique() == ["online"]


def test_models_stand_beside_the_same_protocol_on_the_same_link(rows, made):
    models = made[1]
    pairs = models[["model", "engine"]].drop_duplicates().itertuples(index=False, name=None)
    assert list(pairs) == [
        ("aby3", "spu-aby3"),
        ("cheetah", "spu-cheetah"),
        ("cryptflow2", "spu-cheetah"),
    ]
    assert set(models["label"]) == {"modelled"}
    line = models[(models["model"] == "cheetah") & (models["link"] == "wan")].iloc[0]
    (row,) = (row for row in rows if row["case"] == line["case"])
    expected = modelled("cheetah", network_from_dict(row["network"]), CHANNELS["wan"])
    assert line["modelled_total_s"] == pytest.approx(expected.total_s)
    assert line["seconds_error"] == pytest.approx(
        expected.total_s / np.median(row["times"]["all_phases_s"]) - 1
    )
    assert line["bytes_error"] == pytest.approx(
        (expected.online_bytes + expected.offline_bytes) / row["traffic"]["bytes_total"] - 1
    )
    # These models know no computation: on loopback there is nothing to hold against seconds.
    on_loopback = models[models["link"] == "loopback"]
    assert on_loopback["modelled_total_s"].isna().all()
    assert on_loopback["bytes_error"].notna().all()
    baselines = models[(models["variant"] == "baseline") & (models["link"] == "wan")]
    assert (baselines["modelled_speedup"] == 1).all()


def test_a_network_that_no_model_prices_has_no_line():
    rows = [make_protocol_row(variant, "spu-aby3", network=None) for variant in ("baseline", "senet-0.09")]
    assert tables(rows)[1].empty


def test_the_page_has_one_table_with_trust_and_everything_asked_for(made):
    text = report.protocols_section(*made)
    assert "**The same networks under 5 protocols, width 64, batch 1, loopback**" in text
    assert "| Protocol | Trust | Variant | Seconds | Speed-up | MB | Rounds |" in text
    for words in (
        "party 0 deals the correlated randomness",
        "of whom no two collude",
        "nobody else: no dealer",
        "](plots/protocols.svg)",
        "| `cryptflow2` | Cheetah (SPU) |",
        "The model `aby3` is off from ABY3 (SPU) in bytes by ",
        "| lan, emulated, s | wan, emulated, s |",
        "AMD EPYC 9B14",
    ):
        assert words in text
    assert "nan" not in text


def test_the_paragraph_says_what_the_numbers_say(near):
    said = findings(near)
    assert "One inference of the baseline takes " in said
    assert "Fewer layers beside fewer ReLUs, `joint-0.052` over `senet-0.09`, are worth " in said
    assert "`joint-0.052` gains most under stock (CrypTen) (" in said
    for engine, share in (("stock", 0.4), ("lean", 0.4), ("spu-semi2k", 0.8), ("spu-aby3", 0.7)):
        near = changed(near, engine, "baseline", relu_share=share, relus_per_convolution=12_345)
    near = changed(near, "spu-cheetah", "baseline", relu_share=0.1, relus_per_convolution=200_000)
    said = findings(near)
    assert "ReLUs are dearer than layers under SEMI2K (SPU) (80 %) and ABY3 (SPU) (70 %)." in said
    assert "Layers are dearer than ReLUs under stock (CrypTen) (40 %), lean (ours) (40 %) and Cheetah" in said
    assert "One convolution costs as much as 12,300 to 200,000 ReLUs." in said


@pytest.mark.parametrize(
    ("speedup", "low", "verdict"),
    [(2.0, 1.9, "pays"), (1.04, 1.02, "hardly pays"), (1.1, 0.98, "does not pay"), (1.2, math.nan, "pays")],
)
def test_whether_dropping_relus_pays_under_he(near, speedup, low, verdict):
    near = changed(
        near,
        "spu-cheetah",
        "senet-0.09",
        whole_speedup=speedup,
        whole_speedup_low=low,
        whole_speedup_high=3.0,
    )
    said = f"dropping ReLUs alone {verdict}: on Cheetah (SPU) `senet-0.09` is faster by"
    assert said in findings(near)
    assert ("too few pairs" in findings(near)) == math.isnan(low)


def test_merging_alone_may_lose(near):
    near = changed(near, "spu-cheetah", "merged-exact", whole_speedup=0.7)
    near = changed(near, "spu-aby3", "merged-exact", whole_speedup=1.3)
    said = findings(near)
    assert "Exact merging alone is slower under Cheetah" in said
    assert "Cheetah (SPU) (0.700×)" in said
    assert "Exact merging alone is faster under stock" in said


def test_verdict_gives_the_span_of_the_errors():
    models = pd.DataFrame(
        {
            "model": "cheetah",
            "engine": "spu-cheetah",
            "bytes_error": [-0.5, 0.25],
            "seconds_error": [math.nan, -0.99],
        }
    )
    assert models_verdict(models) == (
        "The model `cheetah` is off from Cheetah (SPU) in bytes by -50.0 % to +25.0 % and in seconds by "
        "-99.0 %."
    )


def test_without_such_rows_the_page_names_the_command():
    for rows in ([], [make_row(), make_row(engine="lean")]):
        protocols, models, summary = tables(rows)
        assert protocols.empty
        assert models.empty
        assert report.protocols_section(protocols, models, summary).startswith(
            "Not measured yet: `make protocols` installs SecretFlow SPU"
        )


def test_few_rows_make_a_page_too():
    rows = [make_protocol_row()]
    assert "| SEMI2K (SPU) |" in report.protocols_section(*tables(rows))
    rows = [make_protocol_row("senet-0.09", reference=None)]
    assert "plots/protocols.svg" not in report.protocols_section(*tables(rows))  # it needs a baseline
    rows = [make_protocol_row(engine="spu-cheetah", link="lan", layers=[])]
    assert "| Cheetah (SPU) |" in report.protocols_section(*tables(rows))
    rows = [make_protocol_row(layers=[]), make_protocol_row("senet-0.09", reference=None)]
    assert "| SEMI2K (SPU) |" in report.protocols_section(*tables(rows))
