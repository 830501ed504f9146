"""Measurements: cases, rounds with checked answers, and a session of them.

`pibench.measure(model, images, ...)` measures networks (see `pibench.api.measure`).
"""
