"""Reductions, one file each, which `pibench.models.catalogue` finds. Importing one needs no torch."""
