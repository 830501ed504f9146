"""`python -m pibench.figures`."""

import sys

from pibench.figures.command import main

if __name__ == "__main__":  # not in the processes that draw
    sys.exit(main())
