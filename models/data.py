"""Images: CIFAR-100 from its original files, or crops of one small embedded picture.

`python -m pibench.models.data [ROOT]` downloads CIFAR-100 (Krizhevsky, "Learning Multiple Layers of Features
from Tiny Images", 2009) to ROOT. The default is data/ of the checkout; for an installed package it is data/
in the current folder. The files are the original python pickles. They are checked against their md5, and then
read by an unpickler that makes nothing but arrays of bytes. Without them the default images are crops of
`default_picture.png`, a reduced "Grace Hopper" (U.S. Navy photograph by James S. Davis, public domain, taken
from matplotlib's sample data).
"""

import hashlib
import http.client
import io
import pickle
import sys
import tarfile
import tempfile
import time
import urllib.request
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO, Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from pibench.models.commands import Parser, exit_status
from pibench.models.files import read_file

URL = "https://www.cs.toronto.edu/~kriz/cifar-100-python.tar.gz"
ARCHIVE_MD5 = "eb9058c3a382ffc7106e4002c42a8d85"
_CHECKOUT = Path(__file__).resolve().parent.parent
ROOT = (_CHECKOUT if (_CHECKOUT / "pyproject.toml").exists() else Path.cwd()) / "data"
FOLDER = "cifar-100-python"
MD5 = {
    "train": "16019d7e3df5f24257cddd939b257f8d",
    "test": "f0ef6b0ae62326f3e7ffdfab6717acfc",
    "meta": "7973b15100ade9c7d40fb424638fde48",
}
CLASSES = 100
PICTURE = Path(__file__).with_name("default_picture.png")
MEAN = (0.5071, 0.4865, 0.4409)
"""Mean of CIFAR-100's training images for red, green and blue in [0, 1]."""
STD = (0.2673, 0.2564, 0.2762)
"""Their standard deviation."""


class DataError(RuntimeError):
    """Raised when image files are missing, damaged or not available."""


class _Bytes:
    """Stands for numpy's dtype of bytes: a real one could be forged to make pointers of bytes."""

    def __init__(self, name: Any = None, *_: Any) -> None:
        if name not in ("u1", b"u1"):
            raise pickle.UnpicklingError(f"it holds an array of {name!r:.20}, not of bytes")

    def __setstate__(self, state: Any) -> None:
        pass  # the order of the bytes in a number, which a byte has not


class _Array:
    """Stands for an array of numpy while it is read; `value` is uint8 then."""

    value: np.ndarray

    def __setstate__(self, state: Any) -> None:
        _, shape, kind, by_columns, content = state
        if not isinstance(kind, _Bytes) or not isinstance(content, bytes):
            raise pickle.UnpicklingError("it holds an array that is not of bytes")
        if min(shape) < 0:  # numpy would choose a size that fits
            raise pickle.UnpicklingError(f"it holds an array of shape {shape!r:.60}")
        order = "F" if by_columns else "C"
        self.value = np.frombuffer(content, np.uint8).reshape(shape, order=order).copy()


def _new_array(*_: Any) -> _Array:
    return _Array()


class _ArrayUnpickler(pickle.Unpickler):
    """Makes dictionaries, lists, numbers, bytes and `_Array`; refuses to call anything else."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) == ("numpy", "ndarray"):
            return _Array
        if (module, name) == ("numpy", "dtype"):
            return _Bytes
        if module in ("numpy.core.multiarray", "numpy._core.multiarray") and name == "_reconstruct":
            return _new_array
        raise pickle.UnpicklingError(f"it asks for {module}.{name}, which no CIFAR file needs")


def _checked(path: Path, md5: str | None) -> bytes:
    """Returns the content of `path`; raises DataError if it is missing or its md5 differs."""
    try:
        content = read_file(path)
    except OSError as error:
        raise DataError(f"{path} cannot be read ({error.strerror}): `make data` fetches it") from error
    if md5 is not None and hashlib.md5(content, usedforsecurity=False).hexdigest() != md5:
        raise DataError(f"{path} is damaged (md5 differs from the original's): remove it and run `make data`")
    return content


def load_cifar100(
    root: str | Path = ROOT, split: str = "test", checksums: Mapping[str, str] | None = MD5
) -> tuple[Tensor, Tensor]:
    """Returns images uint8 [N, 3, 32, 32] and fine labels int64 [N] of the split "train" or "test".

    `root` holds the folder cifar-100-python. `checksums` maps a file to its md5; None checks nothing. Raises
    DataError when a file is missing, damaged or of another format.
    """
    if split not in ("train", "test"):
        raise ValueError(f"unknown split {split!r}: known are 'train' and 'test'")
    path = Path(root) / FOLDER / split
    content = _checked(path, None if checksums is None else checksums[split])
    try:
        entries = _ArrayUnpickler(io.BytesIO(content), encoding="bytes").load()
        pixels = entries[b"data"].value
        if pixels.ndim != 2 or pixels.shape[1] != 3 * 32 * 32:
            raise ValueError(f"its images have the shape {pixels.shape}, not [N, 3072]")
        fine = entries[b"fine_labels"]
        if wrong := [label for label in fine if type(label) is not int or not 0 <= label < CLASSES]:
            raise ValueError(f"it has the label {wrong[0]!r:.20}: labels are 0 to {CLASSES - 1}")
    except Exception as error:  # unpickling promises no type
        raise DataError(f"{path} is no CIFAR-100 file: {error}") from error
    images, labels = torch.from_numpy(pixels).view(-1, 3, 32, 32), torch.tensor(fine, dtype=torch.int64)
    if len(images) != len(labels):
        raise DataError(f"{path} has {len(images)} images but {len(labels)} labels")
    return images, labels


def normalised(images: Tensor) -> Tensor:
    """Maps uint8 [N, 3, H, W] to float32 with CIFAR-100's mean 0 and standard deviation 1 in each colour."""
    mean, std = (torch.tensor(values).view(1, 3, 1, 1) for values in (MEAN, STD))
    return (images.float() / 255 - mean) / std


def picture_crops(count: int, size: int = 32) -> Tensor:
    """Returns `count` different crops of the embedded picture, uint8 [count, 3, size, size].

    The crops are squares of at least a third of the picture's width, drawn from a fixed seed. The first n of
    them are the same for every count.
    """
    picture = Image.open(PICTURE).convert("RGB")
    generator = torch.Generator().manual_seed(0)
    seen: set[tuple[int, int, int]] = set()
    crops = []
    while len(crops) < count:
        u, v, w = torch.rand(3, generator=generator).tolist()
        side = picture.width // 3 + int(u * (picture.width - picture.width // 3))
        left, top = int(v * (picture.width - side + 1)), int(w * (picture.height - side + 1))
        if (left, top, side) in seen:
            continue
        seen.add((left, top, side))
        crop = picture.resize((size, size), Image.Resampling.BILINEAR, (left, top, left + side, top + side))
        crops.append(torch.from_numpy(np.array(crop)).permute(2, 0, 1))
    return torch.stack(crops)


def default_images(
    count: int, size: int = 32, root: str | Path = ROOT, checksums: Mapping[str, str] | None = MD5
) -> tuple[Tensor, str]:
    """Returns `count` normalised images float32 [count, 3, size, size], and their source.

    They are the first images of CIFAR-100's test set if it lies at `root`, else crops of the embedded
    picture.
    """
    if count < 1 or size < 1:
        raise ValueError(f"count and size are positive, not {count} and {size}")
    if not (Path(root) / FOLDER / "test").exists():
        return normalised(
            picture_crops(count, size)
        ), "crops of the embedded picture (Grace Hopper, public domain)"
    images, _ = load_cifar100(root, "test", checksums)
    if count > len(images):
        raise ValueError(f"{count} images asked for, CIFAR-100's test set has {len(images)}")
    source = "CIFAR-100 test set"
    chosen = normalised(images[:count])
    if size != 32:
        chosen = F.interpolate(chosen, (size, size), mode="bilinear", align_corners=False, antialias=True)
        source += f", resized to {size}x{size}"
    return chosen, source


class _Redirected(urllib.request.HTTPRedirectHandler):
    """Follows a redirect without the text beside it, which may not end; to one place it goes once."""

    max_repeats = 1

    def http_error_302(self, request: Any, answer: IO[bytes], *facts: Any) -> Any:
        answer.close()
        return super().http_error_302(request, answer, *facts)

    http_error_301 = http_error_303 = http_error_307 = http_error_308 = http_error_302


PATIENCE_S = 60.0
SLOWEST_BYTES_S = 10_000
LARGEST_BYTES = 1 << 28
"""The archive has 169 MB."""


def _fetched(url: str) -> bytes:
    """Returns what a URL sends; raises OSError or HTTPException, also for what is too slow or too large."""
    content, started = bytearray(), time.monotonic()
    opener = urllib.request.build_opener(_Redirected)
    with opener.open(url, timeout=PATIENCE_S) as answer:
        while part := answer.read1(1 << 16):
            content += part
            seconds = time.monotonic() - started
            if len(content) > LARGEST_BYTES:
                raise OSError(f"it sends more than {LARGEST_BYTES >> 20} MB")
            if seconds > PATIENCE_S and len(content) < SLOWEST_BYTES_S * seconds:
                raise TimeoutError(f"it sends less than {SLOWEST_BYTES_S // 1000} kB a second")
    return bytes(content)


def download(
    root: str | Path = ROOT,
    url: str = URL,
    archive_md5: str = ARCHIVE_MD5,
    checksums: Mapping[str, str] = MD5,
) -> Path:
    """Downloads CIFAR-100 to `root` and returns its folder; does nothing if the checked files are there.

    Archive and files are checked before any of them appears under its name. Raises DataError when the archive
    is not available or differs from the original.
    """
    folder = Path(root) / FOLDER
    try:
        for name, md5 in checksums.items():
            _checked(folder / name, md5)
    except DataError:
        pass
    else:
        return folder
    try:
        content = _fetched(url)
    except (OSError, http.client.HTTPException, ValueError) as error:  # ValueError: no URL
        reason = " ".join(str(getattr(error, "reason", error)).split()) or type(error).__name__
        raise DataError(
            f"CIFAR-100 cannot be downloaded from {url} ({reason}): the benchmark runs without it, on the "
            f"embedded picture; with a copy of your own, put train, test and meta into {folder}"
        ) from error
    if hashlib.md5(content, usedforsecurity=False).hexdigest() != archive_md5:
        raise DataError(f"what {url} sent is not the CIFAR-100 archive (md5 differs): nothing was written")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with (
            tarfile.open(fileobj=io.BytesIO(content)) as archive,
            tempfile.TemporaryDirectory(dir=folder) as scratch,
        ):
            for name, md5 in checksums.items():
                member = archive.extractfile(f"{FOLDER}/{name}")
                (Path(scratch) / name).write_bytes(member.read())
                _checked(Path(scratch) / name, md5)
            for name in checksums:
                (Path(scratch) / name).replace(folder / name)
    except OSError as error:
        raise DataError(f"CIFAR-100 cannot be written to {folder} ({error.strerror or error})") from error
    return folder


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the download from the command line; returns the exit status."""
    parser = Parser(
        prog="python -m pibench.models.data", description="Downloads CIFAR-100 and checks its files."
    )
    parser.add_argument(
        "root", nargs="?", type=Path, default=ROOT, help=f"where {FOLDER} goes (default: %(default)s)"
    )
    root = parser.parse_args(arguments).root
    return exit_status(lambda: print(f"CIFAR-100 is at {download(root)}"), DataError)


if __name__ == "__main__":
    sys.exit(main())
