"""joint-snl: five blocks become shallow, then SNL chooses which of the other ReLUs are kept."""

from __future__ import annotations

from functools import partial

from pibench.models.base import Family, Variant
from pibench.models.reductions import joint, snl
from pibench.models.training.phases import Phase
from pibench.models.training.schedules import Plan

FAMILIES = (
    Family(
        name="joint-snl",
        label="joint, SNL",
        paper="arXiv 2304.13274, then Selective Network Linearization, ICML 2022 (arXiv 2202.02340)",
        summary="Five blocks become one convolution each; a lasso chooses which other ReLUs are kept.",
        colour="#F46D43",
        marker="D",
        place=42,
    ),
)


def trained(variant: Variant, plan: Plan) -> Phase:
    """Learns the shallow structure, then SNL's slopes on the rest, and tunes the network."""
    return snl.selected(variant, plan, joint.gated(variant, plan, joint.COUNT))


VARIANTS = tuple(
    Variant(
        f"joint-snl-{fraction}",
        trained,
        partial(joint.structure, count=joint.COUNT),
        fraction,
        snl.masks,
        joint.FINISH,
    )
    for fraction in (0.18, 0.09, 0.052)
)
