"""What make would run, for the tests that read the Makefile."""

import os
import subprocess
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def without(prefix: str) -> dict[str, str]:
    """The environment of a command that knows nothing of the one that runs the tests."""
    return {name: value for name, value in os.environ.items() if not name.startswith(prefix)}


def dry_run(*targets: str) -> str:
    """The commands of targets of the Makefile, as they would be run."""
    run = subprocess.run(
        ["make", "--dry-run", *targets], cwd=ROOT, capture_output=True, text=True, env=without("MAKE")
    )
    assert run.returncode == 0, run.stderr
    return run.stdout
