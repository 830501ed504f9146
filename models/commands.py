"""Commands: a parser that names the nearest right spelling, and the end of a command that goes on."""

import argparse
import difflib
import re
import sys
from collections.abc import Callable
from typing import NoReturn

from pibench.models.interrupt import ENDING, remembering, status_of


class Parser(argparse.ArgumentParser):
    """A parser whose complaint about a wrong name in one sentence gives the nearest right one."""

    def error(self, message: str) -> NoReturn:
        """Prints the complaint and ends the process with exit status 2."""
        if wrong := re.search(r"invalid choice: '?([^']*)'? \(choose from (.*)\)", message):
            given, known = wrong[1], re.findall(r"[^\s',]+", wrong[2])
        elif wrong := re.search(r"unrecognized arguments: (-\S*[^\s=])", message):
            given, known = wrong[1].partition("=")[0], re.findall(r"--[\w-]+", self.format_usage())
        else:
            given, known = "", []
        close = difflib.get_close_matches(given, known, n=1, cutoff=0.5)
        hint = f" (did you mean {close[0]!r}?)" if close else ""
        self.exit(2, f"{self.prog}: {message}{hint}; --help lists the options\n")


def exit_status(work: Callable[[], object], *errors: type[Exception]) -> int:
    """Runs `work`; returns 0, or 1 after one of `errors`, whose text it prints.

    It returns 130 after Ctrl-C, 143 after SIGTERM and 129 after SIGHUP.
    """
    try:
        with remembering(*ENDING):
            work()
    except errors as error:
        print(error, file=sys.stderr)
        return 1
    except KeyboardInterrupt as error:
        print("\nstopped: run the same command to go on", file=sys.stderr)
        return status_of(error)
    return 0
