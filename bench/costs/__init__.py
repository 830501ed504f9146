"""Costs that are known without running anything: an engine's traffic, and what the literature models."""
