import hashlib
import http.client
import http.server
import io
import os
import pickle
import tarfile
import threading
import time
import urllib.error
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
import torch

from pibench.models import data
from pibench.models.data import DataError, default_images, download, load_cifar100, normalised, picture_crops


def md5(content):
    return hashlib.md5(content).hexdigest()


def pickled(count, seed=0):
    images = np.random.default_rng(seed).integers(0, 256, (count, 3072), dtype=np.uint8)
    entries = {b"data": images, b"fine_labels": list(range(count)), b"batch_label": b"testing"}
    return pickle.dumps(entries, protocol=4), images


@pytest.fixture
def tiny(tmp_path):
    """A folder of tiny files in CIFAR's format, its checksums, and the test images."""
    folder = tmp_path / data.FOLDER
    folder.mkdir()
    checksums = {}
    for seed, name in enumerate(("train", "test", "meta")):
        content, images = pickled(5, seed)
        (folder / name).write_bytes(content)
        checksums[name] = md5(content)
        if name == "test":
            expected = images
    return tmp_path, checksums, expected


def test_the_original_format_is_read(tiny):
    root, checksums, expected = tiny
    images, labels = load_cifar100(root, "test", checksums)
    assert images.dtype == torch.uint8
    assert labels.tolist() == [0, 1, 2, 3, 4]
    assert images.shape == (5, 3, 32, 32)
    assert images[2, 1, 3, 4] == expected[2, 1024 + 3 * 32 + 4]
    assert not torch.equal(images, load_cifar100(root, "train", checksums)[0])


def test_bad_files_are_named(tiny):
    root, checksums, _ = tiny
    path = root / data.FOLDER / "test"
    with pytest.raises(DataError, match="test is damaged"):
        load_cifar100(root, "test")
    with pytest.raises(ValueError, match="unknown split 'validation'"):
        load_cifar100(root, "validation")
    with pytest.raises(DataError, match="cannot be read"):
        load_cifar100(root / "nowhere", "test", checksums)
    whole = path.read_bytes()
    for content in (whole[:100], b"", pickle.dumps([1]), pickle.dumps({b"data": 3}, protocol=4)):
        path.write_bytes(content)
        with pytest.raises(DataError, match="is no CIFAR-100 file"):
            load_cifar100(root, "test", None)
    path.write_bytes(pickle.dumps({b"data": np.zeros((2, 3072), np.uint8), b"fine_labels": [1]}, protocol=4))
    with pytest.raises(DataError, match="2 images but 1 labels"):
        load_cifar100(root, "test", None)


def test_a_pickle_that_calls_anything_is_refused(tiny, capsys):
    root, _, _ = tiny

    class Evil:
        def __reduce__(self):
            return print, ("called",)

    (root / data.FOLDER / "test").write_bytes(pickle.dumps(Evil(), protocol=4))
    with pytest.raises(DataError, match=r"builtins\.print, which no CIFAR file needs"):
        load_cifar100(root, "test", None)
    assert "called" not in capsys.readouterr().out


class Forged:
    """Pickles as an array of numpy with this state would."""

    def __init__(self, kind, *state):
        self.kind, self.state = kind, state

    def __reduce__(self):
        rebuild = np.empty(0).__reduce__()[0]
        return rebuild, (np.ndarray, (0,), b"b"), (1, self.state[0], np.dtype(self.kind), *self.state[1:])


@pytest.mark.parametrize(
    "array",
    [
        Forged("O", (2, 3072), False, b"A" * 8 * 2 * 3072),  # addresses of objects, to numpy's own reader
        Forged("O", (2, 3072), False, [1] * 2 * 3072),
        Forged("u1", (2**40, 3072), False, b"A" * 3072),
        Forged("u1", (-5, 3072), False, b"A" * 3072),
        Forged("u1", "shape", False, b"A" * 3072),
        Forged("f8", (1, 384), False, b"A" * 3072),
        Forged("u1", (3, 1024), False, b"A" * 3072),
        Forged("u1", (1, 3072), False, ["A"]),
        [[0] * 3072],
        None,
    ],
)
def test_a_forged_array_is_refused_though_its_checksum_is_asked_for(tiny, array):
    root, _, _ = tiny
    content = pickle.dumps({b"data": array, b"fine_labels": [1, 2]}, protocol=4)
    (root / data.FOLDER / "test").write_bytes(content)
    with pytest.raises(DataError, match=r"test is no CIFAR-100 file: [^\n]+$"):
        load_cifar100(root, "test", {"test": md5(content)})


def test_columns_first_are_read_as_numpy_does(tiny):
    root, _, expected = tiny
    entries = {b"data": np.asfortranarray(expected), b"fine_labels": [0] * 5}
    (root / data.FOLDER / "test").write_bytes(pickle.dumps(entries, protocol=4))
    images, _ = load_cifar100(root, "test", None)
    assert (images.view(5, -1).numpy() == expected).all()


@pytest.mark.parametrize("label", [100, 250, -3, 2**70, 1.0, "1", None, True])
def test_a_label_that_no_class_has_is_refused(tiny, label):
    root, _, expected = tiny
    content = pickle.dumps({b"data": expected, b"fine_labels": [0, 1, 2, 3, label]}, protocol=4)
    (root / data.FOLDER / "test").write_bytes(content)
    with pytest.raises(DataError, match=r"it has the label .*: labels are 0 to 99$"):
        load_cifar100(root, "test", None)


def test_nothing_is_parsed_before_its_checksum_is_right(tiny, monkeypatch):
    def never(*_, **__):
        raise AssertionError("parsed")

    root, checksums, _ = tiny
    monkeypatch.setattr(data, "_ArrayUnpickler", never)
    with pytest.raises(DataError, match="test is damaged"):
        load_cifar100(root, "test", {**checksums, "test": "0" * 32})


def test_a_pipe_in_the_place_of_a_file_is_named(tiny):
    root, checksums, _ = tiny
    path = root / data.FOLDER / "test"
    path.unlink()
    os.mkfifo(path)
    with pytest.raises(DataError, match=r"test cannot be read .*a pipe or a device"):
        load_cifar100(root, "test", checksums)


def test_default_images_are_the_test_set_when_it_is_there(tiny):
    root, checksums, expected = tiny
    images, source = default_images(3, root=root, checksums=checksums)
    assert source == "CIFAR-100 test set"
    pixel = (expected[1, 2048 + 7] / 255 - data.MEAN[2]) / data.STD[2]
    assert images[1, 2, 0, 7].item() == pytest.approx(pixel, abs=1e-5)
    larger, source = default_images(2, 64, root, checksums)
    assert larger.shape == (2, 3, 64, 64)
    assert source.endswith("resized to 64x64")
    assert abs(float(larger.mean() - images[:2].mean())) < 0.02
    with pytest.raises(ValueError, match="6 images asked for, CIFAR-100's test set has 5"):
        default_images(6, root=root, checksums=checksums)


@pytest.mark.parametrize("size", [32, 64, 224])
def test_default_images_without_data_are_crops_of_the_picture(tmp_path, size):
    images, source = default_images(6, size, tmp_path)
    assert "Grace Hopper" in source
    assert images.shape == (6, 3, size, size)
    assert images.dtype == torch.float32
    assert abs(float(images.mean())) < 1
    assert 0.5 < float(images.std()) < 2
    for one in range(6):
        for other in range(one):
            assert (images[one] - images[other]).abs().mean() > 0.05
    assert torch.equal(images[:3], default_images(3, size, tmp_path)[0])


def test_many_crops_are_all_different():
    crops = picture_crops(64, 16)
    assert len({crop.numpy().tobytes() for crop in crops}) == 64


@pytest.mark.parametrize("bad", [(0, 32), (1, 0)])
def test_no_images_cannot_be_asked_for(bad, tmp_path):
    with pytest.raises(ValueError, match="count and size are positive"):
        default_images(*bad, tmp_path)


def test_normalised_has_the_mean_at_zero():
    gray = torch.tensor([round(255 * value) for value in data.MEAN], dtype=torch.uint8).view(1, 3, 1, 1)
    assert normalised(gray).abs().max() < 0.01


@pytest.fixture
def archive(tmp_path):
    """A tiny archive like the original: its URL, md5 and the files' checksums."""
    checksums = {}
    path = tmp_path / "archive.tar.gz"
    with tarfile.open(path, "w:gz") as tar:
        for seed, name in enumerate(("train", "test", "meta")):
            content, _ = pickled(2, seed)
            checksums[name] = md5(content)
            info = tarfile.TarInfo(f"{data.FOLDER}/{name}")
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return path.as_uri(), md5(path.read_bytes()), checksums


def test_download_checks_and_unpacks_once(tmp_path, archive):
    url, archive_md5, checksums = archive
    root = tmp_path / "data"
    folder = download(root, url, archive_md5, checksums)
    assert sorted(path.name for path in folder.iterdir()) == ["meta", "test", "train"]
    assert len(load_cifar100(root, "test", checksums)[0]) == 2
    assert download(root, "file:///nowhere", archive_md5, checksums) == folder
    (folder / "test").write_bytes(b"damaged")
    download(root, url, archive_md5, checksums)
    assert len(load_cifar100(root, "test", checksums)[0]) == 2


def test_download_writes_nothing_that_is_not_the_original(tmp_path, archive):
    url, archive_md5, checksums = archive
    root = tmp_path / "data"
    with pytest.raises(DataError, match="is not the CIFAR-100 archive"):
        download(root, url, "0" * 32, checksums)
    assert not root.exists()
    with pytest.raises(DataError, match="test is damaged"):
        download(root, url, archive_md5, {**checksums, "test": "0" * 32})
    assert list((root / data.FOLDER).iterdir()) == []


@pytest.mark.parametrize(
    ("failure", "reason"),
    [
        (http.client.IncompleteRead(b"abc", 5), r"IncompleteRead\(3 bytes read, 5 more expected\)"),
        (http.client.RemoteDisconnected("closed"), "closed"),
        (urllib.error.URLError("no route"), "no route"),
        (TimeoutError("timed out"), "timed out"),
        (ConnectionResetError(), "ConnectionResetError"),
    ],
)
@pytest.mark.parametrize("reading", [False, True])
def test_an_interrupted_download_is_one_sentence_and_leaves_nothing(
    tmp_path, monkeypatch, failure, reason, reading
):
    class Response(io.BytesIO):
        def read1(self, *_):
            raise failure

    def opened(*_, **__):
        if reading:
            return Response()
        raise failure

    monkeypatch.setattr(data.urllib.request.OpenerDirector, "open", opened)
    with pytest.raises(
        DataError, match=rf"^CIFAR-100 cannot be downloaded from {data.URL} \({reason}\): [^\n]*$"
    ):
        download(tmp_path / "data")
    assert list(tmp_path.iterdir()) == []


class Server(http.server.BaseHTTPRequestHandler):
    """Sends to itself, or bytes without end."""

    asked = 0

    def do_GET(self):
        type(self).asked += 1
        if self.path == "/around":
            self.send_response(302)
            self.send_header("Location", "/around")
            self.end_headers()
            with suppress(OSError):
                while True:  # a text beside the redirect that does not end
                    self.wfile.write(b"x" * 1000)
            return
        self.send_response(200)
        self.end_headers()
        with suppress(OSError):
            while True:
                self.wfile.write(b"x")
                self.wfile.flush()
                time.sleep(0.02)

    def log_message(self, *_):
        pass


@pytest.fixture
def server(monkeypatch):
    """A server of this computer; returns its address."""
    monkeypatch.setattr(Server, "asked", 0)
    monkeypatch.setenv("no_proxy", "*")
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Server) as server:
        server.daemon_threads = True
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_address[1]}"
        server.shutdown()
        thread.join()


def test_a_download_that_leads_to_itself_ends(tmp_path, server):
    with pytest.raises(DataError, match=r"^CIFAR-100 cannot be downloaded .*infinite loop[^\n]*$"):
        download(tmp_path, f"{server}/around")
    assert Server.asked < 5


@pytest.mark.parametrize(
    ("changes", "reason"),
    [({"PATIENCE_S": 0.3}, "it sends less than 10 kB a second"), ({"LARGEST_BYTES": 10}, "more than 0 MB")],
)
def test_a_download_that_does_not_end_is_given_up(tmp_path, server, monkeypatch, changes, reason):
    for name, value in changes.items():
        monkeypatch.setattr(data, name, value)
    with pytest.raises(DataError, match=rf"^CIFAR-100 cannot be downloaded .*{reason}"):
        download(tmp_path, f"{server}/endless")
    assert list(tmp_path.iterdir()) == []


def test_an_archive_that_cannot_be_written_is_one_sentence(tmp_path, archive, monkeypatch):
    url, archive_md5, checksums = archive
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match=r"^CIFAR-100 cannot be written to .*file.* \(.+\)$"):
        download(tmp_path / "file", url, archive_md5, checksums)
    root = tmp_path / "data"

    def full(self, content):
        self.open("wb").close()
        raise OSError(28, os.strerror(28))

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(DataError, match="No space left on device"):
        download(root, url, archive_md5, checksums)
    assert list((root / data.FOLDER).iterdir()) == []


def test_the_default_folder_is_the_repositorys_from_any_working_directory():
    assert Path(data.__file__).parents[1].joinpath("data") == data.ROOT
    assert data.ROOT.is_absolute()
    for function in (load_cifar100, default_images, download):
        assert data.ROOT in function.__defaults__


def test_download_without_internet_says_what_to_do(tmp_path, monkeypatch, capsys):
    with pytest.raises(DataError, match=r"cannot be downloaded from file:///nowhere .*embedded picture"):
        download(tmp_path, "file:///nowhere")
    monkeypatch.setattr(data, "download", lambda *_: (_ for _ in ()).throw(DataError("no internet")))
    assert data.main([]) == 1
    assert capsys.readouterr().err == "no internet\n"


def test_help_downloads_nothing(monkeypatch, capsys):
    monkeypatch.setattr(data, "download", lambda *_: pytest.fail("downloaded"))
    for given, status in ((["--help"], 0), (["--rot"], 2), (["a", "b"], 2)):
        with pytest.raises(SystemExit) as end:
            data.main(given)
        assert end.value.code == status
    assert "Downloads CIFAR-100 and checks its files." in capsys.readouterr().out
