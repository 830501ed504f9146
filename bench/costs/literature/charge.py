"""The result of a cost model for a network over a channel."""

from __future__ import annotations

from dataclasses import dataclass
from math import isnan

LABEL = "modelled"


@dataclass(frozen=True)
class Modelled:
    """A modelled cost: seconds and bytes (both ways) of the offline and online phase, and messages online.

    NaN marks values that a model does not give. `covers` names the work that the seconds include. `verified`
    is true if the constants were read at their source. Never mix these values with measured or emulated rows:
    `label` is "modelled".
    """

    model: str
    network: str
    channel: str
    offline_s: float
    online_s: float
    offline_bytes: float
    online_bytes: float
    rounds: float
    covers: str
    source: str
    verified: bool
    label: str = LABEL

    @property
    def total_s(self) -> float:
        """Seconds of both phases, or of the online phase if the offline phase is unknown."""
        return self.online_s + (0.0 if isnan(self.offline_s) else self.offline_s)
