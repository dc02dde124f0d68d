"""How fast it learns at each step, and when to stop."""

from __future__ import annotations

import math
from dataclasses import dataclass, field


def cosine_with_warmup(step: int, total_steps: int, warmup_share: float) -> float:
    """Share of the peak learning rate at a step (0-based): linear warm-up, then half a cosine down to zero."""
    warmup = max(1, round(total_steps * warmup_share))
    if step < warmup:
        return (step + 1) / warmup
    progress = (step - warmup) / max(1, total_steps - warmup)
    return 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))


@dataclass
class BestEpoch:
    """Remembers the best validation score and says when waiting longer is pointless.

    Attributes:
        patience: epochs without a better score before stopping.
    """

    patience: int
    score: float = field(default=-math.inf, init=False)
    epoch: int = field(default=-1, init=False)
    _gained: int = field(default=-1, init=False)

    def update(self, epoch: int, score: float) -> bool:
        """Record an epoch's score; True when none was better: of equals, the longer-trained epoch is kept."""
        if score > self.score:
            self._gained = epoch
        if score >= self.score:
            self.score, self.epoch = score, epoch
            return True
        return False

    def should_stop(self, epoch: int) -> bool:
        """True once `patience` epochs have passed since the score last rose."""
        return epoch - self._gained >= self.patience
