"""Rows of measurements on disk, and where they come from."""
