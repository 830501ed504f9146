"""Cases: the data that define a measurement.

A case is a network on an engine at a batch size. `reference` is the case whose rounds alternate with its own.
A ratio of the two is therefore paired, and a drift of the machine does not change it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pibench.models.catalogue import variant_names
from pibench.store.settings import WIDTH

if TYPE_CHECKING:
    from torch import Tensor, nn


@dataclass(frozen=True, eq=False)
class OwnNetwork:
    """A user's own network: `model` in eval mode, and `images` [M, ...] as its inputs, M >= 2.

    The first images are inferred, as many as a batch holds. At least two are needed for the spread of the
    logits.
    """

    model: nn.Module
    images: Tensor

    @property
    def width(self) -> int:
        """The output channels of the first layer with weights; 0 for a network without one."""
        return next((p.shape[0] for p in self.model.parameters() if p.ndim > 1), 0)


@dataclass(frozen=True)
class Case:
    """One row of results/bench.json.

    `variant` names a variant of the catalogue or, with `own`, a user's network (`Case.of`). `rounds` are
    measured ones, after one warm-up if `warm_up`; `profiles` inferences give the layers' seconds (their
    median); `reference` is the case measured in turn with this one; `role` groups rows in reports:
    "headline", "batch" (more than one image), "link" (not loopback), "sweep" (what `suites.sweep_cases` adds
    on loopback), "protocol" (an engine with one clock, on any link) or "extra" (other settings). `link` is a
    key of `pibench.links.LINKS`, a link such as "200Mbit/40ms" or, between two hosts, what
    `pibench.hosts.remote` calls it.
    """

    variant: str
    engine: str = "stock"
    width: int = WIDTH
    batch: int = 1
    parties: int = 2
    provider: str | None = None
    link: str = "loopback"
    role: str = "headline"
    rounds: int = 8
    warm_up: bool = True
    profiles: int = 3
    reference: Case | None = None
    own: OwnNetwork | None = None

    def __post_init__(self) -> None:
        if self.own is None:
            return
        if self.variant in variant_names():
            raise ValueError(f"{self.variant!r} is a variant's name: give your network another one")
        if not self.variant or "/" in self.variant:
            raise ValueError(f"a network needs a name without slashes, not {self.variant!r}")

    @classmethod
    def of(cls, name: str, model: nn.Module, images: Tensor, **settings: Any) -> Case:
        """Returns the case of a user's own network, called `name` in rows; `settings` are a case's other
        fields.

        Raises ValueError for the name of a variant.
        """
        own = OwnNetwork(model, images)
        return cls(name, width=own.width, own=own, **{"role": "extra", **settings})

    @property
    def id(self) -> str:
        """The name of the case in files and reports."""
        parts = [self.engine, self.variant, f"w{self.width}", f"b{self.batch}", f"{self.parties}p", self.link]
        return "/".join(parts + ([self.provider] if self.provider else []))
