"""What is measured, and how: cases, rounds with checked answers, a session of them.

Called as `pibench.measure(model, images, ...)` it measures networks: see `pibench.api.measure`.
"""
