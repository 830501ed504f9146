"""The digest that tells whether a row is up to date."""

import copy
import shutil
from dataclasses import replace

import numpy as np
import pytest

from pibench.measure import digest
from pibench.measure.case import Case
from pibench.measure.digest import digest_of
from pibench.measure.suites import default_cases

CASE = Case("baseline", "lean", width=8)
CONTEXT = {
    "machine": {"cpu": "a", "cores": 2, "memory_bytes": 1, "system": "Linux 6", "python": "3.11.7"},
    "versions": {"torch": "2.13.0", "numba": None},
    "host": "one",
    "commit": "abc",
    "dirty": False,
}


@pytest.fixture
def fresh_sources():
    """Forgets the digests of sources before and after a test that changes them."""
    cached = (digest._source_of, digest._source_of_models)
    for each in cached:
        each.cache_clear()
    yield
    for each in cached:
        each.cache_clear()


def test_every_default_case_has_a_digest_of_its_own_that_is_always_the_same():
    cases = default_cases()
    digests = [digest_of(case, CONTEXT) for case in cases]
    assert len(set(digests)) == len(cases)
    assert digests == [digest_of(copy.deepcopy(case), CONTEXT) for case in cases]


@pytest.mark.parametrize(
    "changes",
    [
        {"variant": "senet-0.09"},
        {"engine": "stock"},
        {"width": 16},
        {"batch": 2},
        {"link": "wan"},
        {"rounds": 9},
        {"warm_up": False},
        {"profiles": 1},
        {"role": "extra"},
        {"provider": "dealer"},
        {"reference": CASE},
        {"reference": replace(CASE, width=16)},
    ],
)
def test_every_setting_counts(changes):
    assert digest_of(replace(CASE, **changes), CONTEXT) != digest_of(CASE, CONTEXT)


def test_machine_and_versions_count_and_the_names_of_host_and_commit_do_not():
    same = digest_of(CASE, CONTEXT)
    assert digest_of(CASE, CONTEXT | {"host": "two", "commit": "def", "dirty": True}) == same
    assert digest_of(CASE, CONTEXT | {"machine": CONTEXT["machine"] | {"cores": 4}}) != same
    assert digest_of(CASE, CONTEXT | {"versions": {"torch": "2.13.1", "numba": None}}) != same


def test_a_users_network_counts_by_its_structure_weights_and_images(block, images):
    def digest_with(model=block, pictures=images):
        return digest_of(Case.of("mine", model, pictures, engine="lean"), CONTEXT)

    block.eval()
    same = digest_with()
    assert digest_with(copy.deepcopy(block), images.clone()) == same
    weights, structure = copy.deepcopy(block), copy.deepcopy(block)
    weights.fc.weight.data[0, 0] += 1
    structure.relu = copy.deepcopy(structure.relu)
    structure.relu.forward = lambda x: x
    assert len({same, digest_with(weights), digest_with(structure), digest_with(block, images + 1)}) == 4


def test_a_variant_counts_by_its_stored_weights(monkeypatch):
    same = digest_of(CASE, CONTEXT)
    stored = {"baseline-w8.safetensors": {"sha256": "0", "classes": 100, "image_size": 32}}
    monkeypatch.setattr(digest, "read_manifest", lambda: stored)
    assert digest_of(CASE, CONTEXT) != same


@pytest.mark.parametrize(
    ("place", "counts"),
    [
        ("bench/parties/driver.py", True),
        ("bench/measure/rounds.py", True),
        ("bench/report/tables.py", False),
        ("models/zoo/resnet.py", True),
        ("models/training/loop.py", False),
    ],
)
def test_the_source_that_measures_counts_and_no_other(place, counts, tmp_path, monkeypatch, fresh_sources):
    unread = shutil.ignore_patterns("__pycache__", "trained")
    shutil.copytree(digest.BENCH, tmp_path / "bench", ignore=unread)
    shutil.copytree(digest.MODELS, tmp_path / "models", ignore=unread)
    monkeypatch.setattr(digest, "BENCH", tmp_path / "bench")
    monkeypatch.setattr(digest, "MODELS", tmp_path / "models")
    before = digest_of(CASE, CONTEXT)
    (tmp_path / place).write_text("another")
    digest._source_of.cache_clear()
    digest._source_of_models.cache_clear()
    assert (digest_of(CASE, CONTEXT) != before) == counts


def test_values_that_look_alike_read_differently():
    def fed(value):
        found = digest.hashlib.sha256()
        digest._feed(found, value)
        return found.hexdigest()

    values = [1, "1", 1.0, True, None, [1], [[1]], [1, 2], [12], {"a": 1}, {"a": "1"}, b"1", np.array([1])]
    values += [np.array([1.0]), np.array([[1]]), ["a", "b"], ["ab"]]
    assert len({fed(value) for value in values}) == len(values)
