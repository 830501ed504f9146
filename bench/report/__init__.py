"""Tables and pages from measured rows: bench.json -> CSV files, Markdown pages, the short table.

Every second is by the slower party's clock. A speed-up is the median over pairs of reference / case. The two
rounds of a pair run one after the other, so a machine that drifts slows both alike. Intervals are percentile
bootstrap intervals of the median, 95 %, from a fixed seed. A missing value stays empty.

Measured, emulated and modelled seconds never share a column. Times over a shaped link are `emulated_*`.
Predictions of `pibench.links` from loopback alone, and all values of `pibench.costs.literature`, are
`modelled_*`.
"""

from pibench.report.accuracy import read_accuracy, tabulate_accuracy
from pibench.report.accuracy_section import accuracy_section
from pibench.report.collect import TABLES, Report, csv_text, read_report
from pibench.report.engines import engines_section
from pibench.report.equal_latency import tabulate_equal_latency
from pibench.report.headline import headline_section
from pibench.report.iso_accuracy import tabulate_iso_accuracy
from pibench.report.links import links_section
from pibench.report.machines import machines_section, tabulate_machines
from pibench.report.models import models_section, tabulate_models
from pibench.report.pairs import tabulate_pairs
from pibench.report.protocols import tabulate_protocol_models, tabulate_protocols
from pibench.report.protocols_section import protocols_section
from pibench.report.sensitivity import read_sensitivity
from pibench.report.statistics import interval_of_median, speedup, spread
from pibench.report.systems import tabulate_systems
from pibench.report.tables import CLOCKS, summarize, tabulate_layers
from pibench.report.tries import tabulate_tries

__all__ = [
    "CLOCKS",
    "TABLES",
    "Report",
    "accuracy_section",
    "csv_text",
    "engines_section",
    "headline_section",
    "interval_of_median",
    "links_section",
    "machines_section",
    "models_section",
    "protocols_section",
    "read_accuracy",
    "read_report",
    "read_sensitivity",
    "speedup",
    "spread",
    "summarize",
    "tabulate_accuracy",
    "tabulate_equal_latency",
    "tabulate_iso_accuracy",
    "tabulate_layers",
    "tabulate_machines",
    "tabulate_models",
    "tabulate_pairs",
    "tabulate_protocol_models",
    "tabulate_protocols",
    "tabulate_systems",
    "tabulate_tries",
]
