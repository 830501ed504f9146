"""Writes files that appear complete or not at all."""

import os
from pathlib import Path


def replace_file(path: Path, data: bytes) -> None:
    """Writes `data` to `path` in one step: readers see the old file or the new one, never a part.

    Makes the folder if it is missing. Raises OSError when it cannot write; the old file is then intact.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with open(temporary, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
