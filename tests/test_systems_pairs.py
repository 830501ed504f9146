"""Joint reduction in the time of SENet: which network is chosen, what it leads by, the table."""

from types import SimpleNamespace

import pytest
from report_tables import table, tables_of
from results_factory import make_accuracy_row, make_row

from pibench import report
from pibench.report.pages import PAGES
from pibench.report.systems_pairs import at_senets_latency_parts, tabulate_at_senets_latency

TEST = {"senet-0.09": 0.59, "senet-merged-0.09": 0.588, "joint-0.208": 0.65, "joint-merged-0.208": 0.64}
TEST |= {"joint-0.052": 0.53, "cap-3": 0.67, "snl-0.09": 0.61}
HELDOUT = TEST | {"joint-merged-0.208": 0.66}
SECONDS = {"senet-0.09": 0.8, "senet-merged-0.09": 0.5, "joint-0.208": 0.6, "joint-merged-0.208": 0.7}
SECONDS |= {"joint-0.052": 0.4, "cap-3": 0.1, "snl-0.09": 0.1, "senet-0.36": 0.9}
FAR = {name: 10 * seconds for name, seconds in SECONDS.items()} | {"joint-merged-0.208": 8.1}


@pytest.fixture(scope="module")
def systems():
    rows = []
    for link, seconds in (("loopback", SECONDS), ("wan", FAR)):
        for name, value in seconds.items():
            role = "headline" if link == "loopback" else "link"
            rows.append(make_row(name, "lean", link=link, count=3, role=role))
            rows[-1]["times"]["online_s"] = [value] * 3
    trained = [
        make_accuracy_row(name, accuracy_test=TEST[name], accuracy_heldout=HELDOUT[name], seed=seed)
        for name in TEST
        for seed in ((0, 1) if name.startswith("joint") else (0,))
    ]
    return report.tabulate_systems(report.summarize(rows), table(trained), report.tabulate_machines([], []))


def test_the_best_on_held_out_images_in_senets_time_is_chosen(systems):
    lines = tabulate_at_senets_latency(systems).set_index(["senet", "link"])
    near, far = lines.loc[("senet-0.09", "loopback")], lines.loc[("senet-0.09", "wan")]
    assert near["joint"] == "joint-merged-0.208", "better on held-out images, not on test images"
    assert near["accuracy_difference"] == pytest.approx(0.05)
    assert near["online_ratio"] == pytest.approx(0.8 / 0.7)
    assert far["joint"] == "joint-0.208", "the merged one is slower there"
    assert far["accuracy_difference"] == pytest.approx(0.06)
    assert lines.loc[("senet-merged-0.09", "wan"), "joint"] == "joint-0.052"
    assert lines["seeds"].tolist() == [1] * 4, "one seed of SENet, two of joint"
    assert "senet-0.36" not in lines.index, "which is not trained"


def test_there_may_be_none(systems):
    quick = systems[systems["variant"].isin(["senet-merged-0.09", "joint-0.208"])]
    lines = tabulate_at_senets_latency(quick)
    assert lines["joint"].tolist() == [None, None]
    assert lines[["accuracy_difference", "online_ratio", "seeds"]].isna().all(axis=None)
    assert at_senets_latency_parts(quick) == []
    assert at_senets_latency_parts(systems[:0]) == []


def test_the_table_and_the_mean_lead(systems):
    text = "\n\n".join(at_senets_latency_parts(systems))
    assert "a joint network is more accurate in **2 of 4** cases" in text
    assert "Its mean lead in points: -0.40 (loopback) and +0.10 (wan) on lean (ours) (2 networks)." in text
    (lines,) = tables_of(text)
    assert [line["SENet"] for line in lines] == ["`senet-0.09`", "`senet-merged-0.09`"]
    assert lines[0]["Best joint, points, faster: loopback"] == "`joint-merged-0.208`, +5.00, 1.14×"
    assert lines[1]["Best joint, points, faster: wan"] == "`joint-0.052`, -5.80, 1.25×"


def test_a_link_without_measurements_is_a_dash(systems):
    part = systems[(systems["link"] == "loopback") | (systems["variant"] != "senet-merged-0.09")]
    (lines,) = tables_of("\n\n".join(at_senets_latency_parts(part)))
    assert lines[1]["Best joint, points, faster: wan"] == "–"


def test_the_page_shows_it(systems):
    assert "At SENet's latency" in PAGES["systems"].tables(
        SimpleNamespace(
            systems=systems,
            accuracy=report.tabulate_accuracy(None),
            machines=report.tabulate_machines([], []),
        )
    )
