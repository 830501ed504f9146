"""The manifest of a folder of weights: its files, with their checksums. No torch.

`manifest.json` maps the name of each weights file to its entry: the SHA-256 of the file, and the classes and
the image size of its network. A file and its entry cannot be replaced in one step. A writer therefore first
announces the new entry under the name with `.next` at its end, then replaces the file, then the entry. When
the writer was killed in between, the checksum tells which of the two entries is the file's, and readers take
that one.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated

from pydantic import Field, TypeAdapter, ValidationError
from typing_extensions import TypedDict

from pibench.models.files import changing, parse_json, read_file, replace_file
from pibench.models.rows import Size, checked

FOLDER = Path(__file__).with_name("trained")
MANIFEST = "manifest.json"
NEXT = ".next"
REMEDY = "restore it from git, or remove it and train again"


class WeightsError(RuntimeError):
    """Raised when a weights file is missing, damaged or made for another network."""


@checked
class Entry(TypedDict):
    """The facts of a weights file: its SHA-256, and the classes and the image size of its network."""

    sha256: Annotated[str, Field(pattern="^[0-9a-f]{64}$")]
    classes: Size
    image_size: Size


_FILE = r"^[^/\x00]+\.safetensors(\.next)?$"
_ENTRIES: TypeAdapter[dict[str, Entry]] = TypeAdapter(dict[Annotated[str, Field(pattern=_FILE)], Entry])


def read_manifest(folder: Path = FOLDER) -> dict[str, Entry]:
    """Returns the entries of a folder by file name; empty if there is no manifest.

    Raises WeightsError for a manifest that is damaged.
    """
    path = folder / MANIFEST
    try:
        entries = _ENTRIES.validate_python(parse_json(read_file(path)))
    except FileNotFoundError:
        return {}
    except OSError as error:
        raise WeightsError(f"{path} cannot be read ({error.strerror or error}): {REMEDY}") from error
    except ValidationError as error:  # a ValueError too
        place = ".".join(map(str, error.errors(include_url=False)[0]["loc"])) or "its content"
        raise WeightsError(
            f"{path} is no manifest of weights ({' '.join(place.split())} is missing or wrong): {REMEDY}"
        ) from error
    except ValueError as error:
        raise WeightsError(f"{path} is no JSON ({error}): {REMEDY}") from error
    for announced in [name for name in entries if name.endswith(NEXT)]:
        entry, name = entries.pop(announced), announced.removesuffix(NEXT)
        try:
            written = _digest(read_file(folder / name)) == entry["sha256"]
        except OSError:
            written = False
        if written:
            entries[name] = entry
    return entries


def read_listed(path: Path) -> bytes:
    """Returns the content of a weights file, checked against the manifest beside it.

    Raises WeightsError if it is missing, not listed or damaged.
    """
    for _ in range(2):  # between two looks another process may have replaced the file and its entry
        entry = read_manifest(path.parent).get(path.name)
        if entry is None:
            raise WeightsError(
                f"{path.name} is not listed in {path.parent / MANIFEST}: its checksum is unknown"
            )
        try:
            content = read_file(path)
        except FileNotFoundError as error:
            raise WeightsError(
                f"{path.parent / MANIFEST} lists {path.name}, but the file is missing"
            ) from error
        except OSError as error:
            raise WeightsError(f"{path} cannot be read ({error.strerror or error}): {REMEDY}") from error
        if _digest(content) == entry["sha256"]:
            return content
    raise WeightsError(
        f"{path.name} is damaged: its SHA-256 is not the manifest's; restore both from git, or train it again"
    )


def replace_listed(path: Path, content: bytes, classes: int, image_size: int) -> None:
    """Replaces a weights file and its entry in the manifest; one writer of a folder at a time.

    Raises OSError when it cannot write, and WeightsError for a damaged manifest. Readers then find the old
    file or the new one, and the entry that belongs to it.
    """
    manifest = path.with_name(MANIFEST)
    entry = Entry(sha256=_digest(content), classes=classes, image_size=image_size)
    with changing(manifest):
        entries = read_manifest(path.parent)
        _write(manifest, entries | {path.name + NEXT: entry})
        replace_file(path, content)
        _write(manifest, entries | {path.name: entry})


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def _write(path: Path, entries: Mapping[str, Entry]) -> None:
    replace_file(path, (json.dumps(entries, indent=2, sort_keys=True) + "\n").encode())
