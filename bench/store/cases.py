"""The lines of a table of cases that stand for a network in figures and reports."""

import pandas as pd  # type: ignore[import-untyped]  # its stubs are a package of their own


def single_images(cases: pd.DataFrame, width: int) -> pd.DataFrame:
    """Returns the cases of networks of one width that run one image between two parties."""
    return cases[(cases["width"] == width) & (cases["batch"] == 1) & (cases["parties"] == 2)]
