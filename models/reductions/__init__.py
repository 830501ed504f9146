"""Reductions, one file each, which `pibench.models.catalogue` finds. Importing one needs no torch.

A file defines `FAMILIES`, `VARIANTS`, and `SCHEDULES` if its training has its own phases. The functions that
train import torch themselves.
"""
