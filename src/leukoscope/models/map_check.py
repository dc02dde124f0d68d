"""What the checks of a release's maps found: read from its metrics.json, without torch.

`research.map_checks` runs the checks. A map that failed them looks as plausible as one that passed, so whatever shows
a map says what they found.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

EVIDENCE_METHOD = "evidence"
"""The `method` of a map from one pass through the network: Grad-CAM relative to a blank picture."""
OCCLUSION_METHOD = "occlusion"
"""The `method` of a map by covering: how far the class's margin falls when a place of the picture is blurred."""
MAP_NAMES = {EVIDENCE_METHOD: "Grad-CAM map", OCCLUSION_METHOD: "map by covering"}
MAP_BLOCKS = {EVIDENCE_METHOD: "heat_maps", OCCLUSION_METHOD: "occlusion_maps"}
"""Method → the block of metrics.json that holds what the checks of its maps found."""
SCALE_BLOCKS = {EVIDENCE_METHOD: "evidence_scale", OCCLUSION_METHOD: "occlusion_scale"}
"""Method → the block of metrics.json that holds how strong its maps usually are."""


@dataclass(frozen=True)
class MapCheck:
    """What the checks of a release's maps found.

    Attributes:
        method: how the maps are computed, a key of `MAP_NAMES`.
        passed: whether the maps passed; None where they were not checked.
        deletion_gain: how much lower the class's mean probability, 0–1, is after the marked pixels are removed than
            after random ones; below 0 where random pixels matter more. None where it was not measured.
        weak, strong: of a cell's strongest value for any class, one measured cell in twenty stays below the first, and
            one in twenty exceeds the second; None where that was not measured.
    """

    method: str = EVIDENCE_METHOD
    passed: bool | None = None
    deletion_gain: float | None = None
    weak: float | None = None
    strong: float | None = None

    @classmethod
    def from_metrics(cls, metrics: Mapping[str, Any], method: str = EVIDENCE_METHOD) -> MapCheck:
        """Read it from a release's metrics.json; a block about maps of another method says nothing about these."""
        checks = metrics.get(MAP_BLOCKS[method]) or {}
        scale = metrics.get(SCALE_BLOCKS[method]) or {}
        if checks.get("method") != method:
            checks = {}
        if scale.get("method") != method:
            scale = {}
        gain = (checks.get("deletion") or {}).get("gain_over_random") or {}
        return cls(
            method,
            passed=checks.get("passed"),
            deletion_gain=gain.get("mean"),
            weak=scale.get("p05"),
            strong=scale.get("p95") or None,
        )

    @property
    def name(self) -> str:
        """What a map of this method is called."""
        return MAP_NAMES[self.method]

    @property
    def plural(self) -> str:
        """What maps of this method are called."""
        return self.name.replace("map", "maps")

    @property
    def text(self) -> str:
        """The finding in one or two sentences."""
        if self.passed is None:
            return f"This model's {self.plural} were not checked."
        finding = f"This model's {self.plural} {'passed' if self.passed else 'failed'} our checks."
        gain = self.deletion_gain
        if gain is None or self.passed != (gain > 0):  # another check decided
            return finding
        difference = f"{abs(gain):.2f} {'lower' if gain > 0 else 'higher'}"
        compared = f"the class's probability {difference} than removing random pixels"
        return f"{finding} Removing what they mark leaves {compared}."

    def to_dict(self) -> dict[str, Any]:
        """Return it ready for JSON."""
        return {**asdict(self), "text": self.text}
