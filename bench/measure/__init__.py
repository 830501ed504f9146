"""Measurements: cases, rounds with checked answers, and a session of them."""
