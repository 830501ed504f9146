"""What a reduction declares of itself: pure data, so that reports and figures need no torch to read it."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Family:
    """A reduction: the variants of one method.

    `name` is the word before the budget in a variant's name (`senet` of `senet-0.09`), `label` its name in
    figures, `paper` its source, `summary` what it does in one sentence. `colour` and `marker` are its look in
    figures; `place` orders families in reports, the smallest first. `shown` names the variant that stands for
    the family where there is room for few, "" where it may be left out.
    """

    name: str
    label: str
    paper: str
    summary: str
    colour: str
    marker: str
    place: int
    shown: str = ""
