"""The committed cases against the networks that the code builds today."""

from collections import defaultdict
from dataclasses import asdict
from pathlib import Path

import pytest
import torch

from pibench.measure.count import cost_of
from pibench.models import variants
from pibench.models.variants import VARIANTS
from pibench.report.machines import ELSEWHERE
from pibench.store.results import read_rows

REFERENCE = Path(__file__).resolve().parent.parent / "results" / "reference"
ROWS = defaultdict(list)
for row in (*read_rows(REFERENCE / "bench.json"), *read_rows(REFERENCE / ELSEWHERE)):
    ROWS[row["variant"], row["width"], row["weights"]].append(row)


def kept(layers):
    return {layer["name"]: layer["relus"] for layer in layers if layer["relus"]}


@pytest.mark.parametrize(("name", "width", "weights"), ROWS)
def test_a_committed_case_is_of_the_network_that_its_name_stands_for(name, width, weights, monkeypatch):
    """A change of a variant makes its cases old: they are then measured again, or they leave."""
    monkeypatch.setattr(variants, "calibrate", lambda *_: None)  # costs do not depend on statistics
    model = VARIANTS[name].build(width=width, weights="auto" if weights == "trained" else None)
    assert model.meta["trained"] == (weights == "trained")
    cost = asdict(cost_of(model, torch.zeros(1, 3, 32, 32)))
    relus = kept(cost.pop("layers"))
    for row in ROWS[name, width, weights]:
        assert row["cost"] == cost, row["case"]
        assert not row["layers"] or kept(row["layers"]) == relus, row["case"]
