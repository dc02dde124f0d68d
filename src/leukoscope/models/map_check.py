"""What the checks of a release's maps found: read from its metrics.json, without torch.

`research.map_checks` runs the checks. A map that failed them looks as plausible as one that passed, so whatever shows
a map says what they found.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

EVIDENCE = "evidence"
"""The `method` of a map from one pass through the network: Grad-CAM relative to a blank picture."""
MAP_NAMES = {EVIDENCE: "Grad-CAM map"}
MAP_BLOCKS = {EVIDENCE: "heat_maps"}
"""Method → the block of metrics.json that holds what the checks of its maps found."""


@dataclass(frozen=True)
class MapCheck:
    """What the checks of a release's maps found.

    Attributes:
        method: how the maps are computed, a key of `MAP_NAMES`.
        passed: whether the maps passed; None where they were not checked.
        deletion_gain: how much lower the class's mean probability, 0–1, is after the marked pixels are removed than
            after random ones; below 0 where random pixels matter more. None where it was not measured.
    """

    method: str = EVIDENCE
    passed: bool | None = None
    deletion_gain: float | None = None

    @classmethod
    def from_metrics(cls, metrics: Mapping[str, Any], method: str = EVIDENCE) -> MapCheck:
        """Read it from a release's metrics.json; a block about maps of another method says nothing about these."""
        block = metrics.get(MAP_BLOCKS[method]) or {}
        if block.get("method") != method:
            return cls(method)
        gain = (block.get("deletion") or {}).get("gain_over_random") or {}
        return cls(method, block.get("passed"), gain.get("mean"))

    @property
    def text(self) -> str:
        """The finding in one or two sentences."""
        if self.passed is None:
            return "This model's maps were not checked."
        finding = f"This model's maps {'passed' if self.passed else 'failed'} our checks."
        gain = self.deletion_gain
        if gain is None or self.passed != (gain > 0):  # another check decided
            return finding
        difference = f"{abs(gain):.2f} {'lower' if gain > 0 else 'higher'}"
        compared = f"the class's probability {difference} than removing random pixels"
        return f"{finding} Removing what they mark leaves {compared}."

    def to_dict(self) -> dict[str, Any]:
        """Return it ready for JSON."""
        return {"method": self.method, "passed": self.passed, "deletion_gain": self.deletion_gain, "text": self.text}
