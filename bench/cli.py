"""The command `pibench`: every subcommand reads its options, calls one function and prints the result."""

from __future__ import annotations

import os
import sys
from contextlib import nullcontext
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from pibench.models.interrupt import ENDING, remembering, status_of


class Group(TyperGroup):
    """Turns what a function raises into one sentence and an exit status, unless --debug asks for more."""

    def invoke(self, ctx: Any) -> Any:
        """Runs the subcommand: 2 for bad input, 1 for a failure, 128 and its number for a signal."""
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt as error:
            raise typer.Exit(_stopped(error)) from None
        except (ValueError, OSError, MemoryError, ImportError, NotImplementedError) as error:
            if ctx.params.get("debug"):
                raise
            print(f"pibench: {_sentence(error)}", file=sys.stderr)
            raise typer.Exit(2) from None
        except (RuntimeError, AssertionError) as error:
            # Parties that died, links that cannot be shaped, answers that are wrong, files that are damaged.
            # What click raises to end is a RuntimeError, too.
            if ctx.params.get("debug") or isinstance(error, typer.Exit | typer.Abort):
                raise
            print(f"pibench: {_sentence(error)} (pibench --debug shows where)", file=sys.stderr)
            raise typer.Exit(1) from None


def _stopped(error: KeyboardInterrupt) -> int:
    """Says that a signal has ended the command; returns the exit status."""
    print("\nstopped: the rows of finished cases are kept", file=sys.stderr)
    return status_of(error)


def _sentence(error: BaseException) -> str:
    return str(error).strip() or type(error).__name__


app = typer.Typer(
    cls=Group,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
    context_settings={"help_option_names": ["-h", "--help"]},
)


class Form(StrEnum):
    """The output form of a table."""

    TABLE = "table"
    JSON = "json"
    CSV = "csv"
    MARKDOWN = "markdown"
    LATEX = "latex"


def _form(json: bool, csv: bool, markdown: bool, latex: bool) -> str:
    asked = [
        form for form, wanted in zip(list(Form)[1:], (json, csv, markdown, latex), strict=True) if wanted
    ]
    if len(asked) > 1:
        raise ValueError(f"choose one form, not {' and '.join(f'--{form}' for form in asked)}")
    return str(asked[0] if asked else Form.TABLE)


Json = Annotated[bool, typer.Option("--json", help="Print JSON, all columns.")]
Csv = Annotated[bool, typer.Option("--csv", help="Print CSV, all columns.")]
Markdown = Annotated[bool, typer.Option("--markdown", help="Print Markdown.")]
Latex = Annotated[bool, typer.Option("--latex", help="Print LaTeX.")]
Width = Annotated[int, typer.Option(help="Channels of the first stage of variants.", min=1)]
Shape = Annotated[
    str | None,
    typer.Option(help="One input's shape, where the network does not say it: 3,32,32."),
]
Output = Annotated[
    str | None,
    typer.Option(help="Which output, by name or number, where a network returns several."),
]
Results = Annotated[Path, typer.Option(help="Folder of bench.json.")]
On = Annotated[
    str | None,
    typer.Option(help='A cluster: the address of its dask scheduler, or "local".', metavar="ADDRESS"),
]


def _shape(text: str | None) -> tuple[int, ...] | None:
    if text is None:
        return None
    parts = [part.strip() for part in text.replace("x", ",").split(",")]
    if not parts or not all(part.isdecimal() and int(part) > 0 for part in parts):
        raise ValueError(f"a shape is written like 3,32,32, not {text!r}")
    return tuple(int(part) for part in parts)


@app.callback()
def everything(
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of a failure.")] = False,
) -> None:
    """Measures the cost of private inference, and the real saving of a redesigned network.

    Begin with `pibench cost resnet18:width=16` (nothing is run), then `pibench run net.py:make --shape
    3,32,32` (your own network under MPC, its answers checked). `pibench COMMAND --help` has examples.
    """


@app.command("list")
def list_(json: Json = False, csv: Csv = False, markdown: Markdown = False, latex: Latex = False) -> None:
    """Lists networks, variants, reductions, engines (installed, or how to install them) and links.

    Example: `pibench list`
    """
    from pibench.api import listed
    from pibench.show import show_several

    show_several(listed(), _form(json, csv, markdown, latex))


@app.command()
def cost(
    model: Annotated[str, typer.Argument(help="A network; see `pibench run --help`.")],
    width: Width = 64,
    image: Annotated[
        int | None,
        typer.Option(help="Height and width of the images.", min=1),
    ] = None,
    shape: Shape = None,
    output: Output = None,
    batch: Annotated[int, typer.Option(help="Images of one inference.", min=1)] = 1,
    json: Json = False,
    csv: Csv = False,
    markdown: Markdown = False,
    latex: Latex = False,
) -> None:
    """Prints ReLUs, MACs, rounds, bytes and modelled seconds of a network, without running it.

    Examples: `pibench cost senet-0.09`, `pibench cost resnet18:width=32,classes=10 --batch 4`, `pibench cost
    net.py:make --shape 3,64,64 --csv`
    """
    from pibench import api
    from pibench.show import cost_tables, show

    form = _form(json, csv, markdown, latex)
    frame = api.cost(model, batch=batch, width=width, image=image, shape=_shape(shape), output=output)
    show(frame, form, cost_tables(frame))


@app.command()
def run(
    models: Annotated[list[str], typer.Argument(help="Networks, measured in turn.", metavar="MODEL...")],
    engine: Annotated[str, typer.Option(help="See `pibench list`.")] = "lean",
    link: Annotated[str, typer.Option(help='Between the parties: loopback, lan, wan, "200Mbit/40ms".')] = (
        "loopback"
    ),
    batch: Annotated[int, typer.Option(help="Images of one inference.", min=1)] = 1,
    rounds: Annotated[int, typer.Option(help="Measured rounds; six or more give an interval.", min=1)] = 8,
    against: Annotated[
        str | None,
        typer.Option(help="The network whose rounds are paired with those of the others."),
    ] = None,
    width: Width = 64,
    shape: Shape = None,
    output: Output = None,
    results: Results = Path("results"),
    again: Annotated[bool, typer.Option("--again", help="Measure what is up to date, too.")] = False,
    on: On = None,
    json: Json = False,
    csv: Csv = False,
    markdown: Markdown = False,
    latex: Latex = False,
) -> None:
    """Measures networks under MPC; every answer is checked against the float64 network.

    MODEL is a variant (`senet-0.09`), a network with options (`resnet18:width=32,classes=10`), one of timm
    (`timm:mobilenetv2_050`), a function or class of your own that makes it (`net.py:make`,
    `package.module:Net`) or a file of torch.export (`net.pt2`). A case that was measured before, whose
    network, settings, code and machine are the same, is not measured again.

    Examples: `pibench run joint-0.052 senet-0.09 --against baseline --width 16`,
    `pibench run net.py:make --shape 3,32,32 --link wan`
    """
    from pibench import api
    from pibench.live import watching
    from pibench.show import run_tables, show

    form = _form(json, csv, markdown, latex)
    with watching() if on is None else nullcontext() as watch:
        summary = api.measure(
            models,
            engine=engine,
            link=link,
            batch=batch,
            rounds=rounds,
            against=against,
            width=width,
            shape=_shape(shape),
            output=output,
            results=results,
            again=again,
            on=on,
            watch=watch,
            say=lambda line: print(line, file=sys.stderr),
        )
    show(summary, form, run_tables(summary))


@app.command()
def compare(
    before: Annotated[Path, typer.Argument(help="A results file, or the folder that holds bench.json.")],
    after: Annotated[Path, typer.Argument(help="Another one.")],
    fail_above: Annotated[
        str | None,
        typer.Option(help="Exit status 1 if a case is slower online by more: 5%."),
    ] = None,
    across_machines: Annotated[
        bool, typer.Option("--across-machines", help="Compare seconds of two machines all the same.")
    ] = False,
    json: Json = False,
    csv: Csv = False,
    markdown: Markdown = False,
    latex: Latex = False,
) -> None:
    """Compares two results files case by case: ratios of medians, with intervals.

    A case fails if its ratio is above the limit and its interval does not reach down to 1.

    Example: `pibench compare results/reference results --fail-above 5%`
    """
    from pibench import api
    from pibench.show import compare_table, show

    form = _form(json, csv, markdown, latex)
    frame = api.compare(before, after, fail_above=_share(fail_above), across_machines=across_machines)
    show(frame, form, {"": compare_table(frame)})
    if frame["slower"].any():
        raise typer.Exit(1)


@app.command()
def merge(
    places: Annotated[
        list[Path], typer.Argument(help="Results files, or folders that hold bench.json.", metavar="PLACE...")
    ],
    into: Annotated[Path, typer.Option("-o", "--into", help="The folder or file that they are merged into.")],
    json: Json = False,
    csv: Csv = False,
    markdown: Markdown = False,
    latex: Latex = False,
) -> None:
    """Merges results of several machines into one file, whose rows keep their machines.

    Tables and ratios are of one machine: `pibench report --results both --machine Xeon` chooses it.

    Example: `pibench merge laptop server -o both`
    """
    from pibench import api
    from pibench.show import show

    form = _form(json, csv, markdown, latex)
    show(api.merge(places, into), form)


def _share(text: str | None) -> float | None:
    """Reads "5%" or "0.05"."""
    if text is None:
        return None
    try:
        share = float(text.removesuffix("%")) / (100 if text.endswith("%") else 1)
    except ValueError:
        share = -1.0
    if not 0 <= share < 100:
        raise ValueError(f"--fail-above takes a share like 5% or 0.05, not {text!r}")
    return share


PASSED_ON = {"allow_extra_args": True, "ignore_unknown_options": True, "help_option_names": []}


@app.command(context_settings=PASSED_ON)
def report(ctx: typer.Context) -> None:
    """Tables and pages of your run, of the reference when there is none, as `make report`.

    With `--html` also one self-contained page: sortable tables, figures, every layer, the machine.

    Example: `pibench report --quiet --html report.html`
    """
    from pibench.report.command import main

    raise typer.Exit(main(ctx.args))


@app.command(context_settings=PASSED_ON)
def figures(ctx: typer.Context) -> None:
    """Draws the figures from the tables that `pibench report` writes.

    With `--paper` as PDF of one- and two-column widths, with LaTeX tables and captions beside them.

    Example: `pibench figures --paper`
    """
    from pibench.figures.command import main

    raise typer.Exit(main(ctx.args))


@app.command(context_settings=PASSED_ON)
def train(ctx: typer.Context, on: On = None) -> None:
    """Trains variants, as `make train`; with `--on ADDRESS` a row at a time on each worker of a cluster.

    Example: `pibench train --rows baseline --plan quick`
    """
    from pibench.models.training.__main__ import main, options_of

    if on is None:
        raise typer.Exit(main(ctx.args))
    from pibench.cluster import connected, train_on

    rows, options = options_of(ctx.args)
    with connected(on) as client:
        train_on(client, rows, options)


@app.command(context_settings=PASSED_ON)
def accuracy(ctx: typer.Context) -> None:
    """Judges trained networks in fixed point and under the protocol, as `make accuracy`.

    Example: `pibench accuracy --rows senet-0.09 --images 20`
    """
    from pibench.measure.accuracy import main

    raise typer.Exit(main(ctx.args))


@app.command()
def doctor(json: Json = False, csv: Csv = False, markdown: Markdown = False, latex: Latex = False) -> None:
    """Checks versions, threads, governor and memory of this machine, and tests each installed engine.

    Exit status 1 if an installed engine fails. Example: `pibench doctor`
    """
    from pibench.doctor import examine
    from pibench.show import show

    frame = examine()
    show(frame, _form(json, csv, markdown, latex))
    if (frame["state"] == "FAILS").any():
        raise typer.Exit(1)


def _open_streams() -> None:
    """Opens nowhere those standard streams that the caller has closed.

    Otherwise the next file that is opened takes the place of one, and what is printed goes into it.
    """
    for descriptor, name in enumerate(("stdin", "stdout", "stderr")):
        try:
            os.fstat(descriptor)
        except OSError:
            # Lower ones are open by now, so this one is the lowest that is free; it stays open.
            stream = open(os.devnull, "r" if name == "stdin" else "w", encoding="utf-8")  # noqa: SIM115
            setattr(sys, name, stream)


def _write_out() -> None:
    """Writes what is left of the output; ends the process with exit status 2 where it cannot be written."""
    try:
        sys.stdout.flush()
    except OSError as error:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # or Python would try once more
        if not isinstance(error, BrokenPipeError):  # a reader that has seen enough
            print(f"pibench: the output cannot be written ({error.strerror})", file=sys.stderr)
            sys.exit(2)


def main() -> None:
    """Runs the command; `pyproject.toml` names it."""
    _open_streams()
    with remembering(*ENDING):
        try:
            app(prog_name="pibench")
        except KeyboardInterrupt as error:  # before the subcommand, or after it
            sys.exit(_stopped(error))
        finally:
            _write_out()


if __name__ == "__main__":
    main()
