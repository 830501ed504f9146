"""Rows of measurements on disk, and their provenance."""
