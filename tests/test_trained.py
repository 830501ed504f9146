"""The committed networks: rows of the reference against their weights."""

import json
from pathlib import Path

import pytest
import torch

from pibench.measure.count import cost_of
from pibench.models.data import DataError, load_cifar100, normalised
from pibench.models.graph.polynomial import PolynomialReLU
from pibench.models.graph.relu import MaskedReLU
from pibench.models.manifest import read_manifest
from pibench.models.rows import read_rows
from pibench.models.training import __main__ as command
from pibench.models.training.phases import plan_named, planned
from pibench.models.training.rows import find_row
from pibench.models.variants import VARIANTS
from pibench.models.weights import file_name, load, read_weights

UNTRAINED = ("snl-0.18", "snl-0.052", "joint-snl-0.18", "joint-snl-0.09", "joint-snl-0.052")
"""Variants whose rows and weights are still to be made."""
NARROW = (
    *("senet-0.72", "senet-0.54", "joint-0.416", "joint-0.312"),
    *("joint", "senet-merged-0.36", "senet-merged-0.18", "senet-merged-0.09", "senet-merged-0.045"),
    *("joint-merged-0.208", "joint-merged-0.104", "joint-merged-0.09", "joint-merged-0.052"),
    *(
        "joint-merged-0.026",
        "pixels-0.75",
        "pixels-0.5",
        "cap-3",
        "cap-10",
        "cap-untuned-3",
        "cap-untuned-10",
    ),
    *("trp-channel-0.9", "tucker-0.9", "bilinear-1", "eca", "poly-0.09", "folding-3", "shrinkage-0.9"),
    *("cap-joint-0.052", "constrained-relus-0.75", "constrained-macs-0.5"),
    *("constrained-seconds-0.75", "constrained-masks-0.09"),
    *("trp-channel-4", "trp-spatial-0.9", "trp-spatial-4", "tucker-4", "trp-quickest-4"),
    *("poly-0.045", "folding-5", "eca-hard", "gated", "bilinear-2"),
)
"""Variants that are trained at width 16 alone: no CUDA device was left for them at full width."""
SHORTER = {
    "bilinear-2": "quick",
    **dict.fromkeys(
        (
            *("cap-joint-0.052", *(name for name in VARIANTS if name.startswith("constrained-"))),
            *("trp-channel-4", "trp-spatial-0.9", "trp-spatial-4", "tucker-4", "trp-quickest-4"),
            *("poly-0.045", "folding-5", "eca-hard", "gated"),
        ),
        "standard",
    ),
}
"""Rows of a shorter plan than their own, which the tables say: for the longer one no machine was left."""
ROWS = tuple(name for name in VARIANTS if name not in UNTRAINED)
ROOT = Path(__file__).resolve().parent.parent
REFERENCE = ROOT / "results" / "reference"
ACCURACY = read_rows(REFERENCE / "accuracy.json")


def row_of(name, width=16, seed=0):
    return find_row(ACCURACY, name, width, seed)


def test_every_row_is_trained_and_the_pair_by_three_seeds():
    """Every other variant is trained at width 16, and all but `NARROW` at full width."""
    assert set(UNTRAINED) < set(VARIANTS)
    assert not [row for row in ACCURACY if row["variant"] in UNTRAINED]
    assert [row["variant"] for row in ACCURACY if (row["width"], row["seed"]) == (16, 0)] == list(ROWS)
    wide = [row["variant"] for row in ACCURACY if (row["width"], row["seed"]) == (64, 0)]
    assert wide == [name for name in ROWS if name not in NARROW]
    plans = {name: known.plan for name, known in VARIANTS.items()} | SHORTER
    assert all(row["plan"] == plans[row["variant"]] for row in ACCURACY)
    for name in SHORTER:
        assert row_of(name)["epochs"] < sum(planned(VARIANTS[name], plan_named(VARIANTS[name].plan)).values())
    for name in ("baseline", "senet-0.09", "joint-0.052"):
        assert {row["seed"] for row in ACCURACY if (row["variant"], row["width"]) == (name, 16)} == {0, 1, 2}
    assert row_of("baseline")["accuracy_test"] > 0.66
    assert row_of("baseline", 64)["accuracy_test"] > row_of("baseline")["accuracy_test"]


def test_the_command_for_full_width_goes_on_with_what_is_missing(capsys):
    """The full-width weights are not part of the project: the row alone shows that a network is trained."""
    folder = ["--results", str(REFERENCE), "--plan", "long", "--width", "64"]
    assert command.main([*folder, "--device", "cpu", "--list"]) == 0
    lines = dict(line.split(maxsplit=1) for line in capsys.readouterr().out.splitlines())
    assert list(lines) == list(VARIANTS)
    missing = {name for name, state in lines.items() if state != "finished"}
    assert missing == {*UNTRAINED, *NARROW}


@pytest.mark.parametrize("name", ROWS)
def test_the_stored_network_is_the_one_of_its_row(name):
    row = row_of(name)
    assert read_manifest()[file_name(name, 16)]["sha256"] == row["weights_sha256"]
    model = VARIANTS[name].build(width=16)
    assert model.meta["trained"]
    cost = cost_of(model, torch.zeros(1, 3, 32, 32))
    gates = sum(layer.relus for layer in cost.layers if layer.kind == "piecewiselinear")
    assert (cost.relus - gates, cost.macs) == (row["relus"], row["macs"])
    assert all(value.isfinite().all() for value in model.parameters())
    path = ROOT / "models" / "trained" / file_name(name, 16)
    masked = (MaskedReLU, PolynomialReLU)
    kept = [f"{name}.mask" for name, module in model.named_modules() if isinstance(module, masked)]
    assert read_weights(path).decisions.tensors() == set(kept)
    alone = load(path).state_dict()
    assert all(torch.equal(alone[name], tensor) for name, tensor in model.state_dict().items())


@pytest.mark.parametrize("name", ROWS)
def test_the_committed_log_of_a_row_reaches_its_last_epoch(name):
    row, where = row_of(name), REFERENCE / "training"
    logs = where.glob(f"w16-s0-{row['plan']}*/{list(row['phases'])[-1]}.jsonl")
    epochs = {len(path.read_text().splitlines()) for path in logs}
    assert not epochs or list(row["phases"].values())[-1] in epochs


@pytest.mark.parametrize("name", ROWS)
def test_a_seeded_network_has_the_counts_of_the_trained_one(name):
    """Latency is that of seeded networks; the same row has the accuracy of a trained one."""
    trained, seeded = (
        cost_of(VARIANTS[name].build(width=16, weights=weights), torch.zeros(1, 3, 32, 32))
        for weights in ("auto", None)
    )
    assert (seeded.relus, seeded.macs) == (trained.relus, trained.macs)
    assert (seeded.linear_layers, seeded.parameters) == (trained.linear_layers, trained.parameters)


@pytest.mark.parametrize("name", ROWS)
def test_fixed_point_and_the_protocols_keep_what_was_learnt(name):
    row = row_of(name)
    assert abs(row["accuracy_fixed_point"] - row["accuracy_test"]) < 0.001
    assert row["fixed_point"]["images"] == 10_000
    for engine, agreement in (("lean", 0.98), ("stock", 0.98), ("lean32", 0.97)):
        found = row["private"][engine]
        assert found["images"] == 100
        assert found["agreement"] >= agreement
        assert found["wrong_truncations"]["observed"] == 0


def test_tries_saw_no_test_image():
    tries = json.loads((REFERENCE / "tries.json").read_text())
    assert tries
    for row in tries:
        assert row["changes"]
        assert "accuracy_test" not in row


@pytest.mark.parametrize("name", ["baseline", "joint-0.052"])
def test_the_accuracy_is_found_again_on_real_images(name):
    """Checks a thousand images: the standard error is 1.5 points, and four of them are allowed.

    Skipped if the images are not at data/, as in a clone: they are not part of the project.
    """
    try:
        images, labels = load_cifar100(ROOT / "data", "test")
    except DataError as error:
        pytest.skip(f"CIFAR-100 is not at data/: {error}")
    model = VARIANTS[name].build(width=16).eval()
    with torch.no_grad():
        right = (model(normalised(images[:1000])).argmax(1) == labels[:1000]).float().mean().item()
    assert abs(right - row_of(name)["accuracy_test"]) < 0.06
