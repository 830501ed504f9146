from pathlib import Path

import pytest

from pibench import report

ROOT = Path(__file__).parent.parent


def test_readme_and_tables_are_those_of_the_committed_rows():
    if not (ROOT / "results" / "bench.json").exists():
        pytest.skip("no reference run has been committed yet")
    options = ["--results", str(ROOT / "results"), "--readme", str(ROOT / "README.md")]
    assert report.main([*options, "--check"]) == 0
