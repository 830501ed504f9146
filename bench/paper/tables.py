"""LaTeX tables (booktabs) of a report, each with its caption and label."""

from __future__ import annotations

import math
from collections.abc import Iterator

import pandas as pd

from pibench.figures.data import Tables
from pibench.page.content import headline
from pibench.report.cells import format_accuracy, format_count, format_number, format_percent, format_points
from pibench.report.cells import format_ratio as ratio
from pibench.store.engines import engine_look, engine_place, shown_engines

WIDEST = 6
"""Columns of a table that fits one column of a paper."""
ESCAPED = str.maketrans(
    {
        "\\": r"\textbackslash{}",
        "&": r"\&",
        "%": r"\%",
        "$": r"\$",
        "#": r"\#",
        "_": r"\_",
        "{": r"\{",
        "}": r"\}",
        "~": r"\textasciitilde{}",
        "^": r"\textasciicircum{}",
        "<": r"\textless{}",
        ">": r"\textgreater{}",
        "×": r"$\times$",
        "–": "--",
        "±": r"$\pm$",
        "\n": " ",
    }
)


def escape(text: object) -> str:
    r"""Writes a text so that LaTeX prints it as it stands.

    >>> print(escape("a_b & 5 %"))
    a\_b \& 5 \%
    """
    made = str(text).translate(ESCAPED)
    return "{[}" + made[1:] if made.startswith("[") else made  # else it were an option of the row before


def latex_table(frame: pd.DataFrame, name: str, caption: str, left: int = 1) -> str:
    """Returns a floating table, over two columns if it is wide; its first `left` columns are words.

    LaTeX needs the package booktabs for it.
    """
    shown = frame.map(escape).set_axis([escape(column) for column in frame.columns], axis=1)
    alignment = "l" * left + "r" * (len(frame.columns) - left)
    return shown.style.hide(axis="index").to_latex(
        hrules=True,
        column_format=alignment,
        environment="table*" if len(frame.columns) > WIDEST else "table",
        position="t",
        position_float="centering",
        caption=escape(caption),
        label=f"tab:pibench-{name}",
    )


def latex_tables(tables: Tables) -> dict[str, str]:
    """Returns the tables for which there are data, by the name of their file."""
    found = {}
    makers = {"headline": _headline, "links": _links, "accuracy": _accuracy, "pairs": _pairs}
    for name, make in makers.items():
        frame, caption, left = make(tables)
        if not frame.empty:
            found[name] = latex_table(frame, name, caption, left)
    return found


def _headline(tables: Tables) -> tuple[pd.DataFrame, str, int]:
    grid = headline(tables.summary)
    lines = [] if grid is None else [[cell.text for cell in line] for line in grid.lines]
    frame = pd.DataFrame(lines, columns=[] if grid is None else list(grid.heads))
    caption = (
        "Measured cost of a private inference"
        f" ({'' if grid is None else grid.caption}): medians. Speed-ups are medians of paired repetitions "
        "over the same engine's baseline, with 95 % bootstrap intervals; ~ marks an interquartile range "
        "above 10 % of the median."
    )
    return frame, caption, 2


def _links(tables: Tables) -> tuple[pd.DataFrame, str, int]:
    cases = tables.summary[(tables.summary["timing"] == "emulated") & (tables.summary["role"] == "link")]
    lines = []
    for (engine, variant), group in cases.groupby(["engine", "variant"], sort=False):
        first = group.iloc[0]
        line = {
            "Variant": variant,
            "Engine": engine_look(engine).label,
            "Rounds": format_count(first["rounds"]),
            "Hops": format_count(first["hops"]),
            "MB sent": format_number(first["bytes_sent"], 1e6),
        }
        for _, case in group.iterrows():
            line[f"{case['link']}, s"] = format_number(case["emulated_online_median_s"])
            line[f"{case['link']}, model"] = format_percent(case["model_error"])
        lines.append((engine_place(engine), line))
    frame = pd.DataFrame([line for _, line in sorted(lines, key=lambda each: each[0])]).fillna("–")
    caption = (
        "Online seconds over emulated links (medians), and the error of the arithmetic model: compute on "
        "loopback, one-way trips, bytes."
    )
    return frame, caption, 2


def _accuracy(tables: Tables) -> tuple[pd.DataFrame, str, int]:
    known = tables.accuracy.dropna(subset=["accuracy_test"])
    lines = []
    for (width, variant), group in known.groupby(["width", "variant"], sort=False):
        tests = group["accuracy_test"]
        spread = f" [{format_accuracy(tests.min())}, {format_accuracy(tests.max())}]" * (len(tests) > 1)
        lines.append(
            {
                "Variant": variant,
                "Width": width,
                "ReLUs, K": format_number(group["relus"].iloc[0], 1e3, 4),
                "MACs, M": format_number(group["macs"].iloc[0], 1e6, 4),
                "Seeds": len(tests),
                "Accuracy, %": format_accuracy(tests.mean()) + spread,
            }
        )
    caption = "Test accuracy on CIFAR-100 of the trained networks: mean over seeds, lowest and highest."
    return pd.DataFrame(lines), caption, 1


def _pairs(tables: Tables) -> tuple[pd.DataFrame, str, int]:
    pairs = tables.pairs
    engines = shown_engines(_engines_of(pairs))
    lines = [
        {
            "SENet": pair["senet"],
            "Joint": pair["joint"],
            "Width": pair["width"],
            "Joint - SENet, points": format_points(pair["accuracy_difference"]),
            "MACs": ratio(pair["macs_ratio"]),
            **{
                f"Online, {engine}": ratio(
                    *(pair.get(f"{engine}_online_ratio{end}", math.nan) for end in ("", "_low", "_high"))
                )
                for engine in engines
            },
        }
        for _, pair in pairs.iterrows()
    ]
    caption = (
        "SENet and joint reduction of matching budgets: difference in test accuracy, and how many times "
        "fewer MACs and seconds the joint network needs, with 95 % bootstrap intervals."
    )
    return pd.DataFrame(lines), caption, 2


def _engines_of(pairs: pd.DataFrame) -> Iterator[str]:
    return (name.removesuffix("_online_ratio") for name in pairs if name.endswith("_online_ratio"))
