"""The end of a command that takes long and can be continued: what it prints, and its exit status."""

import sys
from collections.abc import Callable


def exit_status(work: Callable[[], object], *errors: type[Exception]) -> int:
    """Runs `work`; returns 0, 1 after one of `errors`, whose text it prints, or 130 after Ctrl-C."""
    try:
        work()
    except errors as error:
        print(error, file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("\nstopped: run the same command to go on", file=sys.stderr)
        return 130
    return 0
