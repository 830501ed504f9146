"""A measured case as the row of results/bench.json."""

from __future__ import annotations

import json
import platform
import statistics
from collections.abc import Sequence
from typing import Any

from pibench.costs import literature
from pibench.engines import ENGINES
from pibench.engines.base import StepCost
from pibench.measure.count import Cost
from pibench.measure.rounds import Measurement
from pibench.measure.subject import Subject
from pibench.measure.verdict import TOLERANCE
from pibench.parties.driver import Traffic
from pibench.store import provenance

COUNTS = ("relus", "comparisons", "relu_layers", "linear_layers", "macs", "parameters")


def row_of(
    measurement: Measurement, cost: Cost, weights: str, images: str, run: str, context: dict[str, Any]
) -> dict[str, Any]:
    """Profiles layers and returns the row of results/bench.json.

    `weights` and `images` name their sources. Raises WrongAnswer when wrong rounds have no explanation.
    """
    subject, case, reference = measurement.subject, measurement.case, measurement.reference
    subject.demand_explanation()
    if reference is not None:
        reference.demand_explanation()
    kept = [i for i, online in enumerate(measurement.rounds.online_s) if online is not None]
    times = {clock: [values[i] for i in kept] for clock, values in measurement.rounds.as_dict().items()}
    paired = (
        {clock: [values[i] for i in kept] for clock, values in measurement.reference_rounds.as_dict().items()}
        if reference is not None
        else None
    )
    sent = [measurement.rounds.traffic[i] for i in kept]
    traffic = subject.traffic
    if varies := not subject.parties.steady_traffic and bool(sent):
        traffic = sorted(sent, key=lambda each: each.bytes_total)[(len(sent) - 1) // 2]
    offline = subject.parties.offline
    layers = layer_rows([subject.parties.profile(subject.images) for _ in range(case.profiles)], cost)
    return {
        "case": case.id,
        "variant": case.variant,
        "width": case.width,
        "engine": case.engine,
        "provider": subject.parties.provider,
        "trust": ENGINES[case.engine].trust,
        "options": dict(ENGINES[case.engine].options),
        "batch": case.batch,
        "link": case.link,
        "timing": "emulated" if subject.parties.link.shaped else "measured",
        "link_check": subject.link_check.as_dict(),
        "parties": case.parties,
        "role": case.role,
        "weights": weights,
        "images": images,
        "cost": {name: getattr(cost, name) for name in COUNTS},
        "traffic": traffic_row(traffic, subject.parties.hops),
        **({"traffic_of_rounds": [_short_traffic(each) for each in sent]} if varies else {}),
        "setup": {
            "seconds": subject.set_up.seconds,
            "rounds": subject.set_up.rounds,
            "bytes_sent_by_party": list(subject.set_up.by_party),
        },
        "offline": {
            "correlated_bytes_by_party": list(offline.correlated_bytes),
            "dealt_bytes": offline.dealt_bytes,
        },
        "times": times,
        "plaintext_s": [measurement.rounds.plaintext_s[i] for i in kept],
        **({} if subject.headroom_bits is None else {"headroom_bits": subject.headroom_bits}),
        "reference": paired
        and {"case": case.reference.id, "link_check": reference.link_check.as_dict(), **paired},
        "peak_memory_bytes_by_party": list(subject.parties.peak_memory()),
        "truncation": {
            "expected_per_inference": subject.expected_failures,
            "expected": subject.expected_failures * subject.attempted,
            "observed": subject.wrong,
        },
        "answer": {
            "max_error": subject.max_error,
            "spread": subject.truth.spread,
            "relative_error": subject.max_error / subject.truth.spread,
            "tolerance": TOLERANCE,
        },
        "rounds": {"attempted": len(measurement.rounds.online_s), "succeeded": len(kept)},
        "layers": layers,
        "network": network_row(case.variant, subject),
        "conventions": provenance.conventions(measurement.clocks),
        **context,
        "run": run,
        "started": measurement.started,
    }


def traffic_row(traffic: Traffic, hops: int) -> dict[str, Any]:
    """Returns traffic as it is stored; `hops` are one-way trips in sequence."""
    return {
        "rounds": traffic.rounds,
        "bytes_sent": traffic.bytes_sent,
        "bytes_sent_by_party": list(traffic.by_party),
        "bytes_total": traffic.bytes_total,
        "hops": hops,
    }


def _short_traffic(traffic: Traffic) -> dict[str, Any]:
    return {"rounds": traffic.rounds, "bytes_sent_by_party": list(traffic.by_party)}


def network_row(name: str, subject: Subject) -> dict[str, Any] | None:
    """Returns the network for the literature's cost models, or None if they do not price one of its steps."""
    try:
        described = literature.describe(name, subject.parties.lowered.program).as_dict()
    except ValueError:
        return None
    return json.loads(json.dumps(described))


def context() -> dict[str, Any]:
    """Returns host, machine, versions and commit for a row."""
    head, dirty = provenance.commit()
    return {
        "host": platform.node(),
        "machine": provenance.machine(),
        "versions": provenance.versions(),
        "commit": head,
        "dirty": dirty,
    }


def layer_rows(profiles: Sequence[Sequence[StepCost]], cost: Cost) -> list[dict[str, Any]]:
    """Joins profiled steps (the median over profiles) with the layers' static counts by name."""
    static = {layer.name: layer for layer in cost.layers}
    rows = []
    for steps in zip(*profiles, strict=True):
        layer = static.get(steps[0].name)
        rows.append(
            {
                "name": steps[0].name,
                "kind": steps[0].kind,
                "seconds": statistics.median(step.seconds for step in steps),
                "rounds": steps[0].rounds,
                "bytes_sent": steps[0].bytes_sent,
                "relus": layer.relus if layer else 0,
                "macs": layer.macs if layer else 0,
                "parameters": layer.parameters if layer else 0,
            }
        )
    return rows
