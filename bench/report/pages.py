"""The pages of a report: one Markdown file for each question, with its tables and figures."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from pibench.report.accuracy_section import accuracy_section
from pibench.report.collect import Report
from pibench.report.engines import engines_section
from pibench.report.headline import headline_section
from pibench.report.links import links_section
from pibench.report.machines import machines_section
from pibench.report.models import models_section
from pibench.report.plaintext import plaintext_section
from pibench.report.protocols_section import protocols_section
from pibench.report.systems import systems_section
from pibench.report.systems_pairs import at_senets_latency_parts


def _together(*parts: str) -> str:
    """Joins the parts of a page that are there."""
    return "\n\n".join(part for part in parts if part)


@dataclass(frozen=True)
class Page:
    """A page: its title, a short introduction, its tables, and captions of its figures by name.

    Tables and introductions name files from the top of the project: `plots/NAME.svg`, `docs/NAME.md`.
    """

    title: str
    introduction: str
    tables: Callable[[Report], str]
    figures: dict[str, str]


PAGES = {
    "latency": Page(
        "Latency",
        "What each variant costs on both engines: ReLUs, MACs, rounds, bytes, seconds, and how much faster "
        "it is than the baseline. These are the networks of the headline; "
        "[every reduction](docs/results/systems.md) has a page of its own. How this is measured: "
        "[docs/method.md](docs/method.md).",
        lambda report: headline_section(report.rows, report.summary),
        {
            "latency_vs_relus": "Online latency against the number of ReLUs, on both engines",
            "relus_macs_latency": "ReLUs, MACs and online latency of each variant, beside the baseline's",
            "offline_online": "Offline and online seconds of each variant",
            "linear_vs_relu": "Linear and ReLU layers' shares of the online time",
            "layer_profile_stock": "Online time of each layer, stock engine",
            "layer_profile_lean": "Online time of each layer, lean engine",
        },
    ),
    "accuracy": Page(
        "Accuracy",
        "What each reduction costs in accuracy on CIFAR-100. Latency does not depend on the weights. "
        "Accuracy does, so these networks are trained, at widths 16 and 64; the two widths are never mixed. "
        "How they are trained: [docs/training.md](docs/training.md).",
        lambda report: accuracy_section(
            report.accuracy,
            report.pairs,
            report.equal_latency,
            report.iso_accuracy,
            report.tries,
            report.rows,
        ),
        {},
    ),
    "engines": Page(
        "The engines side by side",
        "The networks of the headline on each engine, and in plaintext; the others are on the page of "
        "[every reduction](docs/results/systems.md). What the engines are: "
        "[docs/engines.md](docs/engines.md).",
        lambda report: _together(engines_section(report.summary), plaintext_section(report.summary)),
        {
            "stock_vs_lean": "How the shares of linear and ReLU time change from stock to lean",
            "batch": "Online seconds per image against the batch size",
        },
    ),
    "systems": Page(
        "Every reduction side by side",
        "What each system of the literature costs under every engine, and what it keeps of the accuracy. "
        "What each does, and why it costs what it costs: [docs/reductions.md](docs/reductions.md).",
        lambda report: _together(
            systems_section(report.systems, report.accuracy),
            *at_senets_latency_parts(report.systems),
        ),
        {},
    ),
    "machines": Page(
        "The same cases on other machines",
        "How far a speed-up depends on the processor: what other machines measured, beside this report's. "
        "How a run gets here: [docs/method.md](docs/method.md).",
        lambda report: machines_section(report.machines),
        {},
    ),
    "links": Page(
        "Links",
        "The same networks over a LAN and two WANs. A relay delays the parties' own bytes; its round trip "
        "and bandwidth are checked before anything is measured. How: [docs/method.md](docs/method.md).",
        lambda report: links_section(report.summary),
        {
            "links": "Online latency on loopback, LAN and WAN, split into compute, hops and bytes",
            "links_all": "The same for all variants and links",
            "link_model_error": "Error of the arithmetic model of a link",
        },
    ),
    "protocols": Page(
        "The same networks under other protocols",
        "CrypTen (`stock`) and `lean` trust a dealer. SecretFlow SPU brings protocols without one (Cheetah) "
        "and with three parties (ABY3); here each runs the same networks, in the same harness, with the "
        "answer checked. What the engines are: [docs/engines.md](docs/engines.md).",
        lambda report: protocols_section(report.protocols, report.protocol_models, report.summary),
        {},
    ),
    "models": Page(
        "What other protocols would cost",
        "The latency columns of most papers come from cost models. These are the models of the literature, "
        "computed from cited constants for our networks; nothing on this page is measured. Sources: "
        "[docs/literature.md](docs/literature.md).",
        lambda report: models_section(report.modelled, report.break_even),
        {
            "literature": "Modelled latency of the same networks under the literature's protocols",
            "break_even": "How many ReLUs cost as much as one more layer, by model",
        },
    ),
}


def make_pages(report: Report, folder: Path, results: Path, plots: Path, docs: Path) -> dict[Path, str]:
    """Returns the text of each page of `report`, by its path in `folder`.

    Links lead from there to the figures in `plots` and the pages in `docs`. `results` is the named folder of
    the tables.
    """
    made = {}
    for name, page in PAGES.items():
        figures = [f"![{caption}](plots/{figure}.svg)" for figure, caption in page.figures.items()]
        parts = [f"# {page.title}", page.introduction, page.tables(report), *figures]
        text = "\n\n".join(parts) + "\n"
        text = text.replace("](docs/results/", "](")  # the pages of one report stand beside each other
        for place, target in (("plots", plots), ("docs", docs)):
            text = text.replace(f"]({place}/", f"]({Path(os.path.relpath(target, folder)).as_posix()}/")
        made[folder / f"{name}.md"] = text.replace("`results/", f"`{results.as_posix()}/")
    return made
