"""The functions behind the command `pibench`: each returns a DataFrame."""

from __future__ import annotations

import math
import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from torch import Tensor, nn

from pibench.costs import literature
from pibench.costs.compute import pace_of
from pibench.costs.predict import engines_with_a_law, predict
from pibench.engines import ENGINES
from pibench.links.link import LINKS, parse_link
from pibench.measure.case import Case, OwnNetwork
from pibench.measure.count import count_program
from pibench.measure.network import Chosen, answering, nearest, network
from pibench.measure.rounds import Measurement
from pibench.measure.session import IMAGES, Session
from pibench.models.catalogue import families, family_name, variant_names
from pibench.models.manifest import read_manifest
from pibench.models.zoo import ZOO
from pibench.program.lower import lower
from pibench.report.statistics import quotient_of_medians
from pibench.report.tables import summarize
from pibench.store.results import Row, Store, key_of, machine_name, read_rows
from pibench.store.settings import WIDTH

COUNTED = ("relus", "comparisons", "relu_layers", "linear_layers", "macs", "parameters")
CALIBRATED = 4
"""Inputs whose values bound those of an engine that is calibrated, where none are given."""
REFERENCE = Path(__file__).parents[1] / "results" / "reference" / "bench.json"
"""The committed reference; an installed wheel has none."""
Watch = Callable[[Session, Case, int, Measurement | None], object]
"""Told of every case before it starts (round 0, None) and after each of its rounds."""


def engine_named(name: str) -> str:
    """Returns the name of an engine that can be used here; ValueError or EngineMissing tells the remedy."""
    offered = [engine for engine, info in ENGINES.items() if info.offered]
    if name not in offered:
        raise ValueError(nearest("engine", name, offered, f"choose one of {', '.join(offered)}"))
    ENGINES[name].demand_installed()
    return name


def link_named(text: str) -> str:
    """Returns the name of a link; raises ValueError that names the nearest one.

    >>> link_named("wan"), link_named("0.2Gbit/40ms")
    ('wan', '0.2Gbit/40ms')
    """
    if text.isidentifier() or text.replace("-", "").isalpha():
        if text not in LINKS:
            remedy = f'choose one of {", ".join(LINKS)}, or write "200Mbit/40ms"'
            raise ValueError(nearest("link", text, LINKS, remedy))
        return text
    return parse_link(text).name


def listed() -> dict[str, pd.DataFrame]:
    """Returns one table each of networks, variants, reductions, engines and links."""
    trained: dict[str, list[str]] = {}
    for name in read_manifest():
        variant, _, width = name.removesuffix(".safetensors").rpartition("-w")
        trained.setdefault(variant, []).append(width)
    variants = [
        {
            "variant": name,
            "family": family_name(name),
            "trained_at_widths": ", ".join(trained.get(name, [])) or "not trained yet",
        }
        for name in variant_names()
    ]
    networks = [
        {"network": name, "what": (build.__doc__ or "").split(".")[0].removeprefix("Returns ")}
        for name, build in ZOO.items()
    ]
    engines = [
        {
            "engine": name,
            "parties": " or ".join(map(str, engine.parties)),
            "state": engine.missing() or "installed",
            "trust": engine.trust,
        }
        for name, engine in ENGINES.items()
        if engine.offered
    ]
    links = [
        {
            "link": link.name,
            "round_trip_ms": 1e3 * link.rtt_s,
            "bandwidth_mbit_s": link.bandwidth_bits_s / 1e6 if link.shaped else math.nan,
        }
        for link in LINKS.values()
    ]
    reductions = [
        {"family": family.name, "summary": family.summary, "paper": family.paper}
        for family in families().values()
    ]
    return {
        "networks": pd.DataFrame(networks),
        "variants": pd.DataFrame(variants),
        "reductions": pd.DataFrame(reductions),
        "engines": pd.DataFrame(engines),
        "links": pd.DataFrame(links),
    }


def chosen(model: str | nn.Module | Chosen, images: Tensor | None = None, **settings: Any) -> Chosen:
    """Returns the network of a name (`pibench.measure.network`) or of a module with images [N, ...]."""
    if isinstance(model, Chosen):
        return model
    if isinstance(model, str):
        return network(model, **settings)
    if images is None:
        raise ValueError("a network of your own needs images [N, ...] as its input")
    found = Chosen(type(model).__name__, model.eval(), tuple(images.shape[1:]))
    return answering(found, settings.get("output"))


def cost(
    model: str | nn.Module | Chosen, images: Tensor | None = None, batch: int = 1, **settings: Any
) -> pd.DataFrame:
    """Returns the cost of a private inference without a run: one line for each engine or model and each link.

    `model` is a name, whose `settings` are those of `pibench.measure.network.network`, or a module with
    images [N, ...] as its input. Lines of `kind` "engine" have rounds, hops (one-way trips in sequence) and
    the bytes of the party that sends most, for `batch` images. They are exact where `traffic` says so.
    `modelled_link_s` is the time of the link alone. `modelled_compute_s` is the time of computing on the
    machine of the committed reference (`pibench.costs.compute`), NaN where there is no reference. Their sum
    is `modelled_online_s`, or `modelled_total_s` of an engine that does everything in the inference. Lines of
    kind "literature" are models of papers, for one image.

    >>> model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU())
    >>> frame = cost(model, torch.zeros(1, 3, 8, 8))
    >>> frame.loc[frame["link"] == "wan", ["name", "relus", "rounds", "hops", "bytes_sent"]].head(2)
        name  relus  rounds  hops  bytes_sent
    2  stock    144      11    44       36960
    6   lean    144       7     7        8880
    """
    found = chosen(model, images, **settings)
    example = torch.zeros(1, *found.shape) if images is None else images[:1]
    lowered = lower(found.model, example)
    program = lowered.program
    counted = count_program(program)
    same = {"network": found.name, **{name: getattr(counted, name) for name in COUNTED}}
    lines: list[dict[str, Any]] = []
    measured = read_rows(REFERENCE) if REFERENCE.exists() else []
    for engine in engines_with_a_law():
        known = ENGINES[engine]
        if not known.offered:
            continue
        try:
            if known.calibrated:
                inputs = found.inputs(CALIBRATED) if images is None else images
                sent = predict(lowered.on(inputs).calibrated().program, engine, batch, known.parties[0])
            else:
                sent = predict(program, engine, batch, known.parties[0])
        except (NotImplementedError, ValueError) as error:
            lines.append({**same, "kind": "engine", "name": engine, "batch": batch, "note": str(error)})
            continue
        pace = pace_of(engine, measured)
        compute_s = math.nan if pace is None else pace.seconds(program, sent.steps, batch)
        for link in LINKS.values():
            link_s = sent.least_s(link) if link.shaped else 0.0
            lines.append(
                {
                    **same,
                    "kind": "engine",
                    "name": engine,
                    "link": link.name,
                    "batch": batch,
                    "rounds": sent.rounds,
                    "hops": sent.hops,
                    "bytes_sent": sent.bytes_sent,
                    "traffic": "exact" if known.steady_traffic else "varies a little",
                    "modelled_link_s": link_s,
                    "modelled_compute_s": compute_s,
                    f"modelled_{'total' if known.one_clock else 'online'}_s": compute_s + link_s,
                    "note": "no profiled layers: the link alone"
                    if pace is None
                    else f"computing as on {pace.machine}",
                }
            )
    try:
        modelled = literature.modelled_rows([literature.describe(found.name, program)])
    except ValueError:  # a step that no paper prices
        modelled = pd.DataFrame()
    names = ("offline_s", "online_s", "total_s", "offline_bytes", "online_bytes")
    for _, line in modelled.iterrows():
        lines.append(
            {
                **same,
                "kind": "literature",
                "name": line["model"],
                "link": line["channel"],
                "batch": 1,
                "rounds": line["modelled_rounds"],
                **{f"modelled_{name}": line[f"modelled_{name}"] for name in names},
                "note": line["covers"],
            }
        )
    frame = pd.DataFrame(lines)
    for name in ("rounds", "hops", "bytes_sent"):
        frame[name] = frame[name].astype("Float64").round().astype("Int64")
    return frame


@dataclass(frozen=True)
class Settings:
    """The common settings of measured networks."""

    engine: str = "lean"
    link: str = "loopback"
    batch: int = 1
    rounds: int = 8
    width: int = WIDTH


def case_of(found: Chosen, settings: Settings, images: Tensor | None = None) -> Case:
    """Returns the case of a network; `images` are a user's own, or else inputs that fit it."""
    engine, link = engine_named(settings.engine), link_named(settings.link)
    for name in ("batch", "rounds"):
        if getattr(settings, name) < 1:
            raise ValueError(f"{name} is at least 1, not {getattr(settings, name)}")
    if ENGINES[engine].one_clock:
        role = "protocol"
    else:
        role = "link" if link != "loopback" else "batch" if settings.batch > 1 else "headline"
    usual = found.variant is not None and settings.width == WIDTH and found.shape == (3, 32, 32)
    own, width = None, settings.width
    if found.variant is None or found.shape != (3, 32, 32):
        given = found.inputs(max(4, settings.batch)) if images is None else images
        own = OwnNetwork(found.model, given)
        width = own.width
    elif settings.batch > IMAGES:
        raise ValueError(f"a batch of a variant holds at most {IMAGES} images, not {settings.batch}")
    return Case(
        found.name if own is None or found.variant is None else f"{found.name}@{found.shape[-1]}",
        engine,
        width,
        settings.batch,
        ENGINES[engine].parties[0],
        link=link,
        role=role if usual else "extra",
        rounds=settings.rounds,
        own=own,
    )


def measure_cases(
    cases: Sequence[Case],
    results: Path,
    watch: Watch | None = None,
    again: bool = False,
    say: Callable[[str], object] = print,
) -> list[Row]:
    """Measures cases as `make bench` does; writes the row of each to `results`/bench.json at once.

    Rows that are up to date are taken from there, unless `again` asks for all of them; `say` receives one
    line about it. Raises MemoryError for a case that does not fit, WrongAnswer if parties do not compute the
    network.
    """
    rows = []
    with Session(cases, results, uuid.uuid4().hex[:12], again=again) as session:
        if said := session.said_of_kept():
            say(said)
        for case in cases:
            if case.id in session.kept:
                rows.append(session.kept[case.id])
                continue
            if (obstacle := session.obstacle(case)) is not None:
                raise MemoryError(f"{case.id} {obstacle}: take a smaller --width or --batch")
            if watch is not None:
                watch(session, case, 0, None)

            def timed(measurement: Measurement, rounds: int) -> None:
                for done in range(1, rounds + 1):
                    measurement.repeat(1)
                    if watch is not None:
                        watch(session, measurement.case, done, measurement)

            rows.append(session.measure(case, timed))
    return rows


def measure(
    model: str | nn.Module | Chosen | Sequence[str | nn.Module | Chosen],
    images: Tensor | None = None,
    *,
    against: str | nn.Module | Chosen | None = None,
    results: str | Path = "results",
    again: bool = False,
    on: str | None = None,
    watch: Watch | None = None,
    say: Callable[[str], object] = print,
    shape: tuple[int, ...] | None = None,
    output: int | str | None = None,
    **settings: Any,
) -> pd.DataFrame:
    """Measures networks and returns one line each, with the columns of results/summary.csv.

    `model` is a name, a module with its `images` [N, ...], N >= 2, or a list of these. Rounds of each run
    alternately with rounds of `against`, which is measured first. `settings` are fields of `Settings`:
    engine, link, batch, rounds, width. `output` chooses one of several outputs, by its name or its number.
    Every answer is checked against the float64 network. Rows are kept in `results`; a row that is there and
    up to date is returned as it is, unless `again`. With `on`, the address of a dask scheduler or "local", a
    cluster measures them (`pibench.cluster`). Raises ValueError for an unknown name and for images that do
    not fit.
    """
    common = Settings(**settings)
    several = list(model) if isinstance(model, list | tuple) else [model]

    def case(each: Any) -> Case:
        named = {"width": common.width, "shape": shape} if isinstance(each, str) else {}
        return case_of(chosen(each, images, **named, output=output), common, images)

    reference = None if against is None else case(against)
    cases = [case(each) for each in several]
    if reference is not None:
        others = [each for each in cases if each.id != reference.id]
        cases = [reference, *(replace(each, reference=reference) for each in others)]
    for one, other in pairwise(sorted(case.id for case in cases)):
        if one == other:
            raise ValueError(f"two networks are called {one}: give each another name")
    if on is None:
        return summarize(measure_cases(cases, Path(results), watch, again, say))
    from pibench.cluster import connected, measure_on

    with connected(on) as client:
        return summarize(measure_on(client, cases, Path(results), again, say))


def rows_of(place: str | Path) -> list[Row]:
    """Reads the rows of a results file or of the folder that holds bench.json."""
    path = Path(place)
    path = path / "bench.json" if path.is_dir() else path
    if not path.is_file():
        near = [found.name for found in path.parent.glob("*")] if path.parent.is_dir() else []
        raise ValueError(
            nearest("results file", path.name, near, f"there is none at {path}; `pibench run` writes one")
        )
    return read_rows(path)


def merge(places: Sequence[str | Path], into: str | Path) -> pd.DataFrame:
    """Merges results files, or folders that hold bench.json, into the file or folder `into`.

    Rows keep their machines. Of two rows of one case and machine the one that began later stays; rows that
    `into` holds already are merged with the others. Returns one line a machine: its name, how many cases of
    it there are, and on which hosts. Raises ValueError for a place without rows.
    """
    rows = [row for place in places for row in rows_of(place)]
    path = Path(into)
    store = Store(path if path.suffix == ".json" else path / "bench.json")
    store.merge(rows)
    merged = store.rows()
    names = dict.fromkeys(map(machine_name, merged))
    lines = []
    for name in names:
        own = [row for row in merged if machine_name(row) == name]
        hosts = dict.fromkeys(row["host"] for row in own if "host" in row)
        lines.append({"machine": name, "cases": len(own), "hosts": ", ".join(hosts) or "not told"})
    return pd.DataFrame(lines)


def _by_case(place: str | Path, rows: Sequence[Row]) -> dict[str, Row]:
    """Returns the rows of a file by case; ValueError if two machines measured one case."""
    found = {row["case"]: row for row in rows}
    for row in rows:
        if (other := machine_name(found[row["case"]])) != machine_name(row):
            raise ValueError(
                f"{place} holds {row['case']} of two machines ({machine_name(row)}; {other}): which one "
                "is to be compared cannot be told"
            )
    return found


def compare(
    before: str | Path, after: str | Path, *, fail_above: float | None = None, across_machines: bool = False
) -> pd.DataFrame:
    """Compares two results files: one line for each common case, the ratio of the medians after / before.

    Clocks are online and offline, or all phases for an engine with one clock. The interval is a bootstrap of
    each side (95 %), if both have six rounds or more. `slower` is true if a ratio (online or all phases)
    exceeds 1 + `fail_above` and its interval, if there is one, does not reach down to 1. `counts_equal` is
    true if ReLUs are the same, and also rounds and bytes unless they vary from round to round. Rows pair by
    case and machine. Raises ValueError for files without a common case and for a case that only two machines
    have measured; with `across_machines` rows pair by case alone.
    """
    old, new = rows_of(before), rows_of(after)
    pairs: list[tuple[Row, Row]]
    if across_machines:
        one, other = _by_case(before, old), _by_case(after, new)
        pairs = [(row, other[case]) for case, row in one.items() if case in other]
    else:
        known = {key_of(row): row for row in new}
        pairs = [(row, known[key_of(row)]) for row in old if key_of(row) in known]
        paired = {row["case"] for row, _ in pairs}
        for row in old:
            beside = [each for each in new if each["case"] == row["case"]]
            if beside and row["case"] not in paired:
                raise ValueError(
                    f"{row['case']} was measured on two machines ({machine_name(row)}; "
                    f"{machine_name(beside[0])}), whose seconds do not compare: say --across-machines to do "
                    "it all the same"
                )
    if not pairs:
        raise ValueError(f"{before} and {after} have no case in common: run the same networks for both")
    lines = []
    for earlier, later in pairs:
        equal = earlier["cost"] == later["cost"] and (
            "traffic_of_rounds" in later or earlier["traffic"] == later["traffic"]
        )
        line: dict[str, Any] = {
            "case": earlier["case"],
            "machine": machine_name(later),
            "counts_equal": equal,
            "slower": False,
        }
        judged = "all_phases" if "all_phases_s" in later["times"] else "online"
        for clock in dict.fromkeys(("online", "offline", judged)):
            seconds = [row["times"].get(f"{clock}_s", []) for row in (earlier, later)]
            ratio, low, high = quotient_of_medians(seconds[1], seconds[0])
            line |= {f"{clock}_ratio": ratio, f"{clock}_ratio_low": low, f"{clock}_ratio_high": high}
            if clock == judged and fail_above is not None:
                line["slower"] = ratio > 1 + fail_above and not low <= 1
        lines.append(line)
    return pd.DataFrame(lines)
