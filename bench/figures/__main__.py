"""`python -m bench.figures`."""

import sys

from bench.figures.command import main

if __name__ == "__main__":  # not in the processes that draw
    sys.exit(main())
