"""The page of a campaign: what was tried and survived, by kind and by engine."""

from __future__ import annotations

from collections.abc import Sequence

from faults.campaign import KINDS
from faults.fault import Fault, Outcome, Verdict
from pibench.store import provenance

INTRODUCTION = (
    "A campaign kills, stops, starves and floods the suite, damages its files, attacks its handshake, and "
    "gives it numbers from the whole range of fixed point. A fault is survived if the answer is right or the "
    "error is clear. Everything else is a failure: an answer that is silently wrong, a hang, a process or a "
    "file that is left behind, a lost row, an obscure error (a traceback, or a message that does not name "
    "the thing). How: [docs/method.md](../method.md#faults)."
)


def page(outcomes: Sequence[Outcome], untried: Sequence[Fault], seed: int, seconds: float) -> str:
    """Returns the page in Markdown."""
    survived = sum(outcome.verdict.survived for outcome in outcomes)
    left_out = f" {len(untried)} were not begun in time." if untried else ""
    parts = [
        "# Faults",
        INTRODUCTION,
        f"**{len(outcomes):,} faults tried, {survived:,} survived.**{left_out}",
        by_kind(outcomes),
        by_verdict(outcomes),
        failures(outcomes),
        origin(seed, seconds),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def by_kind(outcomes: Sequence[Outcome]) -> str:
    """Returns the table of kinds; a column of an engine says how many of how many were survived."""
    engines = sorted({outcome.fault.engine for outcome in outcomes}, key=lambda name: (name == "none", name))
    titles = ["Kind", "What is done", "Tried", "Right answer", "Clear error", "Failed"]
    titles += ["no engine" if engine == "none" else engine for engine in engines]
    lines = []
    for kind in [*(kind for kind in KINDS if any(o.fault.kind == kind for o in outcomes)), None]:
        some = [outcome for outcome in outcomes if kind in (None, outcome.fault.kind)]
        cells = ["all" if kind is None else kind, KINDS.get(kind or "", ""), f"{len(some)}"]
        for verdicts in ([Verdict.RIGHT], [Verdict.CLEAR], [v for v in Verdict if not v.survived]):
            cells.append(f"{sum(outcome.verdict in verdicts for outcome in some)}")
        for engine in engines:
            own = [outcome for outcome in some if outcome.fault.engine == engine]
            good = sum(outcome.verdict.survived for outcome in own)
            cells.append(f"{good} of {len(own)}" if own else "")
        lines.append(cells)
    return _table(titles, lines, left=2)


def by_verdict(outcomes: Sequence[Outcome]) -> str:
    """Returns the table of failures by their sort, empty ones too: zero is what they should be."""
    bad = [verdict for verdict in Verdict if not verdict.survived]
    counts = [[str(v), f"{sum(outcome.verdict is v for outcome in outcomes)}"] for v in bad]
    return _table(["Failure", "Faults"], counts, left=1)


def failures(outcomes: Sequence[Outcome]) -> str:
    """Returns the list of failures: id, sort, reason; and how to see one again."""
    bad = [outcome for outcome in outcomes if not outcome.verdict.survived]
    if not bad:
        return ""
    lines = [f"- `{o.fault.id}`: {o.verdict}; {_plain(o.reason) or 'nothing more is known'}" for o in bad]
    return '`make faults FAULTS="--only ID"` carries out one again.\n\n' + "\n".join(lines)


def origin(seed: int, seconds: float) -> str:
    """Returns the line that says where and of what the campaign was made."""
    machine, (commit, dirty) = provenance.machine(), provenance.commit()
    memory = machine["memory_bytes"]
    where = f"{machine['cpu'] or 'unknown CPU'}, {machine['cores']} cores"
    where += f", {memory / 2**30:.0f} GiB" if memory else ""
    named = {"Python": machine["python"], **provenance.versions()}
    versions = ", ".join(f"{name} {version}" for name, version in named.items() if version)
    changed = " with uncommitted changes" if dirty else ""
    made = f"{commit[:10]}{changed}" if commit else "unknown"
    return (
        f"Tried on {where}, {machine['system']}; {versions}; commit {made}; seed {seed}; "
        f"{seconds / 60:.1f} minutes."
    )


def _plain(text: str) -> str:
    """Returns a text that Markdown leaves as it is, on one line."""
    return " ".join(text.replace("`", "'").replace("<", "&lt;").replace("|", "/").split())


def _table(titles: Sequence[str], lines: Sequence[Sequence[str]], left: int) -> str:
    marks = [":--" if place < left else "--:" for place in range(len(titles))]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in (titles, marks, *lines))
