"""Costs without a run: the traffic of an engine, and the cost models of the literature."""
