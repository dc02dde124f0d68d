"""How fast it learns at each step, when to stop, and which epoch was the best."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from leukoscope.models.recipes import Plateau


def cosine_with_warmup(step: int, total_steps: int, warmup_share: float) -> float:
    """Share of the peak learning rate at a step (0-based): linear warm-up, then half a cosine down to zero."""
    warmup = max(1, round(total_steps * warmup_share))
    if step < warmup:
        return (step + 1) / warmup
    progress = (step - warmup) / max(1, total_steps - warmup)
    return 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))


def gain(row: Mapping[str, Any], quantity: str) -> float:
    """A column of summary.csv so that more is better; a loss counts negative."""
    return -row[quantity] if quantity.endswith("_loss") else row[quantity]


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

    def judge(self, row: Mapping[str, Any], quantity: str) -> Decision:
        """Record an epoch's row of summary.csv by one of its columns."""
        epoch = row["epoch"] - 1
        improved = self.update(epoch, gain(row, quantity))
        reason = f"no better validation score for {self.patience} epochs" * self.should_stop(epoch)
        return Decision(quantity, improved, reason)

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint keeps, in plain JSON values."""
        return {"score": self.score if self.epoch >= 0 else None, "epoch": self.epoch, "gained": self._gained}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on where `state_dict` was taken."""
        self.score = -math.inf if state["score"] is None else state["score"]
        self.epoch, self._gained = state["epoch"], state["gained"]


@dataclass(frozen=True)
class Decision:
    """What follows from an epoch.

    Attributes:
        watched: the column of summary.csv that was judged.
        improved: it was the best so far: these are the weights to keep.
        reason: why training should stop and the weights kept be restored; "" to go on.
        rate: what the scheduled learning rate is multiplied by from the next epoch on.
    """

    watched: str
    improved: bool
    reason: str = ""
    rate: float = 1.0

    @property
    def stop(self) -> bool:
        """True where there is a reason to."""
        return bool(self.reason)


class PlateauController:
    """Cuts the learning rate when a figure stops improving, and ends training after several cuts in vain.

    It sees one row of summary.csv an epoch and touches neither network nor optimiser: the loop does what it decides.
    The best of both figures is remembered at every epoch, whichever is watched, so that a change of what is watched
    starts from the best value seen so far.

    Attributes:
        rate: what the scheduled learning rate is multiplied by now.
    """

    def __init__(self, plateau: Plateau):
        self.plateau = plateau
        self.rate = 1.0
        self._best: dict[str, float] = {}
        self._waited = self._cuts = 0

    def update(self, row: Mapping[str, Any]) -> Decision:
        """Judge an epoch by its row.

        Args:
            row: holds train_accuracy and the plateau's `monitor`.
        """
        watched = self._watched(row)
        improved = self._note(row)[watched]
        self._waited = 0 if improved else self._waited + 1
        if improved:
            self._cuts = 0
        elif self._waited >= self.plateau.patience:
            self.rate *= self.plateau.factor
            self._waited, self._cuts = 0, self._cuts + 1
        stop = self._cuts >= self.plateau.stop_patience
        return Decision(watched, improved, f"{self._cuts} cuts of the learning rate brought no gain" * stop, self.rate)

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint keeps, in plain JSON values."""
        return {"rate": self.rate, "best": dict(self._best), "waited": self._waited, "cuts": self._cuts}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on where `state_dict` was taken."""
        self.rate, self._best = state["rate"], dict(state["best"])
        self._waited, self._cuts = state["waited"], state["cuts"]

    def _watched(self, row: Mapping[str, Any]) -> str:
        until = self.plateau.until_train_accuracy
        return "train_accuracy" if until is not None and row["train_accuracy"] < until else self.plateau.monitor

    def _note(self, row: Mapping[str, Any]) -> dict[str, bool]:
        """Remember what is better than ever; a value that is no number never is."""
        known = ("train_accuracy", self.plateau.monitor)
        better = {name: gain(row, name) > self._best.get(name, -math.inf) for name in known}
        self._best |= {name: gain(row, name) for name in known if better[name]}
        return better
