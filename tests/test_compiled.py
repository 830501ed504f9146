"""The cache of compiled kernels: damage, full disks, places that nobody may write."""

import errno
import importlib.util
import os
import stat
import tempfile

import pytest
from numba.core import caching

from pibench.engines.lean import compiled

SOURCE = """
from numba import int64
from pibench.engines.lean.compiled import compiled

@compiled(int64(int64))
def doubled(a):
    return 2 * a
"""


@pytest.fixture
def source(tmp_path, monkeypatch):
    """A file with a kernel, whose cache numba keeps beside it."""
    monkeypatch.setattr(compiled, "_PLACES", list(compiled._PLACES))
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))
    (tmp_path / "temporary").mkdir()
    path = tmp_path / "kernel.py"
    path.write_text(SOURCE)
    return path


def loaded(path):
    """Imports the file anew, as another process would; returns the kernel."""
    spec = importlib.util.spec_from_file_location("kernel", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    assert module.doubled(21) == 42
    return module.doubled


def cached(folder):
    return sorted(path for path in folder.rglob("kernel.doubled-*"))


def hits(kernel):
    return sum(kernel.stats.cache_hits.values())


def flipped(content, place):
    """Flips one bit: numba runs such a file, whose answer is another one or the process's end."""
    changed = bytearray(content)
    changed[place] ^= 4
    return bytes(changed)


def test_a_kernel_is_compiled_once(source):
    assert hits(loaded(source)) == 0
    assert [path.suffix for path in cached(source.parent)] == [".nbc", ".nbi"]
    assert hits(loaded(source)) == 1


@pytest.mark.parametrize("suffix", [".nbi", ".nbc"])
@pytest.mark.parametrize(
    "spoil",
    [
        lambda content: b"",
        lambda content: content[:10],
        lambda content: content[: len(content) // 2],
        lambda content: content[:-1],
        lambda content: bytes(len(content)),
        lambda content: b"nonsense" * 100,
        *(lambda content, at=at: flipped(content, int(at * len(content))) for at in (0, 0.3, 0.5, 0.7)),
        lambda content: flipped(content, -1),
        lambda content: content[: -compiled.SEAL_BYTES],  # its writer was killed before the seal
    ],
)
def test_a_damaged_cache_is_made_anew(source, suffix, spoil):
    loaded(source)
    left = source.parent / "__pycache__" / "kernel.doubled-5.py311.nbc.tmp.0123456789abcdef"
    left.write_bytes(b"half")
    (path,) = (path for path in cached(source.parent) if path.suffix == suffix)
    path.write_bytes(spoil(path.read_bytes()))
    assert hits(loaded(source)) == 0
    assert not left.exists()
    assert hits(loaded(source)) == 1
    assert not list((source.parent / "temporary").iterdir())


def fail_to_write(monkeypatch, folder):
    """Lets numba write no file of its cache in a folder, as on a full disk."""
    write = caching.IndexDataCacheFile._save_data

    def save(self, name, data):
        if str(folder) in self._cache_path:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        write(self, name, data)

    monkeypatch.setattr(caching.IndexDataCacheFile, "_save_data", save)


def test_a_full_disk_leaves_the_private_folder(source, monkeypatch):
    with monkeypatch.context() as patch:
        fail_to_write(patch, source.parent / "__pycache__")
        loaded(source)
        assert [compiled._in_private_folder] == compiled._PLACES
    assert [path.suffix for path in cached(source.parent / "temporary")] == [".nbc", ".nbi"]


def test_nothing_that_can_be_written_still_gives_a_kernel(source, monkeypatch):
    fail_to_write(monkeypatch, source.parent)
    loaded(source)
    assert compiled._PLACES == []
    loaded(source)


def test_a_read_only_installation_without_a_home_keeps_its_cache_in_a_private_folder(source, monkeypatch):
    unwritable = [caching.UserProvidedCacheLocator]  # numba finds neither the folder nor a home
    monkeypatch.setattr(caching.CacheImpl, "_locator_classes", unwritable)
    assert hits(loaded(source)) == 0
    (folder,) = (source.parent / "temporary").iterdir()
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert hits(loaded(source)) == 1
    for path in cached(folder):
        path.write_bytes(b"")
    assert hits(loaded(source)) == 0
    assert hits(loaded(source)) == 1


def test_a_folder_that_others_may_write_is_not_used(source, monkeypatch):
    """Whoever can put files there could run code of theirs."""
    monkeypatch.setattr(caching.CacheImpl, "_locator_classes", [caching.UserProvidedCacheLocator])
    folder = source.parent / "temporary" / f"pibench-kernels-{os.getuid()}"
    folder.mkdir()
    folder.chmod(0o777)
    loaded(source)
    assert list(folder.iterdir()) == []


def test_an_error_of_the_compiler_is_not_hidden(source):
    source.write_text(SOURCE.replace("2 * a", "a.nothing"))
    with pytest.raises(Exception, match="nothing"):
        loaded(source)
