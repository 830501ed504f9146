"""The manifest of a folder of weights: kills, two writers, damage."""

import json
import subprocess
import sys

import pytest
from hypothesis import given, settings
from json_faults import BROKEN, damaged

from pibench.models import manifest
from pibench.models.manifest import MANIFEST, WeightsError, read_listed, read_manifest, replace_listed

NAMES = ("a-w1.safetensors", "b-w1.safetensors")


class Killed(BaseException):
    """Stands for the end of a process: nothing that it would still do is done."""


def kill_after(monkeypatch, writes):
    """Ends the writer after so many of its files are replaced."""
    replace, done = manifest.replace_file, []

    def write(path, data):
        if len(done) == writes:
            raise Killed
        replace(path, data)
        done.append(path)

    monkeypatch.setattr(manifest, "replace_file", write)


def test_files_are_listed_with_their_facts(tmp_path):
    assert read_manifest(tmp_path) == {}
    for name in NAMES:
        replace_listed(tmp_path / name, name.encode(), 100, 32)
    assert list(read_manifest(tmp_path)) == list(NAMES)
    assert read_manifest(tmp_path)[NAMES[0]]["classes"] == 100
    assert read_listed(tmp_path / NAMES[1]) == NAMES[1].encode()
    content = json.loads((tmp_path / MANIFEST).read_text())
    assert content == read_manifest(tmp_path)


@pytest.mark.parametrize("writes", [0, 1, 2])
@pytest.mark.parametrize("fresh", [True, False])
def test_a_kill_between_weights_and_manifest_repairs_itself(tmp_path, monkeypatch, writes, fresh):
    first, path = (tmp_path / name for name in NAMES)
    replace_listed(first, b"first", 100, 32)
    if not fresh:
        replace_listed(path, b"old", 100, 32)
    with monkeypatch.context() as patch:
        kill_after(patch, writes)
        with pytest.raises(Killed):
            replace_listed(path, b"new", 10, 64)
    assert read_listed(first) == b"first"
    if writes == 2:  # the file was replaced
        assert read_listed(path) == b"new"
        assert read_manifest(tmp_path)[path.name]["classes"] == 10
    elif fresh:
        assert path.name not in read_manifest(tmp_path)
    else:
        assert read_listed(path) == b"old"
        assert read_manifest(tmp_path)[path.name]["classes"] == 100
    replace_listed(first, b"again", 100, 32)
    assert not any(name.endswith(manifest.NEXT) for name in json.loads((tmp_path / MANIFEST).read_text()))
    replace_listed(path, b"new", 10, 64)
    assert read_listed(path) == b"new"


def test_processes_that_write_into_one_folder_lose_nothing(tmp_path):
    code = (
        "import sys; from pathlib import Path; from pibench.models.manifest import replace_listed\n"
        "for n in range(10):\n"
        "    path = Path(sys.argv[1]) / f'{sys.argv[2]}-w{n}.safetensors'\n"
        "    replace_listed(path, path.name.encode(), 100, 32)\n"
    )
    writers = [subprocess.Popen([sys.executable, "-c", code, str(tmp_path), name]) for name in "ab"]
    while any(writer.poll() is None for writer in writers):
        for name in read_manifest(tmp_path):
            assert read_listed(tmp_path / name) == name.encode()
    assert [writer.wait() for writer in writers] == [0, 0]
    assert set(read_manifest(tmp_path)) == {f"{a}-w{n}.safetensors" for a in "ab" for n in range(10)}


ENTRY = {"sha256": "0" * 64, "classes": 100, "image_size": 32}
WHOLE = {NAMES[0]: ENTRY, NAMES[1] + manifest.NEXT: ENTRY}


@settings(max_examples=60, deadline=None, derandomize=True)
@given(content=damaged(WHOLE))
def test_a_damaged_manifest_is_named_in_one_line_and_left_as_it_is(tmp_path_factory, content):
    folder = tmp_path_factory.mktemp("weights")
    check_named(folder, json.dumps(content).encode())


@pytest.mark.parametrize("text", BROKEN, ids=range(len(BROKEN)))
def test_a_manifest_that_is_no_json_is_named(tmp_path, text):
    check_named(tmp_path, text)


def check_named(folder, text):
    (folder / MANIFEST).write_bytes(text)
    said = None
    try:
        assert set(read_manifest(folder)) <= set(NAMES)
    except WeightsError as error:
        said = str(error)
    if said is not None:
        assert str(folder / MANIFEST) in said
        assert said.endswith(": restore it from git, or remove it and train again")
        assert "\n" not in said
        with pytest.raises(WeightsError):
            replace_listed(folder / NAMES[0], b"new", 100, 32)
    assert (folder / MANIFEST).read_bytes() == text


def test_no_name_leads_out_of_the_folder(tmp_path):
    (tmp_path / MANIFEST).write_text(json.dumps({"../a.safetensors": ENTRY}))
    with pytest.raises(WeightsError, match=r"is no manifest of weights \(\.\./a\.safetensors"):
        read_manifest(tmp_path)


def test_a_folder_in_the_place_of_a_file_is_named(tmp_path):
    replace_listed(tmp_path / NAMES[0], b"x", 100, 32)
    (tmp_path / NAMES[0]).unlink()
    (tmp_path / NAMES[0]).mkdir()
    with pytest.raises(WeightsError, match=r"a-w1\.safetensors cannot be read \(Is a directory\): restore"):
        read_listed(tmp_path / NAMES[0])
    (tmp_path / MANIFEST).unlink()
    (tmp_path / MANIFEST).mkdir()
    with pytest.raises(WeightsError, match=r"manifest\.json cannot be read \(Is a directory\): restore"):
        read_manifest(tmp_path)
