"""`python -m pibench.measure.accuracy`: judges trained networks in fixed point and under the protocols.

Adds to every row of results/accuracy.json whose weights are stored (seed 0):

- `weights_sha256`: the judged file; a row of other weights is judged anew;
- `accuracy_fixed_point`: share of the test images that the network gets right in 16-bit fixed point
  (`pibench.engines.lean.plaintext`);
- `fixed_point`: the number of these images, and the share whose predicted class is that of the plaintext
  network;
- `private`: for each engine the answers of real parties (`Private`) on a fixed sample of the test set.

Plaintext is the network of the stored file in float32, as `accuracy_test` judges it. Errors of logits are
taken against float64. Seconds are not measured here: latency is in bench.json.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from pibench.engines import ENGINES
from pibench.engines.base import EngineMissing
from pibench.engines.lean.plaintext import FixedPoint, PrecisionError
from pibench.measure.subject import expected_failures
from pibench.measure.verdict import Truth, WrongAnswer, truth_of
from pibench.models.commands import Parser, exit_status
from pibench.models.data import DataError, load_cifar100, normalised
from pibench.models.files import demand_room, writing
from pibench.models.manifest import read_manifest
from pibench.models.rows import ResultsError, read_rows
from pibench.models.training.files import TrainingError
from pibench.models.training.rows import Row, find_row, update_row
from pibench.models.variants import VARIANTS, variant
from pibench.models.weights import WeightsError, file_name, read_weights
from pibench.parties.driver import Parties, PartyFailed
from pibench.program.lower import ExportError, lower
from pibench.store.settings import ENGINES as USUAL

BATCH = 10  # images of one private inference: correlated randomness grows with it (3 GB at width 64, stock)
PLAINTEXT_BATCH = 20
TIMEOUT_S = 600.0
SAME_WEIGHTS = 0.005  # by which the accuracy of one network may differ between machines


class AccuracyError(RuntimeError):
    """Raised when a row cannot be judged."""


@dataclass(frozen=True)
class InFixedPoint:
    """Shares of the `images` that fixed point gets right, plaintext gets right, and both call the same."""

    images: int
    accuracy: float
    accuracy_plaintext: float
    agreement: float


@dataclass(frozen=True)
class Private:
    """The answers of one engine's parties.

    `agreement` is the share of the `images` on which the largest private logit is the largest in plaintext.
    The accuracies are shares on the same images. `max_logit_error` is the largest over the images without a
    wrong truncation (None if all have one). `spread` is the largest difference between two images' logits.
    `wrong_truncations` holds the number of images that one made wrong (an error of 2 % of the spread or more)
    and the number that the law of local truncation expects. `agreement` and `accuracy` count these images as
    they came out.
    """

    images: int
    agreement: float
    accuracy: float
    accuracy_plaintext: float
    max_logit_error: float | None
    spread: float
    wrong_truncations: dict[str, float]


def sample(labels: Tensor, count: int, seed: int = 0) -> Tensor:
    """Returns the places of `count` images whose classes are as even as possible: int64 [count], by class.

    If there are as many images as classes, it is one image of each, drawn from a seeded generator; for n
    times as many it is n of each. Other classes, the first ones first, replace missing images and take the
    remainder.
    """
    if not 2 <= count <= len(labels):
        raise AccuracyError(f"{count} images cannot be chosen from {len(labels)}: ask for 2 to {len(labels)}")
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(seed)).tolist()
    seen: dict[int, int] = {}
    turns = []
    for index in order:
        label = int(labels[index])
        seen[label] = turn = seen.get(label, 0) + 1
        turns.append((turn, label, index))
    chosen = sorted(turns)[:count]
    return torch.tensor([index for _, _, index in sorted(chosen, key=lambda one: (one[1], one[0]))])


@torch.no_grad()
def fixed_point(model: nn.Module, images: Tensor, labels: Tensor, seed: int = 0) -> InFixedPoint:
    """Judges `model` on normalised `images` [N, 3, H, W] in fixed point, truncations drawn from `seed`.

    Raises ExportError for a network that parties cannot run, PrecisionError for one that float64 cannot.
    """
    chunks = images.split(PLAINTEXT_BATCH)
    lowered = lower(model, chunks[0])
    network = FixedPoint.of(lowered.program, lowered.weights)
    generator = torch.Generator().manual_seed(seed)
    predicted = torch.cat([network.logits(chunk, generator).argmax(1) for chunk in chunks])
    plain = torch.cat([model(chunk).argmax(1) for chunk in chunks])
    return InFixedPoint(
        len(labels), _share(predicted == labels), _share(plain == labels), _share(predicted == plain)
    )


@torch.no_grad()
def judge(model: nn.Module, images: Tensor, labels: Tensor, parties: Parties) -> Private:
    """Lets running parties infer all normalised `images` [N, 3, H, W], N >= 2; compares with plaintext.

    Raises WrongAnswer unless wrong truncations explain every answer that is off by 2 % of the spread or more.
    The repeated image must come out right, and there must be no more of them than the law allows.
    """
    plain, truth = model(images).argmax(1), truth_of(model, images)
    parties.load(model, images)
    logits = _infer(parties, images)
    right, errors = truth.right(logits), truth.errors(logits)
    law, observed = expected_failures(parties, len(images)), int((~right).sum())
    if observed:
        again = Truth(truth.logits[~right], truth.spread).right(_infer(parties, images[~right]))
        truth.demand_explanation(observed, len(images), law, bool(again.all()), "private answers")
    predicted = logits.argmax(1)
    return Private(
        images=len(images),
        agreement=_share(predicted == plain),
        accuracy=_share(predicted == labels),
        accuracy_plaintext=_share(plain == labels),
        max_logit_error=errors[right].max().item() if observed < len(images) else None,
        spread=truth.spread,
        wrong_truncations={"expected": law, "observed": observed},
    )


def _infer(parties: Parties, images: Tensor) -> Tensor:
    """Returns the opened logits of all images, inferred in batches."""
    logits = []
    for chunk in images.split(BATCH):
        parties.prepare(len(chunk))
        logits.append(parties.infer(chunk))
    return torch.cat(logits)


def _share(hits: Tensor) -> float:
    return hits.sum().item() / len(hits)


@dataclass(frozen=True, eq=False)
class Wanted:
    """The values that every row must have.

    Normalised `images` [N, 3, H, W] and `labels` [N] are judged in fixed point; `whole` is true if they are
    the entire test set. Those at `chosen` go to the parties of each of the `engines`. `again` repeats known
    values too, also those of as many images or more.
    """

    images: Tensor
    labels: Tensor
    whole: bool
    chosen: Tensor
    engines: Sequence[str]
    again: bool = False


def additions(
    row: Row, digest: str, model: nn.Module, wanted: Wanted, parties: Callable[[str], Parties]
) -> dict[str, Any]:
    """Returns the wanted values that `row` lacks for weights with this SHA-256; empty if none.

    `parties(engine)` returns running ones. Raises AccuracyError when they fail or give another answer.
    """
    known = row if row.get("weights_sha256") == digest else {}
    fresh: dict[str, Any] = {}
    complete = "fixed_point" in known and "accuracy_fixed_point" in known
    if wanted.again or not complete or known["fixed_point"]["images"] < len(wanted.labels):
        found = fixed_point(model, wanted.images, wanted.labels)
        if wanted.whole:
            _demand_same(row, found)
        fresh["accuracy_fixed_point"] = found.accuracy
        fresh["fixed_point"] = {"images": found.images, "agreement": found.agreement}
    images, labels = wanted.images[wanted.chosen], wanted.labels[wanted.chosen]
    private = dict(known.get("private", {}))
    waiting = [
        engine
        for engine in wanted.engines
        if wanted.again or private.get(engine, {}).get("images", 0) < len(labels)
    ]
    for engine in waiting:
        try:
            private[engine] = asdict(judge(model, images, labels, parties(engine)))
        except PartyFailed as error:
            first = str(error).splitlines()[0]
            raise AccuracyError(
                f"the {engine} engine failed ({first}): rows judged before are kept, run the same command to "
                "go on"
            ) from error
        except WrongAnswer as error:
            raise AccuracyError(
                f"the {engine} engine gives another answer: {error}; run the same command again, and if it "
                "stays, report it as an error of the engine"
            ) from error
    if waiting:
        fresh["private"] = private
    return {"weights_sha256": digest, **fresh} if fresh else {}


def _demand_same(row: Row, found: InFixedPoint) -> None:
    """Raises AccuracyError when the weights are plainly not the ones with which the row was measured."""
    stated = row.get("accuracy_test", found.accuracy_plaintext)
    if abs(stated - found.accuracy_plaintext) > SAME_WEIGHTS:
        raise AccuracyError(
            f"the stored weights get {100 * found.accuracy_plaintext:.2f} % of the test set right, the row "
            f"says {100 * stated:.2f} %: they are of different trainings, take the row out of accuracy.json "
            "and train it again"
        )


@dataclass(frozen=True)
class Store:
    """The trained networks of one `width`: rows in `results`/accuracy.json, weights in `weights`."""

    results: Path
    weights: Path
    width: int

    @property
    def path(self) -> Path:
        """The file of the rows."""
        return self.results / "accuracy.json"

    def rows(self, names: Sequence[str] | None) -> list[Row]:
        """Returns the rows to judge; without `names` those of all variants.

        Raises AccuracyError when a named row, or every row, is missing.
        """
        rows, listed, width = read_rows(self.path), read_manifest(self.weights), self.width
        found = {name: find_row(rows, name, width, 0) for name in names or VARIANTS}
        for name in names or ():
            if found[name] is None:
                raise AccuracyError(
                    f"{self.path} has no row of {name} at width {width}, seed 0: not trained yet, "
                    f"{_train(name, width)}"
                )
            if file_name(name, width) not in listed:
                raise AccuracyError(
                    f"{self.weights} lists no {file_name(name, width)}: its weights are not stored, "
                    f"{_train(name, width)}"
                )
        judged = [row for name, row in found.items() if row is not None and file_name(name, width) in listed]
        if not judged:
            raise AccuracyError(
                f"{self.path} has no row at width {width} with stored weights: not trained yet, "
                f"{_train('', width)}"
            )
        return judged

    def demand_weights(self, rows: Sequence[Row]) -> None:
        """Raises AccuracyError unless the weights of all rows can be read: called before one is judged."""
        for row in rows:
            with self._naming(row):
                read_weights(self.weights / file_name(row["variant"], self.width))

    def load(self, row: Row) -> tuple[nn.Module, str]:
        """Builds the network of a row from its stored weights; returns it with their SHA-256."""
        name = file_name(row["variant"], self.width)
        entry = read_manifest(self.weights)[name]
        with self._naming(row):
            model = variant(row["variant"]).build(
                self.width, self.weights / name, classes=entry["classes"], image_size=entry["image_size"]
            )
        return model, entry["sha256"]

    @contextmanager
    def _naming(self, row: Row) -> Iterator[None]:
        """Raises AccuracyError for a WeightsError, with what makes the row's weights usable again."""
        try:
            yield
        except WeightsError as error:
            name = file_name(row["variant"], self.width)
            raise AccuracyError(
                f"{error}: restore {self.weights / name}, or take it out of manifest.json there and "
                f"{_train(row['variant'], self.width)}"
            ) from error

    def add(self, row: Row, digest: str, fresh: dict[str, Any]) -> None:
        """Adds to the row, unless a training has replaced its weights in the meantime."""
        name = file_name(row["variant"], self.width)
        if read_manifest(self.weights).get(name, {}).get("sha256") != digest:
            raise AccuracyError(f"{name} was trained again while it was judged: run the same command again")
        update_row(self.path, row["variant"], self.width, 0, fresh)


def _train(name: str, width: int) -> str:
    rows = f"--rows {name} " if name else ""
    return f'make train TRAIN="{rows}--width {width}"'


def judge_rows(
    rows: Sequence[str] | None = None,
    *,
    width: int = 16,
    engines: Sequence[str] = USUAL,
    images: int = 100,
    test_images: int | None = None,
    data: Path = Path("data"),
    results: Path = Path("results"),
    weights: Path = Path("results/weights"),
    again: bool = False,
    say: Callable[[str], None] = print,
) -> None:
    """Judges the rows of these variants (None: all that are trained) and writes each when it is done.

    A row that is up to date is judged if `again` asks for it. `images` are inferred by the parties of each
    engine, `test_images` (None: all) in fixed point; `data` holds cifar-100-python. `say` is given a line a
    row. Raises AccuracyError, and what reading rows, weights and images raises.
    """
    store = Store(results, weights, width)
    judged = store.rows(rows)
    store.demand_weights(judged)
    with writing(store.path, AccuracyError, "make room or allow writing there"):
        demand_room(store.path)
    pictures, labels = load_cifar100(data, "test")
    if test_images is not None and not 2 <= test_images <= len(labels):
        raise AccuracyError(f"--test-images takes 2 to {len(labels)}, not {test_images}")
    some = slice(test_images)
    wanted = Wanted(
        normalised(pictures[some]),
        labels[some],
        test_images is None,
        sample(labels[some], images),
        engines,
        again,
    )
    running: dict[str, Parties] = {}
    with ExitStack() as stack:

        def parties(engine: str) -> Parties:
            if engine not in running:
                running[engine] = stack.enter_context(
                    Parties(engine=engine, timeout_s=TIMEOUT_S, check=False)
                )
            return running[engine]

        for index, row in enumerate(judged, start=1):
            started, name = time.monotonic(), row["variant"]
            model, digest = store.load(row)
            try:
                fresh = additions(row, digest, model, wanted, parties)
            except (AccuracyError, ExportError, PrecisionError) as error:
                raise AccuracyError(f"{name} at width {width}: {error}") from error
            if fresh:
                store.add(row, digest, fresh)
            said = summary({**row, **fresh}, time.monotonic() - started if fresh else None)
            say(f"[{index}/{len(judged)}] {said}")


def summary(row: Row, seconds: float | None) -> str:
    """Says in one line what was found of a row, in how many seconds (None: before)."""
    stated = row.get("accuracy_test")
    parts = [] if stated is None else [f"{100 * stated:.2f} % in plaintext"]
    parts.append(f"{100 * row['accuracy_fixed_point']:.2f} % in fixed point")
    for engine, found in row.get("private", {}).items():
        parts.append(f"{engine} agrees on {100 * found['agreement']:.4g} % of {found['images']}")
    when = "judged before" if seconds is None else f"{seconds:.0f} s"
    return f"{row['variant']} at width {row['width']}: {', '.join(parts)} ({when})"


def arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    """Reads the command line."""
    parser = Parser(prog="python -m pibench.measure.accuracy", description=__doc__.split("\n")[0])
    parser.add_argument(
        "--rows", nargs="+", choices=VARIANTS, metavar="VARIANT", help="default: all that are trained"
    )
    parser.add_argument("--width", type=int, default=16, help="channels of the first stage (default 16)")
    offered = [name for name, engine in ENGINES.items() if engine.offered]
    parser.add_argument("--engines", nargs="+", choices=offered, default=USUAL)
    parser.add_argument("--images", type=int, default=100, help="private inferences (default 100)")
    parser.add_argument("--test-images", type=int, help="in fixed point: the first so many (default all)")
    parser.add_argument("--data", type=Path, default=Path("data"), help="folder that holds cifar-100-python")
    parser.add_argument("--results", type=Path, default=Path("results"))
    parser.add_argument("--weights", type=Path, default=Path("results/weights"))
    parser.add_argument("--again", action="store_true", help="judge rows that are up to date, too")
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> int:
    """Runs from the command line; returns the exit status."""
    options = vars(arguments(argv))
    return exit_status(
        lambda: judge_rows(**options, say=lambda line: print(line, file=sys.stderr)),
        *(AccuracyError, EngineMissing, ResultsError, TrainingError, DataError, WeightsError),
    )


if __name__ == "__main__":
    sys.exit(main())
