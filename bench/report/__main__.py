"""`python -m pibench.report`."""

import sys

from pibench.report.command import main

sys.exit(main())
