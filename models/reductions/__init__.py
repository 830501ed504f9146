"""Reductions, one file each, which `pibench.models.catalogue` finds. Importing one needs no torch.

A file says `FAMILIES`, `VARIANTS`, and `SCHEDULES` if its training has phases of its own. What needs torch is
imported inside the functions that train.
"""
