import os
import platform
import resource
import subprocess
import sys
import textwrap
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from json_faults import BROKEN

from pibench.models.files import STALE_S, changing, demand_room, locked, parse_json, read_file, replace_file
from pibench.models.machine import cpu_name


def test_a_file_that_cannot_be_written_leaves_nothing_behind(tmp_path):
    path = tmp_path / "new" / "file"
    replace_file(path, b"one")
    assert path.read_bytes() == b"one"
    with pytest.raises(OSError, match="file"):
        replace_file(path / "below", b"two")
    assert [entry.name for entry in path.parent.iterdir()] == ["file"]


def test_a_link_stays_and_its_file_is_replaced(tmp_path):
    there = tmp_path / "elsewhere" / "file"
    link = tmp_path / "link"
    link.symlink_to(there)  # a link to a file that is still to be made
    for data in (b"one", b"two"):
        replace_file(link, data)
        assert link.is_symlink()
        assert there.read_bytes() == link.read_bytes() == data
    assert [entry.name for entry in there.parent.iterdir()] == ["file"]


def test_what_is_no_file_is_refused_and_left_as_it_is(tmp_path):
    pipe, folder, loop = tmp_path / "pipe", tmp_path / "folder", tmp_path / "loop"
    os.mkfifo(pipe)
    folder.mkdir()
    loop.symlink_to(loop)
    for path, reason in ((pipe, "a pipe or a device"), (folder, "Is a directory"), (loop, "symbolic links")):
        for use in (lambda path=path: replace_file(path, b""), lambda path=path: demand_room(path)):
            with pytest.raises(OSError, match=reason):
                use()
    with pytest.raises(OSError, match="a pipe or a device"):
        replace_file(Path(os.devnull), b"")
    assert pipe.is_fifo()
    assert {entry.name for entry in tmp_path.iterdir()} == {"pipe", "folder", "loop"}


def test_what_may_not_end_is_not_read(tmp_path):
    path, link = tmp_path / "pipe", tmp_path / "link"
    os.mkfifo(path)
    link.symlink_to(path)
    for each in (path, link, Path("/dev/zero")):
        with pytest.raises(OSError, match="a pipe or a device"):
            read_file(each)
    with pytest.raises(FileNotFoundError):
        read_file(tmp_path / "none")
    replace_file(tmp_path / "file", b"held")
    assert read_file(tmp_path / "file") == b"held"


def test_json_is_read_as_it_stands_and_anything_else_is_one_value_error():
    assert parse_json('{"a": [1, 0.1, 5e-324, null, true, "\\n"]}') == {
        "a": [1, 0.1, 5e-324, None, True, "\n"]
    }
    assert parse_json("[" * 100 + "]" * 100)
    harmless = {b"[]": [], b"{}": {}, b"null": None, b"3": 3, b'"text"': "text"}
    for text in BROKEN:
        if text in harmless:
            assert parse_json(text) == harmless[text]
            continue
        with pytest.raises(ValueError, match=r"^[^\n]+$"):
            parse_json(text)


def test_what_a_killed_writer_left_is_removed_an_hour_later(tmp_path):
    old, young, other = (tmp_path / name for name in (".a.1.tmp", ".a.2.tmp", ".b.1.tmp"))
    for path in (old, young, other):
        path.write_bytes(b"half")
    hour_ago = time.time() - STALE_S - 1
    for path in (old, other):
        os.utime(path, (hour_ago, hour_ago))
    replace_file(tmp_path / "a", b"whole")
    assert {path.name for path in tmp_path.iterdir()} == {"a", young.name, other.name}


def test_threads_that_write_one_file_at_once_do_not_meet(tmp_path):
    path, texts = tmp_path / "file", [bytes([65 + each]) * 100_000 for each in range(6)]

    def write(text):
        for _ in range(20):
            replace_file(path, text)
            assert path.read_bytes() in texts

    with ThreadPoolExecutor(6) as pool:
        list(pool.map(write, texts))
    assert [entry.name for entry in tmp_path.iterdir()] == ["file"]


def test_room_is_demanded_for_what_is_there_and_a_megabyte_more(tmp_path):
    path = tmp_path / "new" / "file"
    demand_room(path)
    assert list(path.parent.iterdir()) == []
    path.write_bytes(b"kept")
    with pytest.raises(OSError, match="Not a directory"):
        demand_room(path / "below")
    demand_room(path)
    code = "import sys; from pathlib import Path; from pibench.models.files import demand_room\n"
    code += "demand_room(Path(sys.argv[1]))"
    small = subprocess.run(
        [sys.executable, "-c", code, str(path)],
        capture_output=True,
        text=True,
        timeout=60,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000)),  # like a full disk
    )
    assert "File too large" in small.stderr
    assert path.read_bytes() == b"kept"
    assert [entry.name for entry in path.parent.iterdir()] == ["file"]


def test_threads_and_processes_change_a_file_one_after_the_other(tmp_path):
    """Everyone reads a number and writes the next one; through a link, too."""
    path, link = tmp_path / "count", tmp_path / "link"
    path.write_bytes(b"0")
    link.symlink_to(path)
    code = textwrap.dedent(
        """
        import sys
        from pathlib import Path
        from pibench.models.files import changing, replace_file
        path = Path(sys.argv[1])
        for _ in range(20):
            with changing(path):
                replace_file(path, b"%d" % (int(path.read_bytes()) + 1))
        """
    )
    command = [sys.executable, "-c", code]
    others = [subprocess.Popen([*command, str(each)]) for each in (path, link)]

    def count():
        for _ in range(20):
            with changing(path):
                replace_file(path, b"%d" % (int(path.read_bytes()) + 1))

    threads = [threading.Thread(target=count) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [other.wait(60) for other in others] == [0, 0]
    assert path.read_bytes() == b"80"


def test_whoever_waits_for_a_lock_is_told_once(tmp_path):
    told = []
    with locked(tmp_path / "lock", lambda: told.append("first")):
        waiter = threading.Thread(target=lambda: locked_by(tmp_path / "lock", told))
        waiter.start()
        while not told:
            pass
    waiter.join(10)
    assert told == ["waiting", "in"]


def locked_by(path, told):
    with locked(path, lambda: told.append("waiting")):
        told.append("in")


def test_the_processor_is_named_by_its_model_else_by_its_architecture(monkeypatch):
    text = "processor : 0\nmodel name\t: A: fast one\nmodel name\t: another\n"
    monkeypatch.setattr(Path, "read_text", lambda path: text)
    assert cpu_name() == "A: fast one"
    for named, model, expected in (
        ("AMD EPYC", 17, "AMD EPYC (family 6, model 17)"),
        ("Xeon(R) CPU @ 2.20GHz", 79, "Xeon(R) CPU @ 2.20GHz (family 6, model 79)"),
        ("AMD EPYC 7B13", 1, "AMD EPYC 7B13"),
    ):
        text = f"cpu family\t: 6\nmodel\t\t: {model}\nmodel name\t: {named}\ncpu family\t: 9\nmodel\t: 9\n"
        monkeypatch.setattr(Path, "read_text", lambda path, text=text: text)
        assert cpu_name() == expected
    monkeypatch.setattr(platform, "processor", lambda: "")
    monkeypatch.setattr(platform, "machine", lambda: "aarch64")

    def absent(path):
        raise FileNotFoundError(path)

    monkeypatch.setattr(Path, "read_text", absent)
    assert cpu_name() == "aarch64"
    monkeypatch.setattr(platform, "machine", lambda: "")
    assert cpu_name() is None
