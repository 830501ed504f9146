"""Figures and tables for a paper: `pibench figures --paper`."""
