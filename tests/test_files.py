import platform
from pathlib import Path

import pytest

from pibench.models.files import replace_file
from pibench.models.machine import cpu_name


def test_a_file_that_cannot_be_written_leaves_nothing_behind(tmp_path):
    path = tmp_path / "new" / "file"
    replace_file(path, b"one")
    assert path.read_bytes() == b"one"
    with pytest.raises(OSError, match="file"):
        replace_file(path / "below", b"two")
    assert [entry.name for entry in path.parent.iterdir()] == ["file"]


def test_the_processor_is_named_by_its_model_else_by_its_architecture(monkeypatch):
    text = "processor : 0\nmodel name\t: A: fast one\nmodel name\t: another\n"
    monkeypatch.setattr(Path, "read_text", lambda path: text)
    assert cpu_name() == "A: fast one"
    monkeypatch.setattr(platform, "processor", lambda: "")
    monkeypatch.setattr(platform, "machine", lambda: "aarch64")

    def absent(path):
        raise FileNotFoundError(path)

    monkeypatch.setattr(Path, "read_text", absent)
    assert cpu_name() == "aarch64"
    monkeypatch.setattr(platform, "machine", lambda: "")
    assert cpu_name() is None
