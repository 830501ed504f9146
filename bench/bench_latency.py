"""Measures every case under pytest-benchmark: `make bench`.

Rows go to results/bench.json with the parties' own clocks, which reports use. pytest-benchmark's own table
is the driver's clock around an online phase; --benchmark-columns or --benchmark-verbose asks for it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from pibench.measure.case import Case
from pibench.measure.rounds import Measurement
from pibench.measure.session import Session


def bench_latency(
    case: Case, session: Session, benchmark: Any, announce: Callable[[str], None], request: Any
) -> None:
    """Measures one case and writes its row, unless the row that is there is up to date."""
    if case.id in session.kept:
        pytest.skip("up to date")
    obstacle = session.obstacle(case)
    if obstacle is not None:
        session.skip(case)
        pytest.skip(obstacle)
    announce(f"{case.id} ...")
    total = sum("case" in getattr(item, "fixturenames", ()) for item in request.session.items)

    def timed(measurement: Measurement, rounds: int) -> None:
        benchmark.pedantic(measurement.online, setup=measurement.before, rounds=rounds, warmup_rounds=0)

    row = session.measure(case, timed)
    benchmark.extra_info.update({key: row[key] for key in ("case", "cost", "traffic", "answer", "rounds")})
    announce(session.progress(row, total))
