"""The predicted traffic is the counted one: every operator, whole inferences, networks by hand.

Every network of the zoo and every variant: see test_engines.py, where their answers are checked too.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from pibench.costs import predict as prediction
from pibench.costs.literature import MODELS
from pibench.costs.predict import predict
from pibench.engines import ENGINES
from pibench.engines.crypten import cost as stock_cost
from pibench.engines.crypten.cost import AllReduce, Gather, maximum, rectified
from pibench.links.link import LINKS
from pibench.models.data import default_images
from pibench.models.graph.relu import MaskedReLU
from pibench.models.variants import VARIANTS
from pibench.parties.driver import Parties
from pibench.program.ir import Flatten, Program, Relu, Step
from pibench.program.lower import lower
from pibench.store.settings import GOAL

REFERENCE = Path(__file__).parent.parent / "results" / "reference"


def picture(size: int, count: int = 1) -> torch.Tensor:
    return 0.5 * torch.randn(count, 3, size, size, generator=torch.Generator().manual_seed(3))


def assert_counted(parties: Parties, model: nn.Module, images: torch.Tensor) -> None:
    """Compares the prediction, made first, with the counters of a profiled run, step by step."""
    program = lower(model, images).program
    made = predict(program, parties.engine, len(images), parties.count)
    parties.load(model, images)
    counted = parties.profile(images)
    assert [(step.name, step.kind, step.rounds, step.bytes_sent) for step in made.steps] == [
        (cost.name, cost.kind, cost.rounds, cost.bytes_sent) for cost in counted
    ]


@pytest.mark.parametrize("engine", ["stock", "lean"])
def test_whole_inference_by_party(engine, request):
    """A batch of three: what `traffic` counts, party by party (lean: party 0 alone sends the opening)."""
    parties = request.getfixturevalue(engine)
    model, images = VARIANTS["senet-0.09"].build(8, weights=None, classes=5, image_size=8), picture(8, 3)
    parties.load(model, images)
    counted = parties.traffic(images)
    made = predict(lower(model, images).program, engine, batch=3)
    assert (made.rounds, made.hops, made.bytes_sent, made.by_party, made.bytes_total) == (
        counted.rounds,
        parties.hops,
        counted.bytes_sent,
        counted.by_party,
        counted.bytes_total,
    )


class Every(nn.Module):
    """Every operator once; the sum of all in the end, so that none is pruned."""

    def __init__(self, pools: tuple[tuple, ...]) -> None:
        super().__init__()
        self.pools = pools
        self.conv = nn.Conv2d(3, 6, (3, 1), stride=(2, 1), padding=(1, 0), groups=3)
        self.last = nn.Linear(8, 5, bias=False)
        self.masked = MaskedReLU(torch.arange(192).view(3, 8, 8) % 3 == 0)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = torch.cat([x, self.masked(x)], 1)
        y = (y * torch.square(y) + y * -0.75).relu()
        found = [
            self.conv(x).flatten(1),
            self.last(x).flatten(1),
            y.mean((2, 3)),
            y.mean(-1, keepdim=True).flatten(1),
            F.avg_pool2d(y, 2).flatten(1),
            *(F.max_pool2d(x, *pool).flatten(1) for pool in self.pools),
        ]
        return torch.cat(found, 1)


POOLS = ((1, 1), (2,), (3, 2, 1), ((3, 2), (2, 1), (1, 0)), (5, 3, 2), ((1, 7), 1), (8,))


@pytest.mark.parametrize("engine", ["stock", "lean"])
def test_every_operator_and_windows_of_1_to_64(engine, request):
    parties, model, images = request.getfixturevalue(engine), Every(POOLS).eval(), picture(8, 2)
    assert_counted(parties, model, images)
    parties.traffic(images)
    assert predict(lower(model, images).program, engine, 2).hops == parties.hops


def test_three_parties():
    """The ring sends 4/3 of an opening from each party; divisions gather at party 0, which sends nothing."""
    model, images = Every(((2,), (3, 2, 1))).eval(), picture(8)
    made = predict(lower(model, images).program, "stock", parties=3)
    with Parties(count=3, timeout_s=120) as parties:
        parties.load(model, images)
        counted = parties.traffic(images)
    assert (made.rounds, made.hops, made.by_party) == (counted.rounds, parties.hops, counted.by_party)
    assert made.by_party[0] < made.by_party[1] == made.by_party[2]


@pytest.fixture(scope="module")
def baseline() -> Program:
    return lower(VARIANTS["baseline"].build(64, weights=None), torch.zeros(1, 3, 32, 32)).program


def test_resnet18_at_full_width(baseline):
    """The counts of the measured network, and the same by hand.

    Stock: 232 B for each of 557,056 ReLUs; 8 (|x| + |W|) for each linear layer, 11,210,432 weights and
    664,064 inputs in all; 100 logits. Rounds: 17 * 9 + 21 + 1.
    """
    stock, lean = predict(baseline, "stock"), predict(baseline, "lean")
    assert (stock.bytes_sent, stock.rounds) == (224_258_336, 175)
    assert (lean.by_party[0], lean.rounds) == (24_417_856, 108)
    assert lean.by_party[0] - lean.by_party[1] == 8 * 100
    linear = [step for step in baseline.steps if step.kind in ("convolution", "linear")]
    weights = sum(torch.Size(step.operator.weight_shape).numel() for step in linear)
    inputs = sum(step.input_size for step in linear)
    assert stock.bytes_sent == 232 * 557_056 + 8 * (weights + inputs) + 8 * 100
    assert stock.rounds == 17 * 9 + len(linear) + 1
    # lean: 34.25 B a ReLU (64 divides every layer), inputs alone, the last truncation, the opening.
    assert lean.by_party[0] == 557_056 * 137 // 4 + 8 * inputs + 8 * 100 + 8 * 100
    assert lean.rounds == 17 * 5 + len(linear) + 1 + 1


def test_hops_and_what_a_link_takes_are_those_of_the_reference():
    """Hops of every row exactly; over a WAN, where computing is little, the link alone is nearly all.

    SPU counts messages for hops and computes more: see test_spu_cost.py.
    """
    cases = pd.read_csv(REFERENCE / "summary.csv", low_memory=False)
    cases = cases[cases["variant"].isin(["baseline", "joint-0.052", "deepreduce"]) & (cases["width"] == 64)]
    cases = cases[[not ENGINES[engine].one_clock for engine in cases["engine"]]]
    images, _ = default_images(16)
    programs = {  # the bounds are read by calibrated engines alone
        name: lower(VARIANTS[name].build(64), images).calibrated().program for name in set(cases["variant"])
    }
    compared = 0
    for case in cases.itertuples():
        made = predict(programs[case.variant], case.engine, case.batch, case.parties)
        assert made.hops == case.hops
        if case.link.startswith("wan"):
            alone = made.least_s(LINKS[case.link])
            assert alone == pytest.approx(case.emulated_online_median_s, rel=GOAL)
            compared += 1
    assert compared == 2 * 2 * 3 + 3  # stock and lean over two WANs, lean32 over the faster one


def test_a_batch_opens_the_weights_once(baseline):
    one, two = (predict(baseline, "stock", batch).bytes_sent for batch in (1, 2))
    weights = sum(
        torch.Size(step.operator.weight_shape).numel()
        for step in baseline.steps
        if step.kind in ("convolution", "linear")
    )
    assert two == 2 * one - 8 * weights
    assert predict(baseline, "stock", 2).rounds == predict(baseline, "stock").rounds


def sent(collectives, parties=2):
    return len(collectives), sum(each.sent(0, parties) for each in collectives)


def test_collectives_by_hand():
    """A ReLU: 29 words and 9 rounds, 16 rounds for three parties. 2x2 max pooling: 46 rounds, 2,960 B."""
    assert sent(rectified(1, 2)) == (9, 232)
    assert len(rectified(1, 3)) == 16
    assert sent(maximum(1, 4, 2)) == (46, 2960)
    assert AllReduce(3).sent(1, 2) == 24
    assert AllReduce(3).sent(1, 3) == 32
    assert [Gather(3).sent(rank, 3) for rank in range(3)] == [0, 24, 24]
    assert AllReduce(3, 4).sent(0, 2) == 8 * 7
    mib = 2**20 // 8
    hops = [AllReduce(*words).hops(2) for words in ((3,), (4 * mib, 4 * mib), (8 * mib, 1))]
    assert hops == [4, 4, 8]


def test_max_pooling_costs_more_than_its_relus_for_any_window():
    for window in range(2, 200):
        assert sent(maximum(1, window, 2))[1] > sent(rectified(window - 1, 2))[1]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"engine": "byhand"}, "no cost model for engine 'byhand'; choose one of stock, lean"),
        ({"engine": "stock", "parties": 4}, "2 or 3 parties, not 4"),
        ({"engine": "lean", "parties": 3}, "2 parties, not 3"),
        ({"engine": "stock", "batch": 0}, "at least one image, not 0"),
    ],
)
def test_bad_questions(arguments, message, baseline):
    with pytest.raises(ValueError, match=message):
        predict(baseline, **arguments)


def test_an_unknown_operator_is_named():
    class Sigmoid:
        pass

    program = Program("x", (3,), (Step("s", Sigmoid(), ("x",), ((3,),), (3,)),), "s")
    with pytest.raises(NotImplementedError, match=r"'sigmoid' \(step 's'\) on the stock engine"):
        predict(program, "stock")


def test_an_output_that_is_the_input_is_opened():
    program = Program("x", (3, 2), (Step("f", Flatten(1, 2), ("x",), ((3, 2),), (6,)),), "f")
    assert predict(program, "stock").by_party == (48, 48)
    assert predict(Program("x", (3,), (), "x"), "stock").by_party == (24, 24)


def test_relu_of_nothing_costs_rounds_alone():
    step = Step("r", Relu(np.array([], dtype=np.int64)), ("x",), ((4,),), (4,))
    assert sent(stock_cost.step_collectives(step)) == (9, 0)


def test_predicting_neither_imports_crypten_nor_starts_a_process():
    code = (
        "import sys, subprocess, pibench.costs.predict, pibench.engines.crypten.cost\n"
        "assert not [m for m in sys.modules if m.split('.')[0] == 'crypten']\n"
        "assert not {'pibench.parties.driver', 'pibench.engines.crypten.node'} & set(sys.modules)\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


def test_literature_of_named_variants_as_a_file(tmp_path):
    prediction.main(["baseline", "joint-0.09", "--width", "2", "--literature", str(tmp_path / "costs.csv")])
    frame = pd.read_csv(tmp_path / "costs.csv")
    assert set(frame["network"]) == {"baseline", "joint-0.09"}
    assert set(frame["model"]) == set(MODELS)
    assert set(frame["label"]) == {"modelled"}


def test_command_line(capsys):
    prediction.main(["baseline", "--engine", "lean", "--width", "2", "--steps"])
    printed = capsys.readouterr().out
    assert printed.startswith("baseline lean: 108 rounds, ")
    assert "fc (linear): 1 rounds" in printed


def test_what_cannot_be_predicted_or_written_is_one_line(tmp_path, capsys):
    (tmp_path / "file").write_text("")
    for given, reason in (
        (["--width", "0"], "width must be a positive whole number, not 0"),
        (["nonsense"], "unknown variant 'nonsense': known are"),
        (
            ["--width", "2", "--literature", str(tmp_path / "file" / "costs.csv")],
            "costs.csv cannot be written (Not a directory): make room or allow writing there",
        ),
    ):
        assert prediction.main(given) == 1
        said = capsys.readouterr().err
        assert reason in said
        assert said.count("\n") == 1
